"""The diagnostics of a node whose cameras, sweeps or code fail."""

import socket
import threading
import time

from camera_rig import CameraRig, SWEEP_PERIOD_NS, wait_until
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from drive_client import Health, next_answer, set_parameter, values_of
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros import diagnostics
from p2d_node.ros.answer_watcher import AnswerWatcher
from p2d_node.ros.drive_node import DriveNode
import pytest
from sweeps import STAMP_NS


@pytest.mark.faults(
    'A camera dies',
    'ERROR within 3 s, the camera is named; with drop_view the others are answered about',
)
def test_a_dead_camera_is_named_and_drop_view_goes_on_without_it(drive, node, rig, watcher):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)
    next_answer(watcher, rig)
    for _ in range(4):
        rig.publish_sweep(without=['CAM_BACK'])
        time.sleep(0.6)
    health.wait_for('CAM_BACK', DiagnosticStatus.ERROR, 'no frame for')
    status = health.wait_for(
        'synchroniser', DiagnosticStatus.ERROR, 'most often missing: CAM_BACK'
    )
    assert int(values_of(status)['dropped']) >= 1
    assert len(watcher.answers) == 1
    assert set_parameter(node, 'missing_camera_policy', 'drop_view').successful
    answer = next_answer(watcher, rig, without=['CAM_BACK'])
    assert tuple(answer.cameras) == tuple(n for n in NUSCENES_CAMERAS if n != 'CAM_BACK')


@pytest.mark.faults(
    'A frame has the stamp 0',
    'its arrival time is used; WARN',
)
def test_one_frame_without_a_stamp_does_not_hide_a_dead_camera(drive, node, rig, watcher):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)

    def unstamp(name, message):
        if name == 'CAM_FRONT':
            message.header.stamp.sec = message.header.stamp.nanosec = 0
        return message

    rig.publish_sweep(change=unstamp)
    health.wait_for('synchroniser', DiagnosticStatus.WARN, 'stamps are 0')
    assert next_answer(watcher, rig).answer
    rig.publish_sweep(without=['CAM_BACK'])
    health.wait_for('synchroniser', DiagnosticStatus.ERROR, 'no complete sweep; most often')


@pytest.mark.faults(
    'The model is slow',
    'WARN after 10 s of work on one sweep',
)
def test_a_sweep_that_takes_very_long_is_reported(drive, node, rig, watcher, monkeypatch):
    health = Health(node)
    drive_node = drive()
    wait_until(lambda: rig.heard)
    monkeypatch.setattr(diagnostics, 'STALLED_S', 0.2)
    go_on = threading.Event()
    with monkeypatch.context() as patch:
        encode = drive_node._pipeline._encoder.encode
        patch.setattr(
            drive_node._pipeline._encoder,
            'encode',
            lambda frames: go_on.wait(30.0) and encode(frames),
        )
        rig.publish_sweep()
        health.wait_for('pipeline', DiagnosticStatus.WARN, 'a sweep has been in work for')
        go_on.set()
        wait_until(lambda: watcher.answers)
    health.wait_for('pipeline', DiagnosticStatus.WARN, 'the model is untrained')


@pytest.mark.faults(
    'A frame is truncated',
    'its sweep is dropped; WARN',
)
def test_a_broken_frame_costs_its_sweep_only(drive, node, rig, watcher):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)

    def truncate(name, message):
        if name == 'CAM_BACK':
            message.data = message.data[: len(message.data) // 2]
        return message

    rig.publish_sweep(change=truncate)
    status = health.wait_for('pipeline', DiagnosticStatus.WARN, 'that are damaged or truncated')
    assert values_of(status)['sweeps failed'] == '1'
    assert watcher.answers == []
    assert next_answer(watcher, rig).answer
    status = health.wait_for('pipeline', DiagnosticStatus.WARN, 'the model is untrained')
    assert values_of(status)['sweeps answered'] == '1'


@pytest.mark.faults(
    'A defect in the program raises',
    'its sweep is dropped; one line asks for a report',
)
def test_a_fault_in_the_code_itself_costs_its_sweep_only(drive, node, rig, watcher, monkeypatch):
    health = Health(node)
    drive_node = drive()
    wait_until(lambda: rig.heard)
    with monkeypatch.context() as patch:
        patch.setattr(drive_node._pipeline, 'answer_groups', None)
        rig.publish_sweep()
        health.wait_for('pipeline', DiagnosticStatus.WARN, "TypeError: 'NoneType' object")
    assert next_answer(watcher, rig).answer


@pytest.mark.faults(
    'Frames have an unknown encoding',
    'sweeps are dropped; WARN, after five in a row ERROR',
)
def test_an_unknown_encoding_is_reported_and_after_some_sweeps_an_error(drive, node, watcher):
    health = Health(node)
    drive(**{f'cameras.{name}.transport': 'raw' for name in NUSCENES_CAMERAS})
    rig = CameraRig(node, raw=True)
    wait_until(lambda: rig.heard)

    def rename(_name, message):
        message.encoding = 'nv21'
        return message

    for count in range(1, 6):
        rig.publish_sweep(change=rename)
        failed = str(count)
        wait_until(lambda failed=failed: health.value('pipeline', 'sweeps failed') == failed)
    health.wait_for('pipeline', DiagnosticStatus.ERROR, "encoding 'nv21', allowed: rgb8, bgr8")
    assert next_answer(watcher, rig).answer


@pytest.mark.faults(
    'The model computes NaN',
    'no answer; ERROR',
)
def test_logits_that_are_not_finite_are_an_error_and_never_an_answer(
    drive, node, rig, watcher, overflowing_checkpoint
):
    health = Health(node)
    drive(model=str(overflowing_checkpoint), dtype='float16')
    wait_until(lambda: rig.heard)
    _publish_until_error(rig, health)
    health.wait_for('pipeline', DiagnosticStatus.ERROR, 'logits that are NaN or infinite')
    assert not watcher.answers


@pytest.mark.faults(
    'Stamps repeat',
    'nothing old is answered as new; ERROR after five sweeps',
)
def test_stamps_that_repeat_are_an_error_as_nothing_new_is_answered(drive, node, rig, watcher):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)
    next_answer(watcher, rig)
    for _ in range(diagnostics.NOT_NEWER_UNTIL_ERROR + 1):
        rig.publish_sweep(stamp_ns=STAMP_NS)
        time.sleep(1.2)  # longer than the deadline: the sweep is forgotten
    health.wait_for('pipeline', DiagnosticStatus.ERROR, 'stamps repeat; check the clock')
    assert next_answer(watcher, rig, stamp_ns=STAMP_NS + 60 * SWEEP_PERIOD_NS).answer
    health.wait_for('pipeline', DiagnosticStatus.WARN, 'the model is untrained')


@pytest.mark.faults(
    'Another camera fails after the first',
    'the one that fails now is named',
)
def test_the_camera_that_is_missing_now_is_named_not_the_one_before(drive, node, rig):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)
    for camera, count in (('CAM_BACK', 4), ('CAM_FRONT_LEFT', 2)):
        for _ in range(count):
            rig.publish_sweep(without=[camera])
            time.sleep(0.6)
        text = f'no complete sweep; most often missing: {camera}'
        health.wait_for('synchroniser', DiagnosticStatus.ERROR, text)


@pytest.mark.faults(
    'Cameras have stamps of two clocks',
    'WARN',
)
def test_cameras_with_stamps_of_two_clocks_are_told(drive, node, rig):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)

    def shift(name, message):
        if name == 'CAM_BACK':
            message.header.stamp.sec += 50
        return message

    def is_told():
        rig.publish_sweep(change=shift)
        status = health.statuses.get('/p2d: synchroniser')
        return status is not None and 'stamps of different clocks' in status.message

    wait_until(is_told)


@pytest.mark.faults(
    'use_sim_time without /clock',
    'WARN',
)
def test_simulated_time_without_a_clock_is_a_warning(drive, node):
    health = Health(node)
    drive(use_sim_time=True)
    health.wait_for('pipeline', DiagnosticStatus.WARN, 'nobody publishes /clock')


def test_simulated_time_without_a_clock_hides_no_error(
    drive, node, rig, watcher, overflowing_checkpoint
):
    health = Health(node)
    drive(model=str(overflowing_checkpoint), dtype='float16', use_sim_time=True)
    wait_until(lambda: rig.heard)
    _publish_until_error(rig, health)
    health.wait_for('pipeline', DiagnosticStatus.ERROR, 'logits that are NaN or infinite')
    assert not watcher.answers


@pytest.mark.faults(
    'Nobody publishes, another type is published, or a camera is slow',
    'each has a message and a remedy of its own',
)
def test_cameras_without_publisher_with_another_type_or_too_slow_are_told_apart(drive, node):
    health = Health(node)
    silent = 'CAM_BACK'
    drive(**{'cameras.CAM_FRONT.transport': 'raw', 'cameras.CAM_FRONT_LEFT.rate_hz': 12.0})
    rig = CameraRig(node, cameras=[n for n in NUSCENES_CAMERAS if n != silent], reliable=False)
    health.wait_for(silent, DiagnosticStatus.ERROR, 'nobody publishes /CAM_BACK/')
    health.wait_for(
        'CAM_FRONT', DiagnosticStatus.ERROR, 'published as sensor_msgs/msg/CompressedImage'
    )

    def slow():
        rig.publish_sweep()
        time.sleep(0.05)
        status = health.statuses.get('/p2d: CAM_FRONT_LEFT')
        return status if status and 'below its rate of 12.0 Hz' in status.message else None

    status = wait_until(slow)
    assert status.level == DiagnosticStatus.WARN
    assert 'FASTDDS_DEFAULT_PROFILES_FILE' in status.message
    assert values_of(status)['reliability'] == 'best-effort'
    assert values_of(health.statuses[f'/p2d: {silent}'])['publishers'] == '0'


def _publish_until_error(rig, health):
    for count in range(1, diagnostics.FAILURES_UNTIL_ERROR + 1):
        rig.publish_sweep()
        failed = str(count)
        wait_until(lambda failed=failed: health.value('pipeline', 'sweeps failed') == failed)


def test_statuses_carry_the_full_name_of_their_node_and_the_name_of_the_computer(
    make_context, spin, node
):
    health, watcher = Health(node), AnswerWatcher(node, '/car1/left')
    names = ['-r', '__ns:=/car1', '-r', '__node:=left', '-p', 'hardware_id:=orin_7']
    inactive = [*names, '-p', 'autostart:=false', '-p', 'model:=untrained']
    spin(DriveNode(context=make_context(), cli_args=['--ros-args', *inactive]))
    status = wait_until(lambda: health.statuses.get('/car1/left: pipeline'))
    assert (status.level, status.message) == (DiagnosticStatus.OK, 'not active')
    assert status.hardware_id == 'orin_7'
    assert wait_until(lambda: watcher.problems) == ['/car1/left: pipeline: not active']


def test_the_computer_is_named_after_its_host_unless_a_parameter_names_it(drive, node):
    health = Health(node)
    drive()
    health.wait_for('pipeline', DiagnosticStatus.WARN)
    assert health.statuses['/p2d: pipeline'].hardware_id == socket.gethostname()


def test_a_watcher_of_one_node_does_not_show_the_problems_of_another(node):
    watchers = {name: AnswerWatcher(node, name) for name in ('/car1/p2d', '/p2d')}
    publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)

    def report():
        level = DiagnosticStatus.ERROR
        statuses = [
            DiagnosticStatus(name=f'{name}: pipeline', level=level, message='broken')
            for name in watchers
        ]
        publisher.publish(DiagnosticArray(status=statuses))
        return all(watcher.problems for watcher in watchers.values())

    wait_until(report)
    for name, watcher in watchers.items():
        assert watcher.problems == [f'{name}: pipeline: broken']


def test_what_goes_wrong_with_one_camera_costs_no_other_status(drive, node, monkeypatch):
    health = Health(node)
    (camera,) = (c for c in drive().session.cameras if c.name == 'CAM_BACK')
    monkeypatch.setattr(camera, 'follow_publishers', lambda: 1 / 0)
    health.wait_for('CAM_BACK', DiagnosticStatus.ERROR, 'ZeroDivisionError')
    health.statuses.clear()
    health.wait_for('CAM_FRONT', DiagnosticStatus.ERROR, 'nobody publishes')
