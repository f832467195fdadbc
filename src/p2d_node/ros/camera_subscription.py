"""One camera topic: a subscription whose QoS follows its publishers, and what arrived on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
import time
from typing import Any

from p2d_node.config import CameraConfig
from p2d_node.ros.conversions import to_nanoseconds
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

QUEUE_DEPTH = 10
"""Frames per camera that DDS keeps for us: what a stall of 0.8 s at 12 Hz piles up."""

MESSAGE_TYPES = {
    'raw': (Image, 'sensor_msgs/msg/Image'),
    'compressed': (CompressedImage, 'sensor_msgs/msg/CompressedImage'),
}
"""Per transport the message class and its name in the graph."""

RATE_WINDOW_S = 5.0
"""Time over which the rate of a camera is counted."""

MAX_LAG_NS = 10_000_000_000
"""A frame cannot have waited longer for us; more is a jump of the system clock."""

OnFrame = Callable[[str, int, int, Any], None]


class CameraSubscription:
    """Subscribes to one camera; reliable where all its publishers are, else best-effort.

    A reliable subscription hears nothing from a best-effort publisher, and a best-effort one loses
    fragments of large frames that a reliable publisher would have sent again. So the publishers
    decide, and `follow_publishers`, called once in a while, renews the subscription when they
    change.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        config: CameraConfig,
        on_frame: OnFrame,
        callback_group: CallbackGroup,
    ) -> None:
        """Subscribe.

        Args:
            node: The node that subscribes.
            name: The camera's name.
            config: Topic and transport.
            on_frame: Gets name, stamp (ROS time, nanoseconds), arrival on this machine (steady
                clock, nanoseconds) and message of every frame.
            callback_group: Where `on_frame` is called.
        """
        self.name = name
        self.config = config
        self.num_received = 0
        self.frame_id = ''
        self.last_arrival_ns: int | None = None
        self._node = node
        self._on_frame = on_frame
        self._callback_group = callback_group
        self._stamps: deque[tuple[int, int]] = deque(maxlen=256)
        self.reliable = self._publishers_are_reliable()
        self._subscription = self._subscribe()

    @property
    def num_publishers(self) -> int:
        """Publishers that DDS has discovered on the topic."""
        return len(self._publishers())

    def follow_publishers(self) -> None:
        """Renew the subscription if the publishers' reliability has changed."""
        reliable = self._publishers_are_reliable()
        if reliable == self.reliable:
            return
        self.reliable = reliable
        self._node.destroy_subscription(self._subscription)
        self._subscription = self._subscribe()
        kind = 'reliable' if reliable else 'best-effort'
        self._node.get_logger().info(f'{self.name}: now subscribed {kind}, as its publishers are')

    def destroy(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    def rate_hz(self) -> float:
        """Return frames per second of the last seconds, 0.0 while there are none.

        Counted against capture stamps where they advance, so that a bag at half speed does not
        look like a slow camera.
        """
        horizon_ns = time.monotonic_ns() - int(RATE_WINDOW_S * 1e9)
        recent = [pair for pair in tuple(self._stamps) if pair[0] >= horizon_ns]
        if len(recent) < 2:
            return 0.0
        arrival_span_ns = recent[-1][0] - recent[0][0]
        stamp_span_ns = recent[-1][1] - recent[0][1]
        span_ns = stamp_span_ns if stamp_span_ns > 0 else arrival_span_ns
        return (len(recent) - 1) / (span_ns / 1e9) if span_ns > 0 else 0.0

    def _receive(self, message: Any, info: Any) -> None:
        arrival_ns = time.monotonic_ns() - _lag_ns(info)
        stamp_ns = to_nanoseconds(message.header.stamp)
        self.num_received += 1
        self.frame_id = message.header.frame_id
        self.last_arrival_ns = arrival_ns
        self._stamps.append((arrival_ns, stamp_ns))
        self._on_frame(self.name, stamp_ns, arrival_ns, message)

    def wrong_type(self) -> str:
        """Return the type that publishers use if it is not the subscribed one, else nothing."""
        types = {publisher.topic_type for publisher in self._publishers()}
        expected = MESSAGE_TYPES[self.config.transport][1]
        return '' if not types or expected in types else sorted(types)[0]

    def _publishers(self) -> list[Any]:
        topic = self._node.resolve_topic_name(self.config.topic)
        return list(self._node.get_publishers_info_by_topic(topic))

    def _publishers_are_reliable(self) -> bool:
        return all(
            publisher.qos_profile.reliability == ReliabilityPolicy.RELIABLE
            for publisher in self._publishers()
        )

    def _subscribe(self) -> Any:
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=QUEUE_DEPTH,
            reliability=(
                ReliabilityPolicy.RELIABLE if self.reliable else ReliabilityPolicy.BEST_EFFORT
            ),
        )
        return self._node.create_subscription(
            MESSAGE_TYPES[self.config.transport][0],
            self.config.topic,
            self._receive,
            qos,
            callback_group=self._callback_group,
        )


def _lag_ns(info: Any) -> int:
    """Return how long ago DDS received a message; 0 where it does not say."""
    received_ns = int(info['received_timestamp'])
    lag_ns = time.time_ns() - received_ns if received_ns > 0 else 0
    return lag_ns if 0 <= lag_ns <= MAX_LAG_NS else 0
