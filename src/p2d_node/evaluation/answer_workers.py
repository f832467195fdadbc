"""Worker processes of a Dask cluster answer keyframes; this process writes the answers.

The cluster is either embedded (processes of this machine, which end with this one) or a running
one. Each worker holds one pipeline and answers one keyframe at a time. If a worker dies, Dask
runs its keyframe again on another one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, ExitStack, suppress
from dataclasses import replace
import logging
from multiprocessing import resource_tracker
from pathlib import Path
import secrets
import signal
import tempfile
import threading
from typing import Any, cast

import dask
from distributed import (
    as_completed,
    Client,
    Future,
    get_worker,
    LocalCluster,
    Security,
    Worker,
    WorkerPlugin,
)
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker
from p2d_node.config import SHIPPED_MODEL, UNTRAINED_MODEL
from p2d_node.errors import BackendUnavailableError, first_line, InferenceError, P2dError
from p2d_node.evaluation.answering import answer_keyframe, AnswerJob, check_prompts, Keyframe
from p2d_node.evaluation.record_file import RecordFile
from p2d_node.library_settings import safe_spawning
from p2d_node.pipeline import DrivingPipeline
import torch

MAX_DEATHS = 3
"""A keyframe that ends this many workers is given up; a running cluster may set another limit."""

KEPT = 'the answers so far are kept, and the same command continues with them'

CONNECT_TIMEOUT_S = 15.0
WORKERS_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 1.0

DASK_LOGGERS = ('distributed', 'distributed.client', 'asyncio')
"""asyncio's tells of connections between Dask's parts that end with the workers, after Ctrl-C."""

EMBEDDED_CONFIG = {
    'distributed.scheduler.allowed-failures': MAX_DEATHS - 1,
    # By default a worker that takes longer than 15 s to restart is not restarted at all.
    'distributed.deploy.lost-worker-timeout': '1 hour',
    # Dask always opens an HTTP port; without routes it serves nothing.
    'distributed.scheduler.http.routes': [],
    'distributed.worker.http.routes': [],
}


def answer_with_workers(
    job: AnswerJob, keyframes: Iterable[Keyframe], answers: RecordFile
) -> Iterator[int]:
    """Answer keyframes on the workers of a cluster, in no fixed order.

    Args:
        job: `job.scheduler` is the address of a running cluster. If it is None, `job.workers`
            processes are started here, and the CPU threads are divided among them.
        keyframes: One or more.
        answers: Stores the answers of a keyframe as soon as they arrive.

    Yields:
        The number of answers of each keyframe, after they are on disk.

    Raises:
        BackendUnavailableError: The cluster cannot be reached, or has no workers.
        P2dError: A keyframe failed, or ended `MAX_DEATHS` workers. The keyframes that other
            workers had begun are stored first.
    """
    waiting = deque(keyframes)
    with _quiet_dask(), _connect(job, len(waiting)) as client:
        num_workers = len(client.nthreads())
        plugin = AnswerPlugin(_job_of_worker(job, num_workers))
        _register(plugin, client)
        try:
            yield from _hand_out(client, plugin.name, waiting, answers)
        finally:
            if job.scheduler is not None and client.status == 'running':
                with suppress(OSError):  # of a scheduler that is gone
                    client.unregister_worker_plugin(plugin.name)


class AnswerPlugin(WorkerPlugin):
    """Holds the pipeline of one worker process. `answer` may be called from several threads."""

    def __init__(self, job: AnswerJob) -> None:
        """Keep the job; each worker gets a copy and calls `setup`."""
        self.name = f'p2d-answers-{secrets.token_hex(4)}'
        self._job = job

    def setup(self, worker: Worker) -> None:
        """Prepare this worker; the first keyframe loads the model, outside of the event loop."""
        self._lock = threading.Lock()
        self._pipeline: DrivingPipeline | None = None
        self._num_threads = self._job.config.num_threads or worker.state.nthreads

    def teardown(self, worker: Worker) -> None:
        """Free the model; a keyframe that is being answered is not waited for."""
        self._pipeline = None

    def answer(self, keyframe: Keyframe) -> list[dict[str, Any]] | str:
        """Return the records of a keyframe, or the message of the error that occurred."""
        with self._lock:
            try:
                pipeline = self._pipeline or self._load()
                check_prompts(pipeline, [keyframe], self._job.instruction)
                return answer_keyframe(pipeline, keyframe, self._job)
            except P2dError as err:
                return str(err)

    def _load(self) -> DrivingPipeline:
        config = replace(self._job.config, num_threads=self._num_threads)
        self._pipeline = DrivingPipeline.from_config(config)
        return self._pipeline


def _answer_on_worker(keyframe: Keyframe, plugin_name: str) -> list[dict[str, Any]] | str:
    plugin = cast(AnswerPlugin, get_worker().plugins[plugin_name])
    return plugin.answer(keyframe)


@contextmanager
def _quiet_dask() -> Iterator[None]:
    """Keep Dask's own log lines out of the terminal: errors are raised here as well."""
    loggers = [logging.getLogger(name) for name in DASK_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _connect(job: AnswerJob, num_keyframes: int) -> Iterator[Client]:
    if job.scheduler is not None:
        with _connect_to(job.scheduler) as client:
            yield client
        return
    with (
        safe_spawning(),
        # Dask imports modules from its folder, by default one in /tmp that anyone can make first.
        tempfile.TemporaryDirectory(prefix='p2d-workers-') as folder,
        dask.config.set({**EMBEDDED_CONFIG, 'temporary-directory': folder}),
        _start_cluster(min(job.workers, num_keyframes)) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _start_cluster(num_workers: int) -> Iterator[LocalCluster]:
    """Start worker processes that only this process can reach: loopback, and a secret TLS key."""
    with ExitStack() as stack:
        with _deferred_interrupts():
            cluster = LocalCluster(
                n_workers=num_workers,
                threads_per_worker=1,
                host='127.0.0.1',
                security=Security.temporary(),
                dashboard_address='127.0.0.1:0',
                scheduler_kwargs={'dashboard': False},
                memory_limit=0,
                silence_logs=logging.CRITICAL + 1,
            )
            stack.callback(_close_cluster, cluster)
        yield cluster


def _close_cluster(cluster: LocalCluster) -> None:
    cluster.sync(_close_workers, cluster)
    cluster.close()


async def _close_workers(cluster: LocalCluster) -> None:
    """Close the workers; those in the middle of a keyframe are killed."""
    workers = cluster.workers.values()
    await asyncio.gather(*(worker.close(timeout=CLOSE_TIMEOUT_S) for worker in workers))


@contextmanager
def _deferred_interrupts() -> Iterator[None]:
    """Defer Ctrl-C to the end of the body; threads and processes that it starts never get it."""
    interrupts: list[int] = []
    # If the first worker started it, it would unblock Ctrl-C again.
    resource_tracker.ensure_running()
    handler = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if interrupts:
            raise KeyboardInterrupt


@contextmanager
def _connect_to(address: str) -> Iterator[Client]:
    """Connect to a running cluster. TLS settings come from Dask's own configuration."""
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError, TypeError, RuntimeError) as err:
        raise BackendUnavailableError(
            f'scheduler: {address} cannot be reached: {first_line(err)}; start one with '
            'dask scheduler, and give the address that it prints'
        ) from err
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_TIMEOUT_S)
        except TimeoutError as err:
            raise BackendUnavailableError(
                f'scheduler: {address} has no workers; start some with dask worker {address}'
            ) from err
        yield client


def _job_of_worker(job: AnswerJob, num_workers: int) -> AnswerJob:
    """Return the job of each worker: with its CPU threads, or paths that hold on any machine."""
    if job.scheduler is None:
        num_threads = max(1, (job.config.num_threads or torch.get_num_threads()) // num_workers)
        config = replace(job.config, num_threads=num_threads)
        return replace(job, config=config, workers=num_workers)
    config = job.config
    if config.model not in (SHIPPED_MODEL, UNTRAINED_MODEL):
        config = replace(config, model=str(Path(config.model).expanduser().absolute()))
    return replace(job, config=config, image_root=job.image_root.absolute(), workers=num_workers)


@contextmanager
def _connection_faults(where: str) -> Iterator[None]:
    """Translate what Dask raises if the scheduler has ended or is out of reach.

    Raises:
        BackendUnavailableError: In place of such an error.
    """
    try:
        yield
    except (OSError, FutureCancelledError) as err:
        raise BackendUnavailableError(
            f'scheduler: the connection was lost {where}; {KEPT}'
        ) from err


def _register(plugin: AnswerPlugin, client: Client) -> None:
    try:
        with _connection_faults('before the first keyframe'):
            client.register_plugin(plugin)
    except ImportError as err:
        raise BackendUnavailableError(
            f'scheduler: a worker cannot import p2d_node: {err}; install the same version of it '
            'on every worker'
        ) from err


def _hand_out(
    client: Client, plugin_name: str, waiting: deque[Keyframe], answers: RecordFile
) -> Iterator[int]:
    """Keep one keyframe per worker in flight; after a failure hand out no more."""
    names: dict[Future[Any], str] = {}
    failure: P2dError | None = None
    running = as_completed()

    def submit() -> None:
        keyframe = waiting.popleft()
        future = client.submit(_answer_on_worker, keyframe, plugin_name, pure=False)
        names[future] = keyframe.name
        running.add(future)

    def fill() -> None:
        with _connection_faults('between two keyframes'):
            while waiting and len(names) < max(1, len(client.nthreads())):
                submit()

    fill()
    while names:
        future = next(running)
        try:
            records = _records_of(future, names.pop(future))
        except P2dError as err:
            failure = failure or err
            waiting.clear()
            continue
        answers.append(records)
        fill()
        yield len(records)
    if failure is not None:
        raise failure


def _records_of(future: Future[Any], keyframe: str) -> list[dict[str, Any]]:
    """Return the records of a finished keyframe; raises the error that it ended with."""
    try:
        with _connection_faults(f'at keyframe {keyframe}'):
            reply: list[dict[str, Any]] | str = future.result()
    except KilledWorker as err:
        raise InferenceError(
            f'keyframe {keyframe} ended {err.allowed_failures + 1} workers, and is given up; '
            f'{KEPT} (if memory ran out: with fewer workers)'
        ) from err
    if isinstance(reply, str):
        raise InferenceError(reply)
    return reply
