"""Subscribes to a drive node and keeps its latest answers, times and diagnostics.

Any peer may publish on these topics: malformed messages are left out, and what is kept is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import threading
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from p2d_msgs.msg import DrivingAnswer, StageTiming
from p2d_node.config import MAX_FRAMES_PER_CAMERA
from p2d_node.config_parameters import MAX_CAMERAS
from p2d_node.errors import cut
from p2d_node.ros.conversions import is_time
from p2d_node.ros.kept_messages import KeptMessages
from p2d_node.ros.received_bytes import read_within
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

NOT_ACTIVE = 'not active'
"""Message of the only status of a node that is not active; its level is OK."""

MAX_KEPT = 10_000
"""Answers and timings that are kept."""

PICTURES_KEPT = 16
"""Pictures of kept tokens, of megabytes each."""

MAX_ANSWER_BYTES = 64 << 20
"""Of the texts and frames of the answers that are kept, and of their timings."""

MAX_PICTURE_BYTES = 64 << 20
"""Of the pictures that are kept: four with the tallest views, or all with views of usual shape."""

MAX_CHARACTERS = 20_000
"""Of a text of an answer."""

MAX_MESSAGE_BYTES = 4 << 20
"""Of a message other than a picture, before it is read."""

MAX_DIAGNOSTICS_BYTES = 256 << 10
"""Of diagnostics, before they are read: bytes that are no message take up to 300 times as much. A
drive node sends some kilobytes."""

MAX_NAME_CHARACTERS = 256
"""Of the name of a camera, frame or status."""

MAX_STATUSES, MAX_STATUS_CHARACTERS = MAX_CAMERAS + 2, 1000
"""A drive node has one per camera, one of its pipeline and one of its synchroniser."""

MAX_STATUS_VALUES = 64
"""A status of a drive node has about twenty."""

BYTES_PER_CHARACTER = 4
"""The most that Python needs."""

BYTES_PER_FRAME = 256
"""What a message takes for the stamp and the counts of a frame or camera."""

TEXTS = [n for n, kind in DrivingAnswer.get_fields_and_field_types().items() if kind == 'string']
"""Fields of an answer."""


@dataclass(frozen=True, slots=True)
class Status:
    """The diagnostics of one part of a node, as they are kept."""

    level: int
    message: str
    values: dict[str, str]


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
        self._answers: KeptMessages[DrivingAnswer] = KeptMessages(MAX_KEPT, MAX_ANSWER_BYTES)
        self._timings: KeptMessages[StageTiming] = KeptMessages(MAX_KEPT, MAX_ANSWER_BYTES)
        self._pictures: KeptMessages[Image] = KeptMessages(PICTURES_KEPT, MAX_PICTURE_BYTES)
        self._health: dict[str, Status] = {}
        reliable = QoSProfile(depth=50)
        topics: list[tuple[str, Any, Callable[[Any], None], int]] = [
            (f'{target}/answer', DrivingAnswer, self._on_answer, MAX_MESSAGE_BYTES),
            (f'{target}/timing', StageTiming, self._on_timing, MAX_MESSAGE_BYTES),
            ('/diagnostics', DiagnosticArray, self._on_diagnostics, MAX_DIAGNOSTICS_BYTES),
        ]
        self.wants_pictures = pictures
        if pictures:
            limit = MAX_PICTURE_BYTES + MAX_MESSAGE_BYTES
            topics.append((f'{target}/kept_tokens', Image, self._on_picture, limit))
        self._subscriptions = [
            node.create_subscription(
                kind, topic, read_within(limit, kind, receive), reliable, raw=True
            )
            for topic, kind, receive, limit in topics
        ]

    @property
    def answers(self) -> list[DrivingAnswer]:
        """The latest answers, at most `MAX_KEPT`."""
        return self._answers.latest()

    def answers_after(self, number: int) -> tuple[list[DrivingAnswer], int]:
        """Return what is kept of the answers after the first `number`, and their number so far."""
        return self._answers.after(number)

    @property
    def timings(self) -> list[StageTiming]:
        """The latest timings, at most `MAX_KEPT`."""
        return self._timings.latest()

    def timings_after(self, number: int) -> tuple[list[StageTiming], int]:
        """Return what is kept of the timings after the first `number`, and their number so far."""
        return self._timings.after(number)

    @property
    def picture(self) -> Image | None:
        """The last picture of the kept tokens; None before the first."""
        return next(reversed(self.pictures), None)

    @property
    def pictures(self) -> list[Image]:
        """The last pictures of kept tokens, at most `PICTURES_KEPT`."""
        return self._pictures.latest()

    @property
    def problems(self) -> list[str]:
        """Warnings and errors of the last diagnostics, the most severe first; or `NOT_ACTIVE`."""
        with self._lock:
            health = self._health
        bad = [(n, s) for n, s in health.items() if s.level or s.message == NOT_ACTIVE]
        by_level = sorted(bad, key=lambda item: item[1].level, reverse=True)
        return [f'{name}: {status.message}' for name, status in by_level]

    def status_value(self, part: str, key: str) -> str | None:
        """Return a value of the last diagnostics of `part`; None before they came."""
        with self._lock:
            status = self._health.get(f'{self._prefix}{part}')
        return status.values.get(key) if status else None

    def _on_answer(self, message: DrivingAnswer) -> None:
        if not is_answer(message):
            return
        for name in TEXTS:
            setattr(message, name, cut(getattr(message, name), MAX_CHARACTERS))
        message.cameras = [cut(name, MAX_NAME_CHARACTERS) for name in message.cameras]
        for header in (message.header, message.timing.header):
            header.frame_id = cut(header.frame_id, MAX_NAME_CHARACTERS)
        texts = (getattr(message, name) for name in TEXTS)
        num_characters = sum(map(len, (*texts, *message.cameras)))
        num_frames = len(message.cameras) + len(message.frame_stamps)
        num_bytes = BYTES_PER_CHARACTER * num_characters + BYTES_PER_FRAME * num_frames
        self._answers.add(message, num_bytes)

    def _on_timing(self, message: StageTiming) -> None:
        if is_time(message.header.stamp):
            frame_id = message.header.frame_id = cut(message.header.frame_id, MAX_NAME_CHARACTERS)
            self._timings.add(message, BYTES_PER_CHARACTER * len(frame_id))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        health = read_statuses(message, self._prefix)
        with self._lock:
            self._health = health or self._health

    def _on_picture(self, message: Image) -> None:
        if _is_picture(message):
            message.header.frame_id = cut(message.header.frame_id, MAX_NAME_CHARACTERS)
            self._pictures.add(message, len(message.data))


def is_answer(message: DrivingAnswer) -> bool:
    """Tell whether there are cameras, the lists have a value for each, and stamps are times."""
    lists = (message.camera_stamps, message.tokens_total, message.tokens_kept, message.num_frames)
    num_cameras, num_frames = len(message.cameras), sum(message.num_frames)
    if not 1 <= num_cameras <= MAX_CAMERAS or any(len(values) != num_cameras for values in lists):
        return False
    if max(message.num_frames, default=0) > MAX_FRAMES_PER_CAMERA:
        return False
    if not len(message.frame_stamps) == len(message.tokens_kept_per_frame) == num_frames:
        return False
    stamps = (message.header.stamp, *message.camera_stamps, *message.frame_stamps)
    return all(map(is_time, stamps))


def _is_picture(message: Image) -> bool:
    height, width, row_bytes = message.height, message.width, 3 * message.width
    is_bgr8 = message.encoding == 'bgr8' and message.step == row_bytes
    has_pixels = height > 0 < width and len(message.data) == height * row_bytes
    return is_bgr8 and has_pixels and is_time(message.header.stamp)


def read_statuses(message: DiagnosticArray, prefix: str) -> dict[str, Status]:
    """Return name to status of those statuses whose names begin with `prefix`, within limits."""
    ours = [status for status in message.status if status.name.startswith(prefix)][:MAX_STATUSES]
    return {cut(status.name, MAX_NAME_CHARACTERS): _to_status(status) for status in ours}


def _to_status(message: DiagnosticStatus) -> Status:
    values = {
        cut(item.key, MAX_NAME_CHARACTERS): cut(item.value, MAX_STATUS_CHARACTERS)
        for item in message.values[:MAX_STATUS_VALUES]
    }
    text = cut(message.message, MAX_STATUS_CHARACTERS)
    return Status(int.from_bytes(message.level, 'little'), text, values)
