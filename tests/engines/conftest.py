"""Real engines of the tiny checkpoint, built once; tests damage copies of them."""

from __future__ import annotations

from pathlib import Path
import shutil

from engine_helpers import CPU, ignore_progress, plan_of
from p2d_node.engine_build.build import build_engine
from p2d_node.vision_encoder.base import EncoderInput, FRAMES
import pytest


@pytest.fixture(scope='session')
def frame_engines(tiny_checkpoint, tmp_path_factory) -> Path:
    """An engine folder with an ONNX Runtime engine that takes frames of 90 x 160 pixels."""
    engine_dir = tmp_path_factory.mktemp('frame_engines')
    plan = plan_of(tiny_checkpoint, 'onnxruntime', takes=EncoderInput(FRAMES, 90, 160))
    build_engine(plan, engine_dir, CPU, ignore_progress)
    return engine_dir


@pytest.fixture
def engine_dir(built_engines, tmp_path) -> Path:
    """A copy of the built engines that a test may damage."""
    return shutil.copytree(built_engines, tmp_path / 'engines')
