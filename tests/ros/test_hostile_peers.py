"""Peers that send what no camera driver and no tool sends."""

import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
import subprocess
import sys
import threading
import time

from camera_rig import CameraRig, wait_until
from diagnostic_msgs.msg import DiagnosticStatus
from drive_client import call, Health, next_answer
from lifecycle_msgs.srv import GetState
import numpy as np
from p2d_msgs.msg import DrivingAnswer
from p2d_node.ros import camera_subscription, memory_growth, text_subscription
from p2d_node.ros.camera_frames import CameraFrames
from p2d_node.ros.frame_limits import max_message_bytes, why_refused
from p2d_node.ros.guarded_services import MAX_ENTRIES
from p2d_node.ros.lost_replies import PERIOD_S
from p2d_node.ros.memory_growth import GROWTH
from p2d_node.ros.quiet_node import QuietNode
import pytest
from rcl_interfaces.msg import ParameterEvent
from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
import rclpy
from rclpy.exceptions import InvalidHandle
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

TOPIC = '/CAM_BACK/image_rect/compressed'
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def start_hostile_name(ros_domain) -> Iterator[Callable[[], None]]:
    """Starts a peer whose node name is not UTF-8, with a publisher on the topic of CAM_BACK."""
    with ExitStack() as stack:

        def start() -> None:
            command = [sys.executable, Path(__file__).with_name('hostile_name.py'), TOPIC]
            peer = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(peer.kill)
            assert peer.stdout.readline() == b'ready\n'

        yield start


def finds_unreadable_name(node) -> bool:
    try:
        node.get_publishers_info_by_topic(TOPIC)
    except UnicodeDecodeError:
        return True
    return False


@pytest.mark.attack(
    'A peer whose node name is not UTF-8 publishes on a camera topic',
    'the node starts, answers and reports; the status of that camera names the cause',
)
def test_a_node_name_that_is_not_utf_8_silences_nothing(
    start_hostile_name, drive, node, rig, watcher, capfd
):
    start_hostile_name()
    wait_until(lambda: finds_unreadable_name(node))
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer
    health.wait_for('CAM_BACK', DiagnosticStatus.WARN, 'a node name that is not UTF-8')
    assert 'UTF-8' not in health.statuses['/p2d: CAM_FRONT'].message
    CameraFrames(node, '/p2d').look()
    log = capfd.readouterr().err
    assert 'unexpected error' not in log
    assert '\x1b[31m\x80' not in log


@pytest.mark.attack(
    'A peer whose node name is not UTF-8 joins while the node is active',
    'what is known of the publishers stays, and so does the subscription',
)
def test_publishers_that_become_unreadable_stay_known(start_hostile_name, drive, node, rig):
    (camera,) = (c for c in drive().session.cameras if c.topic == TOPIC)
    wait_until(lambda: rig.heard)
    wait_until(lambda: camera.publisher_names == ['/tester'])
    start_hostile_name()
    wait_until(lambda: camera.has_unreadable_publisher)
    camera.follow_publishers()
    assert '/tester' in camera.publisher_names
    assert camera.reliable


def compressed(*, sec=1, nanosec=0, data=b'', **texts) -> CompressedImage:
    message = CompressedImage(format=texts.get('format', 'jpeg'), data=data)
    message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
    message.header.frame_id = texts.get('frame_id', 'camera')
    return message


def raw(num_bytes: int) -> Image:
    return Image(encoding='bgr8', data=bytes(num_bytes))


def test_frames_as_cameras_send_them_are_used():
    pixels = 256
    for raw_frame in (False, True):
        size = max_message_bytes(pixels, raw=raw_frame)
        message = raw(size) if raw_frame else compressed(data=bytes(size))
        assert why_refused(message, pixels) == ''
    assert why_refused(compressed(sec=0), pixels) == ''
    assert why_refused(compressed(sec=2**31 - 1, nanosec=999_999_999), pixels) == ''
    assert why_refused(compressed(frame_id='x' * 256), pixels) == ''


@pytest.mark.parametrize(
    ('message', 'reason'),
    [
        (compressed(data=bytes(1_049_601)), 'got 1049601 bytes, allowed: 1049600; '),
        (raw(2049), 'got 2049 bytes, allowed: 2048; '),
        (compressed(frame_id='x' * 257), 'got a frame_id or format of 257 characters, '),
        (compressed(format='x' * 257), 'got a frame_id or format of 257 characters, '),
        (compressed(sec=-1), 'got a stamp of -1 s and 0 ns, '),
        (compressed(sec=2**31 - 1, nanosec=2**32 - 1), 'got a stamp of 2147483647 s and 429496'),
    ],
)
def test_a_frame_that_no_camera_sends_is_refused(message, reason):
    assert why_refused(message, 256).startswith(reason)


@pytest.mark.attack(
    'A peer sends camera frames of any size, with long texts, or stamps that are no time',
    'refused as they arrive, counted as broken and named in /diagnostics; the node goes on',
)
def test_a_frame_that_is_refused_is_reported_and_kept_nowhere(drive, node, rig, watcher):
    health = Health(node)
    drive_node = drive(max_image_pixels=1 << 16)
    wait_until(lambda: rig.heard)

    def pad(camera, message):
        if camera == 'CAM_BACK':
            message.data.frombytes(bytes(2 << 20))
        return message

    def date(camera, message):
        if camera == 'CAM_BACK':
            message.header.stamp.sec, message.header.stamp.nanosec = 2**31 - 1, 2**32 - 1
        return message

    for number, change in enumerate((pad, date)):
        rig.publish_sweep(change=change)
        wait_until(lambda: health.value('CAM_BACK', 'broken frames') == str(number + 1))  # noqa: B023
    status = health.wait_for('CAM_BACK', DiagnosticStatus.ERROR, 'a frame cannot be used: got ')
    assert 'set max_image_pixels' in status.message or 'stamp' in status.message
    assert next_answer(watcher, rig).answer
    assert drive_node.session.synchronizer.counters.reset == 0
    assert min(answer.header.stamp.sec for answer in watcher.answers) > 0


def padded(message, num_bytes):
    """Return a small message with bytes after it, which rclpy leaves out and DDS holds."""
    return serialize_message(message) + bytes(num_bytes)


@pytest.mark.attack(
    'A peer sends large camera messages for a while, for which Fast DDS keeps the memory',
    'the camera is subscribed to anew ten seconds after the last of them, which frees it',
)
@pytest.mark.parametrize('is_padded', [False, True])
def test_the_memory_of_large_messages_is_given_back(
    drive, node, rig, watcher, monkeypatch, is_padded
):
    (camera,) = (c for c in drive().session.cameras if c.topic == TOPIC)
    wait_until(lambda: rig.heard)
    monkeypatch.setattr(camera_subscription, 'LARGE_OVER_NS', 10**9)
    first = camera._subscription
    rig.publish_sweep()
    wait_until(lambda: camera.num_received)
    time.sleep(1.5)
    camera.follow_publishers()
    assert camera._subscription is first
    num_bytes = 40 << 20
    large = compressed(data=array.array('B', bytes(0 if is_padded else num_bytes)))
    large = padded(large, num_bytes) if is_padded else large
    rig.publishers['CAM_BACK'].publish(large)
    wait_until(lambda: camera.num_received == 2)
    camera.follow_publishers()
    assert camera._subscription is first
    wait_until(lambda: camera._subscription is not first)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer


@pytest.mark.attack(
    'A peer sends large texts to ~/question and ~/context, for which Fast DDS keeps the memory',
    'the topics are subscribed to anew ten seconds after the last of them, which frees it',
)
@pytest.mark.parametrize(
    ('topic', 'large'),
    [
        ('/p2d/question', String(data='x' * (2 << 20))),
        ('/p2d/context', String(data='x' * (2 << 20))),
        ('/p2d/context', padded(String(), 2 << 20)),
    ],
)
def test_the_memory_of_large_texts_is_given_back(
    drive, node, rig, watcher, monkeypatch, topic, large
):
    drive_node = drive(questions=[], max_context_age_ms=0.0)
    monkeypatch.setattr(text_subscription, 'LARGE_OVER_NS', 10**9)
    publisher = node.create_publisher(String, topic, 10)
    wait_until(lambda: publisher.get_subscription_count() and rig.heard)
    subscriptions = {id(s) for s in drive_node.subscriptions}
    publisher.publish(large)
    wait_until(lambda: {id(s) for s in drive_node.subscriptions} - subscriptions, 10.0)
    wait_until(publisher.get_subscription_count)
    time.sleep(0.5)
    publisher.publish(String(data='Is it wet?'))
    if topic == '/p2d/context':
        wait_until(lambda: drive_node.session._context.text == 'Is it wet?')
    else:
        wait_until(lambda: drive_node.session.worker.questions)
        assert next_answer(watcher, rig).question == 'Is it wet?'


@pytest.mark.attack(
    'A peer ends in the middle of large frames, or replaces large texts before they are read',
    'as the process grows by 512 MiB, all topics are subscribed to anew, which frees them',
)
def test_memory_of_messages_that_nobody_sees_is_given_back(drive, rig, watcher, monkeypatch):
    drive_node = drive(max_context_age_ms=0.0)
    wait_until(lambda: rig.heard)
    monkeypatch.setattr(memory_growth, 'GROWN_BYTES', 64 << 20)
    GROWTH.begin()
    GROWTH.check()
    first = {camera: camera._subscription for camera in drive_node.session.cameras}
    before = {s.topic_name: s for s in drive_node.subscriptions}

    def is_same(topic):
        return before[topic] in list(drive_node.subscriptions)

    held = np.ones(96 << 20, np.uint8)  # as if Fast DDS held it
    GROWTH.check()
    for camera in first:
        camera.follow_publishers()
    wait_until(lambda: all(camera._subscription is not s for camera, s in first.items()))
    wait_until(lambda: not any(is_same(topic) for topic in ('/p2d/question', '/p2d/context')))
    GROWTH.check()  # what is still held is no reason to begin again
    renewed = {camera: camera._subscription for camera in first}
    GROWTH.check()
    for camera in renewed:
        camera.follow_publishers()
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer
    assert {camera: camera._subscription for camera in first} == renewed
    assert held.all()


@pytest.mark.attack(
    'A peer asks ~/get_type_description, which rcl logs raw, whole and without a limit',
    'no node of the project has that service',
)
def test_no_node_describes_types(drive, node, make_context):
    drive_node = drive()
    helper = QuietNode('p2d_watch', context=make_context())
    wait_until(lambda: {'p2d', 'p2d_requests', 'p2d_watch'} <= set(node.get_node_names()))
    for name in ('p2d', 'p2d_requests', 'p2d_watch'):
        services = [s for s, _ in node.get_service_names_and_types_by_node(name, '/')]
        assert not any(service.endswith('/get_type_description') for service in services)
    assert any(service.srv_name.endswith('get_parameters') for service in drive_node.services)
    helper.destroy_node()


@pytest.mark.attack(
    'Hundreds of short-lived publishers and subscribers whose QoS does not fit, or changes',
    'a line per topic every 5 s, at most 16 in all',
)
def test_endpoints_of_another_qos_do_not_flood_the_log(drive, node, capfd):
    drive()
    for count in range(20):
        publishers = [
            node.create_publisher(String, '/p2d/question', BEST_EFFORT),
            node.create_publisher(CompressedImage, TOPIC, BEST_EFFORT),
        ]
        subscriptions = [
            node.create_subscription(DrivingAnswer, '/p2d/answer', print, LATCHED),
            node.create_subscription(ParameterEvent, '/parameter_events', print, LATCHED),
        ]
        time.sleep(1.0 if count == 0 else 0.05)
        for endpoint in publishers:
            node.destroy_publisher(endpoint)
        for endpoint in subscriptions:
            node.destroy_subscription(endpoint)
    time.sleep(0.5)
    log = capfd.readouterr().err
    for topic in ('~/question', '~/answer', '/parameter_events'):
        assert log.count(f'[p2d]: {topic}: the QoS of a ') in (1, 2), log
    assert log.count('[p2d') <= 16


def test_a_camera_that_changes_its_reliability_does_not_flood_the_log(drive, node, capfd):
    (camera,) = (c for c in drive().session.cameras if c.topic == TOPIC)
    for reliable in (False, True) * 3:
        publisher = CameraRig(node, cameras=['CAM_BACK'], reliable=reliable).publishers['CAM_BACK']
        wait_until(lambda: camera.follow_publishers() or camera.reliable == reliable)  # noqa: B023
        node.destroy_publisher(publisher)
    log = capfd.readouterr().err
    assert log.count('subscription is now best-effort') == 1
    assert log.count('subscription is now reliable') == 1


@pytest.mark.attack(
    'One request holds 256 parameter names or prefixes of hundreds of kilobytes',
    'refused at once with the length allowed',
)
def test_names_of_any_length_are_refused_at_once(drive, node):
    drive_node = drive(autostart=False)
    names = [f'{"x" * 300}{number}' for number in range(MAX_ENTRIES)]
    parameters = [Parameter(name, value=True).to_parameter_msg() for name in names]
    request = SetParameters.Request(parameters=parameters)
    results = call(node, SetParameters, '/p2d/set_parameters', request).results
    assert {(r.successful, r.reason.partition(';')[0]) for r in results} == {
        (False, 'got a name of 303 characters, allowed: up to 256')
    }
    request = ListParameters.Request(prefixes=names)
    assert call(node, ListParameters, '/p2d/list_parameters', request).result.names == []
    assert drive_node._refusals.num == 2


def test_a_parameter_without_a_name_is_refused(drive, node):
    drive(autostart=False)
    parameter = Parameter('x', value=True).to_parameter_msg()
    parameter.name = ''
    request = SetParameters.Request(parameters=[parameter])
    (result,) = call(node, SetParameters, '/p2d/set_parameters', request).results
    assert not result.successful
    assert result.reason.startswith('got an empty name, ')


@pytest.mark.attack(
    'A peer publishes times on /clock that no clock has',
    'left out; a line every 5 s says so',
)
def test_a_negative_clock_is_named_and_left_out(drive, node, capfd):
    drive_node = drive(use_sim_time=True, autostart=False)
    publisher = node.create_publisher(Clock, '/clock', 10)
    wait_until(publisher.get_subscription_count)
    time.sleep(0.3)
    for sec, nanosec in ((-5, 0), (7, 2**32 - 1), (3, 0)):
        message = Clock()
        message.clock.sec, message.clock.nanosec = sec, nanosec
        publisher.publish(message)
        time.sleep(0.1)
    wait_until(lambda: drive_node.get_clock().now().nanoseconds == 3 * 10**9)
    log = capfd.readouterr().err
    assert log.count('/clock: got -5 s and 0 ns, allowed') == 1
    assert 'unexpected error' not in log


@pytest.mark.attack(
    'Peers of another reliability join and leave a camera topic, and others ask for parameters',
    'the thread that spins the node subscribes anew; an entity that has gone costs one callback',
)
def test_publishers_that_come_and_go_do_not_end_the_node(drive, node, rig, watcher, monkeypatch):
    drive_node = drive()
    (camera,) = (c for c in drive_node.session.cameras if c.topic == TOPIC)
    wait_until(lambda: rig.heard)
    threads = set()
    subscribe = camera._subscribe
    monkeypatch.setattr(
        camera, '_subscribe', lambda: threads.add(threading.get_ident()) or subscribe()
    )
    for reliable in (False, True) * 4:
        camera._wants_reliable = reliable
        wait_until(lambda: camera.reliable == reliable)  # noqa: B023
    publisher = node.create_publisher(CompressedImage, TOPIC, BEST_EFFORT)
    wait_until(lambda: not camera.reliable)  # the health thread has seen it
    node.destroy_publisher(publisher)
    wait_until(lambda: camera.reliable)
    spinning = {t.ident for t in threading.enumerate() if 'spin_until_shutdown' in t.name}
    assert len(threads) == 1
    assert threads <= spinning
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer


@pytest.mark.attack(
    'Something that rclpy waits for is destroyed meanwhile',
    'a line in the log; the node goes on',
)
def test_an_entity_that_is_destroyed_meanwhile_does_not_end_the_thread(
    drive, node, rig, watcher, capfd
):
    drive_node = drive()
    wait_until(lambda: rig.heard)

    def fail():
        timer.cancel()
        raise InvalidHandle('destroyed by the test')

    timer = drive_node.create_timer(0.01, fail)
    wait_until(timer.is_canceled)
    assert next_answer(watcher, rig).answer
    assert 'destroyed by the test' in capfd.readouterr().err


@pytest.mark.attack(
    'Clients whose QoS receives no replies ask the parameter and lifecycle services',
    'after three lost replies none is sent for 5 s; frames are received meanwhile',
)
def test_clients_that_cannot_receive_replies_do_not_delay_frames(
    drive, node, rig, watcher, make_context, spin
):
    drive_node = drive()
    wait_until(lambda: rig.heard)
    next_answer(watcher, rig)
    peer = spin(rclpy.create_node('peer', context=make_context()))
    qos = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    services = {
        GetState: 'get_state',
        GetParameters: 'get_parameters',
        ListParameters: 'list_parameters',
    }
    clients = [
        peer.create_client(k, f'/p2d/{name}', qos_profile=qos) for k, name in services.items()
    ]
    wait_until(lambda: drive_node.count_clients('/p2d/list_parameters') == 1)
    time.sleep(0.5)
    for _ in range(10):
        for client in clients:
            client.call_async(client.srv_type.Request())
    begun_s = time.monotonic()
    assert next_answer(watcher, rig).answer
    assert time.monotonic() - begun_s < 1.5
    wait_until(lambda: drive_node._refusals.num == 30)
    for client in clients:
        peer.destroy_client(client)
    time.sleep(PERIOD_S)
    assert call(node, GetState, '/p2d/get_state', GetState.Request()).current_state.label


@pytest.mark.attack(
    'Clients that cannot receive replies ask thousands of times, and rclpy warns of each',
    "rclpy's warning is not shown; the log has a line per service every 5 s",
)
def test_lost_replies_print_no_warnings_of_python(ros_domain):
    program = (
        'import warnings; from p2d_node.ros.rcl_errors import init_rclpy; init_rclpy();'
        "warnings.warn('failed to send response (timeout): x', RuntimeWarning)"
    )
    command = [sys.executable, '-c', program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, '')
