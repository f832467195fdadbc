"""Reads the results of a study: per method, and the best of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import json
import math
import sys
from typing import Any, TypeGuard

from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from p2d_node.config import RETENTION_RATIO
from p2d_node.errors import ConfigError, quote
from p2d_node.tuning.search_space import SearchSpace
from p2d_node.tuning.storage import storage_errors
from p2d_node.tuning.trials import finished, given_up, MethodStudy

RUNNING = 'tpe:relative_params:'
"""Begin of the attributes in which Optuna's TPE keeps the parameters of a trial that runs."""

MAX_COUNT = 10**9
MAX_NUMBER = sys.float_info.max
ROUNDING = 1e-6

ScoreOf = Callable[[float | None, float | None, Mapping[str, float]], float]


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
    def of(
        cls, method: str, trial: FrozenTrial, space: SearchSpace, score_of: ScoreOf
    ) -> TrialResult:
        """Read a complete trial.

        Raises:
            ValueError: A value is missing, or is not one that a trial of this space can have.
        """
        facts = _facts_of(method, trial)
        ratios = facts.ratios(space)
        language, accuracy = facts.part('language'), facts.part('accuracy')
        return cls(
            method=method,
            number=trial.number,
            score=facts.score(trial.values, score_of(language, accuracy, ratios)),
            language=language,
            accuracy=accuracy,
            ratios=ratios,
            tokens_kept=facts.count('tokens_kept', sum(space.tokens_kept(ratios).values())),
            num_cut=facts.count('num_cut') if 'num_cut' in trial.user_attrs else 0,
        )


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a storage says about a trial; each value is checked when it is read."""

    trial: str
    stored: Mapping[str, Any]

    def score(self, values: Any, expected: float) -> float:
        is_one = isinstance(values, list) and len(values) == 1 and _is_number(values[0])
        if not is_one or not math.isclose(values[0], expected, abs_tol=ROUNDING):
            raise self._wrong('score', values, f'one number, {expected:g}, as its parts say')
        return float(values[0])

    def part(self, name: str) -> float | None:
        value = self._get(name)
        if value is not None and not (_is_number(value) and 0.0 <= value <= 1.0 + ROUNDING):
            raise self._wrong(name, value, '0 to 1, or null')
        return value

    def seconds(self) -> float:
        value = self.stored.get('seconds', 0.0)
        if not _is_number(value) or value < 0.0:
            raise self._wrong('seconds', value, 'a finite number, at least 0')
        return float(value)

    def count(self, name: str, expected: int | None = None) -> int:
        value: int = self._get(name)
        is_count = type(value) is int and 0 <= value <= MAX_COUNT
        if not is_count or expected not in (None, value):
            allowed = f'0 to {MAX_COUNT}' if expected is None else f'{expected}, as its ratios say'
            raise self._wrong(name, value, allowed)
        return value

    def ratios(self, space: SearchSpace) -> dict[str, float]:
        value = self._get('ratios')
        is_whole = isinstance(value, dict) and set(value) == set(space.cameras)
        if not is_whole or not all(map(_is_ratio, value.values())):
            allowed = f'{RETENTION_RATIO.allowed} for each of {", ".join(space.cameras)}'
            raise self._wrong('ratios', value, allowed)
        return {camera: float(value[camera]) for camera in space.cameras}

    def _get(self, name: str) -> Any:
        if name not in self.stored:
            raise ValueError(f'{self.trial}: {name} is missing')
        return self.stored[name]

    def _wrong(self, name: str, value: object, allowed: str) -> ValueError:
        return ValueError(f'{self.trial}: {name}: got {quote(value)}, allowed: {allowed}')


def _facts_of(method: str, trial: FrozenTrial) -> _Facts:
    return _Facts(f'trial {trial.number} of {method}', trial.user_attrs)


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER  # type: ignore[arg-type]


def _is_ratio(value: object) -> bool:
    return _is_number(value) and RETENTION_RATIO.allows(value)


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


def collect_results(
    studies: Mapping[str, MethodStudy], space: SearchSpace, score_of: ScoreOf
) -> list[MethodResult]:
    """Read every method's study.

    Args:
        studies: Method to its study.
        space: What the trials search in.
        score_of: The objective: language, accuracy and ratios to the score.

    Raises:
        BackendUnavailableError: A trial has a value that no trial of this space can have.
    """
    return [_collect(method, study, space, score_of) for method, study in studies.items()]


def _collect(
    method: str, study: MethodStudy, space: SearchSpace, score_of: ScoreOf
) -> MethodResult:
    trials = study.trials
    done = finished(trials)
    with storage_errors(study.storage):
        for trial in trials:
            _check_parameters(method, trial, space)
        complete = {
            trial.number: TrialResult.of(method, trial, space, score_of)
            for trial in done
            if trial.state == TrialState.COMPLETE
        }
        return MethodResult(
            method=method,
            num_trials=len(done),
            num_pruned=len(done) - len(complete),
            num_failed=len(given_up(trials)),
            seconds=sum(_facts_of(method, trial).seconds() for trial in done),
            complete=tuple(complete.values()),
            history=tuple(_best_so_far(done, complete)),
        )


def _check_parameters(method: str, trial: FrozenTrial, space: SearchSpace) -> None:
    # Optuna's samplers may search without end for a value between two that are out of range.
    low, high = space.bounds
    expected = FloatDistribution(low, high)
    for name, value in [*trial.params.items(), *_coming_parameters(trial.system_attrs)]:
        is_ours = name in space.cameras and trial.distributions.get(name, expected) == expected
        if not is_ours or not low <= value <= high:
            raise ValueError(
                f'trial {trial.number} of {method}: {quote(name)}: got {quote(value)}, allowed: '
                f'{low:g} to {high:g} for each of {", ".join(space.cameras)}'
            )


def _coming_parameters(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the parameters of a trial that waits, and what TPE keeps of one that runs."""
    yield from attributes.get('fixed_params', {}).items()
    parts = [attributes[name] for name in sorted(attributes) if name.startswith(RUNNING)]
    yield from json.loads(''.join(parts) or '{}').items()


def _best_so_far(
    done: Sequence[FrozenTrial], complete: Mapping[int, TrialResult]
) -> Iterator[float | None]:
    best: float | None = None
    for trial in done:
        result = complete.get(trial.number)
        if result is not None:
            best = result.score if best is None else max(best, result.score)
        yield best


def best_of(results: Sequence[MethodResult]) -> TrialResult:
    """Return the best complete trial of all methods; of equal ones that with fewer tokens.

    Raises:
        ConfigError: No trial is complete.
    """
    complete = [result for method in results for result in method.complete]
    if not complete:
        raise ConfigError('trials: no trial is complete yet, so there is nothing to report')
    return max(complete, key=lambda result: (result.score, -result.tokens_kept))
