"""The text of `~/context`, such as the route or the speed, while it is young enough."""

from __future__ import annotations

from dataclasses import dataclass
import time

from p2d_node.errors import ConfigError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.ros.quiet_node import NO_ENDPOINT_WARNINGS
from p2d_node.ros.refusals import Refusals
from p2d_node.ros.text_subscription import TextSubscription
from p2d_node.units import NS_PER_MS
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

TOPIC = '~/context'


@dataclass(frozen=True, slots=True)
class _Text:
    """A text, and when it was said: nanoseconds on the steady clock."""

    text: str
    said_ns: int


class LiveContext:
    """Subscribes to `~/context`. Texts that the model cannot be given are refused.

    The topic has no stamp: the age of a text counts from when DDS sent it, on the clock of the
    sender, or from its arrival if that clock is ahead. So a latched text that was sent long ago
    is not taken for new.
    """

    def __init__(self, node: Node, pipeline: DrivingPipeline, refusals: Refusals) -> None:
        """Subscribe; latched texts that were sent before come too.

        Args:
            node: The node that subscribes; the callbacks run on the thread that spins it.
            pipeline: Checks the texts, and knows `context` and `max_context_age_ms`.
            refusals: Gets the texts that are refused.
        """
        self._pipeline = pipeline
        self._refusals = refusals
        self._latest: _Text | None = None
        self._received = 0, 0
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        # A latched subscription gets nothing from publishers that do not latch. The other one
        # does, and warns of those whose QoS fits neither.
        self._subscriptions = [
            TextSubscription(
                node, TOPIC, self._on_text, latched, event_callbacks=NO_ENDPOINT_WARNINGS
            ),
            TextSubscription(node, TOPIC, self._on_text, QoSProfile(depth=1)),
        ]

    def destroy(self) -> None:
        """Unsubscribe."""
        while self._subscriptions:
            self._subscriptions.pop().destroy()

    @property
    def text(self) -> str:
        """What stands before questions now; any thread may read it.

        It is the latest text of the topic, or the parameter `context` if there is none or it is
        older than `max_context_age_ms`.
        """
        config, latest = self._pipeline.config, self._latest
        if latest is None:
            return config.context
        age_ns = time.monotonic_ns() - latest.said_ns
        is_old = 0.0 < config.max_context_age_ms * NS_PER_MS < age_ns
        return config.context if is_old else latest.text

    def _on_text(self, text: str, sent_ns: int) -> None:
        # Both subscriptions get the texts of publishers that latch.
        received = sent_ns, hash(text)
        if sent_ns and received == self._received:
            return
        self._received = received
        questions = self._pipeline.config.questions
        text = text.strip()
        try:
            # An empty text says that there is no context now.
            if text:
                longest = max(questions, key=len, default='')
                self._pipeline.check_context(text, (longest,))
        except ConfigError as err:
            self._refusals.add(TOPIC, str(err))
            return
        # From here on the steady clock counts: the other one may be set.
        age_ns = max(0, time.time_ns() - sent_ns) if sent_ns else 0
        said_ns = time.monotonic_ns() - age_ns
        if self._latest is None or said_ns >= self._latest.said_ns:
            self._latest = _Text(text, said_ns)
