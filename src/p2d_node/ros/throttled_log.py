"""Logs warnings, each cause at most once in a few seconds."""

from __future__ import annotations

from collections import OrderedDict
import re
import threading
import time
from typing import Any

EVERY_S = 5.0
MAX_CAUSES = 64
NUMBERS = re.compile(r'\d+')


class ThrottledLog:
    """Writes a warning unless one of the same cause was written lately.

    rclpy throttles by line of code, which would let one cause hide another. Any thread may call.
    """

    def __init__(self, logger: Any) -> None:
        """Write to a logger of rclpy."""
        self._logger = logger
        self._written_s: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def warn(self, message: str) -> None:
        """Write `message`; messages that differ in numbers only have the same cause."""
        cause, now_s = NUMBERS.sub('0', message), time.monotonic()
        with self._lock:
            if now_s - self._written_s.get(cause, -EVERY_S) < EVERY_S:
                return
            self._written_s[cause] = now_s
            self._written_s.move_to_end(cause)
            if len(self._written_s) > MAX_CAUSES:
                self._written_s.popitem(last=False)
        self._logger.warning(message)
