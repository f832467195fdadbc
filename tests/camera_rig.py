"""Six cameras that publish when a test says so, and waiting with a time limit."""

from __future__ import annotations

import array
from collections.abc import Callable, Container, Iterable, Mapping
import time
from typing import Any

from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.conversions import to_time
from p2d_node.units import NS_PER_MS, NS_PER_S
import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from sweeps import jpeg, picture, STAMP_NS

SWEEP_PERIOD_NS = NS_PER_S

MATCH_S = 0.4
"""The subscriber's side of a match may come later than the publisher's; a frame before is lost."""


class CameraRig:
    """Publishes sweeps on the camera topics of the nuScenes preset, or on others."""

    def __init__(
        self,
        node: Any,
        *,
        cameras: Iterable[str] = NUSCENES_CAMERAS,
        topics: Mapping[str, str] | None = None,
        raw: bool | Container[str] = False,
        reliable: bool = True,
    ) -> None:
        self.cameras = tuple(cameras)
        self.raw = {name: raw if isinstance(raw, bool) else name in raw for name in self.cameras}
        topics = topics or {name: f'/{name}/image_rect/compressed' for name in self.cameras}
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=10, reliability=reliability)
        self.publishers = {
            name: node.create_publisher(
                Image if self.raw[name] else CompressedImage, topics[name], qos
            )
            for name in self.cameras
        }
        self.num_sweeps = 0
        self._matched_s: float | None = None

    @property
    def heard(self) -> bool:
        """True once every camera has had a subscriber for `MATCH_S`."""
        if not all(p.get_subscription_count() for p in self.publishers.values()):
            self._matched_s = None
            return False
        self._matched_s = self._matched_s or time.monotonic()
        return time.monotonic() - self._matched_s >= MATCH_S

    def publish_sweep(
        self,
        *,
        stamp_ns: int | None = None,
        without: Iterable[str] = (),
        change: Callable[[str, Any], Any] = lambda _name, message: message,
    ) -> int:
        """Publish one sweep and return the stamp of the first camera."""
        start_ns = stamp_ns or STAMP_NS + self.num_sweeps * SWEEP_PERIOD_NS
        self.num_sweeps += 1
        for index, name in enumerate(self.cameras):
            if name in without:
                continue
            offset_ns = self.offset_ns(name)
            header = Header(stamp=to_time(start_ns + offset_ns), frame_id=f'{name}_optical')
            pixels = picture(self.num_sweeps * 10 + index)
            message = change(
                name, _raw(header, pixels) if self.raw[name] else _jpeg(header, pixels)
            )
            self.publishers[name].publish(message)
        return start_ns + self.offset_ns(self.cameras[0])

    def offset_ns(self, name: str) -> int:
        """Return the exposure of a camera after the start of a sweep."""
        return round(NUSCENES_EXPOSURE_OFFSETS_MS.get(name, 0.0) * NS_PER_MS)


def _jpeg(header: Header, pixels: Any) -> CompressedImage:
    data = array.array('B', jpeg(pixels).data)
    return CompressedImage(header=header, format='jpeg', data=data)


def _raw(header: Header, pixels: Any) -> Image:
    height, width, _ = pixels.shape
    data = array.array('B', pixels.tobytes())
    return Image(
        header=header, height=height, width=width, encoding='bgr8', step=3 * width, data=data
    )


def wait_until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Return the first true value of `condition`, or fail."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        if value := condition():
            return value
        time.sleep(0.02)
    pytest.fail(f'not true within {timeout_s} s')
