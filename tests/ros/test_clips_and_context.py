"""Several frames per camera, and the text before the questions, over ROS."""

import time

from camera_rig import SWEEP_PERIOD_NS, wait_until
from diagnostic_msgs.msg import DiagnosticStatus
from drive_client import Health, next_answer, set_parameter
from engine_helpers import CPU, ignore_progress, plan_of
from p2d_msgs.srv import Ask
from p2d_node.engine_build.build import build_engine
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.units import NS_PER_MS
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String
from tiny_checkpoints import write_qwen2_5_vl, write_qwen3_vl

PERIOD_MS = SWEEP_PERIOD_NS / NS_PER_MS
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_an_answer_names_the_frames_that_it_rests_on(drive, node, rig, watcher):
    drive(frames_per_camera=3, frame_interval_ms=PERIOD_MS)
    wait_until(lambda: rig.heard)
    answers = [next_answer(watcher, rig) for _ in range(4)]
    assert [list(answer.num_frames) for answer in answers] == [[n] * 6 for n in (1, 2, 3, 3)]
    last = answers[-1]
    assert list(last.tokens_total) == [3 * 81] * 6
    assert list(last.tokens_kept) == [int(3 * 81 * 0.1)] * 6
    assert sum(last.tokens_kept_per_frame) == sum(last.tokens_kept)
    stamps = list(map(to_nanoseconds, last.frame_stamps))
    assert len(stamps) == len(last.tokens_kept_per_frame) == 18
    assert stamps[2] == to_nanoseconds(last.camera_stamps[0])
    assert stamps[2] - stamps[1] == stamps[1] - stamps[0] == SWEEP_PERIOD_NS


def test_sweeps_with_a_short_clip_are_dropped_where_that_is_asked_for(drive, node, rig, watcher):
    drive_node = drive(frames_per_camera=2, frame_interval_ms=PERIOD_MS, short_clip_policy='skip')
    wait_until(lambda: rig.heard)
    rig.publish_sweep()
    wait_until(lambda: drive_node.session.worker.state.short_clips == 1)
    assert list(next_answer(watcher, rig).num_frames) == [2] * 6
    assert len(watcher.answers) == 1


@pytest.mark.faults(
    'A question and the context are too long for the model together',
    'that question is refused with the reason; the other questions are answered',
)
def test_a_question_too_long_behind_the_context_costs_no_sweep(drive, node, rig, watcher):
    drive_node = drive(context='turn left ' * 40)
    family = drive_node._pipeline._language_model._family
    question = 'what is there ' * 40
    wait_until(lambda: rig.heard)
    longest = family.build_prompt(question, rig.cameras, '')
    num_text_tokens = sum(map(len, longest.segments)) + len(longest.suffix)
    family.max_positions = num_text_tokens + 6 * 81 + 10
    client = node.create_client(Ask, '/p2d/ask')
    assert client.wait_for_service(timeout_sec=10.0)
    future = client.call_async(Ask.Request(question=question, timeout_s=20.0))
    wait_until(lambda: drive_node.session.worker.questions)
    assert next_answer(watcher, rig).answer
    response = wait_until(lambda: future.result() if future.done() else None)
    assert response.message.startswith('context: got a text of 400 characters, which with the')
    assert len(watcher.answers) == 1


@pytest.mark.faults(
    'The cameras are slower than the interval of a clip, or sweeps are lost again and again',
    'the sweeps are answered with the frames that are there, and diagnostics warn',
)
def test_clips_that_never_become_full_are_reported(drive, node, rig, watcher):
    health = Health(node)
    drive_node = drive(frames_per_camera=2, frame_interval_ms=PERIOD_MS / 4)
    wait_until(lambda: rig.heard)
    while drive_node.session.worker.state.short_in_a_row < 17:
        rig.publish_sweep()
        time.sleep(0.1)
    status = health.wait_for('pipeline', DiagnosticStatus.WARN, 'had not all 2 frames per camera')
    assert 'set frame_interval_ms (250)' in status.message
    assert list(next_answer(watcher, rig).num_frames) == [1] * 6


def test_a_context_stands_before_the_questions_until_it_is_old(drive, node, rig, watcher):
    drive_node = drive(context='speed unknown', max_context_age_ms=1500.0)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).context == 'speed unknown'

    publisher = node.create_publisher(String, '/p2d/context', 1)
    wait_until(lambda: publisher.get_subscription_count() == 1)
    time.sleep(0.4)
    publisher.publish(String(data='speed 8.3 m/s'))
    session = drive_node.session
    wait_until(lambda: session._context.text == 'speed 8.3 m/s')
    assert next_answer(watcher, rig).context == 'speed 8.3 m/s'
    time.sleep(1.6)
    assert next_answer(watcher, rig).context == 'speed unknown'

    assert set_parameter(node, 'context', '').successful
    assert next_answer(watcher, rig).context == ''
    refused = set_parameter(node, 'context', 'x' * 5000)
    assert not refused.successful
    assert refused.reason.startswith('context: got a text of 5000 characters')


@pytest.mark.parametrize('nothing', ['', ' \n'])
def test_an_empty_text_ends_the_context(drive, node, rig, watcher, nothing):
    drive_node = drive(context='turn left')
    publisher = node.create_publisher(String, '/p2d/context', 1)
    wait_until(lambda: publisher.get_subscription_count() == 1)
    time.sleep(0.4)
    publisher.publish(String(data=nothing))
    wait_until(lambda: drive_node.session._context.text == '')


@pytest.mark.faults(
    'The program that sent the last context has ended long ago, and its text is latched',
    'the age counts from when it was sent: the text is not used',
)
def test_a_latched_context_counts_from_when_it_was_sent(drive, node, rig, watcher):
    publisher = node.create_publisher(String, '/p2d/context', LATCHED)
    publisher.publish(String(data='turn left in 30 m'))
    drive_node = drive(max_context_age_ms=60000.0)
    wait_until(lambda: drive_node.session._context.text == 'turn left in 30 m')
    drive_node.trigger_deactivate()
    time.sleep(1.0)
    assert set_parameter(node, 'max_context_age_ms', 900.0).successful
    drive_node.trigger_activate()
    wait_until(lambda: drive_node.session._context._latest is not None)
    assert drive_node.session._context.text == ''


@pytest.mark.attack(
    'A peer sends contexts with special tokens, without end, or with half surrogate pairs',
    'refused like such questions; the last good context stays until it is old',
)
@pytest.mark.parametrize('text', ['turn <image> left', 'x' * 4001])
def test_a_context_that_cannot_be_given_is_refused(drive, node, rig, watcher, text):
    drive_node = drive(max_context_age_ms=0.0)
    publisher = node.create_publisher(String, '/p2d/context', 10)
    wait_until(lambda: publisher.get_subscription_count() == 1)
    time.sleep(0.4)
    publisher.publish(String(data='turn left'))
    session = drive_node.session
    wait_until(lambda: session._context.text == 'turn left')
    publisher.publish(String(data=text))
    publisher.publish(String(data='turn right'))
    wait_until(lambda: session._context.text == 'turn right')


def test_a_publisher_that_does_not_latch_fits(drive, node, capfd):
    drive_node = drive()
    publisher = node.create_publisher(String, '/p2d/context', 1)
    wait_until(lambda: publisher.get_subscription_count() == 1)
    time.sleep(0.4)
    publisher.publish(String(data='turn left'))
    wait_until(lambda: drive_node.session._context.text == 'turn left')
    assert 'of a publisher does not fit' not in capfd.readouterr().err


def test_a_refused_text_of_a_latched_publisher_counts_once(drive, node):
    drive_node = drive()
    publisher = node.create_publisher(String, '/p2d/context', LATCHED)
    wait_until(lambda: publisher.get_subscription_count() == 2)
    time.sleep(0.4)
    publisher.publish(String(data='turn <image> left'))
    wait_until(lambda: drive_node._refusals.num)
    time.sleep(0.4)
    assert drive_node._refusals.num == 1


@pytest.mark.slow
@pytest.mark.parametrize('write', [write_qwen2_5_vl, write_qwen3_vl])
def test_clips_on_an_engine_of_qwen_vl_are_answered_as_on_torch(
    drive, node, rig, watcher, tmp_path, write
):
    checkpoint = write(tmp_path / 'qwen')
    plan = plan_of(checkpoint, 'onnxruntime')
    built = build_engine(plan, tmp_path / 'engines', CPU, ignore_progress)
    texts = {}
    for backend in ('torch', 'onnxruntime'):
        drive_node = drive(
            model=str(checkpoint),
            frames_per_camera=2,
            frame_interval_ms=PERIOD_MS,
            encoder__backend=backend,
            encoder__engine_dir=str(tmp_path / 'engines'),
        )
        wait_until(lambda: rig.heard)
        rig.num_sweeps, before = 0, len(watcher.answers)
        for number in range(1, 4):
            rig.publish_sweep()
            wait_until(lambda count=before + number: len(watcher.answers) == count)
        texts[backend] = [answer.answer for answer in watcher.answers[before:]]
        assert list(watcher.answers[-1].num_frames) == [2] * 6
        drive_node.stop_working()
        wait_until(lambda: not rig.heard)
    assert texts['onnxruntime'] == texts['torch']
    assert watcher.answers[-1].encoder.endswith(built.folder.name)
