"""The power goes at every step of a build: no half engine, and no harm to what was there."""

import signal

from engine_helpers import CPU, engine_folder, ignore_progress, load, plan_of
from killed_build import run_killed_build
from p2d_node.engine_build.build import build_engine
from p2d_node.vision_encoder.engine_store import list_all_engines
import pytest

STEPS = [
    ('onnxruntime', 'export', 1),
    ('onnxruntime', 'check', 1),
    ('onnxruntime', 'link', 0),
    ('onnxruntime', 'hash', 0),
    ('onnxruntime', 'verify', 0),
    ('onnxruntime', 'verify', 1),
    ('onnxruntime', 'publish', 0),
    ('onnxruntime', 'publish', 1),
    ('tensorrt_rtx', 'Building engine', 3),
    ('tensorrt_rtx', 'write', 0),
    ('tensorrt_rtx', 'write', 1),
]


@pytest.mark.slow
@pytest.mark.parametrize('step', STEPS, ids=lambda s: f'{s[0]}-{s[1]}-{s[2]}'.replace(' ', '_'))
def test_a_build_that_is_killed_leaves_no_engine_that_is_not_whole(
    built_engines, tiny_checkpoint, tmp_path, step
):
    backend, phase, _ = step
    engine_dir = tmp_path / 'engines'
    if phase not in ('export', 'check'):
        # Exports are there already: only what follows them is cut.
        for folder in built_engines.glob('tiny/onnx-*'):
            target = engine_dir / 'tiny' / folder.name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_folder(folder, target)
    assert run_killed_build(tiny_checkpoint, engine_dir, *step) == -signal.SIGKILL

    engines = [f for f in list_all_engines(engine_dir) if not f.name.startswith('onnx-')]
    if step == ('onnxruntime', 'publish', 1):
        assert len(engines) == 1
        load(engine_dir, tiny_checkpoint, backend)
    else:
        assert engines == []
    built = build_engine(plan_of(tiny_checkpoint, backend), engine_dir, CPU, ignore_progress)
    assert not list(engine_dir.glob('*/.building-*'))
    if backend == 'onnxruntime':
        assert load(engine_dir, tiny_checkpoint, backend).encoder.identity.endswith(
            built.folder.name
        )


def copy_folder(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())


@pytest.mark.slow
def test_a_killed_build_harms_no_engine_that_was_there(engine_dir, tiny_checkpoint):
    before = engine_folder(engine_dir)
    step = ('onnxruntime', 'publish', 0)
    assert run_killed_build(tiny_checkpoint, engine_dir, *step) == -signal.SIGKILL
    encoder = load(engine_dir, tiny_checkpoint, 'onnxruntime').encoder
    assert encoder.identity.endswith(before.name)
