"""ROS parameters: values at start and at run time, descriptors, refusals."""

import time

from camera_rig import wait_until
from drive_client import call, KEPT_AT_TENTH, next_answer, set_parameter
from p2d_msgs.srv import Ask
from p2d_node.cli.parameter_file import read_drive_config
from p2d_node.errors import ConfigError
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.ros.drive_node import DriveNode
from p2d_node.ros.guarded_services import MAX_ENTRIES
import pytest
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.parameter import Parameter, parameter_value_to_python
import yaml


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
        ('retention_ratio.CAM_FRONT', 2, 'out of range'),
        ('retention_ratio.CAM_FRONT', 'x', 'CAM_FRONT: got a text, allowed: a number'),
        ('questions', [1, 2], 'questions: got another type, allowed: a list of texts'),
        ('questions', ['What?', ''], 'got an empty question'),
        ('selector', 'best', "selector: got 'best'"),
        ('model', 'x' * 5000, 'model: got a text of 5000 characters, allowed: up to 4096'),
        ('missing_camera_policy', 'wait', 'allowed: skip, drop_view'),
        ('cameras.CAM_FRONT.topic', '/elsewhere', 'read-only'),
        ('autostart', True, 'read-only'),
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


def test_a_misspelt_parameter_is_warned_of(drive, capfd):
    drive(autostart=False, qestions=['Is there a car?'], something_else=1)
    errors = capfd.readouterr().err
    assert 'qestions: not a parameter; did you mean questions?' in errors
    assert 'something_else' not in errors


def test_a_ratio_of_an_unknown_camera_is_refused_at_start(drive):
    with pytest.raises(ConfigError, match=r'did you mean retention_ratio\.CAM_FRONT'):
        drive(retention_ratio__CAM_FRNT=0.5)


def test_an_empty_list_in_a_parameter_file_stands_for_no_texts(make_context, tmp_path):
    path = tmp_path / 'drive.yaml'
    path.write_text('/**:\n  ros__parameters:\n    questions: []\n    stop: []\n')
    arguments = ['--ros-args', '--params-file', str(path)]
    drive_node = DriveNode(context=make_context(), cli_args=arguments)
    assert drive_node.get_parameter('questions').value == []
    assert drive_node.get_parameter('stop').value == []
    drive_node.destroy_node()


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('max_new_tokens: []', r'max_new_tokens: got \[\], allowed: a whole number'),
        ('retention_ratio: {CAM_FRONT: []}', r'retention_ratio\.CAM_FRONT: got \[\], allowed'),
        ('questions: [1, 2]', r'questions: got \[1, 2\], allowed: a list of texts'),
        ('camera_names: []', r'camera_names: got \[\], allowed: a list of 1 to 64'),
        ('camera_names: [a.b]', r"camera_names: got \['a\.b'\], allowed"),
    ],
)
def test_a_value_of_a_wrong_type_in_a_parameter_file_is_named(
    make_context, tmp_path, content, reason
):
    path = tmp_path / 'drive.yaml'
    path.write_text(f'/**:\n  ros__parameters:\n    {content}\n')
    arguments = ['--ros-args', '--params-file', str(path)]
    with pytest.raises(ConfigError, match=reason):
        DriveNode(context=make_context(), cli_args=arguments)


def describe(node, name):
    request = DescribeParameters.Request(names=[name])
    return call(node, DescribeParameters, '/p2d/describe_parameters', request).descriptors[0]


def test_a_parameter_keeps_its_type_whatever_is_set(drive, node):
    drive_node = drive(autostart=False)
    for name, value in (('deadline_ms', 100), ('deadline_ms', 'soon'), ('stop', []), ('stop', 3)):
        set_parameter(node, name, value)
    assert drive_node.get_parameter('deadline_ms').value == 100.0
    assert describe(node, 'deadline_ms').type == ParameterType.PARAMETER_DOUBLE
    assert drive_node.get_parameter('stop').value == []
    assert describe(node, 'stop').type == ParameterType.PARAMETER_STRING_ARRAY
    stop = call(node, GetParameters, '/p2d/get_parameters', GetParameters.Request(names=['stop']))
    assert stop.values[0].type == ParameterType.PARAMETER_STRING_ARRAY


def test_wrong_types_are_named_when_parameters_are_set_together(drive, node):
    drive_node = drive(autostart=False)
    values = {'deadline_ms': 50, 'max_new_tokens': 'many'}
    parameters = [Parameter(n, value=v).to_parameter_msg() for n, v in values.items()]
    request = SetParametersAtomically.Request(parameters=parameters)
    result = call(node, SetParametersAtomically, '/p2d/set_parameters_atomically', request).result
    assert result.reason == 'max_new_tokens: got a text, allowed: a whole number'
    assert drive_node.get_parameter('deadline_ms').value == 0.0
    request = SetParameters.Request(parameters=parameters)
    first, second = call(node, SetParameters, '/p2d/set_parameters', request).results
    assert first.successful
    assert second.reason == result.reason
    assert drive_node.get_parameter('deadline_ms').value == 50.0


def test_a_name_that_no_parameter_has_is_named(drive, node):
    drive(autostart=False)
    result = set_parameter(node, 'retention_ratoi.CAM_BACK', 0.5)
    assert not result.successful
    assert "'retention_ratoi.CAM_BACK', allowed: the names of" in result.reason


def test_a_node_starts_with_the_parameters_that_another_one_dumped(drive, node, tmp_path):
    first = drive(autostart=False, retention_ratio__CAM_BACK=0.5)
    names = list(first._parameters)
    values = {}
    for start in range(0, len(names), MAX_ENTRIES):  # as `ros2 param dump`, over the service
        request = GetParameters.Request(names=names[start : start + MAX_ENTRIES])
        reply = call(node, GetParameters, '/p2d/get_parameters', request)
        values |= zip(request.names, map(parameter_value_to_python, reply.values), strict=True)
    assert values['stop'] == []
    path = tmp_path / 'dump.yaml'
    lists = {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in values.items()}
    path.write_text(yaml.safe_dump({'/p2d': {'ros__parameters': lists}}))
    arguments = ['--ros-args', '--params-file', str(path)]
    second = DriveNode(context=first.context, cli_args=arguments)
    again = {name: parameter.value for name, parameter in second._parameters.items()}
    assert again == {name: parameter.value for name, parameter in first._parameters.items()}
    second.destroy_node()
    assert read_drive_config(path).retention_ratio['CAM_BACK'] == 0.5  # verbs of p2d read it, too
