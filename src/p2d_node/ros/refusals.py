"""Counts and logs the requests of peers that the node refuses."""

from __future__ import annotations

import threading
from typing import Any

from p2d_node.ros.throttled_log import ThrottledLog


class Refusals:
    """Requests that got a reason instead of an effect. Any thread may call.

    Attributes:
        num: Their number since the node was created.
    """

    def __init__(self, logger: Any) -> None:
        """Write to a logger of rclpy."""
        self.num = 0
        self._log = ThrottledLog(logger)
        self._lock = threading.Lock()

    def add(self, request: str, reason: str) -> None:
        """Count a refused request, and log it unless one of its kind was logged lately.

        Args:
            request: The service or topic.
            reason: Why it was refused; may hold texts of the peer.
        """
        with self._lock:
            self.num += 1
        self._log.warn(f'{request} refused: {reason}')
