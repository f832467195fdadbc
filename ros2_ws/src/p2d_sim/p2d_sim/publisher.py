"""`ros2 run p2d_sim cameras`: a scenario as six live camera topics with CameraInfo.

Every sweep is drawn ahead of time in a pool of threads, and every frame goes out at its own
exposure, delayed or lost where the command line asks for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
import sys
import time

import numpy as np
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.dds_profile import use_shipped_profiles
from p2d_node.ros.replay import check_duration, PUBLISHER_DEPTH
from p2d_node.ros.spinning import ended_by_shutdown
import rclpy
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from p2d_sim.cameras import FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.scenarios import SCENARIOS
from p2d_sim.sweeps import check_seed, check_size, Exposure, to_jpeg, World

NS_PER_S = 1_000_000_000
SWEEPS_AHEAD = 2
REPORT_PERIOD_S = 5.0
TRANSPORTS = ('compressed', 'raw')

EXAMPLE = """examples:
  ros2 run p2d_sim cameras --scenario lead-brakes
  ros2 run p2d_sim cameras --scenario pedestrian-crosses --rate 4 --size 800x450
  ros2 run p2d_sim cameras --transport raw --jitter-ms 20 --loss 0.05
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherOptions:
    """What goes out, and how badly.

    Attributes:
        scenario: One of `SCENARIOS`.
        seed: Of surroundings, jitter and losses.
        rate_hz: Sweeps per second.
        transport: `compressed` (JPEG) or `raw` (bgr8).
        height: Of the pictures.
        width: Of the pictures.
        jitter_ms: Frames go out late by up to this much, evenly; their stamps stay true.
        loss: Probability that a frame is not sent.
        duration_s: Stop after this time; None never.
    """

    scenario: str = 'lead-brakes'
    seed: int = 0
    rate_hz: float = 12.0
    transport: str = 'compressed'
    height: int = FULL_HEIGHT_PX
    width: int = FULL_WIDTH_PX
    jitter_ms: float = 0.0
    loss: float = 0.0
    duration_s: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_seed(self.seed)
        check_size(self.height, self.width)
        check_duration(self.duration_s)
        if not 0.1 <= self.rate_hz <= 60.0:
            raise ConfigError(f'--rate: got {self.rate_hz:g}, allowed: 0.1 to 60 Hz')
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                f'--transport: got {self.transport!r}, allowed: {", ".join(TRANSPORTS)}'
            )
        if not 0.0 <= self.jitter_ms <= 1000.0:
            raise ConfigError(f'--jitter-ms: got {self.jitter_ms:g}, allowed: 0 to 1000')
        if not 0.0 <= self.loss < 1.0:
            raise ConfigError(f'--loss: got {self.loss:g}, allowed: 0 to below 1')


def topic_of(camera: str, transport: str) -> str:
    """Return the image topic, as the shipped presets for nuScenes subscribe to it."""
    return (
        f'/{camera}/image_rect_compressed'
        if transport == 'compressed'
        else f'/{camera}/image_rect'
    )


@dataclass(frozen=True, slots=True)
class _Due:
    """A frame on its way: the picture may still be drawn when its time comes."""

    send_s: float
    stamp_ns: int
    camera: str
    lost: bool
    picture: Future[Image | CompressedImage]


class CameraPublisher(Node):  # type: ignore[misc]
    """Six cameras of a running scenario. Blocks the thread that calls `play`."""

    def __init__(self, options: PublisherOptions, **node_options: object) -> None:
        """Create the publishers; nothing is sent yet."""
        super().__init__('p2d_sim', **node_options)
        self.num_sent = 0
        self.num_lost = 0
        self.num_skipped = 0
        self._options = options
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
        """Publish until `must_stop`, a shutdown, or the end of the duration."""
        options = self._options
        start_s, start_ns = time.monotonic() + 0.5, self.get_clock().now().nanoseconds
        start_ns += NS_PER_S // 2
        period_s = 1.0 / options.rate_hz
        end_s = np.inf if options.duration_s is None else start_s + options.duration_s
        waiting: list[_Due] = []
        report_s = start_s + REPORT_PERIOD_S
        with (
            ended_by_shutdown(self.context),
            ThreadPoolExecutor(max_workers=len(NUSCENES_CAMERAS)) as pool,
        ):
            for sweep in self._world.sweeps(1000.0 / options.rate_hz):
                if start_s + sweep[0][1] + period_s < time.monotonic():
                    self.num_skipped += 1
                    continue
                waiting += [self._draw(pool, item, start_s, start_ns) for item in sweep]
                waiting.sort(key=lambda due: due.send_s)
                while len(waiting) > (SWEEPS_AHEAD - 1) * len(NUSCENES_CAMERAS):
                    due = waiting.pop(0)
                    if not _sleep_until(due.send_s, must_stop) or due.send_s >= end_s:
                        pool.shutdown(cancel_futures=True)
                        return
                    self._send(due)
                if time.monotonic() > report_s:
                    self._report()
                    report_s += REPORT_PERIOD_S

    def _draw(
        self, pool: ThreadPoolExecutor, item: tuple[Exposure, float], start_s: float, start_ns: int
    ) -> _Due:
        exposure, time_s = item
        late_s = float(self._rng.uniform(0.0, self._options.jitter_ms)) / 1000.0
        stamp_ns = start_ns + round(time_s * NS_PER_S)
        return _Due(
            send_s=start_s + time_s + late_s,
            stamp_ns=stamp_ns,
            camera=exposure.camera,
            lost=bool(self._rng.random() < self._options.loss),
            picture=pool.submit(self._picture, exposure.camera, time_s, stamp_ns),
        )

    def _picture(self, camera: str, time_s: float, stamp_ns: int) -> Image | CompressedImage:
        pixels = self._world.view(camera, time_s).pixels
        if self._options.transport == 'compressed':
            message = CompressedImage(format='jpeg', data=to_jpeg(pixels))
        else:
            height, width = pixels.shape[:2]
            message = Image(height=height, width=width, encoding='bgr8', step=3 * width)
            # Into the message's own array: its setter would check every single value.
            message.data.frombytes(pixels[..., ::-1].tobytes())
        _stamp(message, camera, stamp_ns)
        return message

    def _send(self, due: _Due) -> None:
        if due.lost:
            self.num_lost += 1
            return
        message = due.picture.result()
        self._images[due.camera].publish(message)
        self._infos[due.camera].publish(self._info(due))
        self.num_sent += 1

    def _info(self, due: _Due) -> CameraInfo:
        k = self._world.camera_matrix(due.camera)
        info = CameraInfo(
            height=self._world.height,
            width=self._world.width,
            distortion_model='plumb_bob',
            d=[0.0] * 5,
            k=k,
            r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            p=[*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0],
        )
        _stamp(info, due.camera, due.stamp_ns)
        return info

    def _report(self) -> None:
        if self.num_skipped:
            self.get_logger().warning(
                f'{self.num_skipped} sweeps were left out since the start: drawing is too slow '
                'here; lower --rate or --size'
            )


def _stamp(message: Image | CompressedImage | CameraInfo, camera: str, stamp_ns: int) -> None:
    message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
    message.header.frame_id = camera


def _sleep_until(end_s: float, must_stop: Callable[[], bool]) -> bool:
    """Sleep until `end_s` on the monotonic clock; False where `must_stop` came first."""
    while not must_stop():
        left_s = end_s - time.monotonic()
        if left_s <= 0.0:
            return True
        time.sleep(min(left_s, 0.05))
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Publish as the command line says; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    plain = rclpy.utilities.remove_ros_args(['cameras', *arguments])[1:]
    try:
        options = _parse(plain)
        use_shipped_profiles()
        rclpy.init(args=arguments)
        node = CameraPublisher(options)
    except ConfigError as err:
        sys.stderr.write(f'cameras: {err}\n')
        return 2
    try:
        node.play(lambda: not rclpy.ok())
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _parse(arguments: Sequence[str]) -> PublisherOptions:
    default = PublisherOptions()
    parser = argparse.ArgumentParser(
        prog='cameras',
        description='Publishes a synthetic drive as six camera topics with CameraInfo.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--scenario', default=default.scenario, choices=tuple(SCENARIOS))
    parser.add_argument('--seed', type=int, default=default.seed)
    parser.add_argument(
        '--rate',
        type=float,
        default=default.rate_hz,
        help='sweeps per second; the preset nuscenes expects 12 (cameras.<CAMERA>.rate_hz)',
    )
    parser.add_argument('--transport', default=default.transport, choices=TRANSPORTS)
    parser.add_argument(
        '--size', default=f'{default.width}x{default.height}', help='WIDTHxHEIGHT in pixels'
    )
    parser.add_argument(
        '--jitter-ms', type=float, default=0.0, help='frames go out up to this much late'
    )
    parser.add_argument('--loss', type=float, default=0.0, help='share of frames that get lost')
    parser.add_argument('--duration', type=float, metavar='S', help='stop after this time')
    args = parser.parse_args(arguments)
    width, _, height = args.size.partition('x')
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f'--size: got {args.size!r}, allowed: WIDTHxHEIGHT, e.g. 800x450')
    return PublisherOptions(
        scenario=args.scenario,
        seed=args.seed,
        rate_hz=args.rate,
        transport=args.transport,
        height=int(height),
        width=int(width),
        jitter_ms=args.jitter_ms,
        loss=args.loss,
        duration_s=args.duration,
    )


if __name__ == '__main__':
    raise SystemExit(main())
