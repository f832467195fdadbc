"""Learns the timing of the cameras from their stamps: sweep period and exposure offsets."""

from __future__ import annotations

import math
import statistics

from p2d_node.units import NS_PER_MS

MAX_TOLERANCE_PERIODS = 0.49
"""Largest tolerance as a share of the shortest period of the reference camera."""

PERIOD_WINDOW = 64
"""Periods per window; the current window and the previous one count."""

MIN_PERIOD_NS = 2 * NS_PER_MS
"""Reference frames closer than this are a frame published twice, not a period."""

OFFSET_SAMPLES = 12
"""Frames per camera from which `auto` learns the offsets: one second of nuScenes."""

OFFSET_LEARNING_NS = 10_000 * NS_PER_MS
"""Time after which `auto` stops waiting for cameras that send no frames."""


class ShortestPeriod:
    """The second shortest time between two frames of the reference camera, of the last ones.

    Not the shortest: a single stray frame must not lower the tolerance for all that follow.
    """

    def __init__(self) -> None:
        self._last_stamp_ns: int | None = None
        self._previous_window_ns = math.inf
        self._shortest_two_ns = (math.inf, math.inf)
        self._window_count = 0

    @property
    def max_tolerance_ns(self) -> int:
        """Largest tolerance, in nanoseconds, that does not reach a neighbouring sweep."""
        shortest_ns = min(self._previous_window_ns, self._shortest_two_ns[1])
        return int(MAX_TOLERANCE_PERIODS * min(shortest_ns, float(2**62)))

    def add(self, stamp_ns: int) -> None:
        """Add the stamp of the next reference frame, in order of arrival."""
        if self._last_stamp_ns is not None:
            period_ns = abs(stamp_ns - self._last_stamp_ns)
            if period_ns >= MIN_PERIOD_NS:
                first_ns, second_ns, _ = sorted((*self._shortest_two_ns, float(period_ns)))
                self._shortest_two_ns = (first_ns, second_ns)
                self._window_count += 1
        self._last_stamp_ns = stamp_ns
        if self._window_count == PERIOD_WINDOW:
            self._previous_window_ns = self._shortest_two_ns[1]
            self._shortest_two_ns = (math.inf, math.inf)
            self._window_count = 0


class OffsetLearner:
    """Learns each camera's exposure offset relative to the reference camera from stamps."""

    def __init__(self, cameras: tuple[str, ...], reference: str) -> None:
        self._reference = reference
        self._stamps: dict[str, list[int]] = {name: [] for name in cameras}
        self._first_arrival_ns: int | None = None

    def add(self, camera: str, stamp_ns: int, now_ns: int) -> None:
        """Add the stamp of a frame, ROS time, that arrived at `now_ns` of the steady clock."""
        if self._first_arrival_ns is None:
            self._first_arrival_ns = now_ns
        stamps = self._stamps[camera]
        # Bounds memory while another camera sends no frames.
        if len(stamps) < 2 * OFFSET_SAMPLES:
            stamps.append(stamp_ns)

    def ready(self, now_ns: int) -> bool:
        """Tell whether enough was seen at `now_ns` of the steady clock."""
        if all(len(stamps) >= OFFSET_SAMPLES for stamps in self._stamps.values()):
            return True
        if self._first_arrival_ns is None or len(self._stamps[self._reference]) < OFFSET_SAMPLES:
            return False
        return now_ns - self._first_arrival_ns >= OFFSET_LEARNING_NS

    def offsets_ns(self) -> dict[str, int]:
        """Return camera to exposure offset in nanoseconds; 0 for cameras without frames."""
        references = sorted(self._stamps[self._reference])
        return {
            name: _median_offset_ns(sorted(stamps), references)
            for name, stamps in self._stamps.items()
        }


def _median_offset_ns(stamps: list[int], references: list[int]) -> int:
    """Return the median offset to the previous or to the next reference stamp, in nanoseconds.

    The one that varies less is returned: with a varying sweep period only the offset within the
    true sweep is constant. With a constant period both are, and the smaller one is returned.
    A camera without frames gets 0.
    """
    after = [s - max(r for r in references if r <= s) for s in stamps if s >= references[0]]
    before = [s - min(r for r in references if r >= s) for s in stamps if s <= references[-1]]
    candidates = []
    for offsets in (after, before):
        if offsets:
            median = statistics.median_low(offsets)
            spread = statistics.median_low([abs(offset - median) for offset in offsets])
            candidates.append((spread // NS_PER_MS, abs(median), median))
    return min(candidates)[2] if candidates else 0
