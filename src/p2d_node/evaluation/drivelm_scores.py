"""DriveLM's scores by its official rules: accuracy, match, language, judge, and their sum.

The rules are those of the challenge's evaluation script (OpenDriveLab/DriveLM, challenge/
evaluation.py), which facts such as the order of questions, the gating by the first answer and the
small constant in F1 are taken from. It divides by zero where a kind of question is absent; here
that score is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
import re
import statistics

from p2d_node.errors import ConfigError
from p2d_node.evaluation.drivelm_questions import DriveLmQuestion, Tag
from p2d_node.evaluation.judge import CachedJudge, SCORE
from p2d_node.evaluation.language_metrics import LanguageScores, score_language

NUMBER = re.compile(r'(?<!\d)\d{1,9}\.\d+')
MAX_POINTS = 256
"""Of a text; an answer about a sweep names about ten. Each is compared with each."""

MATCH_DISTANCE_PX = 16.0
"""L1 distance below which two points are the same object."""

EPSILON = 1e-8
WEIGHTS = {'judge': 0.4, 'language': 0.2, 'match': 0.2, 'accuracy': 0.2}

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveLmScores:
    """Scores of one set of predictions; None if the data or the judge gives none.

    Attributes:
        num_questions: All questions of the data.
        num_scored: Those that count: a keyframe's first, and others whose points it found.
        accuracy: Share of exact answers.
        language: BLEU, ROUGE_L and CIDEr.
        match_f1: Mean F1 of the points, 0 to 100: the part of `match` without a judge.
        match: Mean of `match_f1` and of the judge's score for the same answers, 0 to 100.
        judge: The judge's mean score, 0 to 100.
        final: The official weighted sum, 0 to 1.
    """

    num_questions: int
    num_scored: int
    accuracy: float | None
    language: LanguageScores | None
    match_f1: float | None
    match: float | None
    judge: float | None
    final: float | None


def score_predictions(
    questions: Sequence[DriveLmQuestion],
    predictions: Mapping[str, str],
    *,
    judge: CachedJudge | None = None,
    tokenizer: str = 'auto',
) -> DriveLmScores:
    """Score predictions against references.

    Args:
        questions: All of them, those of a keyframe together and in order.
        predictions: Question id to answer.
        judge: Scores free answers; None: the judge's scores are absent.
        tokenizer: See `score_language`.

    Raises:
        ConfigError: A question has no prediction or no reference.
    """
    _require_complete(questions, predictions)
    counted = [
        question
        for _, group in groupby(questions, key=lambda question: question.keyframe)
        for question in _gate(list(group), predictions)
    ]
    by_tag = {tag: [q for q in counted if tag in q.tags] for tag in Tag}

    def pairs(tag: Tag) -> list[tuple[str, str]]:
        return [(predictions[q.id], str(q.reference)) for q in by_tag[tag]]

    def judged(tag: Tag) -> float | None:
        if judge is None:
            return None
        triples = [(q.question, predictions[q.id], str(q.reference)) for q in by_tag[tag]]
        return _mean([score for score in judge.judge(SCORE, triples) if score is not None])

    texts = list(zip(*pairs(Tag.LANGUAGE), strict=True))
    language = score_language(texts[0], texts[1], tokenizer=tokenizer) if texts else None
    match_f1 = _mean([100.0 * match_points(a, b)[1] for a, b in pairs(Tag.MATCH)])
    match_judge = judged(Tag.MATCH)
    match = None if match_f1 is None or match_judge is None else (match_f1 + match_judge) / 2.0
    accuracy = _mean([float(a == b) for a, b in pairs(Tag.ACCURACY)])
    judge_score = judged(Tag.JUDGE)
    return DriveLmScores(
        num_questions=len(questions),
        num_scored=len(counted),
        accuracy=accuracy,
        language=language,
        match_f1=match_f1,
        match=match,
        judge=judge_score,
        final=_final(judge_score, language, match, accuracy),
    )


def _final(
    judge: float | None,
    language: LanguageScores | None,
    match: float | None,
    accuracy: float | None,
) -> float | None:
    if judge is None or language is None or match is None or accuracy is None:
        return None
    parts = {'judge': judge / 100.0, 'match': match / 100.0, 'accuracy': accuracy}
    parts['language'] = language.score
    return sum(WEIGHTS[name] * part for name, part in parts.items())


def _require_complete(
    questions: Sequence[DriveLmQuestion], predictions: Mapping[str, str]
) -> None:
    missing = [question.id for question in questions if question.id not in predictions]
    if missing:
        raise ConfigError(
            f'predictions: {len(missing)} of {len(questions)} questions have none, the first is '
            f'{missing[0]}; every question needs one'
        )
    bare = [question.id for question in questions if question.reference is None]
    if bare:
        raise ConfigError(
            f'data: {len(bare)} of {len(questions)} questions have no reference answer, the first '
            f'is {bare[0]}; score with a file that has answers'
        )


def _gate(
    questions: Sequence[DriveLmQuestion], predictions: Mapping[str, str]
) -> list[DriveLmQuestion]:
    """Return a keyframe's first question, and the others whose points its answer found."""
    first, *rest = questions
    found = set(match_points(predictions[first.id], str(first.reference))[0])
    return [first, *(q for q in rest if found.issuperset(points_in(q.question)))]


def points_in(text: str) -> list[Point]:
    """Return the points in a text: its decimal numbers in pairs; an odd last one is ignored."""
    numbers = [float(match[0]) for match in islice(NUMBER.finditer(text), 2 * MAX_POINTS)]
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def match_points(answer: str, reference: str) -> tuple[list[Point], float]:
    """Pair each point of an answer with the nearest unpaired point of its reference.

    Returns:
        The points of the reference that were found, and F1.
    """
    left = points_in(reference)
    num_expected, answered = len(left), points_in(answer)
    found: list[Point] = []
    for point in answered:
        nearest = min(left, key=lambda other: _distance_px(point, other), default=None)
        if nearest is not None and _distance_px(point, nearest) < MATCH_DISTANCE_PX:
            found.append(nearest)
            left.remove(nearest)
    precision = len(found) / (len(answered) + EPSILON)
    recall = len(found) / (num_expected + EPSILON)
    return found, 2 * precision * recall / (precision + recall + EPSILON)


def _distance_px(one: Point, other: Point) -> float:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
