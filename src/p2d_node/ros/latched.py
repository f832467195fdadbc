"""Bounds the memory of latched topics, whose messages DDS keeps for late subscribers."""

from __future__ import annotations

from collections.abc import Mapping

MAX_LATCHED = 1000
"""Messages of a topic."""

MAX_LATCHED_BYTES = 256 << 20
"""Of all topics; as large as the largest message of a bag, such as a map."""


class LatchedDepths:
    """How many messages each latched topic keeps.

    DDS keeps for each of them as much memory as the largest one took.
    """

    def __init__(self, num_kept: Mapping[str, int]) -> None:
        """Begin without messages.

        Args:
            num_kept: Topic to the number of messages that are kept while they are small.
        """
        self._depths = {topic: min(count, MAX_LATCHED) for topic, count in num_kept.items()}
        self._largest = dict.fromkeys(num_kept, 0)

    def of(self, topic: str) -> int:
        """Return the number of messages that a topic keeps; 0: it is not latched."""
        return self._depths.get(topic, 0)

    def add(self, topic: str, num_bytes: int) -> bool:
        """Note the next message of a topic; return whether the topic keeps fewer from now on."""
        if num_bytes <= self._largest.get(topic, num_bytes):
            return False
        others = sum(self._depths[x] * self._largest[x] for x in self._depths if x != topic)
        self._largest[topic] = num_bytes
        allowed = (MAX_LATCHED_BYTES - others) // num_bytes
        if self._depths[topic] <= allowed:
            return False
        # By half at least: messages that grow step by step do not change it each time.
        self._depths[topic] = min(allowed, self._depths[topic] // 2)
        return True
