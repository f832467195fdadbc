"""Prepares the sweep that waits while the model works on another: its pixels are ready then."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
import time

from p2d_node.records import FrameSet
from p2d_node.units import NS_PER_MS
from p2d_node.vision_frontend import PreparedFrames

LEAD_NS = 100 * NS_PER_MS
"""Time before the expected end of work from which the waiting sweep is prepared. Six JPEGs of
1600x900 take 30 to 60 ms of a core. An earlier start would prepare sweeps in vain, which newer
ones replace before work on them begins."""


class LookAhead:
    """Prepares at most one sweep, in another thread; a newer one replaces it.

    It calls `prepare` only while a sweep is in work, shortly before that ends if it takes as long
    as the one before. Its methods must not be called at the same time.
    """

    def __init__(self, prepare: Callable[[FrameSet], PreparedFrames], thread: Executor) -> None:
        """Prepare nothing yet.

        Args:
            prepare: Decodes and preprocesses a sweep while another one is in work.
            thread: Runs `prepare`. While it is busy nothing else is prepared.
        """
        self._prepare = prepare
        self._thread = thread
        self._begun_ns: int | None = None
        self._work_ns = 0
        self._sweep: FrameSet | None = None
        self._prepared: Future[PreparedFrames] | None = None

    def begin_work(self, frame_set: FrameSet) -> Future[PreparedFrames] | None:
        """Note that work on a sweep begins; return its frames if they are prepared or nearly."""
        self._begun_ns = time.monotonic_ns()
        sweep, prepared = self._sweep, self._prepared
        self._sweep = self._prepared = None
        # What has not begun is done by the caller: it need not wait for a thread.
        if prepared is None or prepared.cancel() or sweep is not frame_set:
            return None
        return prepared

    def end_work(self) -> None:
        """Note that work on a sweep has ended."""
        if self._begun_ns is not None:
            self._work_ns = time.monotonic_ns() - self._begun_ns
        self._begun_ns = None

    def offer(self, waiting: FrameSet | None) -> None:
        """Prepare the waiting sweep, if there is one and it is time; call it often."""
        if waiting is None or waiting is self._sweep or not self._is_time():
            return
        if self._prepared is not None:
            self._prepared.cancel()
        self._sweep = waiting
        self._prepared = self._thread.submit(self._prepare, waiting)

    def _is_time(self) -> bool:
        if self._begun_ns is None:
            return False
        return time.monotonic_ns() >= self._begun_ns + self._work_ns - LEAD_NS
