"""Stage durations and the deadline of one sweep, on the steady clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import time

from p2d_node.units import NS_PER_MS
import torch

MustStop = Callable[[], bool]
"""Called between tokens; True cuts all answers that have not ended."""


def never() -> bool:
    """Return False: the `MustStop` without a deadline."""
    return False


def stop_at(end_ns: int, must_stop: MustStop) -> MustStop:
    """Return a check that is True from `end_ns` on, or when `must_stop` is.

    Args:
        end_ns: Steady clock, nanoseconds.
        must_stop: A further check.
    """
    return lambda: time.monotonic_ns() >= end_ns or must_stop()


class StageClock:
    """Adds up milliseconds per stage. Create one per sweep; use it from one thread.

    Stages follow one another and do not nest. On a GPU a stage waits for the device at its start
    and at its end, and not in between.

    Attributes:
        started_ns: Steady clock at creation, nanoseconds.
        durations_ms: Milliseconds per stage so far.
        current: Name of the stage in work; empty between stages. Any thread may read it.
        progressed_ns: Steady clock when the last stage began or ended, or `noting` was called.
    """

    def __init__(self, device: torch.device) -> None:
        self._synchronize = device.type == 'cuda'
        self.started_ns = time.monotonic_ns()
        self.durations_ms: dict[str, float] = {}
        self.current = ''
        self.progressed_ns = self.started_ns

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the body to stage `name`."""
        self.current, self.progressed_ns = name, time.monotonic_ns()
        self._wait_for_device()
        start_ns = time.monotonic_ns()
        yield
        self._wait_for_device()
        self.current, self.progressed_ns = '', time.monotonic_ns()
        duration_ms = (self.progressed_ns - start_ns) / NS_PER_MS
        self.durations_ms[name] = self.durations_ms.get(name, 0.0) + duration_ms

    def noting(self, must_stop: MustStop) -> MustStop:
        """Return `must_stop` as a check that notes progress whenever it is called."""

        def checked() -> bool:
            self.progressed_ns = time.monotonic_ns()
            return must_stop()

        return checked

    def mark(self, name: str) -> None:
        """Set `name` to the milliseconds since creation, unless it is set already."""
        self.durations_ms.setdefault(name, (time.monotonic_ns() - self.started_ns) / NS_PER_MS)

    def _wait_for_device(self) -> None:
        if self._synchronize:
            torch.cuda.synchronize()
