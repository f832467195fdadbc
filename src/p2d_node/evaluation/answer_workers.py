"""Several processes answer keyframes side by side; one of them, the caller's, writes the answers.

Each worker is a fresh interpreter with a pipeline of its own, connected by a pipe of its own:
nothing is shared that a worker which is killed could leave locked. Keyframes go out one at a time,
records come back. Workers end when the caller ends, however it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
import multiprocessing
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
import os
import signal
import threading
from typing import Any

from p2d_node.errors import InferenceError, P2dError
from p2d_node.evaluation.answering import answer_keyframe, AnswerJob, Keyframe
from p2d_node.evaluation.record_file import RecordFile
from p2d_node.pipeline import DrivingPipeline
import torch

Reply = list[dict[str, Any]] | P2dError

# CUDA and torch's thread pools do not survive a fork.
SPAWN = multiprocessing.get_context('spawn')

END_TIMEOUT_S = 10.0


def answer_with_workers(
    job: AnswerJob, keyframes: Iterable[Keyframe], answers: RecordFile
) -> Iterator[int]:
    """Answer keyframes in up to `job.workers` processes, in no fixed order.

    Args:
        job: What to do; torch's CPU threads are divided among the workers.
        keyframes: What to answer; one or more.
        answers: Gets the answers of a keyframe as soon as they are there.

    Yields:
        The number of answers of each keyframe, when they are on disk.

    Raises:
        P2dError: A keyframe failed, or a worker ended. What other workers had begun is waited
            for and stored before that.
    """
    waiting = deque(keyframes)
    share = _divide(job, min(job.workers, len(waiting)))
    workers: list[_Worker] = []
    try:
        with _interrupts_held_back():
            for number in range(1, share.workers + 1):
                workers.append(_Worker(number, share))
        yield from _hand_out(workers, waiting, answers)
    finally:
        for worker in workers:
            worker.end()


def _divide(job: AnswerJob, workers: int) -> AnswerJob:
    """Return the job of each of `workers` processes."""
    num_threads = max(1, (job.config.num_threads or torch.get_num_threads()) // workers)
    return replace(job, config=replace(job.config, num_threads=num_threads), workers=workers)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hold Ctrl-C back; processes started meanwhile never get it, the caller ends them."""
    # Started by the first worker otherwise, it would let Ctrl-C through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hand_out(
    workers: list[_Worker], waiting: deque[Keyframe], answers: RecordFile
) -> Iterator[int]:
    failure: P2dError | None = None
    for worker in workers[: len(waiting)]:
        worker.give(waiting.popleft())
    while busy := {worker.connection: worker for worker in workers if worker.keyframe}:
        for connection in wait(list(busy)):
            worker = busy[connection]  # type: ignore[index]
            reply = worker.take()
            if isinstance(reply, P2dError):
                failure = failure or reply
                waiting.clear()
                continue
            answers.append(reply)
            yield len(reply)
            if waiting:
                worker.give(waiting.popleft())
    if failure is not None:
        raise failure


class _Worker:
    """A process that answers keyframes; `keyframe` is what it is at, None while it has none."""

    def __init__(self, number: int, job: AnswerJob) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self.keyframe: Keyframe | None = None
        self._number = number
        self._process = SPAWN.Process(
            target=_work, args=(theirs, job), name=f'answers-{number}', daemon=True
        )
        self._process.start()
        # With our copy closed, the worker's end of the pipe ends with the worker.
        theirs.close()

    def give(self, keyframe: Keyframe) -> None:
        """Send a keyframe; where the worker is dead, `take` says so."""
        self.keyframe = keyframe
        with suppress(OSError):
            self.connection.send(keyframe)

    def take(self) -> Reply:
        """Return the records of the keyframe, or why there are none."""
        keyframe, self.keyframe = self.keyframe, None
        try:
            reply: Reply = self.connection.recv()
        except (EOFError, OSError):
            return self._obituary(keyframe)
        return reply

    def _obituary(self, keyframe: Keyframe | None) -> InferenceError:
        self._process.join(END_TIMEOUT_S)
        code = self._process.exitcode
        ended = f'ended with exit status {code}'
        if code is not None and code < 0:
            ended = f'was ended by {signal.Signals(-code).name}'
        at = keyframe.name if keyframe else 'no keyframe'
        return InferenceError(
            f'worker {self._number} {ended} while it was at keyframe {at}; answers made so far '
            'are kept, the same command goes on from there (if memory ran out, with fewer '
            '--workers)'
        )

    def end(self) -> None:
        """End the process; one that is idle sees its pipe close."""
        self.connection.close()
        if self.keyframe is not None:
            self._process.terminate()
        self._process.join(END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(connection: Connection, job: AnswerJob) -> None:
    """Answer keyframes until the caller closes the pipe; runs in the worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        pipeline = DrivingPipeline.from_config(job.config)
    except P2dError as err:
        with suppress(OSError):
            connection.send(err)
        return
    try:
        # A pipe that breaks means that the caller wants no more.
        while (keyframe := _next_keyframe(connection)) is not None:
            reply = _reply(pipeline, keyframe, job)
            with suppress(OSError):
                connection.send(reply)
    finally:
        pipeline.close()


def _next_keyframe(connection: Connection) -> Keyframe | None:
    try:
        keyframe: Keyframe = connection.recv()
    except (EOFError, OSError):
        return None
    return keyframe


def _reply(pipeline: DrivingPipeline, keyframe: Keyframe, job: AnswerJob) -> Reply:
    try:
        return answer_keyframe(pipeline, keyframe, job)
    except P2dError as err:
        return err


def _end_with_parent() -> None:
    """End this process at once when the caller is gone, even in the middle of a keyframe."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
