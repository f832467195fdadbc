"""Receives what the node publishes during a soak, and judges answers by the truth."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
import re
import threading
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from p2d_msgs.msg import DrivingAnswer
from p2d_node.ros.answer_watcher import (
    is_answer,
    MAX_DIAGNOSTICS_BYTES,
    MAX_MESSAGE_BYTES,
    NOT_ACTIVE,
    read_statuses,
)
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.ros.kept_messages import KeptMessages
from p2d_node.ros.received_bytes import read_within
from p2d_node.soak.faulty_cameras import FaultyCameras
from p2d_node.units import NS_PER_MS
from rclpy.node import Node
from rclpy.qos import QoSProfile

PREFIX = '/p2d: '

MAX_ANSWERS = 1 << 20
"""That are kept, of 200 bytes: two days at six answers a second."""

MAX_REPORTS, MAX_REPORT_BYTES = 1 << 12, 64 << 20
"""Messages of diagnostics that are kept, an hour of them, and what they take together."""

STATUS_BYTES = 512
"""Of a status beside its texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenAnswer:
    """One answer.

    Attributes:
        time_s: When it arrived, steady clock.
        captured_ns: When its oldest frame's sweep began in truth, ROS time; None if the node
            replaced all stamps.
        age_ms: From then to its arrival; 0.0 if unknown.
        num_cameras: Number of cameras that it is about.
        late: Whether the node marked it as late.
        mixed: Whether its frames come from different sweeps.
    """

    time_s: float
    captured_ns: int | None
    age_ms: float
    num_cameras: int
    late: bool
    mixed: bool


@dataclass(frozen=True, slots=True)
class SeenReport:
    """One message of diagnostics: when it came (steady clock), and component to (level, text)."""

    time_s: float
    statuses: Mapping[str, tuple[int, str]]

    def problem(self, component: str, text: str) -> bool:
        """Tell whether a component that matches is not OK, with a message that matches."""
        return any(
            level != 0 and re.fullmatch(component, name) and re.search(text, message)
            for name, (level, message) in self.statuses.items()
        )

    @property
    def all_ok(self) -> bool:
        """Whether the node is active and no component has a problem."""
        return all(level == 0 and text != NOT_ACTIVE for level, text in self.statuses.values())


class Observer:
    """Subscribes to answers and diagnostics; any thread may read what it has seen.

    What a drive node would not send is left out, as in `AnswerWatcher`.
    """

    def __init__(self, node: Node, cameras: FaultyCameras) -> None:
        """Subscribe.

        Args:
            node: The node that subscribes.
            cameras: Know the truth about each frame.
        """
        self.answers: deque[SeenAnswer] = deque(maxlen=MAX_ANSWERS)
        self._reports: KeptMessages[SeenReport] = KeptMessages(MAX_REPORTS, MAX_REPORT_BYTES)
        self._cameras = cameras
        self._lock = threading.Lock()
        quality = QoSProfile(depth=100)
        topics: list[tuple[str, Any, Callable[[Any], None], int]] = [
            ('/p2d/answer', DrivingAnswer, self._on_answer, MAX_MESSAGE_BYTES),
            ('/diagnostics', DiagnosticArray, self._on_diagnostics, MAX_DIAGNOSTICS_BYTES),
        ]
        self._subscriptions = [
            node.create_subscription(
                kind, topic, read_within(limit, kind, receive), quality, raw=True
            )
            for topic, kind, receive, limit in topics
        ]

    def answers_since(self, time_s: float) -> list[SeenAnswer]:
        """Return the answers that arrived after `time_s`, steady clock."""
        with self._lock:
            return [answer for answer in self.answers if answer.time_s > time_s]

    def reports_since(self, time_s: float) -> list[SeenReport]:
        """Return the diagnostics that arrived after `time_s`, steady clock."""
        return [report for report in self._reports.latest() if report.time_s > time_s]

    def _on_answer(self, message: DrivingAnswer) -> None:
        if not is_answer(message):
            return
        now_ns = time.time_ns()
        stamps_ns = {
            camera: to_nanoseconds(stamp)
            for camera, stamp in zip(message.cameras, message.camera_stamps, strict=True)
        }
        begun = [self._cameras.captured_ns(*item) for item in stamps_ns.items()]
        known = [start_ns for start_ns in begun if start_ns is not None]
        captured_ns = min(known) if known else None
        answer = SeenAnswer(
            time_s=time.monotonic(),
            captured_ns=captured_ns,
            age_ms=0.0 if captured_ns is None else (now_ns - captured_ns) / NS_PER_MS,
            num_cameras=len(stamps_ns),
            late=message.late,
            mixed=self._cameras.is_mixed(stamps_ns),
        )
        with self._lock:
            self.answers.append(answer)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        statuses = {
            name.removeprefix(PREFIX): (status.level, status.message)
            for name, status in read_statuses(message, PREFIX).items()
        }
        if not statuses:
            return
        texts = ((name, text) for name, (_, text) in statuses.items())
        num_bytes = sum(STATUS_BYTES + 4 * len(name + text) for name, text in texts)
        self._reports.add(SeenReport(time.monotonic(), statuses), num_bytes)
