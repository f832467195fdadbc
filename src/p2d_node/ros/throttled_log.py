"""Logs warnings and errors, each cause at most once in a few seconds and not too many in all."""

from __future__ import annotations

from collections import OrderedDict
import re
import threading
import time
from typing import Any

from p2d_node.errors import one_line

EVERY_S = 5.0
MAX_CAUSES = 64

MAX_LINES = 16
"""Lines within `EVERY_S`: what a peer wrote may be in a message and make every one a new cause."""

MAX_CHARACTERS = 2000
"""Of one line; libraries quote a text of any length in their errors."""

NUM_CAUSE_CHARACTERS = 300
"""The first characters of a message tell its cause."""

VARYING = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""  # a text as `quote` writes it,
    r"""|['"].*?\.\.\. \(\d+ characters\)|['"].*"""  # one that was cut,
    r'|\d+'  # and numbers
)


class ThrottledLog:
    """Writes a line unless one of the same cause was written lately.

    rclpy throttles by line of code, which would let one cause hide another. Any thread may call.
    """

    def __init__(self, logger: Any) -> None:
        """Write to a logger of rclpy."""
        self._logger = logger
        self._written_s: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()
        self._window_s = -EVERY_S
        self._num_lines = 0

    def warn(self, message: str) -> None:
        """Write a warning; messages that differ in numbers or quotes only have the same cause."""
        if self._may_write(message):
            self._logger.warning(_line(message))

    def info(self, message: str) -> None:
        """Write a piece of information, as `warn` does a warning."""
        if self._may_write(message):
            self._logger.info(_line(message))

    def error(self, message: str) -> None:
        """Write an error, as `warn` does a warning."""
        if self._may_write(message):
            self._logger.error(_line(message))

    def _may_write(self, message: str) -> bool:
        cause = VARYING.sub('0', message[:NUM_CAUSE_CHARACTERS])
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._written_s.get(cause, -EVERY_S) < EVERY_S:
                return False
            if now_s - self._window_s >= EVERY_S:
                self._window_s, self._num_lines = now_s, 0
            if self._num_lines >= MAX_LINES:
                return False
            self._num_lines += 1
            self._written_s[cause] = now_s
            self._written_s.move_to_end(cause)
            if len(self._written_s) > MAX_CAUSES:
                self._written_s.popitem(last=False)
        return True


def _line(message: str) -> str:
    return one_line(message[:MAX_CHARACTERS])
