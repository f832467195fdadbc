from collections.abc import Iterator
import threading
import time

from camera_rig import CameraRig, wait_until
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from p2d_msgs.srv import Ask
from p2d_node.errors import ConfigError, EngineMismatchError
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros import diagnostics
from p2d_node.ros.answer_watcher import AnswerWatcher
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.ros.sweep_worker import MAX_PENDING_QUESTIONS
import pytest
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.parameter import Parameter
from std_msgs.msg import String
import torch

KEPT_AT_TENTH = 8  # of 9 x 9 tokens


class Health:
    """The latest diagnostics, by component."""

    def __init__(self, node) -> None:
        self.statuses = {}
        self.num_reports = 0
        self._subscription = node.create_subscription(
            DiagnosticArray, '/diagnostics', self._receive, 10
        )

    def _receive(self, message) -> None:
        self.statuses |= {status.name: status for status in message.status}
        self.num_reports += 1

    def wait_for(self, component, level, text='') -> DiagnosticStatus:
        def found():
            status = self.statuses.get(f'p2d: {component}')
            return status if status and status.level == level and text in status.message else None

        return wait_until(found)

    def value(self, component, key) -> str | None:
        status = self.statuses.get(f'p2d: {component}')
        return values_of(status)[key] if status and status.values else None


def values_of(status) -> dict[str, str]:
    return {item.key: item.value for item in status.values}


def call(node, service_type, name, request):
    """Call a service with one client per test: each new one has to be discovered again."""
    clients = vars(node).setdefault('clients_of_test', {})
    if name not in clients:
        clients[name] = node.create_client(service_type, name)
        assert clients[name].wait_for_service(timeout_sec=30.0)
        time.sleep(0.3)  # the server's side of the match may come later, and its reply be lost
    future = clients[name].call_async(request)
    return wait_until(lambda: future.result() if future.done() else None, timeout_s=30.0)


def set_parameter(node, name, value):
    request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    return call(node, SetParameters, '/p2d/set_parameters', request).results[0]


@pytest.fixture
def rig(node) -> Iterator[CameraRig]:
    return CameraRig(node)


@pytest.fixture
def watcher(node) -> AnswerWatcher:
    return AnswerWatcher(node, pictures=True)


def next_answer(watcher, rig, **options):
    """Publish one sweep and return its answer."""
    stamp_ns = rig.publish_sweep(**options)
    return wait_until(
        lambda: [a for a in watcher.answers if to_nanoseconds(a.header.stamp) == stamp_ns]
    )[0]


def test_a_sweep_of_six_cameras_is_answered_with_stamps_counts_and_times(
    drive, node, rig, watcher
):
    texts = []
    node.create_subscription(String, '/p2d/answer_text', lambda m: texts.append(m.data), 10)
    drive()
    wait_until(lambda: rig.heard)
    answer = next_answer(watcher, rig)
    assert answer.header.frame_id == 'CAM_FRONT_optical'
    assert answer.question == 'What should the ego vehicle do next?'
    assert answer.answer
    assert answer.model == 'tiny (untrained)'
    assert answer.encoder == 'torch float32 cpu'
    assert tuple(answer.cameras) == NUSCENES_CAMERAS
    assert len({to_nanoseconds(stamp) for stamp in answer.camera_stamps}) == 6
    assert list(answer.tokens_total) == [81] * 6
    assert list(answer.tokens_kept) == [KEPT_AT_TENTH] * 6
    assert answer.num_generated_tokens == 4
    assert answer.cut == 'length'
    assert answer.mean_log_probability < 0
    timing = wait_until(lambda: watcher.timings)[0]
    assert timing.header == answer.header
    stages = ('decode_ms', 'preprocess_ms', 'encode_ms', 'select_ms', 'prefill_ms', 'generate_ms')
    assert all(getattr(timing, stage) > 0 for stage in stages)
    assert timing.sync_wait_ms > 0
    assert timing.total_ms > timing.ttft_ms
    assert timing.age_at_publish_ms > 1e9  # the stamps are years old, and that is said
    (text,) = wait_until(lambda: texts)
    assert text.startswith('[untrained model, random words] What should')
    image = wait_until(lambda: watcher.picture)
    assert (image.encoding, image.width, image.step) == ('bgr8', 1440, 4320)
    assert len(set(image.data)) > 50


def test_the_node_runs_on_an_engine_and_says_which_one_and_why(
    drive, node, rig, watcher, built_engines
):
    health = Health(node)
    drive(encoder__backend='auto', encoder__engine_dir=str(built_engines))
    wait_until(lambda: rig.heard)
    answer = next_answer(watcher, rig)
    assert answer.encoder.startswith('onnxruntime ')
    assert list(answer.tokens_kept) == [KEPT_AT_TENTH] * 6
    wait_until(lambda: health.value('pipeline', 'encoder') == answer.encoder)
    reason = health.value('pipeline', 'encoder tensorrt_rtx not used')
    assert 'compute capability' in reason
    assert 'p2d build-engine --backend tensorrt_rtx' in reason


def test_an_engine_that_does_not_fit_keeps_the_node_from_starting(drive, tmp_path):
    with pytest.raises(EngineMismatchError, match='no onnxruntime engine of tiny in'):
        drive(encoder__backend='onnxruntime', encoder__engine_dir=str(tmp_path))


def test_raw_best_effort_cameras_are_heard_as_well_as_reliable_ones(drive, node, watcher):
    drive(**{f'cameras.{name}.transport': 'raw' for name in NUSCENES_CAMERAS})
    rig = CameraRig(node, raw=True, reliable=False)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer


def test_a_retention_ratio_set_at_run_time_holds_from_the_next_answer_on(
    drive, node, rig, watcher
):
    drive()
    wait_until(lambda: rig.heard)
    assert list(next_answer(watcher, rig).tokens_kept) == [KEPT_AT_TENTH] * 6
    assert set_parameter(node, 'retention_ratio.CAM_FRONT', 0.25).successful
    assert list(next_answer(watcher, rig).tokens_kept) == [20, *[KEPT_AT_TENTH] * 5]
    assert set_parameter(node, 'retention_ratio.CAM_BACK', 1).successful
    assert list(next_answer(watcher, rig).tokens_kept)[3] == 81


@pytest.mark.parametrize(
    ('name', 'value', 'reason'),
    [
        ('retention_ratio.CAM_FRONT', 0.0, 'out of range'),
        ('retention_ratio.CAM_FRONT', 1.5, 'out of range'),
        ('retention_ratio.CAM_FRONT', 2, 'retention_ratio.CAM_FRONT: got 2.0, allowed: 0.001 to'),
        ('retention_ratio.CAM_FRONT', 'x', "got 'x', allowed: a float"),
        ('questions', ['What?', ''], 'got an empty question'),
        ('selector', 'best', "selector: got 'best'"),
        ('missing_camera_policy', 'wait', 'allowed: skip, drop_view'),
        ('model', '/elsewhere', 'read-only'),
    ],
)
def test_bad_parameters_are_refused_with_a_reason(drive, node, name, value, reason):
    drive_node = drive(autostart=False)
    before = drive_node.get_parameter(name).value
    result = set_parameter(node, name, value)
    assert not result.successful
    assert reason in result.reason
    assert drive_node.get_parameter(name).value == before


def test_questions_may_change_and_be_none(drive, node, rig, watcher):
    drive()
    wait_until(lambda: rig.heard)
    assert set_parameter(node, 'questions', ['Is there a car?', 'Is there a bus?']).successful
    stamp_ns = to_nanoseconds(next_answer(watcher, rig).header.stamp)
    wait_until(lambda: len(watcher.answers) == 2)
    assert [a.question for a in watcher.answers] == ['Is there a car?', 'Is there a bus?']
    assert {to_nanoseconds(a.header.stamp) for a in watcher.answers} == {stamp_ns}
    assert set_parameter(node, 'questions', []).successful
    rig.publish_sweep()
    response = {}

    def ask():
        request = Ask.Request(question='Is there a truck?', timeout_s=20.0)
        client = node.create_client(Ask, '/p2d/ask')
        assert client.wait_for_service(timeout_sec=10.0)
        response['future'] = client.call_async(request)

    ask()
    while not response['future'].done():
        rig.publish_sweep()
        time.sleep(0.1)
    assert response['future'].result().answer.question == 'Is there a truck?'
    assert len([a for a in watcher.answers if a.question != 'Is there a truck?']) == 2


def test_answers_are_streamed_where_that_is_asked_for(drive, node, rig, watcher):
    partial = []
    node.create_subscription(String, '/p2d/answer_partial', lambda m: partial.append(m.data), 50)
    drive()
    wait_until(lambda: rig.heard)
    next_answer(watcher, rig)
    assert not partial
    assert set_parameter(node, 'stream_partial_answers', True).successful
    answer = next_answer(watcher, rig)
    wait_until(lambda: len(partial) >= answer.num_generated_tokens - 1)
    line = f'[untrained model, random words] {answer.question} {answer.answer}'
    assert all(line.startswith(text) for text in partial)


def test_every_parameter_says_what_it_is_and_what_is_allowed(drive, node):
    drive(autostart=False)
    names = ['retention_ratio.CAM_FRONT', 'max_new_tokens', 'selector', 'cameras.CAM_BACK.topic']
    request = DescribeParameters.Request(names=names)
    ratio, tokens, selector, topic = call(
        node, DescribeParameters, '/p2d/describe_parameters', request
    ).descriptors
    assert ratio.floating_point_range[0].to_value == 1.0
    assert (tokens.integer_range[0].from_value, tokens.integer_range[0].to_value) == (1, 4096)
    assert 'tfps' in selector.additional_constraints
    assert topic.read_only
    assert not ratio.read_only
    assert all(d.description for d in (ratio, tokens, selector, topic))


def test_questions_asked_by_topic_and_service_are_answered_on_the_next_sweep(
    drive, node, rig, watcher
):
    drive()
    wait_until(lambda: rig.heard)
    publisher = node.create_publisher(String, '/p2d/question', 10)
    wait_until(publisher.get_subscription_count)
    publisher.publish(String(data='Is the light red?'))
    client = node.create_client(Ask, '/p2d/ask')
    assert client.wait_for_service(timeout_sec=10.0)
    future = client.call_async(Ask.Request(question='Is there a bus?', timeout_s=20.0))
    time.sleep(0.5)
    stamp_ns = rig.publish_sweep()
    response = wait_until(lambda: future.result() if future.done() else None)
    assert response.success
    assert response.message == ''
    assert response.answer.question == 'Is there a bus?'
    assert to_nanoseconds(response.answer.header.stamp) == stamp_ns
    wait_until(lambda: len(watcher.answers) == 3)
    assert {a.question for a in watcher.answers} == {
        'What should the ego vehicle do next?',
        'Is the light red?',
        'Is there a bus?',
    }


@pytest.mark.parametrize(
    ('question', 'timeout_s', 'reason'),
    [
        ('', 1.0, 'question: got an empty text'),
        ('What <image> is this?', 1.0, 'question: got a text with <image>'),
        ('car ' * 2000, 1.0, 'question: got a text of 8000 characters'),
        ('Is there a car?', -1.0, 'timeout_s: got -1'),
        ('Is there a car?', 0.3, 'no answer within 0.3 s: no frames from CAM_FRONT'),
    ],
)
def test_a_question_without_an_answer_says_why(drive, node, question, timeout_s, reason):
    drive()
    request = Ask.Request(question=question, timeout_s=timeout_s)
    response = call(node, Ask, '/p2d/ask', request)
    assert not response.success
    assert reason in response.message


def test_a_question_that_cannot_be_asked_costs_no_sweep(drive, node, rig, watcher):
    drive()
    wait_until(lambda: rig.heard)
    publisher = node.create_publisher(String, '/p2d/question', 10)
    wait_until(publisher.get_subscription_count)
    publisher.publish(String(data='What <image> is this?'))
    result = set_parameter(node, 'questions', ['Is there a car?', 'What <image> is this?'])
    assert not result.successful
    assert 'got a text with <image>' in result.reason
    assert next_answer(watcher, rig).answer
    assert len(watcher.answers) == 1


def test_a_question_that_a_sweep_fails_with_is_given_up_with_the_reason(
    drive, node, rig, watcher, monkeypatch
):
    drive_node = drive()
    wait_until(lambda: rig.heard)
    client = node.create_client(Ask, '/p2d/ask')
    assert client.wait_for_service(timeout_sec=10.0)
    with monkeypatch.context() as patch:
        patch.setattr(drive_node._pipeline._encoder, 'encode', no_memory)
        future = client.call_async(Ask.Request(question='Is there a bus?', timeout_s=20.0))
        wait_until(lambda: drive_node.session.worker._pending)
        rig.publish_sweep()
        response = wait_until(lambda: future.result() if future.done() else None)
    assert not response.success
    assert 'OutOfMemoryError: no memory' in response.message
    assert next_answer(watcher, rig).answer
    assert len(watcher.answers) == 1


def no_memory(frames):
    raise torch.OutOfMemoryError('no memory')


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


def test_of_many_callers_those_who_cannot_wait_are_told_at_once(drive, node):
    drive()
    client = node.create_client(Ask, '/p2d/ask')
    assert client.wait_for_service(timeout_sec=10.0)
    request = Ask.Request(question='Is there a bus?', timeout_s=12.0)
    futures = []
    for _ in range(MAX_PENDING_QUESTIONS + 4):
        futures.append(client.call_async(request))
        time.sleep(0.05)  # DDS keeps ten requests of a client that has not been read
    wait_until(lambda: sum(future.done() for future in futures) == 4, timeout_s=10.0)
    replies = {future.result().message for future in futures if future.done()}
    assert replies == {'too many questions wait for a sweep; ask again later'}
    wait_until(lambda: all(future.done() for future in futures))


def test_a_misspelt_parameter_is_warned_of(drive, capfd):
    drive(autostart=False, qestions=['Is there a car?'], something_else=1)
    errors = capfd.readouterr().err
    assert 'qestions: not a parameter; did you mean questions?' in errors
    assert 'something_else' not in errors


def test_a_broken_frame_costs_its_sweep_only(drive, node, rig, watcher):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)

    def truncate(name, message):
        if name == 'CAM_BACK':
            message.data = message.data[: len(message.data) // 2]
        return message

    rig.publish_sweep(change=truncate)
    status = health.wait_for('pipeline', DiagnosticStatus.WARN, 'CAM_BACK: got a truncated')
    assert values_of(status)['sweeps failed'] == '1'
    assert watcher.answers == []
    assert next_answer(watcher, rig).answer
    status = health.wait_for('pipeline', DiagnosticStatus.WARN, 'the model is untrained')
    assert values_of(status)['sweeps answered'] == '1'


def test_a_fault_in_the_code_itself_costs_its_sweep_only(drive, node, rig, watcher, monkeypatch):
    health = Health(node)
    drive_node = drive()
    wait_until(lambda: rig.heard)
    with monkeypatch.context() as patch:
        patch.setattr(drive_node._pipeline, 'answer', None)
        rig.publish_sweep()
        health.wait_for('pipeline', DiagnosticStatus.WARN, "TypeError: 'NoneType' object")
    assert next_answer(watcher, rig).answer


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
        status = health.statuses.get('p2d: CAM_FRONT_LEFT')
        return status if status and 'below its rate of 12.0 Hz' in status.message else None

    status = wait_until(slow)
    assert status.level == DiagnosticStatus.WARN
    assert 'FASTDDS_DEFAULT_PROFILES_FILE' in status.message
    assert values_of(status)['reliability'] == 'best-effort'
    assert values_of(health.statuses[f'p2d: {silent}'])['publishers'] == '0'


def test_time_that_jumps_back_starts_a_new_run_of_sweeps(drive, node, rig, watcher):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)
    first = next_answer(watcher, rig)
    for _ in range(3):
        last = next_answer(watcher, rig)
    assert to_nanoseconds(last.header.stamp) > to_nanoseconds(first.header.stamp)
    time.sleep(1.5)  # as between two loops of a bag: the first sweep is forgotten
    before = len(watcher.answers)
    rig.num_sweeps = 0
    rig.publish_sweep()
    wait_until(lambda: len(watcher.answers) == before + 1)
    assert watcher.answers[-1].header.stamp == first.header.stamp
    wait_until(lambda: health.value('synchroniser', 'reset') == '1')


def test_of_a_burst_only_the_latest_sweep_waits(drive, node, rig, watcher):
    drive_node = drive(max_new_tokens=400, questions=['Is there a car?', 'Is there a bus?'])
    wait_until(lambda: rig.heard)
    for _ in range(8):
        last_ns = rig.publish_sweep()
        time.sleep(0.02)
    wait_until(
        lambda: [a for a in watcher.answers if to_nanoseconds(a.header.stamp) == last_ns], 60.0
    )
    state, counters = drive_node.session.worker.state, drive_node.session.synchronizer.counters
    wait_until(lambda: state.answered + state.superseded == counters.complete)
    assert state.superseded >= 1
    stamps = [to_nanoseconds(a.header.stamp) for a in watcher.answers]
    assert stamps == sorted(stamps)


def test_the_lifecycle_is_followed_where_autostart_is_off(drive, node, rig, watcher):
    drive(autostart=False)

    def change(transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return call(node, ChangeState, '/p2d/change_state', request).success

    def state():
        return call(node, GetState, '/p2d/get_state', GetState.Request()).current_state.label

    assert state() == 'unconfigured'
    assert change(Transition.TRANSITION_CONFIGURE)
    assert state() == 'inactive'
    assert not rig.heard
    assert change(Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer
    assert change(Transition.TRANSITION_DEACTIVATE)
    wait_until(lambda: not rig.heard)
    response = call(node, Ask, '/p2d/ask', Ask.Request(question='Is there a car?'))
    assert 'not active' in response.message
    assert change(Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer
    assert change(Transition.TRANSITION_DEACTIVATE)
    assert change(Transition.TRANSITION_CLEANUP)
    assert state() == 'unconfigured'
    assert change(Transition.TRANSITION_CONFIGURE)


def test_a_model_that_cannot_be_loaded_keeps_the_node_unconfigured(drive, node):
    drive(autostart=False, model='/nowhere')
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    assert not call(node, ChangeState, '/p2d/change_state', request).success


def test_a_ratio_of_an_unknown_camera_is_refused_at_start(drive):
    with pytest.raises(ConfigError, match=r'did you mean retention_ratio\.CAM_FRONT'):
        drive(retention_ratio__CAM_FRNT=0.5)
