"""Accuracy of a trained model on held-out sweeps: overall, per kind, controls, and token pruning.

`agreement_with_pipeline` checks that `DrivingPipeline` gives the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
import math
from typing import Any

from p2d_node.benchmarks.selection import ADAPTIVE
from p2d_node.config import DriveConfig
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import CameraFrame, CompressedImage, FrameSet, NUSCENES_CAMERAS

from p2d_sim.training.held_out import Evaluator, HeldOut, STAMP_NS
from p2d_sim.training.packed_forward import Pruning
from p2d_sim.training.scoring import Score

RETENTIONS = (1.0, 0.5, 0.25, 0.1, 0.05)
METHODS = ('tfps', ADAPTIVE, 'divprune', 'dart', 'random', 'grid')
PRUNE_LAYERS = (0, 1)


def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion."""
    if asked == 0:
        return 0.0, 1.0
    share, spread = right / asked, z**2 / asked
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / asked + spread / (4 * asked))
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(score: Score) -> dict[str, Any]:
    """Return the figures of a score, rounded for the report."""
    low, high = wilson(score.num_right, score.num_questions)
    return {
        'accuracy': round(score.overall, 4),
        'low': round(low, 4),
        'high': round(high, 4),
        'questions': score.num_questions,
        'choice': round(score.share_right(choice=True), 4),
        'free': round(score.share_right(choice=False), 4),
    }


def majority(sweeps: Sequence[HeldOut]) -> tuple[float, dict[str, float]]:
    """Return the share of the most frequent answer of each kind: overall, and per kind."""
    answers: dict[str, list[str]] = {}
    for sweep in sweeps:
        for question in sweep.packed.asked:
            answers.setdefault(question.kind, []).append(question.answer)
    best = {kind: max(map(given.count, set(given))) for kind, given in answers.items()}
    total = sum(len(given) for given in answers.values())
    shares = {kind: best[kind] / len(given) for kind, given in sorted(answers.items())}
    return sum(best.values()) / total, shares


def evaluate(
    evaluator: Evaluator, sweeps: Sequence[HeldOut], on_step: Callable[[], None]
) -> dict[str, Any]:
    """Return accuracy with all tokens, with the controls, and of the most frequent answers.

    Args:
        evaluator: The model.
        sweeps: What to ask about.
        on_step: Called after each sweep.
    """
    scores = {name: Score() for name in ('pictures', 'blank', 'shuffled')}
    blank = evaluator.blank()
    for number, sweep in enumerate(sweeps):
        shuffled = sweeps[(number + 1) % len(sweeps)].visual
        pictures = {'pictures': sweep.visual, 'blank': blank, 'shuffled': shuffled}
        for name, visual in pictures.items():
            scores[name].add(sweep.packed.asked, evaluator.check_answers(sweep.packed, visual))
        on_step()
    overall, shares = majority(sweeps)
    return {
        **{name: summary(score) for name, score in scores.items()},
        'majority': round(overall, 4),
        'kinds': {
            kind: {
                'right': right,
                'asked': asked,
                'accuracy': round(right / asked, 4),
                'majority': round(shares[kind], 4),
                'blank': _share(scores['blank'], kind),
                'shuffled': _share(scores['shuffled'], kind),
            }
            for kind, (right, asked) in scores['pictures'].per_kind().items()
        },
    }


def _share(score: Score, kind: str) -> float:
    right, asked = score.per_kind()[kind]
    return round(right / asked, 4)


def measure_retention(
    evaluator: Evaluator,
    sweeps: Sequence[HeldOut],
    on_step: Callable[[], None],
) -> list[dict[str, Any]]:
    """Return accuracy per prune layer, selector and retention ratio.

    A ratio of 1 is measured once: selector and layer make no difference.

    Args:
        evaluator: The model.
        sweeps: What to ask about.
        on_step: Called after each sweep of each measurement.
    """
    whole = summary(_score(evaluator, sweeps, None, on_step))
    rows = []
    for layer, method, retention in product(PRUNE_LAYERS, METHODS, RETENTIONS):
        result = whole
        if retention < 1.0:
            pruning = evaluator.pruning(method, retention, layer)
            result = summary(_score(evaluator, sweeps, pruning, on_step))
        row = {'prune_layer': layer, 'method': method, 'retention_ratio': retention}
        rows.append({**row, **result})
    return rows


def _score(
    evaluator: Evaluator,
    sweeps: Sequence[HeldOut],
    pruning: Pruning | None,
    on_step: Callable[[], None],
) -> Score:
    score = Score()
    for sweep in sweeps:
        score.add(sweep.packed.asked, evaluator.check_answers(sweep.packed, sweep.visual, pruning))
        on_step()
    return score


def agreement_with_pipeline(
    evaluator: Evaluator, sweeps: Sequence[HeldOut], *, method: str, retention: float
) -> tuple[int, int]:
    """Check the packed evaluation against `DrivingPipeline`.

    Both agree on a question if both answer it right, or both wrong.

    Args:
        evaluator: The model.
        sweeps: What to ask about.
        method: Name of the selector.
        retention: Kept tokens of all tokens of a view, above 0 to 1.

    Returns:
        Number of questions on which both agree, and of all questions.
    """
    config = DriveConfig(
        model=str(evaluator.folder),
        selector=method,
        retention_ratio=dict.fromkeys(NUSCENES_CAMERAS, retention),
        device='cpu',
        dtype='float32',
    )
    pipeline = DrivingPipeline.from_config(config)
    pruning = evaluator.pruning(method, retention, 0)
    agreed = asked = 0
    try:
        for sweep in sweeps:
            questions = sweep.packed.asked
            given = pipeline.answer(_frame_set(sweep), [q.text for q in questions])
            right = evaluator.check_answers(sweep.packed, sweep.visual, pruning)
            for question, answer, good in zip(questions, given, right, strict=True):
                agreed += (answer.answer == question.answer) == good
                asked += 1
    finally:
        pipeline.close()
    return agreed, asked


def _frame_set(sweep: HeldOut) -> FrameSet:
    frames = {
        camera: CameraFrame(
            camera, STAMP_NS, CompressedImage(format='jpeg', data=sweep.frames[camera])
        )
        for camera in NUSCENES_CAMERAS
    }
    return FrameSet(stamp_ns=STAMP_NS, frames=frames, first_arrival_ns=0, closed_ns=0)
