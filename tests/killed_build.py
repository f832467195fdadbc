"""A build of an engine that is killed at one of its steps, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
import signal

from engine_helpers import CPU, plan_of
from p2d_node.engine_build.build import build_engine

SERVER = multiprocessing.get_context('forkserver')
"""Each build is forked from one process that has imported what takes seconds."""

SERVER.set_forkserver_preload(
    ['p2d_node.engine_build.build', 'p2d_node.vision_encoder.factory', 'onnxruntime']
)


def run_killed_build(
    checkpoint: Path, engine_dir: Path, backend: str, phase: str, done: int
) -> int | None:
    """Build until `done` parts of `phase` are done; return the exit code of the process."""
    process = SERVER.Process(target=_build, args=(checkpoint, engine_dir, backend, phase, done))
    process.start()
    process.join(100)
    process.kill()
    return process.exitcode


def _build(checkpoint: Path, engine_dir: Path, backend: str, phase: str, done: int) -> None:
    def kill_at(now: str, number: int, _total: int) -> None:
        if (now, number) == (phase, done):
            os.kill(os.getpid(), signal.SIGKILL)

    build_engine(plan_of(checkpoint, backend), engine_dir, CPU, kill_at)
