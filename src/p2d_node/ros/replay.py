"""Plays a bag over DDS where there is no `ros2 bag`: same topics and bytes, paced by log time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import importlib
import time
from typing import Any

from p2d_node.bags.reading import BagReader
from p2d_node.errors import ConfigError
from p2d_node.ros.conversions import to_time
from p2d_node.ros.spinning import ended_by_shutdown
from rclpy.duration import Duration
from rclpy.node import Node
from rosgraph_msgs.msg import Clock

CLOCK_PERIOD_S = 0.02
"""Longest time between two messages on /clock."""

DISCOVERY_POLL_S = 0.05
SETTLE_S = 1.0
"""Discovery goes on for a while after the first side has seen the other."""

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
PUBLISHER_DEPTH = 10
"""A depth alone means reliable, which both reliable and best-effort readers match."""
ACKNOWLEDGE_TIMEOUT_S = 1.0
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How a bag is played.

    Attributes:
        rate: Speed against real time, above 0.
        loop: Start again at the end.
        clock: Publish the bag's time on /clock.
        wait_s: Longest wait for subscribers to all image topics before the start.
    """

    rate: float = 1.0
    loop: bool = False
    clock: bool = False
    wait_s: float = 10.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0.0 < self.rate <= 1000.0:
            raise ConfigError(f'--rate: got {self.rate:g}, allowed: above 0 to 1000')
        if not self.wait_s >= 0.0:  # as nan, too, is not
            raise ConfigError(f'--wait: got {self.wait_s:g}, allowed: 0 or more seconds')


def check_duration(duration_s: float | None) -> None:
    """Check a time after which publishing stops; None: never.

    Raises:
        ConfigError: Nothing could be published in it.
    """
    if duration_s is not None and not duration_s > 0.0:  # as nan, too, is not
        raise ConfigError(f'--duration: got {duration_s:g}, allowed: above 0 seconds')


class Replayer:
    """Publishes the messages of one bag. Blocks the thread that calls `play`."""

    def __init__(self, node: Node, bag: BagReader, options: ReplayOptions) -> None:
        """Create a publisher per topic; types that are not installed are left out, with a word."""
        self.num_published = 0
        self._node = node
        self._bag = bag
        self._options = options
        self._publishers = {}
        for topic, type_name in bag.topics.items():
            message_type = find_message_type(type_name)
            if message_type is None:
                node.get_logger().warning(f'{topic}: {type_name} is not installed, left out')
            else:
                self._publishers[topic] = node.create_publisher(
                    message_type, topic, PUBLISHER_DEPTH
                )
        self._clock = node.create_publisher(Clock, '/clock', 10) if options.clock else None

    def wait_for_subscribers(self, must_stop: Callable[[], bool]) -> bool:
        """Wait until every image topic is listened to; False where time or context ends first."""
        is_heard = False
        with ended_by_shutdown(self._node.context):
            is_heard = self._poll_subscribers(must_stop)
            if is_heard:
                self._settle(must_stop)
        return is_heard

    def _poll_subscribers(self, must_stop: Callable[[], bool]) -> bool:
        images = [
            publisher
            for topic, publisher in self._publishers.items()
            if self._bag.topics[topic] in IMAGE_TYPES
        ]
        end_s = time.monotonic() + self._options.wait_s
        while not all(publisher.get_subscription_count() for publisher in images):
            if time.monotonic() >= end_s or must_stop():
                return False
            self._publish_clock(self._bag.start_ns)
            time.sleep(DISCOVERY_POLL_S)
        return True

    def _settle(self, must_stop: Callable[[], bool]) -> None:
        """Let those who listen to the listeners find them, too, before the first message."""
        end_s = time.monotonic() + min(SETTLE_S, self._options.wait_s)
        while time.monotonic() < end_s and not must_stop():
            self._publish_clock(self._bag.start_ns)
            time.sleep(DISCOVERY_POLL_S)

    def play(self, must_stop: Callable[[], bool]) -> None:
        """Play the bag once, or until `must_stop` with `loop`; a shutdown ends it, too.

        Raises:
            ConfigError: The bag is damaged.
        """
        with ended_by_shutdown(self._node.context):
            while True:
                self._play_once(must_stop)
                if not self._options.loop or must_stop():
                    break
            for publisher in self._publishers.values():
                # The end of the process would take along what a reader has yet to fetch.
                publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_TIMEOUT_S))

    def _play_once(self, must_stop: Callable[[], bool]) -> None:
        start_s = time.monotonic()
        for message in self._bag.messages():
            since_start_s = (message.log_time_ns - self._bag.start_ns) / NS_PER_S
            self._sleep_until(start_s + since_start_s / self._options.rate, start_s, must_stop)
            if must_stop():
                return
            publisher = self._publishers.get(message.topic)
            if publisher is not None:
                publisher.publish(bytes(message.data))
                self.num_published += 1

    def _sleep_until(self, end_s: float, start_s: float, must_stop: Callable[[], bool]) -> None:
        """Sleep until `end_s` on the monotonic clock, and keep /clock running."""
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
    """Return the class of `package/msg/Name`, or None where the package is not installed."""
    package, _, name = type_name.split('/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError):
        return None
