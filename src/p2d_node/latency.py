"""Stage durations and the deadline of one sweep, on the steady clock; percentiles over sweeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
import time

import numpy as np
from p2d_node.units import NS_PER_MS
import torch

MustStop = Callable[[], bool]
"""Called between tokens; True cuts all answers that have not ended."""

WINDOW_SWEEPS = 100
"""Sweeps that percentiles are taken over; `p2d_msgs/StageTiming` names this number."""

PERCENTILES = {'p50': 50.0, 'p95': 95.0}
"""Suffix of a field to its percentile."""

LATENCY_TREE = (
    (0, 'end_to_end_ms', 'capture of the oldest frame -> answers published'),
    (1, 'total_ms', 'first frame received -> last answer ready'),
    (2, 'sync_wait_ms', 'waiting for the other cameras'),
    (2, 'queue_ms', 'waiting for the sweep before'),
    (2, 'decode_ms', 'files -> pixels'),
    (2, 'preprocess_ms', "pixels -> the encoder's input"),
    (2, 'encode_ms', 'input -> visual tokens'),
    (2, 'select_ms', 'visual tokens -> kept tokens'),
    (2, 'prefill_ms', 'the language model reads'),
    (2, 'generate_ms', 'the language model writes'),
)
"""Depth, field and meaning of a sweep's times: each contains the deeper ones that follow it."""


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


class LatencyWindow:
    """Percentiles of named times over the latest sweeps; use it from one thread."""

    def __init__(self, num_sweeps: int = WINDOW_SWEEPS) -> None:
        """Start empty; `num_sweeps` are kept."""
        self._sweeps: deque[Mapping[str, float]] = deque(maxlen=num_sweeps)
        self._percentiles: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._sweeps)

    @property
    def percentiles(self) -> Mapping[str, float]:
        """`total_p50_ms`, `total_p95_ms` and so on, milliseconds; empty before the first sweep."""
        return self._percentiles

    def add(self, times_ms: Mapping[str, float]) -> None:
        """Add one sweep; `times_ms` has the same names, such as `total_ms`, each time."""
        self._sweeps.append(times_ms)
        self._percentiles = percentiles_of(self._sweeps, times_ms)


def percentile_field(name: str, suffix: str) -> str:
    """Return the name of a percentile: `total_p95_ms` of `total_ms` and `p95`."""
    return f'{name.removesuffix("_ms")}_{suffix}_ms'


def percentiles_of(
    sweeps: Iterable[Mapping[str, float]], names: Iterable[str]
) -> dict[str, float]:
    """Return the median and the 95th percentile of each time over sweeps.

    Args:
        sweeps: Name to milliseconds, one or more.
        names: Of times, such as `total_ms`.

    Returns:
        `total_p50_ms`, `total_p95_ms` and so on, milliseconds.
    """
    names = list(names)
    values = np.array([[times[name] for name in names] for times in sweeps])
    return {
        percentile_field(name, suffix): float(value)
        for suffix, percentile in PERCENTILES.items()
        for name, value in zip(names, np.percentile(values, percentile, axis=0), strict=True)
    }
