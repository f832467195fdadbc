"""Faults of cameras, clocks, callers and the model, and what the node does about each."""

from collections.abc import Iterator
from contextlib import contextmanager
import json
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

from camera_rig import CameraRig, wait_until
from diagnostic_msgs.msg import DiagnosticStatus
from drive_client import call, Health, next_answer, set_parameter, values_of
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from p2d_msgs.srv import Ask
from p2d_node import vision_frontend
from p2d_node.errors import ConfigError, P2dError
from p2d_node.image_decoding import decode_frame
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros import drive_node as drive_node_module
from p2d_node.ros import requests
from p2d_node.ros.asked_questions import MAX_PENDING_QUESTIONS
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.units import NS_PER_MS, NS_PER_S
import pytest
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String
from sweeps import STAMP_NS

pytestmark = pytest.mark.faults
OTHERS = tuple(name for name in NUSCENES_CAMERAS if name != 'CAM_BACK')


def of_camera(camera, change):
    """Return a change of messages for `publish_sweep` that changes those of one camera."""

    def changed(name, message):
        if name == camera:
            change(message)
        return message

    return changed


def zero_middle(message) -> None:
    third = len(message.data) // 3
    message.data[third : 2 * third] = message.data[third : 2 * third].__class__('B', bytes(third))


def claim_size(message) -> None:
    """Let the header of a JPEG claim 32000 x 32000 pixels."""
    data = bytes(message.data)
    at = data.index(b'\xff\xc0') + 5
    size = (32000).to_bytes(2, 'big') * 2
    message.data = message.data.__class__('B', data[:at] + size + data[at + 4 :])


@pytest.mark.faults(
    'A JPEG claims a size that would fill the memory',
    'refused by its header; the sweep is dropped; the camera is named',
)
def test_a_picture_that_claims_a_huge_size_costs_its_sweep_only(drive, node, rig, watcher):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)
    begun_s = time.monotonic()
    rig.publish_sweep(change=of_camera('CAM_BACK', claim_size))
    status = health.wait_for('CAM_BACK', DiagnosticStatus.ERROR, 'got 32000x32000 px')
    assert values_of(status)['broken frames'] == '1'
    assert next_answer(watcher, rig).answer
    assert time.monotonic() - begun_s < 5.0
    assert len(watcher.answers) == 1


@pytest.mark.faults(
    'A picture is damaged on its way',
    'the sweep is dropped; the camera and the damage are named; OK again after the next report',
)
def test_a_damaged_picture_is_counted_for_its_camera(drive, node, rig, watcher):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)
    rig.publish_sweep(change=of_camera('CAM_BACK', zero_middle))
    health.wait_for('CAM_BACK', DiagnosticStatus.ERROR, 'a frame cannot be used: got')
    assert next_answer(watcher, rig).answer
    health.wait_for('CAM_BACK', DiagnosticStatus.OK)
    assert len(watcher.answers) == 1


@pytest.mark.faults(
    'The same, with missing_camera_policy drop_view',
    'the others are answered about with the tokens of six; the model is told which views it has',
)
def test_drop_view_answers_without_a_damaged_picture(drive, node, rig, watcher):
    health = Health(node)
    drive(missing_camera_policy='drop_view')
    wait_until(lambda: rig.heard)
    answer = next_answer(watcher, rig, change=of_camera('CAM_BACK', zero_middle))
    assert tuple(answer.cameras) == OTHERS
    assert sum(answer.tokens_kept) == 6 * 8
    health.wait_for('CAM_BACK', DiagnosticStatus.ERROR, 'a frame cannot be used')
    wait_until(lambda: watcher.picture is not None)


@pytest.mark.faults('Two nodes publish on the topic of one camera', 'both are named; WARN')
def test_a_second_publisher_of_a_camera_is_named(drive, node, rig, watcher, make_context):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)
    other = rclpy.create_node('old_driver', context=make_context())
    CameraRig(other, cameras=['CAM_BACK'])
    health.wait_for('CAM_BACK', DiagnosticStatus.WARN, 'has 2 publishers, allowed: one')
    message = health.statuses['/p2d: CAM_BACK'].message
    assert '/old_driver, /tester' in message
    other.destroy_node()
    next_answer(watcher, rig)
    health.wait_for('CAM_BACK', DiagnosticStatus.OK)


@pytest.mark.faults('No camera sends anything', 'synchroniser ERROR, pipeline not OK')
def test_without_any_frame_synchroniser_and_pipeline_are_not_ok(drive, node, rig, watcher):
    health = Health(node)
    drive(model='p2d-mini')
    health.wait_for('synchroniser', DiagnosticStatus.ERROR, 'no camera has sent a frame yet')
    health.wait_for('pipeline', DiagnosticStatus.WARN, 'nothing to answer about')
    wait_until(lambda: rig.heard)
    next_answer(watcher, rig, stamp_ns=time.time_ns())
    health.wait_for('pipeline', DiagnosticStatus.OK)
    health.wait_for('synchroniser', DiagnosticStatus.ERROR, 'no camera has sent a frame for')


@pytest.mark.faults(
    'The stamps of a camera are off its exposure offset',
    'its residual is shown; WARN from a third',
)
def test_a_camera_whose_stamps_are_off_is_named(drive, node, rig, watcher):
    health = Health(node)
    drive(cameras__CAM_BACK__exposure_offset_ms=20.0)
    wait_until(lambda: rig.heard)
    next_answer(watcher, rig)
    status = health.wait_for(
        'synchroniser', DiagnosticStatus.WARN, 'CAM_BACK: its stamps are +12.7'
    )
    assert values_of(status)['residual CAM_BACK (ms)'] == '12.7'


@pytest.mark.faults('A bag is played at 0.05 of real time with --clock', 'every sweep is answered')
def test_a_very_slow_replay_is_answered(drive, node, rig, watcher):
    rate = 0.05
    publisher = node.create_publisher(Clock, '/clock', 10)
    playing, started_s = threading.Event(), time.monotonic()

    def tick() -> None:
        while not playing.wait(0.05):
            passed_ns = int((time.monotonic() - started_s) * rate * NS_PER_S)
            stamp = rclpy.time.Time(nanoseconds=STAMP_NS + passed_ns).to_msg()
            publisher.publish(Clock(clock=stamp))

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        drive_node = drive(use_sim_time=True, sync__deadline_ms=150.0)
        wait_until(lambda: rig.heard)
        wait_until(lambda: drive_node.session.clock_rate.rate < 0.06)
        # Exposures that are 43 ms apart on the cameras' clock arrive 0.85 s apart.
        now_ns = int(drive_node.get_clock().now().nanoseconds)
        for name in NUSCENES_CAMERAS:
            absent = [other for other in NUSCENES_CAMERAS if other != name]
            rig.publish_sweep(stamp_ns=now_ns, without=absent)
            time.sleep(0.2)
        answer = wait_until(lambda: watcher.answers)[0]
    finally:
        playing.set()
        ticking.join()
    assert len(answer.cameras) == 6
    assert not answer.late


@pytest.mark.faults('Forty callers of ~/ask at once', 'each gets an answer or a reason')
def test_forty_callers_at_once_are_all_answered_or_told(drive, node, rig, watcher):
    drive()
    wait_until(lambda: rig.heard)
    clients = [node.create_client(Ask, '/p2d/ask') for _ in range(40)]
    assert all(client.wait_for_service(timeout_sec=30.0) for client in clients)
    time.sleep(0.5)
    request = Ask.Request(question='Is there a bus?', timeout_s=10.0)
    futures = [client.call_async(request) for client in clients]
    wait_until(lambda: sum(future.done() for future in futures) >= 40 - 16)
    next_answer(watcher, rig)
    wait_until(lambda: all(future.done() for future in futures))
    replies = [future.result() for future in futures]
    assert sum(reply.success for reply in replies) == 16
    assert {r.message for r in replies if not r.success} == {
        'too many questions wait for a sweep; ask again later'
    }


@pytest.mark.faults(
    'All callers of ~/ask die while they wait',
    'their places are free within 2 s of the end of the last client',
)
def test_callers_that_have_gone_free_their_places(drive, node, make_context, spin):
    drive_node = drive()
    caller = spin(rclpy.create_node('caller', context=make_context()))
    client = caller.create_client(Ask, '/p2d/ask')
    assert client.wait_for_service(timeout_sec=10.0)
    time.sleep(0.3)
    for _ in range(8):
        client.call_async(Ask.Request(question='Is there a bus?', timeout_s=100.0))
    worker = drive_node.session.worker
    wait_until(lambda: len(worker.questions) == 8)
    caller.destroy_client(client)
    wait_until(lambda: not worker.questions, timeout_s=5.0)
    assert worker.state.unanswered == 8


@pytest.mark.faults('~/question is not answered', 'counted and logged with the reason')
def test_a_question_of_the_topic_that_nobody_answers_is_counted_and_logged(
    drive, node, capfd, monkeypatch
):
    monkeypatch.setattr(requests, 'DEFAULT_TIMEOUT_S', 0.3)
    health = Health(node)
    drive()
    publisher = node.create_publisher(String, '/p2d/question', 10)
    wait_until(publisher.get_subscription_count)
    time.sleep(0.3)
    publisher.publish(String(data='Is it wet? ' * 100))
    wait_until(lambda: health.value('pipeline', 'questions unanswered') == '1')
    log = capfd.readouterr().err
    assert '... (1102 characters): no answer within 0.3 s: no frames from' in log


@pytest.mark.attack(
    'A peer asks questions of 4,000 emoji, 300/s: counting their tokens and answering them takes '
    'seconds, and the watchdog ended the node',
    'refused above asked_tokens_per_sweep; tokens are counted only if there is a place',
)
def test_questions_of_very_many_tokens_are_refused(drive, rig, monkeypatch):
    drive_node = drive()
    worker = drive_node.session.worker
    with pytest.raises(ConfigError, match=r'got \d{4,} tokens, allowed: up to 1024 \(asked_tok'):
        worker.questions.ask('\N{AUTOMOBILE}' * 4000, 60.0)
    asked = [worker.questions.ask('car', 60.0) for _ in range(MAX_PENDING_QUESTIONS)]
    monkeypatch.setattr(drive_node._pipeline, 'count_tokens', None)
    with pytest.raises(P2dError, match='too many questions wait'):
        worker.questions.ask('\N{AUTOMOBILE}' * 4000, 60.0)
    worker.questions.withdraw(asked, P2dError('over'))


@pytest.mark.faults(
    'Long questions are asked all the time',
    'the standing ones are answered first; asked ones within asked_tokens_per_sweep',
)
def test_asked_questions_come_after_the_standing_ones_and_within_their_budget(
    drive, node, rig, watcher
):
    drive_node = drive(asked_tokens_per_sweep=100)
    wait_until(lambda: rig.heard)
    worker = drive_node.session.worker
    asked = [worker.questions.ask('car ' * 60, 60.0) for _ in range(3)]
    published = []
    on_answers = worker._on_answers

    def note(frame_set, answers, late):
        published.append([answer.question for answer in answers])
        on_answers(frame_set, answers, late)

    worker._on_answers = note
    for num_answered in (1, 2, 3):
        next_answer(watcher, rig)
        wait_until(lambda: sum(future.done() for future in asked) == num_answered)  # noqa: B023
    standing = ['What should the ego vehicle do next?']
    assert published == [standing, ['car ' * 60]] * 3


@pytest.mark.faults('5,000 standing questions are set', 'refused with the limit')
def test_too_many_standing_questions_are_refused(drive, node):
    drive()
    result = set_parameter(node, 'questions', ['Is there a car?'] * 5000)
    assert not result.successful
    assert result.reason == (
        'questions: got 5000 texts of 75000 characters together, allowed: up to 256 texts of '
        '64000 characters together; remove or shorten some'
    )


@pytest.mark.faults('A malformed request', 'refused with the reason; the node goes on')
def test_a_parameter_of_an_unknown_type_does_not_end_the_node(drive, node, rig, watcher):
    drive()
    wait_until(lambda: rig.heard)
    names = ('max_new_tokens', 'question_batch')
    good, bad = (Parameter(name, value=2).to_parameter_msg() for name in names)
    bad.value.type = 99
    request = SetParameters.Request(parameters=[good, bad])
    results = call(node, SetParameters, '/p2d/set_parameters', request).results
    assert [result.successful for result in results] == [True, False]
    assert results[1].reason == (
        'the request cannot be read: 99 is not a valid Parameter.Type; correct it'
    )
    assert set_parameter(node, 'max_new_tokens', 3).successful
    assert next_answer(watcher, rig).num_generated_tokens <= 3


@pytest.mark.faults('A message holds a text of 250 characters', 'logs quote 200 of them')
def test_what_a_log_quotes_is_cut(drive, node, watcher, capfd):
    drive(**{f'cameras.{name}.transport': 'raw' for name in NUSCENES_CAMERAS})
    rig = CameraRig(node, raw=True)
    wait_until(lambda: rig.heard)

    def rename(message):
        message.encoding = 'x' * 250

    log = ''
    rig.publish_sweep(change=of_camera('CAM_BACK', rename))

    def is_logged():
        nonlocal log
        log += capfd.readouterr().err
        return 'sweep dropped: CAM_BACK' in log

    wait_until(is_logged)
    assert 'x' * 199 in log
    assert 'x' * 201 not in log


@pytest.mark.faults(
    'One cause comes again with every frame', 'logged every 5 s, other causes beside it'
)
def test_a_log_line_of_one_cause_is_throttled_and_hides_no_other(drive, node, rig, capfd):
    drive_node = drive()
    wait_until(lambda: rig.heard)
    log = drive_node.session.log
    for number in range(30):
        log.warn(f'sweep {number} dropped')
        log.warn('another cause')
    lines = capfd.readouterr().err
    assert lines.count('dropped') == 1
    assert lines.count('another cause') == 1


@pytest.mark.faults(
    'Answers become older than max_answer_age_ms',
    'marked and counted; WARN, after late_until_error in a row ERROR',
)
def test_answers_that_are_older_than_allowed_are_marked(drive, node, rig, watcher):
    health = Health(node)
    texts = []
    node.create_subscription(String, '/p2d/answer_text', texts.append, 10)
    drive(max_answer_age_ms=1.0, late_until_error=2)
    wait_until(lambda: rig.heard)
    assert set_parameter(node, 'max_answer_age_ms', 0.0).successful
    assert not next_answer(watcher, rig).late
    assert set_parameter(node, 'max_answer_age_ms', 1.0).successful

    def slowly(_camera, message):
        time.sleep(0.005)
        return message

    rig.publish_sweep(change=slowly)
    health.wait_for('pipeline', DiagnosticStatus.WARN, '1 sweeps in a row were older than 1')
    assert health.value('pipeline', 'sweeps too old') == '1'
    rig.publish_sweep(change=slowly)
    health.wait_for('pipeline', DiagnosticStatus.ERROR, '2 sweeps in a row were older')
    assert len(watcher.answers) == 1


def test_an_answer_that_becomes_late_during_work_says_so(drive, node, rig, watcher, monkeypatch):
    texts = []
    node.create_subscription(String, '/p2d/answer_text', texts.append, 10)
    drive_node = drive(max_answer_age_ms=400.0)
    wait_until(lambda: rig.heard)
    encoder = drive_node._pipeline._encoder
    encode = encoder.encode
    monkeypatch.setattr(encoder, 'encode', lambda frames: time.sleep(0.5) or encode(frames))
    assert next_answer(watcher, rig).late
    wait_until(lambda: texts)
    assert texts[0].data.startswith('[late] ')
    assert drive_node.session.worker.state.late == 1


def hang(drive_node, monkeypatch) -> threading.Event:
    """Let the encoder of a node stand still until the event is set."""
    go_on = threading.Event()
    encoder = drive_node._pipeline._encoder
    encode = encoder.encode
    monkeypatch.setattr(encoder, 'encode', lambda frames: go_on.wait(60.0) and encode(frames))
    return go_on


def state_of(node) -> str:
    return call(node, GetState, '/p2d/get_state', GetState.Request()).current_state.label


@pytest.mark.attack(
    'A peer sends a frame that takes longer to decode than max_sweep_s, which ended the node',
    'a slow frame delays its sweep and is no fault',
)
def test_a_frame_that_is_slow_to_decode_is_no_fault(drive, node, rig, watcher, monkeypatch):
    decode = vision_frontend.decode_frame

    def decode_slowly(frame, **options):
        if frame.camera == 'CAM_FRONT':
            time.sleep(2.0)
        return decode(frame, **options)

    monkeypatch.setattr(vision_frontend, 'decode_frame', decode_slowly)
    drive_node = drive(max_sweep_s=0.5)
    wait_until(lambda: rig.heard)
    next_answer(watcher, rig)
    assert not drive_node.has_lost_worker


@pytest.mark.attack(
    'A peer sends sweeps of slow frames, one after the other, and looks at ~/kept_tokens',
    'neither the frames of the next sweep, nor those that are decoded again to draw, are a fault',
)
def test_slow_frames_are_no_fault_of_a_later_stage(drive, node, rig, watcher, monkeypatch):
    decode, pictures = vision_frontend.decode_frame, []

    def decode_slowly(frame, **options):
        time.sleep(0.7)
        return decode(frame, **options)

    node.create_subscription(Image, '/p2d/kept_tokens', pictures.append, 1)
    monkeypatch.setattr(vision_frontend, 'decode_frame', decode_slowly)
    drive_node = drive(max_sweep_s=0.5)
    wait_until(lambda: rig.heard)
    for _ in range(3):
        rig.publish_sweep()
    wait_until(lambda: drive_node.has_lost_worker or (watcher.answers and pictures))
    assert not drive_node.has_lost_worker


@pytest.mark.faults(
    'The GPU or a library hangs',
    'ERROR with the stage within 2 s of max_sweep_s, finalized; no second worker beside it',
)
def test_a_hung_worker_is_an_error_with_its_stage_and_no_second_one_starts(
    drive, node, rig, watcher, monkeypatch
):
    health = Health(node)
    drive_node = drive(max_sweep_s=1.0)
    wait_until(lambda: rig.heard)
    next_answer(watcher, rig)
    reported = threading.Event()
    monkeypatch.setattr(drive_node_module, 'FAULT_REPORT_S', 0.2)
    drive_node.on_fault_reported = reported.set
    go_on = hang(drive_node, monkeypatch)
    begun_s = time.monotonic()
    rig.publish_sweep()
    health.wait_for('pipeline', DiagnosticStatus.ERROR, 'stood still for 1 s in stage encode')
    assert time.monotonic() - begun_s < 3.0
    wait_until(lambda: drive_node.has_lost_worker)
    assert state_of(node) == 'finalized'
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_ACTIVATE))
    assert not call(node, ChangeState, '/p2d/change_state', request).success
    assert drive_node.session is None
    assert reported.wait(5.0)
    go_on.set()
    assert len(watcher.answers) == 1


@pytest.mark.attack(
    'A peer sends six frames that take long to decode',
    'the sweep is late, which is no fault: each frame that is decoded counts as progress',
)
def test_frames_that_take_long_to_decode_are_no_fault(drive, node, rig, watcher, monkeypatch):
    drive_node = drive(max_sweep_s=1.0)
    wait_until(lambda: rig.heard)
    one_at_a_time = threading.Lock()

    def decode_slowly(*args, **options):
        with one_at_a_time:
            time.sleep(0.6)
        return decode_frame(*args, **options)

    monkeypatch.setattr(vision_frontend, 'decode_frame', decode_slowly)
    rig.publish_sweep()
    wait_until(lambda: watcher.timings)
    assert watcher.timings[-1].decode_ms > 2000.0
    assert not drive_node.fault


@pytest.mark.faults('The worker thread ends', 'ERROR with the reason, error state, the node ends')
def test_a_worker_that_ends_is_an_error_and_the_node_can_be_configured_again(
    drive, node, rig, watcher, monkeypatch
):
    health = Health(node)
    drive_node = drive()
    wait_until(lambda: rig.heard)

    def fail(*_arguments):
        raise LookupError('broken by the test')

    monkeypatch.setattr(drive_node.session.worker, '_on_failure', fail)
    rig.publish_sweep(change=of_camera('CAM_BACK', zero_middle))
    health.wait_for('pipeline', DiagnosticStatus.ERROR, 'the worker has ended: unexpected error')
    wait_until(lambda: drive_node.session is None)
    assert state_of(node) == 'unconfigured'
    monkeypatch.undo()
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert call(node, ChangeState, '/p2d/change_state', request).success
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer
    health.wait_for('pipeline', DiagnosticStatus.WARN, 'the model is untrained')


@pytest.mark.faults('The GPU is lost', 'ERROR with the reason, error state, the node ends')
def test_a_lost_device_stops_the_node_with_the_reason(drive, node, rig, monkeypatch):
    health = Health(node)
    drive_node = drive()
    wait_until(lambda: rig.heard)

    def lose(_frames):
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    monkeypatch.setattr(drive_node._pipeline._encoder, 'encode', lose)
    rig.publish_sweep()
    health.wait_for('pipeline', DiagnosticStatus.ERROR, 'the GPU can no longer be used')
    wait_until(lambda: drive_node.session is None)
    assert 'the GPU can no longer be used' in drive_node.fault


def request_of(transition):
    number = getattr(Transition, f'TRANSITION_{transition.upper()}')
    return ChangeState.Request(transition=Transition(id=number))


@pytest.mark.faults(
    'deactivate or shutdown during a slow stage', 'waits for its end, then succeeds'
)
@pytest.mark.parametrize(
    ('transition', 'state'), [('deactivate', 'inactive'), ('active_shutdown', 'finalized')]
)
def test_a_transition_waits_for_a_stage_that_is_only_slow(
    drive, node, rig, monkeypatch, transition, state
):
    drive_node = drive(max_sweep_s=20.0)
    wait_until(lambda: rig.heard)
    go_on = hang(drive_node, monkeypatch)
    rig.publish_sweep()
    worker = drive_node.session.worker
    wait_until(lambda: worker.state.begun_ns)
    threading.Timer(2.0, go_on.set).start()
    assert call(node, ChangeState, '/p2d/change_state', request_of(transition)).success
    assert not worker.is_alive
    assert not drive_node.fault
    assert state_of(node) == state


@pytest.mark.attack(
    'A peer sends slow frames, of which one is in work when the node is deactivated or shut down',
    'the transition waits for the frames, and succeeds',
)
@pytest.mark.parametrize('transition', ['deactivate', 'active_shutdown'])
def test_a_transition_waits_for_frames_that_are_slow_to_decode(
    drive, node, rig, monkeypatch, transition
):
    decode = vision_frontend.decode_frame

    def decode_slowly(frame, **options):
        time.sleep(0.8)
        return decode(frame, **options)

    monkeypatch.setattr(vision_frontend, 'decode_frame', decode_slowly)
    drive_node = drive(max_sweep_s=0.5)
    wait_until(lambda: rig.heard)
    rig.publish_sweep()
    worker = drive_node.session.worker
    wait_until(lambda: worker.state.begun_ns)
    assert call(node, ChangeState, '/p2d/change_state', request_of(transition)).success
    assert not worker.is_alive
    assert not drive_node.fault


@pytest.mark.faults(
    'deactivate or shutdown while the GPU or a library hangs',
    'ERROR with the stage, finalized; the process ends with code 1',
)
@pytest.mark.parametrize('transition', ['deactivate', 'active_shutdown'])
def test_a_hung_worker_that_is_told_to_stop_is_reported(drive, node, rig, monkeypatch, transition):
    health = Health(node)
    drive_node = drive(max_sweep_s=3.0)
    wait_until(lambda: rig.heard)
    go_on = hang(drive_node, monkeypatch)
    rig.publish_sweep()
    wait_until(lambda: drive_node.session.worker.state.begun_ns)
    call(node, ChangeState, '/p2d/change_state', request_of(transition))
    text = 'the worker was told to stop and still works in stage encode'
    health.wait_for('pipeline', DiagnosticStatus.ERROR, text)
    assert state_of(node) == 'finalized'
    assert drive_node.fault
    go_on.set()


@pytest.mark.faults(
    'The stamps of all cameras step by an hour', 'ages count from the arrival; WARN with the step'
)
@pytest.mark.parametrize('step_s', [3600, -3600])
def test_stamps_of_another_clock_are_told_and_old_answers_still_marked(
    drive, node, rig, watcher, monkeypatch, step_s
):
    health = Health(node)
    drive_node = drive(model='p2d-mini', max_answer_age_ms=400.0)
    wait_until(lambda: rig.heard)
    next_answer(watcher, rig, stamp_ns=time.time_ns())
    encoder = drive_node._pipeline._encoder
    encode = encoder.encode
    monkeypatch.setattr(encoder, 'encode', lambda frames: time.sleep(0.5) or encode(frames))
    assert next_answer(watcher, rig, stamp_ns=time.time_ns() + step_s * NS_PER_S).late
    monkeypatch.undo()
    text = f'3600 s {"ahead of" if step_s > 0 else "behind"} the clock of this node'

    def is_told() -> bool:
        """Sweeps go on: a busy machine may answer some of them late, which is told first."""
        next_answer(watcher, rig, stamp_ns=time.time_ns() + step_s * NS_PER_S)
        time.sleep(0.3)
        status = health.statuses['/p2d: pipeline']
        return status.level == DiagnosticStatus.WARN and text in status.message

    wait_until(is_told, 40.0)


@pytest.mark.faults('The clock of one camera is wrong', 'the camera is named, with the difference')
@pytest.mark.parametrize('step_s', [3600, -3600])
def test_a_camera_with_another_clock_is_named(drive, node, rig, step_s):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)

    def shift(message):
        message.header.stamp.sec += step_s

    for _ in range(3):
        rig.publish_sweep(change=of_camera('CAM_BACK', shift))
        time.sleep(0.3)
    text = f'stamps of different clocks: CAM_BACK ({step_s:+d} s) differ'
    wait_until(lambda: text in health.statuses['/p2d: synchroniser'].message)


RUN_DRIVE = """
import sys
from p2d_node.ros import drive
{patch}
sys.exit(drive.main())
"""


@contextmanager
def drive_process(
    parameters: dict, folder: Path, patch: str = ''
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Run the node in a process; yields it and the file of its output."""
    values = [word for n, v in parameters.items() for word in ('-p', f'{n}:={json.dumps(v)}')]
    command = [sys.executable, '-c', RUN_DRIVE.format(patch=patch), '--ros-args', *values]
    log = folder / 'log'
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process, log
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(10)


HANG = """
import threading
from p2d_node.vision_encoder.torch_encoder import TorchVisionEncoder
TorchVisionEncoder.encode = lambda *_: threading.Event().wait()
"""


@pytest.mark.slow
@pytest.mark.faults(
    'The same, as a process', 'it ends with code 1, so that a launch file restarts it'
)
def test_a_process_whose_worker_hangs_ends_with_code_1(node, rig, tiny_checkpoint, tmp_path):
    health = Health(node)
    parameters = {'model': str(tiny_checkpoint), 'max_sweep_s': 1.0}
    with drive_process(parameters, tmp_path, HANG) as (process, log):
        wait_until(lambda: rig.heard, 60.0)
        rig.publish_sweep()
        health.wait_for('pipeline', DiagnosticStatus.ERROR, 'in stage encode, allowed: 1')
        assert process.wait(20) == 1
    assert 'Traceback' not in log.read_text()
    assert 'in stage encode' in log.read_text()


@pytest.mark.slow
@pytest.mark.faults('The process is stopped for seconds (SIGSTOP)', 'no old answer is unmarked')
def test_after_a_pause_of_the_process_no_old_answer_is_unmarked(
    node, rig, watcher, tiny_checkpoint, tmp_path
):
    parameters = {
        'model': str(tiny_checkpoint),
        'max_new_tokens': 4,
        'max_answer_age_ms': 1500.0,
        'max_sweep_s': 2.0,  # shorter than the pause, which is no fault
    }
    ages_ms = []
    with drive_process(parameters, tmp_path) as (process, _log):
        wait_until(lambda: rig.heard, 60.0)
        for count in range(60):
            rig.publish_sweep(stamp_ns=time.time_ns())
            time.sleep(0.1)
            if count == 10:
                process.send_signal(signal.SIGSTOP)
            if count == 45:
                process.send_signal(signal.SIGCONT)
        wait_until(lambda: len(watcher.answers) > 12)
        time.sleep(0.5)
    for answer in watcher.answers:
        ages_ms.append(answer.timing.age_at_publish_ms)
        assert answer.late or ages_ms[-1] < 1600.0
    assert len(ages_ms) > 12


FORKED_STARTS = """
import os, signal, sys, time
from p2d_node.ros import drive, drive_node, rcl_errors
from rclpy.executors import SingleThreadedExecutor
init = rcl_errors.init_rclpy
sign = int(sys.argv.pop(1))

def start(ready):
    def init_and_say(*args, **options):
        init(*args, **options)
        os.write(ready, b'.')
    rcl_errors.init_rclpy = init_and_say
    try:
        os._exit(drive.main())
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)

for delay_ms in range(0, 500, 40):
    heard, ready = os.pipe()
    child = os.fork()
    if not child:
        start(ready)
    os.read(heard, 1)
    time.sleep(delay_ms / 1000)
    os.kill(child, sign)
    print(delay_ms, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize('sign', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.faults('A signal in the moment in which the node is made', 'code 0, no traceback')
def test_a_signal_in_the_half_second_of_the_start_ends_the_process_quietly(
    ros_domain, tiny_checkpoint, sign
):
    command = [sys.executable, '-c', FORKED_STARTS, str(int(sign)), '--ros-args']
    command += ['-p', f'model:={tiny_checkpoint}']
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True)
    assert [line.split()[1] for line in ended.stdout.splitlines()] == ['0'] * 13, ended.stderr
    assert 'Traceback' not in ended.stderr


def test_the_rate_of_simulated_time_is_measured_and_kept_while_it_is_paused():
    from p2d_node.ros.clock_rate import ClockRate

    ros_ns, steady_ns, simulated = [0], [0], [True]
    clock = ClockRate(
        lambda: ros_ns[0], is_simulated=lambda: simulated[0], steady_now_ns=lambda: steady_ns[0]
    )

    def run(seconds: float, rate: float) -> float:
        for _ in range(round(seconds * 50)):
            steady_ns[0] += NS_PER_S // 50
            ros_ns[0] += round(rate * NS_PER_S / 50)
            clock.update()
        return clock.rate

    assert run(1.0, 0.0) == 1.0  # nobody publishes /clock
    ros_ns[0] = STAMP_NS
    run(1.0, 0.25)
    assert run(1.0, 0.25) == pytest.approx(0.25)
    assert run(2.0, 0.0) == pytest.approx(0.25)
    ros_ns[0] = STAMP_NS  # the bag begins again
    assert run(2.0, 3.0) == pytest.approx(3.0)
    simulated[0] = False
    assert run(1.0, 1.0) == 1.0


def test_the_age_of_answers_is_that_of_their_capture(drive, node, rig, watcher):
    drive()
    wait_until(lambda: rig.heard)
    stamp_ns = time.time_ns()
    rig.publish_sweep(stamp_ns=stamp_ns)
    answer = wait_until(lambda: watcher.answers)[0]
    assert not answer.late
    assert to_nanoseconds(answer.header.stamp) - stamp_ns == round(7.6 * NS_PER_MS)
