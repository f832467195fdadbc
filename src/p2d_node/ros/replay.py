"""Plays a bag over DDS without `ros2 bag`: same topics and bytes, paced by log time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
import importlib
import importlib.util
from pathlib import Path
import re
import time
from typing import Any

from p2d_node.bags.reading import BagReader
from p2d_node.errors import ConfigError, one_line, quote
from p2d_node.ros.conversions import to_time
from p2d_node.ros.latched import LatchedDepths
from p2d_node.ros.rcl_errors import rcl_reason
from p2d_node.ros.spinning import ended_by_shutdown
from p2d_node.units import NS_PER_S
from rclpy.duration import Duration
from rclpy.exceptions import InvalidHandle, NameValidationException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock

MESSAGE_TYPE = re.compile(r'(?P<package>[a-z][a-z0-9_]*)/msg/(?P<name>[A-Z][A-Za-z0-9]*)')

CLOCK_PERIOD_S = 0.02
"""Longest time between two messages on /clock."""

DISCOVERY_POLL_S = 0.05
DISCOVERY_MARGIN_S = 1.0
"""The subscribers may discover a publisher this much later than it discovers them."""

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
PUBLISHER_DEPTH = 10
CLOCK_TOPIC = '/clock'

ACKNOWLEDGE_TIMEOUT_S = 1.0

MAX_MESSAGE_BYTES = 64 << 20
"""Of a message; a raw 4K image has 25 MB. Until it is sent there are five copies of it."""

MAX_TOPICS_BYTES = 512 << 20
"""Of the largest messages of all topics: DDS keeps a buffer of that size for each topic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How a bag is played.

    Attributes:
        rate: Speed relative to real time, above 0.
        loop: Whether to start again at the end.
        clock: Whether to publish the time of the bag on /clock.
        wait_s: Longest wait, in seconds, for subscribers to all image topics before the start.
    """

    rate: float = 1.0
    loop: bool = False
    clock: bool = False
    wait_s: float = 10.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0.0 < self.rate <= 1000.0:
            raise ConfigError(f'--rate: got {self.rate:g}, allowed: above 0 to 1000')
        if not self.wait_s >= 0.0:  # also refuses nan
            raise ConfigError(f'--wait: got {self.wait_s:g}, allowed: 0 or more seconds')


class Replayer:
    """Publishes the messages of one bag. `wait_for_subscribers` and `play` block their caller."""

    def __init__(self, node: Node, bag: BagReader, options: ReplayOptions) -> None:
        """Create a publisher per topic.

        A topic that was latched (transient local) is so again, up to a size of its messages. One
        whose message type is not installed is skipped, with a warning, and so is a recorded
        /clock beside the option.

        Args:
            node: The node that publishes.
            bag: The bag to play.
            options: How it is played.
        """
        self.num_published = 0
        self._largest: dict[str, int] = {}
        self._node = node
        self._bag = bag
        self._options = options
        self._latched = LatchedDepths(
            {topic: max(PUBLISHER_DEPTH, num_kept) for topic, num_kept in bag.latched.items()}
        )
        self._publishers = {
            topic: publisher
            for topic, type_name in bag.topics.items()
            if (publisher := self._create_publisher(topic, type_name)) is not None
        }
        self._clock = node.create_publisher(Clock, CLOCK_TOPIC, 10) if options.clock else None

    def _create_publisher(self, topic: str, type_name: str) -> Publisher | None:
        if topic == CLOCK_TOPIC and self._options.clock:
            return None  # two clocks at once would make time jump
        message_type = find_message_type(type_name)
        if message_type is None:
            self._log_skipped(topic, f'the message type {type_name!r} is not installed')
            return None
        try:
            return self._node.create_publisher(message_type, topic, self._qos(topic))
        except NameValidationException as err:
            self._log_skipped(topic, rcl_reason(err))
            return None

    def _qos(self, topic: str) -> QoSProfile:
        # Reliable publishers match reliable and best-effort readers, and latched ones all.
        num_kept = self._latched.of(topic)
        qos = QoSProfile(depth=num_kept or PUBLISHER_DEPTH)
        if num_kept:
            qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
        return qos

    def _log_skipped(self, topic: str, reason: str) -> None:
        text = f'{topic}: {reason}; this topic is skipped'
        self._node.get_logger().warning(one_line(text))

    def wait_for_subscribers(
        self, must_stop: Callable[[], bool], topics: Collection[str] | None = None
    ) -> bool:
        """Wait until every image topic has a subscriber.

        Args:
            must_stop: Tells whether to end the wait.
            topics: The topics of the bag that are waited for; None: all with images.

        Returns:
            False if `wait_s`, `must_stop` or a shutdown ended the wait.
        """
        all_subscribed = False
        with ended_by_shutdown(self._node.context):
            all_subscribed = self._poll_subscribers(must_stop, topics)
            if all_subscribed:
                self._wait_for_discovery(must_stop)
        return all_subscribed

    def _poll_subscribers(
        self, must_stop: Callable[[], bool], topics: Collection[str] | None
    ) -> bool:
        images = [
            publisher
            for topic, publisher in self._publishers.items()
            if self._bag.topics[topic] in IMAGE_TYPES and (topics is None or topic in topics)
        ]
        end_s = time.monotonic() + self._options.wait_s
        while not all(publisher.get_subscription_count() for publisher in images):
            if time.monotonic() >= end_s or must_stop():
                return False
            self._publish_clock(self._bag.start_ns)
            time.sleep(DISCOVERY_POLL_S)
        return True

    def _wait_for_discovery(self, must_stop: Callable[[], bool]) -> None:
        """Give the rest of discovery time before the first message."""
        end_s = time.monotonic() + min(DISCOVERY_MARGIN_S, self._options.wait_s)
        while time.monotonic() < end_s and not must_stop():
            self._publish_clock(self._bag.start_ns)
            time.sleep(DISCOVERY_POLL_S)

    def play(self, must_stop: Callable[[], bool]) -> None:
        """Play the bag once, or with `loop` again and again, until `must_stop` or a shutdown.

        Raises:
            ConfigError: The bag is damaged.
        """
        with ended_by_shutdown(self._node.context):
            while True:
                self._play_once(must_stop)
                if not self._options.loop or must_stop():
                    break
            for publisher in self._publishers.values():
                # Messages that no reader has fetched yet are lost when the process ends.
                publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_TIMEOUT_S))

    def _play_once(self, must_stop: Callable[[], bool]) -> None:
        start_s = time.monotonic()
        for message in self._bag.messages():
            since_start_s = (message.log_time_ns - self._bag.start_ns) / NS_PER_S
            self._sleep_until(start_s + since_start_s / self._options.rate, start_s, must_stop)
            if must_stop():
                return
            if message.topic in self._publishers:
                self._publish(message.topic, bytes(message.data))

    def _publish(self, topic: str, data: bytes) -> None:
        self._check_size(topic, len(data))
        if self._latched.add(topic, len(data)):
            self._keep_fewer(topic)
        try:
            self._publishers[topic].publish(data)
        except InvalidHandle:  # it was destroyed
            raise
        except RuntimeError as err:  # rclpy's RCLError
            if not self._node.context.ok():
                raise
            # Its bytes are no message of the type.
            self._log_skipped(topic, rcl_reason(err))
            self._node.destroy_publisher(self._publishers.pop(topic))
            return
        self.num_published += 1

    def _check_size(self, topic: str, num_bytes: int) -> None:
        """Raise `ConfigError` if the messages are too large to be played."""
        self._largest[topic] = max(num_bytes, self._largest.get(topic, 0))
        for what, got, allowed in (
            (f'a message of {quote(topic)}', num_bytes, MAX_MESSAGE_BYTES),
            ('the largest messages of all topics', sum(self._largest.values()), MAX_TOPICS_BYTES),
        ):
            if got > allowed:
                raise ConfigError(
                    f'bag: {what}: got {got} bytes, allowed: up to {allowed}; play a bag without '
                    'these topics'
                )

    def _keep_fewer(self, topic: str) -> None:
        """Put a publisher that keeps fewer messages in the place of that of a latched topic."""
        num_kept = self._latched.of(topic)
        text = f'{topic}: late subscribers get its last {num_kept} messages, as they are large'
        self._node.get_logger().warning(one_line(text))
        publisher = self._publishers[topic]
        self._node.destroy_publisher(publisher)
        self._publishers[topic] = self._node.create_publisher(
            publisher.msg_type, topic, self._qos(topic)
        )

    def _sleep_until(self, end_s: float, start_s: float, must_stop: Callable[[], bool]) -> None:
        """Sleep until `end_s` on the steady clock, and publish /clock meanwhile."""
        while not must_stop():
            now_s = time.monotonic()
            bag_ns = int((min(now_s, end_s) - start_s) * self._options.rate * NS_PER_S)
            self._publish_clock(self._bag.start_ns + bag_ns)
            if now_s >= end_s:
                return
            time.sleep(min(CLOCK_PERIOD_S, end_s - now_s))

    def _publish_clock(self, now_ns: int) -> None:
        if self._clock is not None:
            self._clock.publish(Clock(clock=to_time(now_ns)))


def find_message_type(type_name: str) -> Any:
    """Return the class of the type `package/msg/Name`; None if the package is not installed."""
    match = MESSAGE_TYPE.fullmatch(type_name)
    if match is None or not _has_messages(match['package']):
        return None  # a message that is not of ROS, such as foxglove.PointCloud
    try:
        return getattr(importlib.import_module(f'{match["package"]}.msg'), match['name'])
    except (ImportError, AttributeError):
        return None


def _has_messages(package: str) -> bool:
    """Tell whether a package has messages, without an import: many modules act on import."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return any((Path(folder) / 'msg' / '__init__.py').is_file() for folder in folders)
