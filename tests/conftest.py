"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import shutil
import signal

from engine_helpers import CPU, ignore_progress, plan_of
from p2d_node.checkpoints import devices
from p2d_node.checkpoints.untrained import write_untrained_checkpoint
from p2d_node.engine_build import export, export_folder
from p2d_node.engine_build.build import build_engine
from p2d_node.vision_encoder.base import EncoderInput, FRAMES
import pytest
from safetensors.torch import load_file, save_file
import torch

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


if not (Path(__file__).resolve().parents[1] / 'ros2_ws').is_dir():
    # An exported package: tests of the whole repository have nothing to test.
    collect_ignore = [
        'test_packages.py',
        'test_containers.py',
        'benchmarks/test_documents.py',
        'benchmarks/test_commands_run.py',
        'ros/test_commands_over_ros.py',
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that wait until an engine is built."""
    for item in items:
        if {'built_engines', 'frame_engines'} & set(getattr(item, 'fixturenames', ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope='session', autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder of the tests: no test reads or leaves a verification of this user."""
    folder = tmp_path_factory.mktemp('state')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_STATE_HOME', str(folder))
        yield folder


MULTIPLIES_BFLOAT16 = devices.multiplies_bfloat16


@pytest.fixture(scope='session', autouse=True)
def float32_on_every_cpu() -> Iterator[None]:
    """`dtype: auto` means the same on every processor that runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, 'multiplies_bfloat16', lambda: False)
        yield


@pytest.fixture(scope='session', autouse=True)
def exports_in_this_process() -> Iterator[None]:
    """Exports of tests take 2 s; in a process of their own, which imports torch again, 13 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_folder, 'export_onnx', export.write_onnx)
        yield


@pytest.fixture
def exports_in_their_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of this test run as those of users."""
    monkeypatch.setattr(export_folder, 'export_onnx', export.export_onnx)


@pytest.fixture
def dtype_of_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dtype: auto` means what it means in a process that the test starts."""
    monkeypatch.setattr(devices, 'multiplies_bfloat16', MULTIPLIES_BFLOAT16)


@pytest.fixture(scope='session')
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights and 9 x 9 tokens per view."""
    return write_untrained_checkpoint(
        tmp_path_factory.mktemp('models') / 'tiny', image_size=126, patch_size=14
    )


@pytest.fixture(scope='session')
def documented_samples(tmp_path_factory, tiny_checkpoint) -> Path:
    """A folder of small data with the names that the commands in the documents use."""
    from documented_samples import write_samples

    shipped = Path(__file__).resolve().parents[1] / 'models' / 'p2d-mini'
    return write_samples(tmp_path_factory.mktemp('samples'), tiny_checkpoint, shipped)


@pytest.fixture
def overflowing_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose language model overflows in float16."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / 'overflowing')
    weights = load_file(folder / 'model.safetensors')
    name = next(name for name in weights if 'mlp.down_proj' in name)
    weights[name] = torch.full_like(weights[name], 6e4)
    save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder


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
def engine_dir(built_engines, state_home, tmp_path, monkeypatch) -> Path:
    """A copy of the built engines and of their verifications that a test may damage."""
    monkeypatch.setenv('XDG_STATE_HOME', str(shutil.copytree(state_home, tmp_path / 'state')))
    return shutil.copytree(built_engines, tmp_path / 'engines')
