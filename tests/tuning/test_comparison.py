"""The interval tells a difference from none, and counts scenes, not questions."""

from __future__ import annotations

import random

from p2d_node.evaluation.drivelm_questions import DriveLmQuestion, Tag
from p2d_node.tuning.comparison import bootstrap, LOSS, UNDECIDED, units_of, WIN
from p2d_node.tuning.objective import Objective
import pytest

NUM_KEYFRAMES = 40
OBJECTIVE = Objective(ratio_penalty=0.0)


def answers_with(share_right: float, seed: int):
    """Per keyframe eight letters and two texts, of which a share is right."""
    rng = random.Random(seed)
    keyframes = []
    for keyframe in range(NUM_KEYFRAMES):
        references = ['A'] * 8 + ['a red car is parked', 'keep speed']
        questions = [
            DriveLmQuestion(
                id=f's_{keyframe}_{number}',
                keyframe=f's_{keyframe}',
                question='What?',
                reference=reference,
                tags=(Tag.LANGUAGE,),
                images={},
            )
            for number, reference in enumerate(references)
        ]
        keyframes.append(
            [(q, str(q.reference) if rng.random() < share_right else 'B') for q in questions]
        )
    return keyframes


def compare(searched, uniform, units=None):
    units = units or [str(number) for number in range(len(searched))]
    return bootstrap(searched, uniform, OBJECTIVE, units=units, seed=0)


def test_equal_answers_show_no_difference():
    answers = answers_with(0.7, 1)
    score = compare(answers, answers)['score']
    assert (score.difference, score.low, score.high) == (0.0, 0.0, 0.0)
    assert score.verdict == UNDECIDED


def test_a_clear_difference_is_told_in_its_direction():
    good, bad = answers_with(0.9, 1), answers_with(0.6, 2)
    for name, better in compare(good, bad).items():
        assert better.verdict == WIN, name
        assert better.low < better.difference < better.high
    assert compare(bad, good)['score'].verdict == LOSS


@pytest.mark.slow
def test_chance_is_told_as_a_difference_about_as_often_as_the_level_says():
    told = [
        compare(answers_with(0.7, seed), answers_with(0.7, 1000 + seed))['accuracy'].verdict
        for seed in range(20)
    ]
    assert sum(verdict != UNDECIDED for verdict in told) <= 4  # one is expected of 20


def test_the_interval_is_that_of_a_paired_difference_of_proportions():
    # One letter in eight differs in every keyframe: no keyframe tells anything else.
    answers = answers_with(1.0, 1)
    worse = [[(q, 'B') if n == 0 else (q, a) for n, (q, a) in enumerate(k)] for k in answers]
    accuracy = compare(answers, worse)['accuracy']
    assert (accuracy.low, accuracy.difference, accuracy.high) == (0.125, 0.125, 0.125)


def test_keyframes_of_one_scene_are_drawn_together():
    good, bad = answers_with(0.8, 1), answers_with(0.7, 2)
    alone = compare(good, bad)['score']
    # The same keyframes four times over are no more evidence than once.
    units = [str(number) for number in range(NUM_KEYFRAMES)] * 4
    together = compare(good * 4, bad * 4, units)['score']
    assert together.high - together.low > 0.9 * (alone.high - alone.low)
    assert len(units_of([f's{i}_f{j}' for i in range(25) for j in range(2)])[0]) == 50
    assert units_of([f's{i}_f{j}' for i in range(25) for j in range(2)])[1] == '25 scenes'
    assert units_of(['s_f1', 's_f2'])[1] == '2 keyframes of only 1 scenes'
