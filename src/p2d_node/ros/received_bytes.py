"""Messages that are received as bytes: only these tell how much memory DDS holds for them.

What follows a message in its bytes, or a zero in a text, is not in the message that rclpy makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.serialization import deserialize_message


def read_message(data: bytes, kind: Any) -> Any | None:
    """Return the message of type `kind` in serialized bytes; None if there is none."""
    try:
        return deserialize_message(data, kind)
    except Exception:  # malformed; rclpy has no class of its own for it
        return None


def read_within(
    max_bytes: int, kind: Any, receive: Callable[[Any], None]
) -> Callable[[bytes], None]:
    """Return a callback that reads messages of a limited size; Python takes many times as much."""

    def check_and_receive(data: bytes) -> None:
        if len(data) > max_bytes:
            return
        message = read_message(data, kind)
        if message is not None:
            receive(message)

    return check_and_receive
