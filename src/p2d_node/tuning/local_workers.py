"""More workers on this machine: processes of their own, on the same storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
import multiprocessing
from multiprocessing.process import BaseProcess
import os
import signal

from p2d_node.errors import P2dError
from p2d_node.tuning.session import read_tuning_set, TuningOptions, TuningSession
from p2d_node.tuning.stop_request import StopRequest

GRACE_S = 60.0
"""A worker gets so long to give its trial back."""

INTERRUPTED = 130
"""Exit code of a process that was told to stop."""


def divide_threads(options: TuningOptions, num_workers: int) -> TuningOptions:
    """Give each of the workers its part of this machine's CPU threads, unless they are set."""
    if options.config.num_threads or num_workers == 1:
        return options
    num_threads = max(1, (os.cpu_count() or 1) // num_workers)
    return replace(options, config=replace(options.config, num_threads=num_threads))


@contextmanager
def extra_workers(options: TuningOptions, count: int) -> Iterator[None]:
    """Run `count` more workers while the body runs; when it ends, however it ends, so do they.

    Their trials are given back then. A worker that dies costs nothing but its time: whoever is
    left does its trial again.
    """
    context = multiprocessing.get_context('spawn')
    workers: list[BaseProcess] = [
        context.Process(target=_work, args=(options, os.getpid()), daemon=True)
        for _ in range(count)
    ]
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
    """Be a worker until the study is done, or until the process that asked for it has gone."""
    stop = StopRequest()

    def check() -> None:
        stop.check()
        if os.getppid() != parent:
            raise KeyboardInterrupt

    try:
        session = TuningSession(options, read_tuning_set(options))
        with stop:
            for _ in session.seen(session.question_set).prepare(
                session.question_set.keyframes, session.question_set.digests
            ):
                check()
            session.work(check, stop.is_noted)
    except P2dError as err:
        raise SystemExit(f'worker {os.getpid()}: {err}') from err
    except KeyboardInterrupt as err:
        raise SystemExit(INTERRUPTED) from err
