"""What peers on the ROS network can ask of the node, and what it refuses."""

from pathlib import Path
import time
from xml.etree import ElementTree

from camera_rig import wait_until
from drive_client import call, Health, next_answer, set_parameter
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from p2d_msgs.srv import Ask
from p2d_node.errors import ConfigError
from p2d_node.ros.guarded_services import MAX_ENTRIES
from p2d_node.ros.rcl_errors import init_rclpy
from p2d_node.ros.throttled_log import MAX_LINES, ThrottledLog
import pytest
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
import rclpy
from rclpy.parameter import Parameter
from std_msgs.msg import String

POLICY = Path(__file__).resolve().parents[2] / 'config' / 'sros2' / 'policy.xml'
ANSWERED_WITHIN_S = 3.0


@pytest.mark.attack(
    'Parameters make a sweep endless: many questions, 4,096 tokens each, no deadline',
    'the sweep in work is dropped at the next token when a parameter is taken back',
)
def test_a_parameter_that_makes_a_sweep_endless_can_be_taken_back(drive, node, rig, watcher):
    worker = drive().session.worker
    wait_until(lambda: rig.heard)
    assert set_parameter(node, 'max_new_tokens', 4096).successful
    assert set_parameter(node, 'questions', ['Is there a car?'] * 256).successful
    asked = worker.questions.ask('Is there a bus?', 60.0)
    rig.publish_sweep()
    wait_until(lambda: worker.stage == 'generate')
    began_s = time.monotonic()
    assert set_parameter(node, 'questions', ['Is the light red?']).successful
    assert set_parameter(node, 'max_new_tokens', 4).successful
    wait_until(lambda: worker.state.outdated == 1, ANSWERED_WITHIN_S)
    assert next_answer(watcher, rig).question == 'Is the light red?'
    assert time.monotonic() - began_s < ANSWERED_WITHIN_S
    assert {answer.question for answer in watcher.answers} <= {
        'Is the light red?',
        'Is there a bus?',
    }
    assert asked.result(5.0).answer.question == 'Is there a bus?'


def test_a_change_that_does_not_bound_the_work_drops_no_sweep(drive, node, rig, watcher):
    worker = drive(max_new_tokens=800).session.worker
    wait_until(lambda: rig.heard)
    assert set_parameter(node, 'retention_ratio.CAM_FRONT', 0.2).successful
    rig.publish_sweep()
    wait_until(lambda: worker.stage == 'generate')
    assert set_parameter(node, 'retention_ratio.CAM_FRONT', 0.25).successful
    assert set_parameter(node, 'max_new_tokens', 800).successful
    assert worker.stage == 'generate'
    wait_until(lambda: watcher.answers)
    assert worker.state.outdated == 0


@pytest.mark.attack(
    'One request holds 800 parameters or names, or the same one again and again',
    'refused at once with the number allowed',
)
@pytest.mark.parametrize(
    ('kind', 'name'),
    [(SetParameters, 'set_parameters'), (SetParametersAtomically, 'set_parameters_atomically')],
)
def test_a_request_with_many_parameters_is_refused_at_once(drive, node, kind, name):
    drive_node = drive(autostart=False)
    names = ['max_new_tokens', *(f'more_{number}' for number in range(799))]
    parameters = [Parameter(name, value=3).to_parameter_msg() for name in names]
    response = call(node, kind, f'/p2d/{name}', kind.Request(parameters=parameters))
    results = response.results if kind is SetParameters else [response.result]
    assert len(results) <= MAX_ENTRIES
    assert {(r.successful, r.reason) for r in results} == {
        (
            False,
            f'got 800 parameters in one request, allowed: up to {MAX_ENTRIES}; send several '
            'requests',
        )
    }
    response = call(node, kind, f'/p2d/{name}', kind.Request(parameters=[parameters[0]] * 2))
    results = response.results if kind is SetParameters else [response.result]
    assert {r.reason for r in results} == {
        "got 'max_new_tokens' twice in one request, allowed: once"
    }
    assert drive_node.get_parameter('max_new_tokens').value == 4
    request = GetParameters.Request(names=['max_new_tokens'] * 800)
    assert not call(node, GetParameters, '/p2d/get_parameters', request).values
    assert drive_node._refusals.num == 3


@pytest.mark.attack(
    'A client asks for the same parameter 256 times in each request, and acknowledges no reply',
    'refused: each name once; a node keeps ten replies, and a hundred changes of parameters',
)
def test_little_is_kept_for_a_client_that_acknowledges_nothing(drive, node):
    drive_node = drive(autostart=False)
    for kind, name, field in (
        (GetParameters, 'get_parameters', 'names'),
        (GetParameterTypes, 'get_parameter_types', 'names'),
        (DescribeParameters, 'describe_parameters', 'names'),
        (ListParameters, 'list_parameters', 'prefixes'),
    ):
        request = kind.Request(**{field: ['sync', 'sync']})
        assert call(node, kind, f'/p2d/{name}', request) == kind.Response()
    assert drive_node._refusals.num == 4
    services = [s for s in drive_node.services if 'parameter' in s.srv_name]
    assert [service.qos_profile.depth for service in services] == [10] * 6
    (events,) = [p for p in drive_node.publishers if p.topic_name == '/parameter_events']
    assert events.qos_profile.depth == 100


def test_all_parameters_of_the_node_fit_into_one_request(drive):
    assert len(drive(autostart=False)._parameters) < MAX_ENTRIES


@pytest.mark.attack(
    'A peer changes parameters or the lifecycle state of a node with access locked',
    'refused with the reason; the node goes on as it was launched',
)
def test_a_locked_node_keeps_what_its_launch_gave_it(drive, node, rig, watcher, capfd):
    drive_node = drive(access='locked')
    wait_until(lambda: rig.heard)
    for name, value in (('max_new_tokens', 1), ('use_sim_time', True), ('access', 'open')):
        result = set_parameter(node, name, value)
        assert not result.successful
        assert result.reason.startswith('access is locked; ')
        assert drive_node.get_parameter(name).value != value
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVE_SHUTDOWN):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert not call(node, ChangeState, '/p2d/change_state', request).success
    state = call(node, GetState, '/p2d/get_state', GetState.Request()).current_state
    assert state.label == 'active'
    assert next_answer(watcher, rig).num_generated_tokens == 4
    log = capfd.readouterr().err
    assert log.count('~/change_state refused: access is locked') == 1
    assert log.count('~/set_parameters refused: access is locked') == 1


def test_a_node_that_nobody_could_start_is_refused(drive):
    with pytest.raises(ConfigError, match='access: got locked with autostart false'):
        drive(autostart=False, access='locked')


@pytest.mark.attack(
    'Thousands of requests that are refused',
    'a line per cause every 5 s; all are counted in /diagnostics',
)
def test_refused_requests_are_counted_and_do_not_flood_the_log(drive, node, capfd):
    health = Health(node)
    drive()
    capfd.readouterr()
    num = 20
    transition = Transition(id=Transition.TRANSITION_CONFIGURE)
    for number in range(num):
        request = ChangeState.Request(transition=transition)
        assert not call(node, ChangeState, '/p2d/change_state', request).success
        assert not set_parameter(node, 'selector', f'{"x" * number}').successful
        response = call(node, Ask, '/p2d/ask', Ask.Request(question='car ' * (1001 + number)))
        assert not response.success
    publisher = node.create_publisher(String, '/p2d/question', 100)
    wait_until(publisher.get_subscription_count)
    time.sleep(0.3)
    for number in range(num):
        publisher.publish(String(data=' ' * number))
    wait_until(lambda: health.value('pipeline', 'requests refused') == str(4 * num))
    lines = capfd.readouterr().err.splitlines()
    refused = [line for line in lines if ' refused: ' in line]
    assert {line.partition(' refused')[0].rpartition('~')[2] for line in refused} == {
        '/change_state',
        '/set_parameters',
        '/ask',
        '/question',
    }
    assert len(lines) <= 8


class Lines(list):
    """A logger that keeps its lines."""

    warning = list.append


@pytest.mark.attack(
    'Every message brings a text of its own into the log',
    'quoted texts count as one cause; at most 16 lines in 5 s; none is longer than 2,000',
)
def test_texts_of_peers_do_not_flood_a_log():
    lines = Lines()
    log = ThrottledLog(lines)
    for letter in 'abcdefghijklmnopqrstuvwxyz':
        log.warn(f"encoding: got '{letter}', allowed: bgr8")
    assert len(lines) == 1
    for letter in 'abcdefghijklmnopqrstuvwxyz':
        log.warn(f'a library says {letter}\n' * 1000)
    assert len(lines) == MAX_LINES
    assert max(map(len, lines)) == 2000
    assert '\n' not in ''.join(lines)


def test_with_security_enforced_a_node_without_its_key_does_not_start(
    ros_domain, monkeypatch, tmp_path
):
    (tmp_path / 'enclaves').mkdir()
    monkeypatch.setenv('ROS_SECURITY_ENABLE', 'true')
    monkeypatch.setenv('ROS_SECURITY_STRATEGY', 'Enforce')
    monkeypatch.setenv('ROS_SECURITY_KEYSTORE', str(tmp_path))
    with pytest.raises(ConfigError, match=r'^ROS does not start: .*/enclaves/p2d/drive'):
        init_rclpy(['drive', '--ros-args', '--enclave', '/p2d/drive'], context=rclpy.Context())


def allowed_in(enclave: str, kind: str, access: str) -> set[str]:
    """Return the names of topics or services that the policy allows an enclave."""
    profiles = ElementTree.parse(POLICY).iterfind(f'.//enclave[@path="{enclave}"]//profile')
    return {
        item.text.replace('~', f'/{profile.get("node")}')
        for profile in profiles
        for group in profile.iterfind(f'{kind}s[@{access}="ALLOW"]')
        for item in group.iterfind(kind)
    }


def test_the_security_policy_names_what_the_node_uses_and_nothing_else(drive, node):
    drive(use_sim_time=True)
    names = ['p2d', 'p2d_requests']
    wait_until(lambda: set(names) <= set(node.get_node_names()))
    graph = {
        ('topic', 'publish'): node.get_publisher_names_and_types_by_node,
        ('topic', 'subscribe'): node.get_subscriber_names_and_types_by_node,
        ('service', 'reply'): node.get_service_names_and_types_by_node,
    }

    def used(find) -> set[str]:
        return {name for owner in names for name, _ in find(owner, '/')}

    for (kind, access), find in graph.items():
        wanted = allowed_in('/p2d/drive', kind, access)
        wait_until(lambda: used(find) == wanted)  # noqa: B023
    services = allowed_in('/p2d/drive', 'service', 'reply')
    topics = allowed_in('/p2d/drive', 'topic', 'publish')
    operator = allowed_in('/p2d/operator', 'service', 'request')
    assert services == operator
    assert topics == allowed_in('/p2d/operator', 'topic', 'subscribe')
    images = {name for name in allowed_in('/p2d/cameras', 'topic', 'publish') if '/image' in name}
    assert images < allowed_in('/p2d/drive', 'topic', 'subscribe')
    assert len(images) == 6
