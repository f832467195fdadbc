"""Measures how fast simulated time runs."""

from __future__ import annotations

from collections.abc import Callable
import time

from p2d_node.units import NS_PER_S

WINDOW_NS = NS_PER_S // 2
"""Steady time over which the rate is measured; /clock may tick ten times a second."""


class ClockRate:
    """Seconds of ROS time per second of the steady clock.

    While ROS time stands still or jumps back, the last rate is kept. Call `update` periodically
    from one thread; any thread may read `rate`.
    """

    def __init__(
        self,
        ros_now_ns: Callable[[], int],
        *,
        is_simulated: Callable[[], bool],
        steady_now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Start with a rate of 1.

        Args:
            ros_now_ns: ROS time, nanoseconds.
            is_simulated: Whether ROS time is that of /clock; otherwise the rate is 1.
            steady_now_ns: Steady clock, nanoseconds.
        """
        self.rate = 1.0
        self._ros_now_ns = ros_now_ns
        self._is_simulated = is_simulated
        self._steady_now_ns = steady_now_ns
        self._started = (steady_now_ns(), ros_now_ns())

    def update(self) -> None:
        """Measure the rate once a window has passed."""
        steady_ns, ros_ns = self._steady_now_ns(), self._ros_now_ns()
        passed_ns = steady_ns - self._started[0]
        if passed_ns < WINDOW_NS:
            return
        ros_passed_ns = ros_ns - self._started[1]
        was_running = self._started[1] > 0  # 0 until the first message on /clock
        self._started = (steady_ns, ros_ns)
        if not self._is_simulated():
            self.rate = 1.0
        elif was_running and ros_passed_ns > 0:
            self.rate = ros_passed_ns / passed_ns
