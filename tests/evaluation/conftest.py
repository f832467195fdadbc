"""Keyframes on disk for `p2d evaluate`, and judges of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
import sys

import cv2
from p2d_node.evaluation.command_judge import CommandJudge
from p2d_node.evaluation.judge import CachedJudge, Judge
from p2d_node.evaluation.record_file import RecordFile
from p2d_node.records import NUSCENES_CAMERAS
import pytest
from sweeps import picture

NUM_SWEEPS = 2


@pytest.fixture
def image_names(tmp_path: Path) -> list[dict[str, str]]:
    """Two sweeps of six pictures below `samples`, as DriveLM names them."""
    sweeps = []
    for number in range(NUM_SWEEPS):
        names = {}
        for index, camera in enumerate(NUSCENES_CAMERAS):
            name = f'samples/{camera}/a__{camera}__15331516035{number}{index}404.jpg'
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / name), picture(10 * number + index))
            names[camera] = f'../nuscenes/{name}'
        sweeps.append(names)
    return sweeps


@pytest.fixture
def judge_command(tmp_path: Path) -> Callable[[str], CommandJudge]:
    """Make a judge of Python code that runs for every `item`."""

    def make(code: str) -> CommandJudge:
        script = tmp_path / 'judge.py'
        head = 'import json, os, sys, time\nfor line in sys.stdin:\n    item = json.loads(line)\n'
        script.write_text(head + code)
        return CommandJudge(f'{sys.executable} {script}')

    return make


@pytest.fixture
def make_judge(tmp_path: Path) -> Iterator[Callable[[Judge], CachedJudge]]:
    """Make juries, one after another, that keep what is judged in one file."""
    with ExitStack() as stack:

        def make(judge: Judge) -> CachedJudge:
            stack.close()
            kept = RecordFile(tmp_path / 'judgements.jsonl', {})
            return CachedJudge(judge, stack.enter_context(kept))

        yield make
