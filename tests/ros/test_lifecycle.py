"""Lifecycle transitions: the states they lead to, and what is logged when one fails."""

import threading

from camera_rig import wait_until
from drive_client import call, next_answer, set_parameter
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from p2d_msgs.srv import Ask
from p2d_node.errors import EngineMismatchError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.ros.camera_subscription import CameraSubscription
from p2d_node.ros.drive_node import DriveNode
from p2d_node.ros.health import HealthReporter
from p2d_node.ros.outputs import Outputs
from p2d_node.ros.unexpected_error import UnexpectedError
import pytest

SUBSCRIBE = CameraSubscription._subscribe


def change(node, transition) -> bool:
    """Ask the drive node for a transition; returns whether it succeeded."""
    request = ChangeState.Request(transition=Transition(id=transition))
    return call(node, ChangeState, '/p2d/change_state', request).success


def state_of(node) -> str:
    """Return the lifecycle state of the drive node."""
    return call(node, GetState, '/p2d/get_state', GetState.Request()).current_state.label


def errors_in(log: str) -> list[str]:
    """Return the lines that a user sees as errors."""
    return [line for line in log.splitlines() if line.startswith(('[ERROR]', '[FATAL]'))]


def fail(*_args):
    raise LookupError('broken\nby the test')


def test_an_engine_that_does_not_fit_keeps_the_node_from_starting(drive, tmp_path):
    with pytest.raises(EngineMismatchError, match='no onnxruntime engine of tiny in'):
        drive(encoder__backend='onnxruntime', encoder__engine_dir=str(tmp_path))


def test_the_lifecycle_is_followed_where_autostart_is_off(drive, node, rig, watcher):
    drive(autostart=False)
    assert state_of(node) == 'unconfigured'
    assert change(node, Transition.TRANSITION_CONFIGURE)
    assert state_of(node) == 'inactive'
    assert not rig.heard
    assert change(node, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer
    assert change(node, Transition.TRANSITION_DEACTIVATE)
    wait_until(lambda: not rig.heard)
    response = call(node, Ask, '/p2d/ask', Ask.Request(question='Is there a car?'))
    assert 'not active' in response.message
    assert change(node, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer
    assert change(node, Transition.TRANSITION_DEACTIVATE)
    assert change(node, Transition.TRANSITION_CLEANUP)
    assert state_of(node) == 'unconfigured'
    assert change(node, Transition.TRANSITION_CONFIGURE)


def test_another_model_is_loaded_after_a_cleanup(drive, node, rig, watcher, monkeypatch):
    monkeypatch.setattr(
        'p2d_node.ros.live_config.tuned_ratios',
        lambda model: {'CAM_FRONT': 0.25} if model == 'untrained' else {},
    )
    drive_node = drive(retention_ratio__CAM_BACK=0.5)
    wait_until(lambda: rig.heard)
    first = next_answer(watcher, rig).model
    refused = set_parameter(node, 'model', 'untrained')
    assert 'allowed: changes while the node is unconfigured; clean it up first' in refused.reason
    assert change(node, Transition.TRANSITION_DEACTIVATE)
    assert not set_parameter(node, 'sync.tolerance_ms', 12.0).successful
    assert change(node, Transition.TRANSITION_CLEANUP)
    assert set_parameter(node, 'model', 'untrained').successful
    assert set_parameter(node, 'sync.tolerance_ms', 12.0).successful
    assert change(node, Transition.TRANSITION_CONFIGURE)
    assert change(node, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: rig.heard)
    answer = next_answer(watcher, rig)
    assert answer.model != first
    assert 'untrained' in answer.model
    assert drive_node.session.synchronizer.tolerance_ns == 12_000_000
    # The new model has its own tuned ratios; a ratio that was given stays.
    assert drive_node.get_parameter('retention_ratio.CAM_FRONT').value == 0.25
    assert drive_node.get_parameter('retention_ratio.CAM_BACK').value == 0.5


def test_a_model_that_cannot_be_loaded_keeps_the_node_unconfigured(drive, node, capfd):
    drive(autostart=False, model='/nowhere')
    assert not change(node, Transition.TRANSITION_CONFIGURE)
    assert state_of(node) == 'unconfigured'
    (line,) = errors_in(capfd.readouterr().err)
    assert "model: got '/nowhere', which is not a folder" in line


@pytest.mark.parametrize(
    ('topic', 'reason'),
    [
        ('/front-cam/image', 'must not contain characters other than alphanumerics'),
        ('/192_168_0_1/image', 'must not start with a number'),
        ('/front cam', 'must not contain characters'),
        ('', 'must not be empty'),
        ('/front/{nothing}', 'unknown substitution'),
    ],
)
def test_a_topic_that_ros_refuses_is_named_before_the_model_is_loaded(
    drive, node, capfd, monkeypatch, topic, reason
):
    monkeypatch.setattr(DrivingPipeline, 'from_config', fail)
    drive(autostart=False, cameras__CAM_FRONT__topic=topic)
    assert not change(node, Transition.TRANSITION_CONFIGURE)
    assert state_of(node) == 'unconfigured'
    (line,) = errors_in(capfd.readouterr().err)
    assert f'cameras.CAM_FRONT.topic: got {topic!r}: ' in line
    assert reason in line
    assert "allowed: letters, digits, '_' and '/'" in line


def test_configure_succeeds_after_the_parameter_is_corrected(drive, node, rig, watcher, capfd):
    drive(autostart=False, questions=['What <image> is this?'])
    assert not change(node, Transition.TRANSITION_CONFIGURE)
    (line,) = errors_in(capfd.readouterr().err)
    assert 'question: got a text with <image>' in line
    assert node.count_publishers('/p2d/answer') == 0
    assert set_parameter(node, 'questions', ['Is there a car?']).successful
    assert change(node, Transition.TRANSITION_CONFIGURE)
    assert change(node, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).question == 'Is there a car?'


@pytest.mark.attack(
    'A peer configures and cleans up the node again and again, to fill its log',
    'what the node says of its model is throttled as all its lines are',
)
def test_configuring_again_and_again_does_not_fill_the_log(drive, node, capfd):
    drive(autostart=False)
    for _ in range(4):
        assert change(node, Transition.TRANSITION_CONFIGURE)
        assert change(node, Transition.TRANSITION_CLEANUP)
    assert capfd.readouterr().err.count('the weights are random') == 1


@pytest.mark.faults(
    'configure fails half-way',
    'logged in one line, undone, can be repeated',
)
def test_a_configuration_that_fails_half_way_is_logged_undone_and_can_be_repeated(
    drive, node, capfd, monkeypatch
):
    drive(autostart=False)
    closed = []
    close = DrivingPipeline.close
    monkeypatch.setattr(
        DrivingPipeline, 'close', lambda pipeline: closed.append(pipeline) or close(pipeline)
    )
    create = Outputs._create

    def fail_for_the_last_topic(outputs, message_type, topic, *options, **more):
        if topic == '~/kept_tokens':
            fail()
        return create(outputs, message_type, topic, *options, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Outputs, '_create', fail_for_the_last_topic)
        assert not change(node, Transition.TRANSITION_CONFIGURE)
    assert state_of(node) == 'unconfigured'
    (line,) = errors_in(capfd.readouterr().err)
    assert 'configure: unexpected error, please report it: LookupError' in line
    assert len(closed) == 1
    wait_until(lambda: not node.count_publishers('/p2d/answer'))
    assert change(node, Transition.TRANSITION_CONFIGURE)
    wait_until(lambda: node.count_publishers('/p2d/answer') == 1)


def fail_for_the_last_camera(camera):
    return fail() if camera.name == 'CAM_BACK_RIGHT' else SUBSCRIBE(camera)


def fail_for_a_session(reporter, session):
    return session and fail()


@pytest.mark.parametrize(
    ('owner', 'method', 'replacement'),
    [
        (CameraSubscription, '_subscribe', fail_for_the_last_camera),
        (HealthReporter, 'use_session', fail_for_a_session),
    ],
)
@pytest.mark.faults(
    'activate fails half-way',
    'logged in one line, undone, can be repeated',
)
def test_an_activation_that_fails_half_way_is_logged_undone_and_can_be_repeated(
    drive, node, rig, watcher, capfd, monkeypatch, owner, method, replacement
):
    drive_node = drive(autostart=False)
    assert change(node, Transition.TRANSITION_CONFIGURE)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, replacement)
        assert not change(node, Transition.TRANSITION_ACTIVATE)
    assert state_of(node) == 'inactive'
    (line,) = errors_in(capfd.readouterr().err)
    assert 'activate: unexpected error, please report it: LookupError: broken by the test' in line
    assert 'test_lifecycle.py:' in line
    assert drive_node.session is None
    wait_until(lambda: not any(p.get_subscription_count() for p in rig.publishers.values()))
    assert not [thread for thread in threading.enumerate() if thread.name == 'sweep-worker']
    assert change(node, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer


@pytest.mark.parametrize(
    ('transition', 'broken'),
    [
        (Transition.TRANSITION_DEACTIVATE, (DriveNode, 'destroy_subscription')),
        (Transition.TRANSITION_CLEANUP, (DrivingPipeline, 'close')),
    ],
)
@pytest.mark.faults(
    'deactivate or cleanup fails',
    'logged in one line; everything is freed',
)
def test_a_transition_that_fails_on_the_way_down_is_logged_and_frees_everything(
    drive, node, rig, watcher, capfd, monkeypatch, transition, broken
):
    drive_node = drive()
    if transition == Transition.TRANSITION_CLEANUP:
        assert change(node, Transition.TRANSITION_DEACTIVATE)
    with monkeypatch.context() as patch:
        patch.setattr(*broken, fail)
        assert not change(node, transition)
    assert state_of(node) == 'unconfigured'
    (line,) = errors_in(capfd.readouterr().err)
    assert 'unexpected error, please report it: LookupError: broken by the test' in line
    assert drive_node.session is None
    assert change(node, Transition.TRANSITION_CONFIGURE)
    assert change(node, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer


@pytest.mark.parametrize('step', ['_configure', '_activate'])
def test_a_start_that_fails_raises_what_the_transition_has_logged(drive, capfd, monkeypatch, step):
    monkeypatch.setattr(DriveNode, step, fail)
    with pytest.raises(UnexpectedError, match='LookupError: broken by the test'):
        drive()
    (line,) = errors_in(capfd.readouterr().err)
    assert f'{step[1:]}: unexpected error' in line


@pytest.mark.faults(
    'A signal during the start',
    'ends without an error',
)
def test_a_shutdown_during_the_start_is_no_error(drive, capfd, monkeypatch):
    def shut_down_and_fail(drive_node):
        drive_node.context.try_shutdown()
        raise RuntimeError('the context is gone')

    monkeypatch.setattr(DriveNode, '_configure', shut_down_and_fail)
    drive()
    assert 'the context is gone' not in capfd.readouterr().err
