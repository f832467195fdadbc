"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path
import shutil
import signal

from engine_helpers import CPU, ignore_progress, plan_of
from p2d_node.checkpoints.untrained import write_untrained_checkpoint
from p2d_node.engine_build.build import build_engine
from p2d_node.vision_encoder.base import EncoderInput, FRAMES
import pytest

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights and 9 x 9 tokens per view."""
    return write_untrained_checkpoint(
        tmp_path_factory.mktemp('models') / 'tiny', image_size=126, patch_size=14
    )


@pytest.fixture(scope='session')
def nuscenes_sample() -> Path:
    """The folder of the real nuScenes keyframes."""
    folder = Path(__file__).resolve().parents[2] / 'shared' / 'nuscenes_sample'
    if not folder.is_dir():
        pytest.skip('the nuScenes sample is not beside the project (it may not be redistributed)')
    return folder


@pytest.fixture(scope='session')
def built_engines(tiny_checkpoint, tmp_path_factory) -> Path:
    """An engine folder with an ONNX Runtime and a TensorRT-RTX engine of the tiny checkpoint."""
    engine_dir = tmp_path_factory.mktemp('engines')
    for backend in ('onnxruntime', 'tensorrt_rtx'):
        build_engine(plan_of(tiny_checkpoint, backend), engine_dir, CPU, ignore_progress)
    return engine_dir


@pytest.fixture(scope='session')
def frame_engines(tiny_checkpoint, tmp_path_factory) -> Path:
    """An engine folder with an ONNX Runtime engine that takes frames of 90 x 160 pixels."""
    engine_dir = tmp_path_factory.mktemp('frame_engines')
    plan = plan_of(tiny_checkpoint, 'onnxruntime', input_spec=EncoderInput(FRAMES, 90, 160))
    build_engine(plan, engine_dir, CPU, ignore_progress)
    return engine_dir


@pytest.fixture
def engine_dir(built_engines, tmp_path) -> Path:
    """A copy of the built engines that a test may damage."""
    return shutil.copytree(built_engines, tmp_path / 'engines')
