"""Random edits of settings: a sweep is answered, or one line says what is wrong."""

from collections.abc import Callable
import json
from pathlib import Path
import shutil
import time

from hypothesis import given, HealthCheck, settings
from p2d_node.config import DriveConfig
from p2d_node.pipeline import DrivingPipeline
import pytest
from sweeps import make_frame_set
from test_fuzz import as_json, edit_tree, is_read, places, tree_edits
from tiny_checkpoints import (
    write_internvl,
    write_llava,
    write_qwen2_5_vl,
    write_qwen2_vl,
    write_qwen3_vl,
    write_qwen3_vl_moe,
)

pytestmark = pytest.mark.faults

WRITERS: tuple[Callable[[Path], Path], ...] = (
    write_internvl,
    write_llava,
    write_qwen2_vl,
    write_qwen2_5_vl,
    write_qwen3_vl,
    write_qwen3_vl_moe,
)
MAX_S = 10.0
"""What a checkpoint may take, see SECURITY.md; these take a fifth of a second."""


@pytest.fixture(scope='module', params=WRITERS, ids=lambda write: write.__name__)
def original(request, tmp_path_factory) -> Path:
    return request.param(tmp_path_factory.mktemp('models') / 'original')


def settings_files(folder: Path) -> list[Path]:
    return sorted(folder.glob('*config.json'))


def answer_a_sweep(folder: Path) -> None:
    config = DriveConfig(model=str(folder), device='cpu', max_new_tokens=2)
    pipeline = DrivingPipeline.from_config(config)
    try:
        assert pipeline.answer(make_frame_set(), ('What is there?',))
    finally:
        pipeline.close()


@given(place=places, edits=tree_edits)
@settings(
    derandomize=True,
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_sweep_is_answered_or_one_line_says_what_is_wrong(original, tmp_path, place, edits):
    folder = tmp_path / 'edited'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    files = settings_files(folder)
    edited = files[int(place * len(files))]
    edited.write_bytes(as_json(edit_tree(json.loads(edited.read_text()), edits)))
    begun_s = time.monotonic()
    is_read(lambda: answer_a_sweep(folder))
    assert time.monotonic() - begun_s < MAX_S


def test_the_checkpoints_answer_as_they_are(original):
    assert len(settings_files(original)) >= 4
    assert is_read(lambda: answer_a_sweep(original))
