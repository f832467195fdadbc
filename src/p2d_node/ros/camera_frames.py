"""Keeps the latest frames of the cameras that a drive node subscribes to."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
import threading
from typing import Any

from p2d_node.ros.camera_subscription import MESSAGE_TYPES
from p2d_node.ros.conversions import to_nanoseconds
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

FRAMES_KEPT = {CompressedImage: 60, Image: 12}
"""Per camera: 5 s at 12 Hz; of raw images, which take megabytes, 1 s."""


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
        self._lock = threading.Lock()
        self._frames: dict[str, deque[Any]] = {}

    def look(self) -> None:
        """Subscribe to image topics of the drive node that are new."""
        known = (self._name, self._namespace or '/')
        if known not in self._node.get_node_names_and_namespaces():
            return
        for topic, kinds in self._node.get_subscriber_names_and_types_by_node(*known):
            for message_class, kind in MESSAGE_TYPES.values():
                if kind in kinds and topic not in self._frames:
                    self._subscribe(topic, message_class)

    def _subscribe(self, topic: str, message_class: Any) -> None:
        frames: deque[Any] = deque(maxlen=FRAMES_KEPT[message_class])

        def receive(message: Any) -> None:
            with self._lock:
                frames.append(message)

        self._node.create_subscription(message_class, topic, receive, qos_profile_sensor_data)
        self._frames[topic] = frames

    def frames_at(self, stamps_ns: Collection[int]) -> dict[str, Any]:
        """Return topic to image message, for frames that were captured at one of `stamps_ns`."""
        with self._lock:
            return {
                topic: message
                for topic, frames in self._frames.items()
                for message in frames
                if to_nanoseconds(message.header.stamp) in stamps_ns
            }
