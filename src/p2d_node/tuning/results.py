"""Reads the results of a study: per method, and the best of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState
from p2d_node.errors import ConfigError
from p2d_node.tuning.trials import finished, given_up, MethodStudy


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A trial that answered every question.

    Attributes:
        method: The method that chose it.
        number: Its number in the method's study.
        score: Value of the objective.
        language: Part of the score; None if no question has it.
        accuracy: Part of the score; None if no question has it.
        ratios: Camera to retention ratio.
        tokens_kept: Kept visual tokens per sweep.
        num_cut: Answers that were cut at `max_new_tokens`.
    """

    method: str
    number: int
    score: float
    language: float | None
    accuracy: float | None
    ratios: Mapping[str, float]
    tokens_kept: int
    num_cut: int = 0

    @classmethod
    def of(cls, method: str, trial: FrozenTrial) -> TrialResult:
        """Read a complete trial."""
        facts = trial.user_attrs
        return cls(
            method=method,
            number=trial.number,
            score=float(trial.values[0]),
            language=facts['language'],
            accuracy=facts['accuracy'],
            ratios=facts['ratios'],
            tokens_kept=facts['tokens_kept'],
            num_cut=facts.get('num_cut', 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodResult:
    """Results of one method.

    Attributes:
        method: Its name.
        num_trials: Finished trials.
        num_pruned: Finished trials that ended early.
        num_failed: Trials that failed too often, beside the finished ones.
        seconds: Sum of the times of all finished trials.
        complete: The finished trials that were not pruned, in the order of their numbers.
        history: After each finished trial the best score so far; None before the first.
    """

    method: str
    num_trials: int
    num_pruned: int
    num_failed: int
    seconds: float
    complete: tuple[TrialResult, ...]
    history: tuple[float | None, ...]

    @property
    def best(self) -> TrialResult | None:
        """The complete trial with the highest score; the first of equal ones."""
        return max(self.complete, key=lambda result: result.score, default=None)


def collect_results(studies: Mapping[str, MethodStudy]) -> list[MethodResult]:
    """Read every method's study."""
    return [_collect(method, study) for method, study in studies.items()]


def _collect(method: str, study: MethodStudy) -> MethodResult:
    trials = study.trials
    done = finished(trials)
    complete = [t for t in done if t.state == TrialState.COMPLETE]
    best: float | None = None
    history: list[float | None] = []
    for trial in done:
        if trial.state == TrialState.COMPLETE:
            value = float(trial.values[0])
            best = value if best is None else max(best, value)
        history.append(best)
    return MethodResult(
        method=method,
        num_trials=len(done),
        num_pruned=len(done) - len(complete),
        num_failed=len(given_up(trials)),
        seconds=sum(float(t.user_attrs.get('seconds', 0.0)) for t in done),
        complete=tuple(TrialResult.of(method, t) for t in complete),
        history=tuple(history),
    )


def best_of(results: Sequence[MethodResult]) -> TrialResult:
    """Return the best complete trial of all methods; of equal ones that with fewer tokens.

    Raises:
        ConfigError: No trial is complete.
    """
    complete = [result for method in results for result in method.complete]
    if not complete:
        raise ConfigError('trials: no trial is complete yet, so there is nothing to report')
    return max(complete, key=lambda result: (result.score, -result.tokens_kept))
