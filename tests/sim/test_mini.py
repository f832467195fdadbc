"""The model that ships, asked through the node's own pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from p2d_node.config import DriveConfig
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import CameraFrame, CompressedImage, FrameSet, NUSCENES_CAMERAS
from p2d_sim.scenarios import EVENT_S
from p2d_sim.sweeps import to_jpeg, World
from p2d_sim.training.evaluation import agreement_with_pipeline
from p2d_sim.training.held_out import Evaluator
import pytest

MINI = Path(__file__).resolve().parents[2] / 'models' / 'p2d-mini'
QUESTION = 'What should the ego vehicle do next?'
MAX_BYTES = 40_000_000
SWEEP_S = 1.0 / 12.0


@pytest.fixture(scope='module')
def pipeline() -> Iterator[DrivingPipeline]:
    """All tokens kept."""
    kept = dict.fromkeys(NUSCENES_CAMERAS, 1.0)
    config = DriveConfig(
        model=str(MINI), retention_ratio=kept, device='cpu', dtype='float32', max_new_tokens=12
    )
    made = DrivingPipeline.from_config(config)
    yield made
    made.close()


def sweep_at(world: World, time_s: float) -> FrameSet:
    frames = {}
    for name in NUSCENES_CAMERAS:
        jpeg = to_jpeg(world.view(name, time_s).pixels)
        frames[name] = CameraFrame(name, 1, CompressedImage(format='jpeg', data=jpeg))
    return FrameSet(stamp_ns=1, frames=frames, first_arrival_ns=0, closed_ns=0)


def test_the_model_is_small_trained_and_holds_no_pickle() -> None:
    files = [path for path in MINI.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    assert {path.suffix for path in files} <= {'.json', '.jinja', '.safetensors', '.md'}
    assert 'untrained' not in (MINI / 'config.json').read_text(encoding='utf-8')


@pytest.mark.slow
def test_answers_change_from_keeping_speed_to_braking_within_one_sweep_of_the_event(
    pipeline: DrivingPipeline,
) -> None:
    changes = []
    for seed in range(4):
        world = World('lead-brakes', seed)
        answers = [
            pipeline.answer(sweep_at(world, EVENT_S + offset_s), [QUESTION])[0].answer
            for offset_s in (-SWEEP_S, SWEEP_S)
        ]
        changes.append(answers)
    right = changes.count(['keep speed', 'brake'])
    assert right >= 3, changes


@pytest.mark.slow
def test_int8_weights_give_nearly_the_same_answers(pipeline: DrivingPipeline) -> None:
    pytest.importorskip('torchao', reason='torchao is not installed')
    small = DrivingPipeline.from_config(replace(pipeline.config, weights='int8'))
    questions = [QUESTION, 'How many cars are there?', 'Is the light red?', 'Where is the truck?']
    same, asked = 0, 0
    for seed in range(3):
        sweep = sweep_at(World('lead-brakes', seed), EVENT_S)
        answers = [each.answer(sweep, questions) for each in (pipeline, small)]
        same += sum(a.answer == b.answer for a, b in zip(*answers, strict=True))
        asked += len(questions)
    small.close()
    assert same >= 0.9 * asked


@pytest.mark.slow
def test_held_out_sweeps_are_answered_far_above_chance_and_as_the_evaluation_says(
    pipeline: DrivingPipeline,
) -> None:
    evaluator = Evaluator(MINI)
    sweeps = list(evaluator.sweeps(60))
    right = [good for s in sweeps for good in evaluator.check_answers(s.packed, s.visual)]
    assert sum(right) / len(right) > 0.7
    agreed, asked = agreement_with_pipeline(evaluator, sweeps[:1], method='tfps', retention=0.1)
    assert asked >= 20
    assert agreed == asked
