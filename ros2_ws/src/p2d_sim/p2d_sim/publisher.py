"""Publishes a scenario as six live camera topics with CameraInfo.

Sweeps are drawn ahead of time in a pool of threads. Every frame goes out at the time of its own
exposure; the options delay or drop frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
import math
import time

import numpy as np
from p2d_node.bags.records import image_topic
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.dds_profile import use_shipped_profiles
from p2d_node.ros.rcl_errors import init_rclpy
from p2d_node.ros.replay import PUBLISHER_DEPTH
from p2d_node.ros.spinning import ended_by_shutdown
from p2d_node.units import NS_PER_S
import rclpy
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from p2d_sim.publisher_options import PublisherOptions
from p2d_sim.sweeps import Exposure, to_jpeg, World

START_DELAY_S = 0.5
"""Time to draw the first sweep before its first exposure."""

SWEEPS_AHEAD = 2
REPORT_PERIOD_S = 5.0


def topic_of(camera: str, transport: str) -> str:
    """Return the image topic, as the preset `nuscenes` of the node subscribes to it."""
    return image_topic(camera, 'jpeg' if transport == 'compressed' else 'bgr8')


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """A frame that waits for its time.

    Attributes:
        send_s: When to send it, seconds on the monotonic clock.
        stamp_ns: Its exposure, nanoseconds on the node's clock.
        camera: Name of the camera.
        lost: True if the frame is not sent.
        message: The image; may still be drawn.
    """

    send_s: float
    stamp_ns: int
    camera: str
    lost: bool
    message: Future[Image | CompressedImage]


class CameraPublisher(Node):  # type: ignore[misc]
    """Publishes the six cameras of a scenario. `play` blocks the thread that calls it.

    Attributes:
        num_sent: Frames sent.
        num_lost: Frames dropped because of the option `loss`.
        num_skipped: Sweeps that could not be drawn in time.
    """

    def __init__(self, options: PublisherOptions, **node_options: object) -> None:
        """Create the publishers; nothing is sent yet."""
        super().__init__('p2d_sim', **node_options)
        self.num_sent = 0
        self.num_lost = 0
        self.num_skipped = 0
        self._options = options
        self._start_s = self._report_s = math.nan
        self._start_ns = 0
        self._rng = np.random.default_rng((41, options.seed))
        self._world = World(
            options.scenario, options.seed, height=options.height, width=options.width
        )
        message = CompressedImage if options.transport == 'compressed' else Image
        self._images = {
            name: self.create_publisher(
                message, topic_of(name, options.transport), PUBLISHER_DEPTH
            )
            for name in NUSCENES_CAMERAS
        }
        self._infos = {
            name: self.create_publisher(CameraInfo, f'/{name}/camera_info', PUBLISHER_DEPTH)
            for name in NUSCENES_CAMERAS
        }

    def play(self, must_stop: Callable[[], bool]) -> None:
        """Publish until `must_stop` returns True, a shutdown, or the end of the duration."""
        duration_s = self._options.duration_s
        self._start_s = time.monotonic() + START_DELAY_S
        self._start_ns = self.get_clock().now().nanoseconds + round(START_DELAY_S * NS_PER_S)
        self._report_s = self._start_s + REPORT_PERIOD_S
        end_s = math.inf if duration_s is None else self._start_s + duration_s
        with (
            ended_by_shutdown(self.context),
            ThreadPoolExecutor(max_workers=len(NUSCENES_CAMERAS)) as pool,
        ):
            for frame in self._frames(pool):
                if not _sleep_until(frame.send_s, must_stop) or frame.send_s >= end_s:
                    pool.shutdown(cancel_futures=True)
                    return
                self._send(frame)
                self._report_skipped()

    def _frames(self, pool: ThreadPoolExecutor) -> Iterator[_Frame]:
        """Yield the frames in the order of sending; leaves out sweeps that come too late."""
        period_s = 1.0 / self._options.rate_hz
        waiting: list[_Frame] = []
        for sweep in self._world.sweeps(1000.0 / self._options.rate_hz):
            _, first_s = sweep[0]
            if self._start_s + first_s + period_s < time.monotonic():
                self.num_skipped += 1
                continue
            waiting += [self._draw(pool, exposure, time_s) for exposure, time_s in sweep]
            waiting.sort(key=lambda frame: frame.send_s)
            while len(waiting) > (SWEEPS_AHEAD - 1) * len(NUSCENES_CAMERAS):
                yield waiting.pop(0)

    def _draw(self, pool: ThreadPoolExecutor, exposure: Exposure, time_s: float) -> _Frame:
        """Start to draw a frame; `time_s` is its exposure, seconds since the start."""
        late_s = float(self._rng.uniform(0.0, self._options.jitter_ms)) / 1000.0
        stamp_ns = self._start_ns + round(time_s * NS_PER_S)
        return _Frame(
            send_s=self._start_s + time_s + late_s,
            stamp_ns=stamp_ns,
            camera=exposure.camera,
            lost=bool(self._rng.random() < self._options.loss),
            message=pool.submit(self._image, exposure.camera, time_s, stamp_ns),
        )

    def _image(self, camera: str, time_s: float, stamp_ns: int) -> Image | CompressedImage:
        pixels = self._world.view(camera, time_s).pixels
        if self._options.transport == 'compressed':
            message = CompressedImage(format='jpeg', data=to_jpeg(pixels))
        else:
            height, width = pixels.shape[:2]
            message = Image(height=height, width=width, encoding='bgr8', step=3 * width)
            # Assigning to `data` would check every byte in Python.
            message.data.frombytes(pixels[..., ::-1].tobytes())
        _stamp(message, camera, stamp_ns)
        return message

    def _send(self, frame: _Frame) -> None:
        if frame.lost:
            self.num_lost += 1
            return
        message = frame.message.result()
        self._images[frame.camera].publish(message)
        self._infos[frame.camera].publish(self._info(frame))
        self.num_sent += 1

    def _info(self, frame: _Frame) -> CameraInfo:
        k = self._world.camera_matrix(frame.camera)
        info = CameraInfo(
            height=self._world.height,
            width=self._world.width,
            distortion_model='plumb_bob',
            d=[0.0] * 5,
            k=k,
            r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            p=[*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0],
        )
        _stamp(info, frame.camera, frame.stamp_ns)
        return info

    def _report_skipped(self) -> None:
        """Warn every few seconds if sweeps were left out."""
        if time.monotonic() <= self._report_s:
            return
        self._report_s += REPORT_PERIOD_S
        if self.num_skipped:
            self.get_logger().warning(
                f'{self.num_skipped} sweeps were left out since the start: drawing is too slow on '
                'this machine; lower --rate or --size'
            )


def _stamp(message: Image | CompressedImage | CameraInfo, camera: str, stamp_ns: int) -> None:
    message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
    message.header.frame_id = camera


def _sleep_until(end_s: float, must_stop: Callable[[], bool]) -> bool:
    """Sleep until `end_s` on the monotonic clock; returns False if `must_stop` came first."""
    while not must_stop():
        left_s = end_s - time.monotonic()
        if left_s <= 0.0:
            return True
        time.sleep(min(left_s, 0.05))
    return False


def publish(options: PublisherOptions, ros_arguments: Sequence[str]) -> None:
    """Start ROS, publish until the end or Ctrl-C, and shut ROS down.

    Args:
        options: What to publish.
        ros_arguments: Command line with the arguments of ROS, such as remappings.

    Raises:
        ConfigError: No such scenario, or something that ROS refuses.
    """
    use_shipped_profiles()
    init_rclpy(list(ros_arguments))
    try:
        node = CameraPublisher(options)
        try:
            node.play(lambda: not rclpy.ok())
        except KeyboardInterrupt:
            pass
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
