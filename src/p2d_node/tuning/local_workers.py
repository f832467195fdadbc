"""Starts more worker processes on this machine; all workers share a study in the storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
import multiprocessing
from multiprocessing.process import BaseProcess
import os
import signal

from p2d_node.errors import P2dError
from p2d_node.library_settings import safe_spawning
from p2d_node.tuning.session import read_tuning_set, TuningOptions, TuningSession
from p2d_node.tuning.stop_request import StopRequest

GRACE_S = 60.0
"""Time for a worker to queue its trial again and end."""

INTERRUPTED = 130
"""Exit code of an interrupted process."""


def divide_threads(options: TuningOptions, num_workers: int) -> TuningOptions:
    """Divide the CPU threads among the workers, unless `num_threads` is set."""
    if options.config.num_threads or num_workers == 1:
        return options
    num_threads = max(1, (os.cpu_count() or 1) // num_workers)
    return replace(options, config=replace(options.config, num_threads=num_threads))


@contextmanager
def extra_workers(options: TuningOptions, count: int) -> Iterator[None]:
    """Run `count` more workers while the body runs, and end them after it.

    The trials of interrupted workers are queued again. If a worker dies, another one runs its
    trial again.
    """
    context = multiprocessing.get_context('spawn')
    workers: list[BaseProcess] = [
        context.Process(target=_work, args=(options, os.getpid()), daemon=True)
        for _ in range(count)
    ]
    with safe_spawning():
        for worker in workers:
            worker.start()
    try:
        yield
    except BaseException:
        for worker in workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, signal.SIGINT)
        raise
    finally:
        for worker in workers:
            worker.join(GRACE_S)


def _work(options: TuningOptions, parent: int) -> None:
    """Run trials until the study is done, or the parent process ends."""
    stop = StopRequest()

    def check() -> None:
        stop.check()
        if os.getppid() != parent:
            raise KeyboardInterrupt

    try:
        session = TuningSession(options, read_tuning_set(options))
        with stop:
            for _ in session.keyframe_cache(session.question_set).prepare(
                session.question_set.keyframes, session.question_set.digests
            ):
                check()
            session.work(check, stop.is_noted)
    except P2dError as err:
        raise SystemExit(f'worker {os.getpid()}: {err}') from err
    except KeyboardInterrupt as err:
        raise SystemExit(INTERRUPTED) from err
