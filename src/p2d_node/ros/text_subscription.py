"""A topic of texts, whose large messages cost memory only for a while."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
import time
from typing import Any

from p2d_node.ros.camera_subscription import HAS_MESSAGE_INFO, LARGE_OVER_NS
from p2d_node.ros.memory_growth import GROWTH
from p2d_node.ros.received_bytes import read_message
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String

LARGE_BYTES = 1 << 20
CHECK_EVERY_S = 1.0

OnText = Callable[[str, int], None]
"""Gets a text, and when it was sent: nanoseconds on the clock of the sender, 0 if unknown."""


class TextSubscription:
    """Subscribes to `std_msgs/String`.

    Fast DDS keeps as many buffers of the largest message as it needed at once, until the
    subscription ends. So some seconds after large texts, or when the process has grown, it
    subscribes again. All of it happens on the thread that spins the node.
    """

    def __init__(
        self, node: Node, topic: str, on_text: OnText, qos: QoSProfile, **options: Any
    ) -> None:
        """Subscribe.

        Args:
            node: The node that subscribes.
            topic: Name of the topic.
            on_text: Called for every text.
            qos: Of the subscription.
            options: Further arguments of `create_subscription`.
        """
        self._node = node
        self._topic = topic
        self._on_text = on_text
        self._qos = qos
        self._options = options
        self._large_ns = 0
        self._subscription: Any = self._subscribe()
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(CHECK_EVERY_S, self._free_memory, clock=clock)

    def destroy(self) -> None:
        """Unsubscribe."""
        self._node.destroy_timer(self._timer)
        self._node.destroy_subscription(self._subscription)

    def _subscribe(self) -> Any:
        self._subscribed_ns = time.monotonic_ns()
        receive: Any = self._receive
        if not HAS_MESSAGE_INFO:
            receive = partial(self._receive, info={'source_timestamp': 0})
        return self._node.create_subscription(
            String, self._topic, receive, self._qos, raw=True, **self._options
        )

    def _receive(self, data: bytes, info: Any) -> None:
        if len(data) > LARGE_BYTES:
            self._large_ns = time.monotonic_ns()
        message = read_message(data, String)
        if message is not None:
            self._on_text(message.data, max(0, int(info['source_timestamp'])))

    def _free_memory(self) -> None:
        is_over = self._large_ns and time.monotonic_ns() - self._large_ns > LARGE_OVER_NS
        if is_over or GROWTH.grown_ns > self._subscribed_ns:
            self._large_ns = 0
            self._node.destroy_subscription(self._subscription)
            self._subscription = self._subscribe()
