"""Hands the sweeps of a running drive node to viewers, each once."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
import time
from typing import Any, TYPE_CHECKING

import numpy as np
from p2d_node.cli.report_parts import to_jpeg
from p2d_node.cli.shown_sweeps import to_shown_sweep
from p2d_node.cli.table import stamp_ns
from p2d_node.config import MAX_QUESTIONS
from p2d_node.errors import first_line, ImageDecodeError
from p2d_node.image_decoding import decode_frame
from p2d_node.records import CameraFrame
from p2d_node.units import NS_PER_S
from p2d_node.viewers.shown_sweep import Viewer

if TYPE_CHECKING:
    from p2d_node.ros.answer_watcher import AnswerWatcher
    from p2d_node.ros.camera_frames import CameraFrames
    from p2d_node.ros.throttled_log import ThrottledLog

PICTURE_WAIT_S = 1.0
"""The node draws the picture of a sweep after its times."""

MAX_WAITING = 64
"""Sweeps that wait to be shown; a newer one replaces the oldest."""

MAX_AGE_S = 5.0
"""A sweep that has waited for longer is not shown: viewers show what happens now."""

UPDATE_S = 2.0
"""Time after which `update` shows no further sweep or view, so that its caller can end."""


class SweepFeed:
    """Joins times, answers, pictures and camera frames of a sweep; use it from one thread."""

    def __init__(
        self,
        watcher: AnswerWatcher,
        frames: CameraFrames,
        viewers: Sequence[Viewer],
        log: ThrottledLog,
    ) -> None:
        """Hand what `watcher` and `frames` receive to `viewers`; `log` says what is left out."""
        self._watcher = watcher
        self._frames = frames
        self._viewers = viewers
        self._log = log
        self._waiting: deque[tuple[Any, float]] = deque(maxlen=MAX_WAITING)
        self._shown_stamp_ns: int | None = None
        self._num_timings = 0
        self._num_shown = 0
        self._end_s = 0.0

    def update(self) -> None:
        """Show the sweeps that are new and complete."""
        self._frames.look()
        now_s = time.monotonic()
        self._end_s = now_s + UPDATE_S
        self._take_timings(now_s)
        while self._waiting and time.monotonic() < self._end_s:
            timing, came_s = self._waiting[0]
            if now_s - came_s <= PICTURE_WAIT_S and not self._has_picture(timing):
                return
            self._waiting.popleft()
            if now_s - came_s > MAX_AGE_S:
                self._log.warn('sweeps come faster than they can be shown; some are left out')
                continue
            self._shown_stamp_ns = stamp_ns(timing)
            try:
                self._show(timing)
            except Exception as err:  # viewers pass on what their libraries raise
                self._log.warn(f'a sweep is not shown whole: {first_line(err)}')

    def _take_timings(self, now_s: float) -> None:
        """Let the sweeps that are new wait, each stamp once."""
        timings, self._num_timings = self._watcher.timings_after(self._num_timings)
        known = {self._shown_stamp_ns, *(stamp_ns(timing) for timing, _ in self._waiting)}
        for timing in timings:
            if stamp_ns(timing) not in known:
                known.add(stamp_ns(timing))
                self._waiting.append((timing, now_s))

    def _has_picture(self, timing: Any) -> bool:
        stamp = stamp_ns(timing)
        return any(stamp_ns(picture) == stamp for picture in self._watcher.pictures)

    def _show(self, timing: Any) -> None:
        stamp = stamp_ns(timing)
        answers = [a for a in self._watcher.answers if stamp_ns(a) == stamp][:MAX_QUESTIONS]
        views = self._views(answers[0]) if answers else {}
        pictures = self._watcher.pictures
        sweep = to_shown_sweep(self._num_shown, timing, answers, views, pictures)
        for viewer in self._viewers:
            viewer.show(sweep)
        self._num_shown += 1

    def _views(self, answer: Any) -> dict[str, bytes]:
        stamps = {s.sec * NS_PER_S + s.nanosec for s in answer.camera_stamps}
        found: Mapping[str, Any] = self._frames.frames_at(stamps)
        views = {}
        for topic, message in found.items():
            if time.monotonic() > self._end_s:
                self._log.warn('views take too long to encode; some are not shown')
                break
            try:
                views[camera_of(topic, answer.cameras)] = to_file(message)
            except ImageDecodeError as err:
                self._log.warn(f'{topic}: a view is not shown: {err}')
        return views


def camera_of(topic: str, cameras: Sequence[str]) -> str:
    """Return the camera whose name is a part of a topic; without one, the topic."""
    parts = topic.casefold().split('/')
    return next((name for name in cameras if name.casefold() in parts), topic.strip('/'))


def to_file(message: Any) -> bytes:
    """Return an image message as the content of a JPEG or PNG file."""
    if hasattr(message, 'format'):
        return bytes(message.data)
    decoded = decode_frame(CameraFrame('', 0, message))
    pixels = decoded.pixels if decoded.channel_order == 'bgr' else decoded.pixels[..., ::-1]
    return to_jpeg(np.ascontiguousarray(pixels))
