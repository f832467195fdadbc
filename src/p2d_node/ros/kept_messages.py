"""The latest messages of a topic, bounded in number and size."""

from __future__ import annotations

from collections import deque
import threading
from typing import Generic, TypeVar

T = TypeVar('T')


class KeptMessages(Generic[T]):
    """Drops the oldest messages. Any thread may call."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        """Keep up to `max_messages` of `max_bytes` together."""
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._kept: deque[tuple[T, int]] = deque()
        self._num_bytes = 0
        self._num_added = 0
        self._lock = threading.Lock()

    def add(self, message: T, num_bytes: int) -> None:
        """Keep a message; one that alone has more than `max_bytes` is left out."""
        if num_bytes > self._max_bytes:
            return
        with self._lock:
            self._kept.append((message, num_bytes))
            self._num_added += 1
            self._num_bytes += num_bytes
            while len(self._kept) > self._max_messages or self._num_bytes > self._max_bytes:
                self._num_bytes -= self._kept.popleft()[1]

    def latest(self) -> list[T]:
        """Return what is kept, the oldest first."""
        return self.after(0)[0]

    def after(self, number: int) -> tuple[list[T], int]:
        """Return those kept of the messages after the first `number`, and their number so far."""
        with self._lock:
            num_new = min(self._num_added - number, len(self._kept))
            kept = [message for message, _ in self._kept]
            return kept[len(kept) - num_new :], self._num_added
