"""Stage durations of one sweep, on the steady clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import time

import torch

NS_PER_MS = 1e6


class StageClock:
    """Adds up milliseconds per stage; one per sweep, one thread.

    A stage inside another one is not counted in the outer one. On a GPU a stage begins when what
    was launched before it has ended, and ends when its own kernels have: one synchronisation at
    either end, none inside.
    """

    def __init__(self, device: torch.device) -> None:
        self._synchronize = device.type == 'cuda'
        self._start_ns = time.monotonic_ns()
        self._inner_ms = 0.0
        self.durations_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of a `with` block and add it to stage `name`."""
        self._settle()
        start_ns = time.monotonic_ns()
        inner_ms, self._inner_ms = self._inner_ms, 0.0
        yield
        self._settle()
        duration_ms = (time.monotonic_ns() - start_ns) / NS_PER_MS
        self.add(name, duration_ms - self._inner_ms)
        self._inner_ms = inner_ms + duration_ms

    def _settle(self) -> None:
        if self._synchronize:
            torch.cuda.synchronize()

    def add(self, name: str, duration_ms: float) -> None:
        """Add a duration that was measured elsewhere."""
        self.durations_ms[name] = self.durations_ms.get(name, 0.0) + duration_ms

    def elapsed_ms(self) -> float:
        """Return the milliseconds since this clock was made."""
        return (time.monotonic_ns() - self._start_ns) / NS_PER_MS
