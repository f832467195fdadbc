"""Engines of the model that ships, at the size of nuScenes frames."""

from engine_helpers import CPU, ignore_progress, plan_of
from p2d_node.checkpoints.model_folder import shipped_model_folder
from p2d_node.config import DriveConfig, EncoderConfig, SHIPPED_MODEL
from p2d_node.engine_build.build import build_engine
from p2d_node.evaluation.answering import group_keyframes, load_sweep
from p2d_node.evaluation.drivelm_questions import read_questions
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.vision_encoder.base import EncoderInput, FRAMES
import pytest

QUESTION = 'What should the ego vehicle do next, and why?'


@pytest.fixture(scope='module')
def engine_dir(tmp_path_factory):
    """An ONNX Runtime engine of p2d-mini that takes whole camera frames."""
    folder = tmp_path_factory.mktemp('engines')
    input_spec = EncoderInput(FRAMES, 900, 1600)
    plan = plan_of(shipped_model_folder(), 'onnxruntime', input_spec=input_spec)
    assert build_engine(plan, folder, CPU, ignore_progress).verification.passed
    return folder


@pytest.mark.slow
def test_its_tensorrt_engine_is_built_ahead_of_time(tmp_path):
    input_spec = EncoderInput(FRAMES, 900, 1600)
    plan = plan_of(shipped_model_folder(), 'tensorrt_rtx', input_spec=input_spec)
    built = build_engine(plan, tmp_path, CPU, ignore_progress)
    assert built.manifest.model_name == SHIPPED_MODEL
    assert built.manifest.compute_capabilities == ('8.6', '8.9')
    assert built.manifest.artefacts['engine.plan'].num_bytes > 1_000_000


def answers_of(sweeps, **encoder):
    config = DriveConfig(device='cpu', dtype='float32', encoder=EncoderConfig(**encoder))
    pipeline = DrivingPipeline.from_config(config)
    try:
        return [pipeline.answer(sweep, [QUESTION])[0] for sweep in sweeps]
    finally:
        pipeline.close()


@pytest.mark.slow
def test_real_frames_keep_the_same_tokens_on_the_engine_as_on_torch(engine_dir, nuscenes_sample):
    questions = read_questions(nuscenes_sample / 'drivelm_sample.json')
    sweeps = [
        load_sweep(keyframe, nuscenes_sample, NUSCENES_CAMERAS)
        for keyframe in group_keyframes(questions)
    ]
    assert len(sweeps) == 5
    on_torch = answers_of(sweeps, backend='torch')
    on_engine = answers_of(sweeps, backend='onnxruntime', engine_dir=str(engine_dir))
    shared = total = 0
    for expected, actual in zip(on_torch, on_engine, strict=True):
        assert actual.encoder.startswith('onnxruntime')
        assert actual.answer == expected.answer
        for camera, keep in expected.keep_indices.items():
            shared += len(set(keep.tolist()) & set(actual.keep_indices[camera].tolist()))
            total += len(keep)
    # Rounding decides between two tokens that are equally far from the kept ones.
    assert shared >= 0.99 * total
