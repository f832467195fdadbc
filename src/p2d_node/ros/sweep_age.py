"""Tells how old a sweep is, also if its stamps come from another clock than the node's."""

from __future__ import annotations

from collections.abc import Callable
import time

from p2d_node.records import FrameSet
from p2d_node.units import NS_PER_MS, NS_PER_S

MAX_LEAD_NS = NS_PER_S
"""Stamps further ahead of the node's clock come from another clock."""

MAX_LAG_NS = 60 * NS_PER_S
"""So do stamps further behind it, such as those of a bag that is played without --clock."""

SETTLE_NS = 2 * NS_PER_S
"""After the last sweep of the node's clock, until older stamps are believed to be of another."""


class SweepAge:
    """Measures ages since capture, or since arrival where capture stamps say nothing.

    Once a sweep has arrived about when it was captured, its stamp and all later ones count as
    those of the node's clock: they may come minutes late from a network that was blocked. That
    ends with a sweep of most cameras from before the last of them, such as that of a bag.
    `note` is called by the thread that receives frames, `age_ms` by any thread.

    Attributes:
        lag_ns: ROS time at the arrival of the last sweep minus its stamp, nanoseconds.
        has_foreign_stamps: Whether the stamps of the last sweep are not those of the node's clock.
    """

    def __init__(
        self,
        ros_now_ns: Callable[[], int],
        clock_rate: Callable[[], float],
        steady_now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Start without any sweep.

        Args:
            ros_now_ns: ROS time, nanoseconds.
            clock_rate: Seconds of ROS time per second of the steady clock.
            steady_now_ns: Steady clock, nanoseconds.
        """
        self._ros_now_ns = ros_now_ns
        self._clock_rate = clock_rate
        self._steady_now_ns = steady_now_ns
        self._common_since_ns: int | None = None
        self._last_common_ns = self._last_arrival_ns = 0
        self.lag_ns = 0
        self.has_foreign_stamps = False

    def note(self, frame_set: FrameSet) -> None:
        """Learn from a sweep that has just arrived whether its stamps are of the node's clock."""
        self.lag_ns = self._ros_now_ns() - frame_set.stamp_ns
        is_near = -MAX_LEAD_NS <= self.lag_ns <= MAX_LAG_NS
        if is_near:
            since_ns = self._common_since_ns
            stamp_ns = frame_set.stamp_ns
            self._common_since_ns = stamp_ns if since_ns is None else min(since_ns, stamp_ns)
        # A stray of one camera can be a sweep, with the other cameras missing.
        if len(frame_set.frames) > len(frame_set.missing):
            self._follow_step(frame_set, is_near)
        is_held_back = self.lag_ns > MAX_LAG_NS and self._is_common(frame_set)
        self.has_foreign_stamps = not (is_near or is_held_back)

    def _follow_step(self, frame_set: FrameSet, is_near: bool) -> None:
        if is_near:
            self._last_common_ns = frame_set.stamp_ns
            self._last_arrival_ns = frame_set.first_arrival_ns
            return
        # Sweeps with cameras missing are noted at their deadline, after newer ones.
        has_settled = frame_set.first_arrival_ns > self._last_arrival_ns + SETTLE_NS
        if has_settled and frame_set.stamp_ns < self._last_common_ns - MAX_LAG_NS:
            self._common_since_ns = None

    def _is_common(self, frame_set: FrameSet) -> bool:
        # Not by epoch: each stray of another time begins one.
        since_ns = self._common_since_ns
        return since_ns is not None and frame_set.stamp_ns >= since_ns

    def age_ms(self, frame_set: FrameSet) -> float:
        """Return the age of a sweep in milliseconds.

        It is ROS time since capture, or since the first frame arrived if that is longer or the
        stamps are of another clock. In a replay that runs faster than real time it is that much
        less.
        """
        rate = self._clock_rate()
        age_ns = (self._steady_now_ns() - frame_set.first_arrival_ns) * rate
        since_capture_ns = self._ros_now_ns() - frame_set.stamp_ns
        if self._is_common(frame_set) or since_capture_ns - age_ns <= MAX_LAG_NS:
            age_ns = max(age_ns, since_capture_ns)
        return age_ns / max(1.0, rate) / NS_PER_MS
