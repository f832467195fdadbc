"""Hands the sweeps of a running drive node to viewers, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import time
from typing import Any, TYPE_CHECKING

import numpy as np
from p2d_node.cli.report_parts import to_jpeg
from p2d_node.cli.shown_sweeps import to_shown_sweep
from p2d_node.cli.table import stamp_ns
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
        self._last: Any = None
        self._waits_since_s: float | None = None
        self._num_shown = 0

    def update(self) -> None:
        """Show the sweeps that are new and complete."""
        self._frames.look()
        for timing in self._new_timings():
            if not self._is_complete(timing):
                return
            self._last = timing
            self._waits_since_s = None
            try:
                self._show(timing)
            except Exception as err:  # viewers pass on what their libraries raise
                self._log.warn(f'a sweep is not shown: {first_line(err)}')

    def _new_timings(self) -> list[Any]:
        timings = self._watcher.timings
        places = [place for place, timing in enumerate(timings) if timing is self._last]
        return timings[places[-1] + 1 :] if places else timings

    def _is_complete(self, timing: Any) -> bool:
        """Tell whether the picture of a sweep has come, or has been waited for."""
        stamp = stamp_ns(timing)
        has_picture = any(stamp_ns(picture) == stamp for picture in self._watcher.pictures)
        now_s = time.monotonic()
        self._waits_since_s = self._waits_since_s or now_s
        return has_picture or now_s - self._waits_since_s > PICTURE_WAIT_S

    def _show(self, timing: Any) -> None:
        answers = [a for a in self._watcher.answers if stamp_ns(a) == stamp_ns(timing)]
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
