"""Asks the node questions by its service, and counts who hears what."""

from __future__ import annotations

from collections import Counter
import threading
import time
from typing import Any

from p2d_msgs.srv import Ask
from rclpy.node import Node
from rclpy.qos import QoSProfile

QUEUE_DEPTH = 256
"""With the default of 10 the client itself would lose requests and replies of a burst."""

TIMEOUT_S = 5.0
LOST_AFTER_S = 15.0
"""A reply that has not come by then never comes."""


class Callers:
    """Callers of ~/ask. Any thread may call `ask`.

    Attributes:
        counts: Number of calls that were `asked`, `answered` and `told` a reason.
    """

    def __init__(self, node: Node) -> None:
        """Create the client."""
        self.counts: Counter[str] = Counter()
        self._client = node.create_client(
            Ask, '/p2d/ask', qos_profile=QoSProfile(depth=QUEUE_DEPTH)
        )
        self._waiting: dict[int, float] = {}
        self._lock = threading.Lock()

    def ask(self, question: str) -> None:
        """Ask without waiting for the answer, unless the node is not there yet."""
        if not self._client.service_is_ready():  # the request would be lost in the caller
            return
        number = self.counts['asked']
        with self._lock:
            self.counts['asked'] += 1
            self._waiting[number] = time.monotonic()
        future = self._client.call_async(Ask.Request(question=question, timeout_s=TIMEOUT_S))

        def note(done: Any) -> None:
            with self._lock:
                self._waiting.pop(number, None)
                self.counts['answered' if done.result().success else 'told'] += 1

        future.add_done_callback(note)

    def count_lost(self) -> int:
        """Return the number of callers who wait for longer than any reply takes."""
        now_s = time.monotonic()
        with self._lock:
            return sum(now_s - asked_s > LOST_AFTER_S for asked_s in self._waiting.values())
