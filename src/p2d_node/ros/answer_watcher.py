"""Subscribes to a drive node and keeps its latest answers, times and diagnostics."""

from __future__ import annotations

from collections import deque
import threading
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from p2d_msgs.msg import DrivingAnswer, StageTiming
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

NOT_ACTIVE = 'not active'
"""Message of the only status of a node that is not active; its level is OK."""

MAX_KEPT = 10_000
"""Answers and timings that are kept."""

PICTURES_KEPT = 16
"""Pictures of kept tokens, of megabytes each."""


MAX_CHARACTERS, MAX_CAMERAS = 20_000, 64
"""Of a text, and of the cameras, of an answer."""


class AnswerWatcher:
    """Subscribes to the outputs of one drive node.

    Callbacks run in the executor of the node. The properties may be read from any thread.
    """

    def __init__(self, node: Node, target: str = '/p2d', *, pictures: bool = False) -> None:
        """Subscribe.

        Args:
            node: The node that subscribes.
            target: Full name of the drive node.
            pictures: Whether to subscribe to `~/kept_tokens`, which the drive node draws only
                for subscribers.
        """
        self._prefix = f'{target}: '
        self._lock = threading.Lock()
        self._answers: deque[DrivingAnswer] = deque(maxlen=MAX_KEPT)
        self._timings: deque[StageTiming] = deque(maxlen=MAX_KEPT)
        self._health: dict[str, DiagnosticStatus] = {}
        self._pictures: deque[Image] = deque(maxlen=PICTURES_KEPT)
        reliable = QoSProfile(depth=50)
        subscribe = node.create_subscription
        self._subscriptions = [
            subscribe(DrivingAnswer, f'{target}/answer', self._on_answer, reliable),
            subscribe(StageTiming, f'{target}/timing', self._on_timing, reliable),
            subscribe(DiagnosticArray, '/diagnostics', self._on_diagnostics, reliable),
        ]
        self.wants_pictures = pictures
        if pictures:
            topic = f'{target}/kept_tokens'
            self._subscriptions.append(subscribe(Image, topic, self._on_picture, reliable))

    @property
    def answers(self) -> list[DrivingAnswer]:
        """The answers so far, at most the last `MAX_KEPT`."""
        with self._lock:
            return list(self._answers)

    @property
    def timings(self) -> list[StageTiming]:
        """The timings so far, at most the last `MAX_KEPT`."""
        with self._lock:
            return list(self._timings)

    @property
    def picture(self) -> Image | None:
        """The last picture of the kept tokens; None before the first."""
        return next(reversed(self.pictures), None)

    @property
    def pictures(self) -> list[Image]:
        """The last `PICTURES_KEPT` pictures of kept tokens."""
        with self._lock:
            return list(self._pictures)

    @property
    def problems(self) -> list[str]:
        """Warnings and errors of the last diagnostics, the most severe first; or `NOT_ACTIVE`."""
        with self._lock:
            bad = [
                status
                for status in self._health.values()
                if status.level != b'\x00' or status.message == NOT_ACTIVE
            ]
        return [f'{s.name}: {s.message}' for s in sorted(bad, key=_level, reverse=True)]

    def status_value(self, part: str, key: str) -> str | None:
        """Return a value of the last diagnostics of `part`; None before they came."""
        with self._lock:
            status = self._health.get(f'{self._prefix}{part}')
        found = (item.value for item in status.values if item.key == key) if status else ()
        return next(iter(found), None)

    def _on_answer(self, message: DrivingAnswer) -> None:
        for name in ('question', 'answer', 'model', 'encoder', 'cut'):
            text = getattr(message, name)
            if len(text) > MAX_CHARACTERS:  # any peer may publish on the topic
                setattr(message, name, f'{text[:MAX_CHARACTERS]}...')
        message.cameras = message.cameras[:MAX_CAMERAS]
        with self._lock:
            self._answers.append(message)

    def _on_timing(self, message: StageTiming) -> None:
        with self._lock:
            self._timings.append(message)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        ours: dict[str, Any] = {
            s.name: s for s in message.status if s.name.startswith(self._prefix)
        }
        with self._lock:
            self._health = ours or self._health

    def _on_picture(self, message: Image) -> None:
        with self._lock:
            self._pictures.append(message)


def _level(status: DiagnosticStatus) -> int:
    return int.from_bytes(status.level, 'little')
