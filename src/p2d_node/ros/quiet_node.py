"""Nodes whose own services and warnings peers cannot use to flood a log, a terminal or memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2d_node.ros.conversions import is_time
from p2d_node.ros.throttled_log import ThrottledLog
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import (
    qos_policy_name_from_kind,
    qos_profile_parameter_events,
    qos_profile_parameters,
    QoSProfile,
)
from rosgraph_msgs.msg import Clock

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

NO_TYPE_DESCRIPTIONS = Parameter('start_type_description_service', value=False)
"""rcl logs what is in a request to ~/get_type_description whole and unescaped, and serves it also
with `access: locked`. Humble has no such service, and ignores values of unknown parameters."""

PARAMETER_REQUESTS, PARAMETER_EVENTS = QoSProfile(depth=10), QoSProfile(depth=100)
"""In place of rclpy's, which keep a thousand for peers that do not acknowledge what they receive:
DDS never gives their memory back, and a thousand requests keep the node busy."""

NO_ENDPOINT_WARNINGS = SubscriptionEventCallbacks(use_default_callbacks=False)
"""Value of `event_callbacks` for a subscription that need not fit every publisher."""


class QuietNode(Node):
    """Covers also what rclpy itself creates in a node; for a `LifecycleNode` put it before that.

    rclpy logs a line for every endpoint of a peer whose QoS does not fit, and takes a message of
    /clock with a negative time for an error of the program.
    """

    _endpoint_log: ThrottledLog | None = None

    def __init__(self, *args: Any, parameter_overrides: Any = None, **options: Any) -> None:
        """Create the node; arguments as of rclpy's."""
        overrides = [*(parameter_overrides or ()), NO_TYPE_DESCRIPTIONS]
        super().__init__(*args, parameter_overrides=overrides, **options)

    def create_publisher(self, msg_type: Any, topic: str, qos_profile: Any, **options: Any) -> Any:
        """Create a publisher; arguments as of rclpy's."""
        events = PublisherEventCallbacks(
            incompatible_qos=self._on_incompatible(topic, 'subscriber'),
            use_default_callbacks=False,
        )
        options = {'event_callbacks': events, **options}
        profile = PARAMETER_EVENTS if qos_profile == qos_profile_parameter_events else qos_profile
        return super().create_publisher(msg_type, topic, profile, **options)

    def create_service(self, *args: Any, **options: Any) -> Any:
        """Create a service; arguments as of rclpy's."""
        if options.get('qos_profile') == qos_profile_parameters:
            options['qos_profile'] = PARAMETER_REQUESTS
        return super().create_service(*args, **options)

    def create_subscription(
        self, msg_type: Any, topic: str, callback: Any, qos_profile: Any, **options: Any
    ) -> Any:
        """Create a subscription; arguments as of rclpy's."""
        events = SubscriptionEventCallbacks(
            incompatible_qos=self._on_incompatible(topic, 'publisher'),
            use_default_callbacks=False,
        )
        options = {'event_callbacks': events, **options}
        receive = self._checked(callback) if msg_type is Clock else callback
        return super().create_subscription(msg_type, topic, receive, qos_profile, **options)

    def _on_incompatible(self, topic: str, peer: str) -> Callable[[Any], None]:
        def warn(event: Any) -> None:
            policy = qos_policy_name_from_kind(event.last_policy_kind)
            self._warn(
                f'{topic}: the QoS of a {peer} does not fit ({policy}), so no messages are '
                'exchanged with it; change it there'
            )

        return warn

    def _checked(self, callback: Callable[[Clock], None]) -> Callable[[Clock], None]:
        """Return a callback of /clock that leaves out what is not a time."""

        def receive(message: Clock) -> None:
            if is_time(message.clock):
                callback(message)
            else:
                self._warn(
                    f'/clock: got {message.clock.sec} s and {message.clock.nanosec} ns, allowed: '
                    '0 or more s and less than 1e9 ns; the message is left out, check its '
                    'publisher'
                )

        return receive

    def _warn(self, line: str) -> None:
        if self._endpoint_log is None:
            self._endpoint_log = ThrottledLog(self.get_logger())
        self._endpoint_log.warn(line)


class ToolNode(QuietNode):
    """The node of a command: without services, which would read requests of any size."""

    def __init__(self, name: str, **options: Any) -> None:
        """Create the node; arguments as of rclpy's."""
        super().__init__(name, start_parameter_services=False, **options)
