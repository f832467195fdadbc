"""The simulator's cameras over real DDS: topics, stamps, losses, and the drive node on them."""

from __future__ import annotations

from collections import defaultdict
import math
import threading
import time
from typing import Any

import cv2
import numpy as np
from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS
from p2d_sim.cli.cameras import main
from p2d_sim.publisher import CameraPublisher, topic_of
from p2d_sim.publisher_options import PublisherOptions
import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

RATE_HZ = 4.0
SMALL = {'height': 90, 'width': 160, 'rate_hz': RATE_HZ}


def stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


@pytest.fixture
def received(node: Any):
    """Subscribes to all cameras; camera name to messages."""
    messages: dict[str, list[Any]] = defaultdict(list)

    def listen(transport: str = 'compressed') -> dict[str, list[Any]]:
        kind = CompressedImage if transport == 'compressed' else Image
        qos = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
        for name in NUSCENES_CAMERAS:
            node.create_subscription(kind, topic_of(name, transport), messages[name].append, qos)
            node.create_subscription(
                CameraInfo, f'/{name}/camera_info', messages[f'{name} info'].append, qos
            )
        return messages

    return listen


@pytest.fixture
def play(make_context):
    """Publishes with the given options until the test is over."""
    running = []

    def start(**options: Any) -> CameraPublisher:
        publisher = CameraPublisher(
            PublisherOptions(**{**SMALL, **options}), context=make_context()
        )
        stop = threading.Event()
        thread = threading.Thread(target=publisher.play, args=(stop.is_set,), daemon=True)
        running.append((publisher, stop, thread))
        thread.start()
        return publisher

    yield start
    for publisher, stop, thread in running:
        stop.set()
        thread.join(timeout=10.0)
        publisher.destroy_node()


def wait_for(condition, timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, 'waited in vain'
        time.sleep(0.05)


def test_six_cameras_arrive_with_the_exposure_offsets_of_nuscenes(received, play) -> None:
    messages = received()
    play()
    wait_for(lambda: all(len(messages[name]) >= 4 for name in NUSCENES_CAMERAS))
    period_ns = 1e9 / RATE_HZ
    first = min(stamp_ns(messages[name][0]) for name in NUSCENES_CAMERAS)
    phases = {
        name: (stamp_ns(messages[name][1]) - first) % period_ns / 1e6 for name in NUSCENES_CAMERAS
    }
    base = phases['CAM_FRONT_LEFT']
    for name, offset_ms in NUSCENES_EXPOSURE_OFFSETS_MS.items():
        assert (phases[name] - base) % (period_ns / 1e6) == pytest.approx(offset_ms, abs=0.01)
        picture = cv2.imdecode(np.frombuffer(messages[name][0].data, np.uint8), 1)
        assert picture.shape == (90, 160, 3)
        assert messages[name][0].header.frame_id == name


def test_camera_info_carries_stamp_and_intrinsics_of_its_picture(received, play) -> None:
    messages = received()
    play()
    wait_for(lambda: all(len(messages[f'{name} info']) >= 3 for name in NUSCENES_CAMERAS))
    for name in NUSCENES_CAMERAS:
        info = messages[f'{name} info'][0]
        focal = 800.0 if name == 'CAM_BACK' else 1260.0
        assert info.k[0] == pytest.approx(focal * 0.1)
        assert info.k[4] == pytest.approx(focal * 0.1)
        assert (info.height, info.width) == (90, 160)
        stamps = {stamp_ns(message) for message in messages[name]}
        assert stamps & {stamp_ns(message) for message in messages[f'{name} info']}


def test_raw_pictures_are_bgr_with_the_right_step(received, play) -> None:
    messages = received('raw')
    play(transport='raw')
    wait_for(lambda: len(messages['CAM_FRONT']) >= 1)
    message = messages['CAM_FRONT'][0]
    assert (message.encoding, message.step) == ('bgr8', 480)
    assert len(message.data) == 480 * 90
    pixels = np.frombuffer(message.data, np.uint8).reshape(90, 160, 3)
    assert pixels[:30].std() > 0


def test_lost_frames_are_counted_and_never_sent(received, play) -> None:
    messages = received()
    publisher = play(loss=0.5, rate_hz=8.0)
    wait_for(lambda: publisher.num_sent + publisher.num_lost >= 90)
    assert 0.25 < publisher.num_lost / (publisher.num_sent + publisher.num_lost) < 0.75
    assert sum(len(messages[name]) for name in NUSCENES_CAMERAS) <= publisher.num_sent


def test_publishing_ends_after_the_duration(play) -> None:
    publisher = play(duration_s=1.0)
    wait_for(lambda: publisher.num_sent >= 18)
    time.sleep(1.0)
    sent = publisher.num_sent
    time.sleep(0.5)
    assert publisher.num_sent == sent <= 6 * (RATE_HZ + 1)


def test_a_shutdown_between_a_look_and_a_frame_ends_the_publishing(make_context) -> None:
    context = make_context()
    publisher = CameraPublisher(PublisherOptions(**SMALL), context=context)

    def must_stop() -> bool:
        if publisher.num_sent >= 3:
            context.try_shutdown()
        return False

    publisher.play(must_stop)
    assert publisher.num_sent == 3


def test_the_drive_node_answers_about_the_simulated_sweeps(drive, node, play) -> None:
    from p2d_msgs.msg import DrivingAnswer

    answers = []
    node.create_subscription(DrivingAnswer, '/p2d/answer', answers.append, 10)
    drive()
    play(rate_hz=2.0)
    wait_for(lambda: len(answers) >= 2, timeout_s=40.0)
    assert len(answers[0].cameras) == 6


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('rate_hz', 0.0),
        ('transport', 'film'),
        ('loss', 1.0),
        ('jitter_ms', -1.0),
        ('seed', -1),
        ('height', 10),
        ('duration_s', 0.0),
        ('duration_s', math.nan),
    ],
)
def test_options_that_cannot_be_are_refused_with_what_is_allowed(option: str, value) -> None:
    with pytest.raises(ConfigError, match='allowed'):
        PublisherOptions(**{option: value})


def test_the_command_ends_with_code_two_on_a_bad_size(capsys) -> None:
    assert main(['--size', 'large']) == 2
    assert 'WIDTHxHEIGHT' in capsys.readouterr().err


def test_sweeps_that_cannot_be_drawn_in_time_are_left_out_and_stamps_stay_true(
    received, play
) -> None:
    messages = received()
    publisher = play(height=900, width=1600, rate_hz=60.0)
    wait_for(lambda: publisher.num_skipped >= 20 and publisher.num_sent >= 24)
    sent_ns = publisher.get_clock().now().nanoseconds
    newest = max(stamp_ns(m) for name in NUSCENES_CAMERAS for m in messages[name])
    assert sent_ns - newest < 2_000_000_000
