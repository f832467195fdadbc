"""One camera topic: a subscription whose QoS follows its publishers, and figures about it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
import itertools
import threading
import time
from typing import Any

from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.ros.frame_limits import why_refused, why_too_large
from p2d_node.ros.memory_growth import GROWTH
from p2d_node.ros.rcl_errors import rcl_reason
from p2d_node.ros.received_bytes import read_message
from p2d_node.ros.throttled_log import ThrottledLog
from p2d_node.units import NS_PER_S
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

QUEUE_DEPTH = 10
"""Frames per camera that DDS queues: enough for a pause of 0.8 s at 12 Hz."""

MESSAGE_TYPES = {
    'raw': (Image, 'sensor_msgs/msg/Image'),
    'compressed': (CompressedImage, 'sensor_msgs/msg/CompressedImage'),
}
"""Transport to message class and type name."""

RATE_WINDOW_S = 5.0
"""Time over which the frame rate is measured."""

MAX_STAMPS = 256
"""Frames whose times are kept to measure the rate."""

MAX_LAG_NS = 10 * NS_PER_S
"""A longer lag between DDS and the callback means that the system clock was set."""

HAS_MESSAGE_INFO = hasattr(Subscription, 'CallbackType')
"""Whether rclpy tells a callback when DDS received the message; that of Humble does not."""

MAX_HEADER_BYTES = 4096
"""Of a message without its image."""

LARGE_BYTES = 16 << 20
"""Buffers for messages up to this size are kept."""

LARGE_OVER_NS = 10 * NS_PER_S
"""Large messages are over if none of half of the largest size has come for this time."""

UNREADABLE_PUBLISHER = 'a publisher has a node name that is not UTF-8; stop it'

NO_MESSAGE_INFO = {'received_timestamp': 0}

OnFrame = Callable[[str, int, int, Any], None]
"""Called with camera name, stamp (ROS time, ns), arrival (steady clock, ns) and message."""


def resolve_topic(node: Node, name: str, config: DriveConfig) -> str:
    """Return the full topic name of a camera, after expansion and remapping.

    Args:
        node: The node that subscribes.
        name: The camera's name.
        config: Its topic and `camera_namespace`.

    Raises:
        ConfigError: The topic is not a valid ROS name.
    """
    topic = config.topic_of(name)
    try:
        return str(node.resolve_topic_name(topic))
    except RuntimeError as err:  # rclpy's RCLError
        reason = rcl_reason(err).removeprefix('failed to resolve name: ')
        raise ConfigError(
            f'cameras.{name}.topic: got {topic!r}: {reason}; allowed: letters, digits, '
            f"'_' and '/', where no part begins with a digit; set cameras.{name}.topic to such "
            'a name'
        ) from err


class CameraSubscription:
    """Subscribes to one camera: reliable if all its publishers are, otherwise best-effort.

    A reliable subscription receives nothing from a best-effort publisher. A best-effort one loses
    fragments of large frames that a reliable publisher would send again. `follow_publishers`
    notes when the publishers have changed; call it about once a second. `renew` subscribes again.

    Frames are received by the thread that spins the node, which alone may call `renew`: rclpy
    fails if it waits for a subscription that another thread destroys. All other methods may be
    called from any thread and do not block.

    Attributes:
        name: The camera's name.
        config: Its transport, exposure offset and frame rate.
        topic: Full name of the topic, after remapping.
        num_refused: Number of frames that were refused as they arrived.
        refusal: Why the last of them was refused; emptied by who reports it.
        has_unreadable_publisher: Whether rclpy cannot list the publishers, because the node name
            of one is not UTF-8. What was known of the others stays.
    """

    def __init__(self, node: Node, name: str, config: DriveConfig, on_frame: OnFrame) -> None:
        """Subscribe.

        Args:
            node: The node that subscribes.
            name: The camera's name.
            config: Topic and transport of the camera.
            on_frame: Called for every frame.

        Raises:
            ConfigError: The topic is not a valid ROS name.
        """
        self.name = name
        self.config = config.cameras[name]
        self.topic = resolve_topic(node, name, config)
        self.num_received = 0
        self.last_arrival_ns: int | None = None
        self.num_refused = 0
        self.refusal = ''
        self.has_unreadable_publisher = False
        self._largest_bytes = self._large_ns = 0
        self._max_pixels = config.max_image_pixels
        self._known_publishers: list[Any] = []
        self._log = ThrottledLog(node.get_logger())
        self._node = node
        # rclpy remaps it in every call; the remapped name would be remapped twice.
        self._topic = config.topic_of(name)
        self._on_frame = on_frame
        self._stamps: deque[tuple[int, int]] = deque(maxlen=MAX_STAMPS)
        self._lock = threading.Lock()
        self._wants_reliable: bool | None = None
        self.reliable = self._publishers_are_reliable()
        self._subscription: Any = self._subscribe()

    @property
    def remapped_from(self) -> str:
        """Full name of the topic before remapping; empty if it is not remapped."""
        before = str(self._node.resolve_topic_name(self._topic, only_expand=True))
        return '' if before == self.topic else before

    @property
    def publisher_names(self) -> list[str]:
        """Names of the nodes that publish on the topic, one per publisher."""
        return sorted(
            f'{info.node_namespace.rstrip("/")}/{info.node_name}' for info in self._publishers()
        )

    @property
    def stamp_lead_ns(self) -> int | None:
        """Stamp of the last frame minus its arrival; None before the first and for stamps 0."""
        if not self._stamps or not self._stamps[-1][1]:
            return None
        arrival_ns, stamp_ns = self._stamps[-1]
        return stamp_ns - arrival_ns

    def follow_publishers(self) -> None:
        """Have `renew` subscribe again if the publishers have changed, or to free memory."""
        reliable = self._publishers_are_reliable()
        if reliable != self.reliable or self._holds_unused_memory():
            self._wants_reliable = reliable

    def renew(self) -> bool:
        """Subscribe again if `follow_publishers` has found a reason; returns whether it did."""
        reliable, self._wants_reliable = self._wants_reliable, None
        if reliable is None:
            return False
        with self._lock:
            if self._subscription is None:
                return False
            has_changed = reliable != self.reliable
            self.reliable = reliable
            self._largest_bytes = 0
            self._node.destroy_subscription(self._subscription)
            self._subscription = self._subscribe()
        if has_changed:
            kind = 'reliable' if reliable else 'best-effort'
            self._log.info(f'{self.name}: subscription is now {kind}, as the publishers')
        return True

    def _holds_unused_memory(self) -> bool:
        """Tell whether there were large messages that come no more, or any that nobody saw.

        Fast DDS keeps as many buffers of the largest size as it needed at once, until the
        subscription ends.
        """
        if GROWTH.grown_ns > self._subscribed_ns:
            return True
        is_over = time.monotonic_ns() - self._large_ns > LARGE_OVER_NS
        return is_over and self._largest_bytes > LARGE_BYTES

    def destroy(self) -> None:
        """Unsubscribe."""
        with self._lock:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def rate_hz(self) -> float:
        """Return the frames per second of the last `RATE_WINDOW_S`; 0.0 without frames.

        The rate is measured on capture stamps if they advance, so a bag at half speed does not
        look like a slow camera.
        """
        horizon_ns = time.monotonic_ns() - int(RATE_WINDOW_S * NS_PER_S)
        recent = [pair for pair in tuple(self._stamps) if pair[0] >= horizon_ns]
        arrivals, stamps = [pair[0] for pair in recent], [pair[1] for pair in recent]
        return _rate_hz(stamps) or _rate_hz(arrivals)

    def unexpected_type(self) -> str | None:
        """Return the message type of the publishers if none has the subscribed type, else None."""
        types = {publisher.topic_type for publisher in self._publishers()}
        expected = MESSAGE_TYPES[self.config.transport][1]
        return None if not types or expected in types else min(types)

    def _receive(self, received: Any, info: Any) -> None:
        arrival_ns = time.monotonic_ns() - _lag_ns(info)
        self.num_received += 1
        self.last_arrival_ns = arrival_ns
        self._note_size(_num_bytes(received), arrival_ns)
        message, reason = self._read(received)
        if reason:
            self.refusal = reason
            self.num_refused += 1
            self._log.warn(f'{self.name}: a frame is refused: {reason}')
            return
        stamp_ns = to_nanoseconds(message.header.stamp)
        self._stamps.append((arrival_ns, stamp_ns))
        self._on_frame(self.name, stamp_ns, arrival_ns, message)

    def _read(self, received: Any) -> tuple[Any, str]:
        """Return the message, and why it is refused; empty if it is not."""
        if not isinstance(received, bytes):
            return received, why_refused(received, self._max_pixels)
        if reason := why_too_large(len(received) - MAX_HEADER_BYTES, self._max_pixels, raw=False):
            return None, reason
        message = read_message(received, CompressedImage)
        if message is None:
            return None, 'got bytes that are no message; correct the publisher'
        return message, why_refused(message, self._max_pixels)

    def _note_size(self, num_bytes: int, arrival_ns: int) -> None:
        self._largest_bytes = max(self._largest_bytes, num_bytes)
        if 2 * num_bytes >= self._largest_bytes:
            self._large_ns = arrival_ns

    def _publishers(self) -> list[Any]:
        """Return what rclpy tells of the publishers, or what it told before one was unreadable."""
        try:
            publishers = self._node.get_publishers_info_by_topic(self._topic)
        except UnicodeDecodeError:
            self.has_unreadable_publisher = True
            self._log.warn(f'{self.topic}: {UNREADABLE_PUBLISHER}')
        else:
            self.has_unreadable_publisher = False
            self._known_publishers = list(publishers)
        return self._known_publishers

    def _publishers_are_reliable(self) -> bool:
        publishers = self._publishers()
        if self.has_unreadable_publisher and not publishers:
            return False  # best-effort receives from all of them
        return all(
            publisher.qos_profile.reliability == ReliabilityPolicy.RELIABLE
            for publisher in publishers
        )

    def _subscribe(self) -> Any:
        self._subscribed_ns = time.monotonic_ns()
        reliability = (
            ReliabilityPolicy.RELIABLE if self.reliable else ReliabilityPolicy.BEST_EFFORT
        )
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=QUEUE_DEPTH, reliability=reliability
        )
        message_type = MESSAGE_TYPES[self.config.transport][0]
        receive: Any = self._receive
        if not HAS_MESSAGE_INFO:
            receive = partial(self._receive, info=NO_MESSAGE_INFO)
        # Not so for Image: rclpy takes milliseconds to read one of a megabyte from bytes.
        as_bytes = message_type is CompressedImage
        return self._node.create_subscription(
            message_type, self._topic, receive, qos, raw=as_bytes
        )


def _num_bytes(message: Any) -> int:
    """Return about how large a message is; any of its texts may be as large as the image."""
    if isinstance(message, bytes):
        return len(message)
    texts = (
        message.header.frame_id,
        getattr(message, 'format', ''),
        getattr(message, 'encoding', ''),
    )
    return len(message.data) + sum(map(len, texts))


def _lag_ns(info: Any) -> int:
    """Return the time since DDS received a message; 0 if the middleware does not say."""
    received_ns = int(info['received_timestamp'])
    lag_ns = time.time_ns() - received_ns if received_ns > 0 else 0
    return lag_ns if 0 <= lag_ns <= MAX_LAG_NS else 0


def _rate_hz(times_ns: list[int]) -> float:
    """Return events per second. Steps back in time, such as a bag that loops, do not count."""
    steps_ns = [later - earlier for earlier, later in itertools.pairwise(times_ns)]
    forward_ns = [step_ns for step_ns in steps_ns if step_ns > 0]
    return len(forward_ns) / (sum(forward_ns) / NS_PER_S) if forward_ns else 0.0
