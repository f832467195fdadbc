"""The published objective, and its parts for any selection of keyframes."""

import numpy as np
from p2d_node.errors import ConfigError
from p2d_node.evaluation.drivelm_questions import DriveLmQuestion, Tag
from p2d_node.evaluation.language_metrics import score_language
from p2d_node.tuning.objective import Objective
from p2d_node.tuning.score_table import CIDER, make_table, score_samples
import pytest

TEXTS = (
    ('a red car is ahead', 'a red car is ahead'),
    ('a bus', 'a red bus is parked'),
    ('keep speed because the road is clear', 'slow down because the light is red'),
    ('two', 'two'),
    ('no', 'yes'),
    ('there is a truck on the left', 'there is a truck far ahead on the left'),
)
LETTERS = (('A', 'A'), ('B', 'C'), ('C.', 'C'))
RATIOS = dict.fromkeys(('LEFT', 'RIGHT'), 0.25)


def question(number: int, reference: object) -> DriveLmQuestion:
    return DriveLmQuestion(
        id=f's_{number}',
        keyframe='s',
        question='What?',
        reference=reference,
        tags=(Tag.LANGUAGE,),
        images={},
    )


def answered(pairs):
    return [(question(i, reference), answer) for i, (answer, reference) in enumerate(pairs)]


def test_the_default_is_the_published_objective():
    score = Objective().score(answered(TEXTS + LETTERS), RATIOS)
    language = score_language(*zip(*TEXTS, strict=True), tokenizer='treebank').score
    assert score.language == pytest.approx(language)
    assert score.accuracy == pytest.approx(1 / 3)
    assert score.value == pytest.approx(0.5 * language + 0.5 / 3 - 0.03 * 0.5)


def test_weights_and_penalty_are_adjustable():
    objective = Objective(language_weight=0.0, accuracy_weight=2.0, ratio_penalty=1.0)
    score = objective.score(answered(LETTERS), RATIOS)
    assert score.language is None
    assert score.value == pytest.approx(2.0 / 3 - 0.5)


def test_the_table_gives_the_scores_of_all_keyframes_together():
    pairs = answered(TEXTS + LETTERS)
    table = make_table([pairs[:4], pairs[4:7], pairs[7:]], 'treebank')
    parts = score_samples(table, np.ones((1, 3)))
    whole = Objective().score(pairs, {})
    assert parts.language[0] == pytest.approx(whole.language, rel=1e-9)
    assert parts.accuracy[0] == pytest.approx(whole.accuracy)
    assert parts.exact[0] == pytest.approx(3 / 9)  # two texts and one letter


def test_a_keyframe_that_is_drawn_twice_counts_twice():
    pairs = answered(TEXTS + LETTERS)
    frames = [pairs[:4], pairs[4:7], pairs[7:]]
    once = make_table(frames, 'treebank')
    twice = make_table([pairs[:4], pairs[:4], pairs[7:]], 'treebank')
    # CIDEr weighs words by the references of all keyframes, so it is not the same here.
    once[:, CIDER] = twice[:, CIDER] = 0.0
    drawn = score_samples(once, np.array([[2.0, 0.0, 1.0]]))
    expected = score_samples(twice, np.ones((1, 3)))
    for part in ('language', 'accuracy', 'exact'):
        assert getattr(drawn, part) == pytest.approx(getattr(expected, part)), part


@pytest.mark.parametrize(
    ('references', 'weights', 'reason'),
    [
        (['a car', None], {}, '1 of 2 questions have no answer, the first is s_1'),
        (['a car', '  '], {}, '1 of 2 questions have no answer, the first is s_1'),
        (['a car'], {}, 'has a one-letter answer; allowed: 0'),
        (['A'], {}, 'every question has a one-letter answer'),
        (['A'], {'language_weight': 0.0}, None),
    ],
)
def test_questions_that_cannot_be_scored_are_named_beforehand(references, weights, reason):
    questions = [question(i, reference) for i, reference in enumerate(references)]
    if reason is None:
        Objective(**weights).check_questions(questions, 'data.json')
        return
    with pytest.raises(ConfigError, match=rf'data\.json:? .*{reason}'):
        Objective(**weights).check_questions(questions, 'data.json')


@pytest.mark.parametrize(
    'weights',
    [
        {'language_weight': -1.0},
        {'ratio_penalty': float('nan')},
        {'language_weight': 0.0, 'accuracy_weight': 0.0},
    ],
)
def test_weights_that_make_no_objective_are_refused(weights):
    with pytest.raises(ConfigError, match='got'):
        Objective(**weights)
