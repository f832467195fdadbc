"""The cameras of a soak, and a short soak."""

from dataclasses import replace
import json
import subprocess
import sys

from builtin_interfaces.msg import Time
from camera_rig import wait_until
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from p2d_msgs.msg import DrivingAnswer
from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.soak import observer
from p2d_node.soak.faulty_cameras import FaultyCameras, of_camera, with_stamp
from p2d_node.soak.observer import SeenReport
import pytest
from sensor_msgs.msg import CompressedImage
from sweeps import jpeg, picture

TOPICS = {name: f'/{name}/image' for name in NUSCENES_CAMERAS}


@pytest.fixture
def cameras(node):
    pictures = {name: jpeg(picture()).data for name in NUSCENES_CAMERAS}
    cameras = FaultyCameras(node, TOPICS, NUSCENES_EXPOSURE_OFFSETS_MS, [pictures], rate_hz=20.0)
    yield cameras
    cameras.stop()


def received(node, camera):
    stamps_ns = []
    node.create_subscription(
        CompressedImage,
        TOPICS[camera],
        lambda m: stamps_ns.append(to_nanoseconds(m.header.stamp)),
        50,
    )
    return stamps_ns


@pytest.mark.parametrize(
    ('statuses', 'is_ok'),
    [
        ({'pipeline': (0, '3 sweeps answered'), 'CAM_FRONT': (0, '12.0 Hz')}, True),
        ({'pipeline': (0, '3 sweeps answered'), 'CAM_FRONT': (1, '2.0 Hz')}, False),
        ({'pipeline': (0, 'not active')}, False),
    ],
)
def test_a_node_that_is_not_active_has_not_recovered(statuses, is_ok):
    assert SeenReport(0.0, statuses).all_ok == is_ok


def test_frames_of_two_sweeps_are_found_by_truth_also_if_their_stamps_agree(node, cameras):
    front, back = received(node, 'CAM_FRONT'), received(node, 'CAM_BACK')
    cameras.start()
    wait_until(lambda: len(front) > 5 and len(back) > 5)
    offset_ns = round((32.7 - 7.6) * 1e6)
    pairs = [(f, b) for f in front[1:-1] for b in back if abs(b - f - offset_ns) < 1e6]
    assert pairs
    assert not any(cameras.is_mixed({'CAM_FRONT': f, 'CAM_BACK': b}) for f, b in pairs)
    assert cameras.is_mixed({'CAM_FRONT': front[1], 'CAM_BACK': back[-1]})
    # From now on the stamps of one camera are a whole sweep late: they look right, and are not.
    cameras.change = of_camera('CAM_BACK', lambda frame: [with_stamp(frame, 0.05)])
    num_front, num_back = len(front), len(back)
    wait_until(lambda: len(front) > num_front + 6 and len(back) > num_back + 6)
    pairs = [(f, b) for f in front[num_front + 3 :] for b in back if abs(b - f - offset_ns) < 2e6]
    assert pairs
    assert any(cameras.is_mixed({'CAM_FRONT': f, 'CAM_BACK': b}) for f, b in pairs)
    assert not cameras.is_mixed({'CAM_FRONT': front[-1], 'CAM_BACK': 12345})


@pytest.mark.attack(
    'A peer sends large diagnostics of its own, or answers whose lists differ, to `p2d soak`',
    'they are left out, as by `p2d watch`',
)
def test_what_no_drive_node_sends_is_not_kept(node, cameras):
    cameras.start()
    seen = observer.Observer(node, cameras)
    health = node.create_publisher(DiagnosticArray, '/diagnostics', 50)
    answers = node.create_publisher(DrivingAnswer, '/p2d/answer', 50)
    wait_until(lambda: health.get_subscription_count() and answers.get_subscription_count())
    answers.publish(DrivingAnswer(cameras=['CAM_FRONT']))
    answers.publish(DrivingAnswer())
    one = {name: [1] for name in ('tokens_total', 'tokens_kept')}
    stamps = {'camera_stamps': [Time()], 'num_frames': [0]}
    answers.publish(DrivingAnswer(cameras=['CAM_FRONT'], **one, **stamps))
    for name in ('/other: a', '/p2d: a'):
        for size in (1, 300_000):
            status = DiagnosticStatus(name=name, message='x' * size)
            health.publish(DiagnosticArray(status=[status, DiagnosticStatus(name='/other: b')]))
    wait_until(lambda: seen.reports_since(0.0) and seen.answers)
    assert [report.statuses for report in seen.reports_since(0.0)] == [{'a': (0, 'x')}]
    assert [answer.num_cameras for answer in seen.answers] == [1]


@pytest.mark.attack(
    'A peer fills the diagnostics that `p2d soak` keeps',
    'the oldest are dropped above 64 MiB',
)
def test_the_diagnostics_that_are_kept_have_a_limit(node, cameras, monkeypatch):
    cameras.start()
    monkeypatch.setattr(observer, 'MAX_REPORT_BYTES', 2 * observer.STATUS_BYTES + 100)
    seen = observer.Observer(node, cameras)
    for number in range(10):
        status = DiagnosticStatus(name='/p2d: a', message=str(number))
        seen._on_diagnostics(DiagnosticArray(status=[status]))
    assert [r.statuses['a'][1][0] for r in seen.reports_since(0.0)] == ['8', '9']


def test_a_change_may_drop_delay_or_repeat_frames(node, cameras):
    front, back = received(node, 'CAM_FRONT'), received(node, 'CAM_BACK')
    cameras.change = of_camera('CAM_BACK', lambda frame: [frame, replace(frame, delay_s=0.01)])
    cameras.start()
    wait_until(lambda: len(front) > 5)
    assert len(set(back)) < len(back)
    cameras.change = of_camera('CAM_BACK', lambda _frame: [])
    wait_until(lambda: len(front) > 8)
    num_back, num_front = len(back), len(front)
    wait_until(lambda: len(front) > num_front + 5)
    assert len(back) <= num_back + 2


@pytest.mark.slow
def test_a_short_soak_finds_no_mixed_answer_and_writes_its_report(ros_domain, tmp_path):
    command = [
        sys.executable,
        '-m',
        'p2d_node.cli.main',
        'soak',
        '--minutes',
        '0.3',
        '--seed',
        '3',
    ]
    command += ['--rate', '5', '--out', str(tmp_path / 'soak'), '--json']
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    report = json.loads((tmp_path / 'soak' / 'soak.json').read_text())
    assert ended.returncode in (0, 1), ended.stderr
    assert report['answers'] > 0
    held = {criterion['what']: criterion['holds'] for criterion in report['criteria']}
    assert held['answers that mix sweeps']
    assert held['node ended']
    assert report['callers']['asked'] > 0
    assert len(report['faults']) >= 2
    assert (tmp_path / 'soak' / 'soak.png').exists()
    assert 'Traceback' not in (tmp_path / 'soak' / 'node.log').read_text()
