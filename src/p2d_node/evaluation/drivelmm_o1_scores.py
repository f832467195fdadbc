"""DriveLMM-o1's scores: final answers by its official rule, reasoning by a judge.

The rules are those of the authors' evaluation script (ayesha-ishaq/DriveLMM-o1, evaluation/
evaluation_script.py). It asks a judge for twelve scores from 1 to 10 and for their mean, and
reports the mean of those means; it compares letters where a question is multiple choice, and
prints that as MCQ accuracy. We take that for the column "final answer accuracy" of published
tables, which the script does not name. Answers without a judgement are left out, as it does;
without a judge its scores are absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import re
import statistics

from p2d_node.errors import ConfigError
from p2d_node.evaluation.drivelmm_o1_questions import DriveLmmO1Question
from p2d_node.evaluation.judge import CachedJudge, MAX_RATING, rating_task, STATED_MEAN

FINAL_ANSWER_MARKS = (
    'The final answer is:',
    '**Final Answer:**',
    'Final Answer',
    'Answer',
    'Why take this action?:',
    '**Final Decision**:',
    'Final Step:',
    '<CONCLUSION>',
)
"""Marks before a final answer; the first one in this order that occurs counts."""

OPTION = re.compile(r'([A-F])\)\s*.')
NONE_OF_THEM = ('none of the ', 'F')
"""A text that counts as this option if there is no letter."""

CRITERIA = {
    'Faithfulness-Step': 'the steps say the same as those of the reference',
    'Informativeness-Step': 'the steps hold all that matters',
    'Risk Assessment Accuracy': 'the dangerous objects and situations come first',
    'Traffic Rule Adherence': 'what is advised is lawful and good driving practice',
    'Scene Awareness & Object Understanding': 'objects, their places and actions are right',
    'Repetition-Token': 'nothing is said twice (10: no repetition)',
    'Hallucination': 'nothing is made up (10: nothing)',
    'Semantic Coverage-Step': 'the critical parts of the reasoning are covered',
    'Commonsense': 'the reasoning makes sense to a driver',
    'Missing Step': 'no necessary step is left out (10: none)',
    'Relevance': 'it is about this scene and not general',
    'Missing Details': 'no important detail is left out (10: none)',
}
"""The official criteria, under the names that the script's reply has, and what each asks, in our
words. (The script's text for the judge calls the ninth `Commonsense Reasoning`.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveLmmO1Scores:
    """Scores of one set of predictions; None if the data or the judge gives none.

    Attributes:
        num_questions: All questions of the data.
        num_choices: Those that are multiple choice.
        final_answer_accuracy: Share of the multiple choices with the right letter.
        num_unmarked: Answers to multiple choices without a final answer that could be found;
            they count as if they held no letter.
        num_references_without_letter: Multiple choices whose own final answer holds no letter;
            by the official rule an answer without a letter is right there.
        overall_reasoning: Mean of all criteria, 0 to 100.
        overall_reasoning_stated: The same by the judge's own means, as the official script takes
            it; None unless the judge states one for every answer.
        reasoning: Each criterion's mean, 0 to 100.
    """

    num_questions: int
    num_choices: int
    final_answer_accuracy: float | None
    num_unmarked: int
    num_references_without_letter: int
    overall_reasoning: float | None
    overall_reasoning_stated: float | None
    reasoning: dict[str, float | None]


def score_o1_predictions(
    questions: Sequence[DriveLmmO1Question],
    predictions: Mapping[str, str],
    *,
    judge: CachedJudge | None = None,
) -> DriveLmmO1Scores:
    """Score predictions against final answers and, with a judge, against reasoning.

    Args:
        questions: All of them.
        predictions: Question id to the model's whole text.
        judge: Rates the reasoning; None: the scores of the reasoning are absent.

    Raises:
        ConfigError: A question without prediction.
    """
    missing = [question.id for question in questions if question.id not in predictions]
    if missing:
        raise ConfigError(
            f'predictions: {len(missing)} of {len(questions)} questions have none, the first is '
            f'{missing[0]}; every question needs one'
        )
    choices = [question for question in questions if question.is_choice]
    given = [find_final_answer(predictions[question.id]) for question in choices]
    expected = [find_letter(question.final_answer) for question in choices]
    right = [find_letter(a or '') == b for a, b in zip(given, expected, strict=True)]
    ratings = _rate_all(questions, predictions, judge)
    reasoning = {name: _percent(ratings, name) for name in CRITERIA}
    means = [score for score in reasoning.values() if score is not None]
    return DriveLmmO1Scores(
        num_questions=len(questions),
        num_choices=len(choices),
        final_answer_accuracy=statistics.fmean(right) if right else None,
        num_unmarked=given.count(None),
        num_references_without_letter=expected.count(None),
        overall_reasoning=statistics.fmean(means) if means else None,
        overall_reasoning_stated=_percent(ratings, STATED_MEAN),
        reasoning=reasoning,
    )


def _rate_all(
    questions: Sequence[DriveLmmO1Question],
    predictions: Mapping[str, str],
    judge: CachedJudge | None,
) -> list[dict[str, float]]:
    if judge is None:
        return []
    triples = [(q.question, predictions[q.id], q.reference) for q in questions]
    return [r for r in judge.judge(rating_task(CRITERIA), triples) if r is not None]


def _percent(ratings: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [rating[name] for rating in ratings if name in rating]
    if not values or len(values) < len(ratings):
        return None
    return 100.0 * statistics.fmean(values) / MAX_RATING


def find_final_answer(text: str) -> str | None:
    """Return the text after the last occurrence of the first mark; None without a mark."""
    mark = next((mark for mark in FINAL_ANSWER_MARKS if mark in text), None)
    return None if mark is None else text.rpartition(mark)[2]


def find_letter(final_answer: str) -> str | None:
    """Return the letter of the first option, as in `B) Keep going.`; None if there is none."""
    option = OPTION.search(final_answer)
    if option is not None:
        return option[1]
    words, letter = NONE_OF_THEM
    return letter if words in final_answer.lower() else None
