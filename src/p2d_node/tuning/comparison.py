"""Compares two splits of the same number of tokens, on questions that the search has not seen.

The searched ratios are compared with the most even split of as many tokens. Both answer the same
questions, and the difference is taken per resample (paired bootstrap). Resamples draw scenes:
questions about one keyframe share its images, and keyframes of one scene are alike. If there are
few scenes, keyframes are drawn instead. The interval is then too narrow, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from p2d_node.errors import ConfigError
from p2d_node.tuning.answers import Answered
from p2d_node.tuning.objective import Objective
from p2d_node.tuning.score_table import Floats, make_table, SampleScores, score_samples
from p2d_node.tuning.session import QuestionSet, TuningSession

NUM_RESAMPLES = 10_000
LEVEL = 0.95
MIN_SCENES = 20
"""With fewer scenes, keyframes are drawn instead."""

CHUNK = 1000
"""Resamples at a time: bounds memory."""

WIN, LOSS, UNDECIDED = 'better', 'worse', 'no difference shown'


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both splits, and by how much they differ.

    Attributes:
        searched: Of the searched ratios.
        uniform: Of the even split.
        low: Lower end of the confidence interval of searched - uniform.
        high: Upper end.
    """

    searched: float
    uniform: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Searched - uniform."""
        return self.searched - self.uniform

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.low > 0.0:
            return WIN
        return LOSS if self.high < 0.0 else UNDECIDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The outcome on held-out questions.

    Attributes:
        num_keyframes: Held-out keyframes.
        num_questions: Held-out questions.
        searched_ratios: Camera to ratio.
        uniform_ratios: Camera to ratio of the even split.
        tokens_kept: Of a sweep, searched and uniform.
        resampled: What the intervals were drawn from.
        figures: `score` is the objective without its penalty on ratios, which at equal tokens
            would compare roundings; then its parts, and `exact`, all answers word for word.
    """

    num_keyframes: int
    num_questions: int
    searched_ratios: Mapping[str, float]
    uniform_ratios: Mapping[str, float]
    tokens_kept: tuple[int, int]
    resampled: str
    figures: Mapping[str, Difference]

    @property
    def verdict(self) -> str:
        """What the interval of the score allows to say."""
        return self.figures['score'].verdict


def check_unseen(held_out: QuestionSet, searched: QuestionSet) -> None:
    """Raise `ConfigError` if the search uses a held-out keyframe."""
    known = set(searched.digests.values())
    for name, digest in held_out.digests.items():
        if digest in known:
            raise ConfigError(
                f'held_out: keyframe {name} has the same pictures as one that the search uses; '
                'hold out keyframes that it does not'
            )


def compare_with_uniform(
    session: TuningSession,
    held_out: QuestionSet,
    ratios: Mapping[str, float],
    on_keyframe: Callable[[], None] = lambda: None,
) -> Comparison:
    """Answer held-out questions with the searched ratios and with the even split."""
    space = session.space
    tokens = sum(space.tokens_kept(ratios).values())
    uniform = space.uniform_ratios(tokens)
    evaluator = session.evaluator(held_out)
    answers = [evaluator.answer_all(split, on_keyframe) for split in (ratios, uniform)]
    units, resampled = units_of([keyframe.name for keyframe in evaluator.keyframes])
    return Comparison(
        num_keyframes=len(held_out.keyframes),
        num_questions=len(held_out.questions),
        searched_ratios=dict(ratios),
        uniform_ratios=uniform,
        tokens_kept=(tokens, sum(space.tokens_kept(uniform).values())),
        resampled=resampled,
        figures=bootstrap(
            answers[0],
            answers[1],
            session.options.objective,
            units=units,
            seed=session.options.seed,
        ),
    )


def units_of(keyframes: Sequence[str]) -> tuple[list[str], str]:
    """Return per keyframe, named `<scene>_<frame>`, what it is drawn with, and what that is."""
    scenes = [name.rpartition('_')[0] for name in keyframes]
    num_scenes = len(set(scenes))
    if num_scenes >= MIN_SCENES:
        return scenes, f'{num_scenes} scenes'
    return list(keyframes), f'{len(keyframes)} keyframes of only {num_scenes} scenes'


def bootstrap(
    searched: Sequence[Sequence[Answered]],
    uniform: Sequence[Sequence[Answered]],
    objective: Objective,
    *,
    units: Sequence[str],
    seed: int,
) -> dict[str, Difference]:
    """Return figure to difference, with its confidence interval.

    Args:
        searched: Per keyframe the answers with the searched ratios.
        uniform: Per keyframe, in the same order, those with the even split.
        objective: Weighs the parts of the score.
        units: Per keyframe the name of what is drawn; keyframes of one name are drawn together.
        seed: Of the resampling.
    """
    tables = [
        _sum_units(make_table(answers, objective.tokenizer), units)
        for answers in (searched, uniform)
    ]
    whole = np.ones((1, len(tables[0])))
    at_all = [_figures(score_samples(table, whole), objective) for table in tables]
    draws = _resample(tables, objective, seed)
    tail = (1.0 - LEVEL) / 2.0
    differences = {}
    for name in at_all[0]:
        low, high = np.quantile(draws[name], [tail, 1.0 - tail])
        differences[name] = Difference(
            float(at_all[0][name][0]), float(at_all[1][name][0]), float(low), float(high)
        )
    return differences


def _sum_units(table: Floats, units: Sequence[str]) -> Floats:
    """Return the sums of the rows of each unit, [units, columns], of a row per keyframe."""
    places = {name: place for place, name in enumerate(dict.fromkeys(units))}
    sums = np.zeros((len(places), *table.shape[1:]))
    np.add.at(sums, [places[unit] for unit in units], table)
    return sums


def _resample(tables: Sequence[Floats], objective: Objective, seed: int) -> dict[str, Floats]:
    """Return figure to its differences in many resamples of the rows of two tables."""
    rng = np.random.default_rng(seed)
    num_units = len(tables[0])
    even = np.full(num_units, 1.0 / num_units)
    chunks: dict[str, list[Floats]] = {}
    for _ in range(NUM_RESAMPLES // CHUNK):
        times = rng.multinomial(num_units, even, size=CHUNK).astype(np.float64)
        one, other = (_figures(score_samples(t, times), objective) for t in tables)
        for name, values in one.items():
            chunks.setdefault(name, []).append(values - other[name])
    return {name: np.concatenate(parts) for name, parts in chunks.items()}


def _figures(parts: SampleScores, objective: Objective) -> dict[str, Floats]:
    return {
        'score': objective.weigh(parts.language, parts.accuracy),
        'accuracy': parts.accuracy,
        'language': parts.language,
        'exact': parts.exact,
    }
