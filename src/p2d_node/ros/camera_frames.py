"""Keeps the latest frames of the cameras that a drive node subscribes to."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from p2d_node.ros.camera_subscription import MESSAGE_TYPES
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.ros.frame_limits import why_odd
from p2d_node.ros.kept_messages import KeptMessages
from p2d_node.ros.throttled_log import ThrottledLog
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

FRAMES_KEPT = {CompressedImage: 60, Image: 12}
"""Per camera: 5 s at 12 Hz; of raw images, which take megabytes, 1 s."""

MAX_FRAME_BYTES = 256 << 20
"""Of the frames that are kept per topic."""

MAX_TOPICS = 64


class CameraFrames:
    """Subscribes to the image topics that a drive node subscribes to.

    Callbacks run in the executor of the node; `look` and `frames_at` may be called from another
    thread.
    """

    def __init__(self, node: Node, target: str) -> None:
        """Subscribe as soon as the drive node is found; see `look`.

        Args:
            node: The node that subscribes.
            target: Full name of the drive node.
        """
        self._node = node
        self._namespace, _, self._name = target.rpartition('/')
        self._log = ThrottledLog(node.get_logger())
        self._frames: dict[str, KeptMessages[Any]] = {}

    def look(self) -> None:
        """Subscribe to image topics of the drive node that are new."""
        for topic, kinds in self._topics_of_target():
            for message_class, kind in MESSAGE_TYPES.values():
                is_new = kind in kinds and topic not in self._frames
                if is_new and len(self._frames) < MAX_TOPICS:
                    self._subscribe(topic, message_class)

    def _topics_of_target(self) -> list[tuple[str, list[str]]]:
        """Return topics and types that the drive node subscribes to; none if it is not there."""
        known = (self._name, self._namespace or '/')
        try:
            if known in self._node.get_node_names_and_namespaces():
                return list(self._node.get_subscriber_names_and_types_by_node(*known))
        except UnicodeDecodeError:
            self._log.warn(
                'a node on the network has a name that is not UTF-8, so new image topics are not '
                'found; stop it'
            )
        return []

    def _subscribe(self, topic: str, message_class: Any) -> None:
        frames: KeptMessages[Any] = KeptMessages(FRAMES_KEPT[message_class], MAX_FRAME_BYTES)

        def receive(message: Any) -> None:
            if not why_odd(message):
                frames.add(message, len(message.data))

        self._node.create_subscription(message_class, topic, receive, qos_profile_sensor_data)
        self._frames[topic] = frames

    def frames_at(self, stamps_ns: Collection[int]) -> dict[str, Any]:
        """Return topic to image message, for frames that were captured at one of `stamps_ns`."""
        return {
            topic: message
            for topic, frames in self._frames.items()
            for message in frames.latest()
            if to_nanoseconds(message.header.stamp) in stamps_ns
        }
