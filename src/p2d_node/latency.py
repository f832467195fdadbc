"""Stage durations of one sweep, on the steady clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import time

import torch

NS_PER_MS = 1e6


class StageClock:
    """Adds up milliseconds per stage. Create one per sweep; use it from one thread.

    Stages follow one another and do not nest. On a GPU a stage waits for the device at its start
    and at its end, and not in between.

    Attributes:
        started_ns: Steady clock at creation, nanoseconds.
        durations_ms: Milliseconds per stage so far.
    """

    def __init__(self, device: torch.device) -> None:
        self._synchronize = device.type == 'cuda'
        self.started_ns = time.monotonic_ns()
        self.durations_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the body to stage `name`."""
        self._wait_for_device()
        start_ns = time.monotonic_ns()
        yield
        self._wait_for_device()
        duration_ms = (time.monotonic_ns() - start_ns) / NS_PER_MS
        self.durations_ms[name] = self.durations_ms.get(name, 0.0) + duration_ms

    def mark(self, name: str) -> None:
        """Set `name` to the milliseconds since creation, unless it is set already."""
        self.durations_ms.setdefault(name, (time.monotonic_ns() - self.started_ns) / NS_PER_MS)

    def _wait_for_device(self) -> None:
        if self._synchronize:
            torch.cuda.synchronize()
