"""What ROS refuses at the start of a process: one line that names it, and exit code 2."""

import importlib
import json
import os
import subprocess
import sys

from p2d_node.errors import ConfigError
from p2d_node.ros import drive
from p2d_node.ros.rcl_errors import init_rclpy
from p2d_node.ros.spinning import spinning_node
import pytest
import rclpy

START_TIMEOUT_S = 110.0

CALL_MAIN = """
import json, sys
from p2d_node.ros.drive import main
for arguments in json.loads(sys.argv[1]):
    print('status', main(['drive', '--ros-args', *arguments]), file=sys.stderr, flush=True)
"""


def refusal(*arguments: str) -> str:
    """Return the message with which `init_rclpy` refuses ROS arguments."""
    context = rclpy.Context()
    try:
        with pytest.raises(ConfigError) as caught:
            init_rclpy(['drive', '--ros-args', *arguments], context=context)
    finally:
        rclpy.try_shutdown(context=context)
    assert '\n' not in str(caught.value)
    assert '.c:' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('/**:\n  ros__parameters:\n    questions: [a, 1]\n', 'Sequence should be of same type'),
        ('model: p2d-mini\n', 'Cannot have a value before ros__parameters'),
        ('/**:\n  ros__parameters:\n    model:\n', 'No value at line 3'),
        (None, 'Error opening YAML file'),
    ],
)
def test_a_parameter_file_that_rcl_refuses_is_named_with_the_reason(
    ros_domain, tmp_path, capfd, content, reason
):
    path = tmp_path / 'drive parameters.yaml'
    if content is not None:
        path.write_text(content)
    message = refusal('--params-file', str(path))
    assert message.startswith(f'{path}: ROS cannot read this parameter file: ')
    assert reason in message
    assert message.endswith('; correct it as in config/drive.yaml')
    assert '[rcl]' not in capfd.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['-p'], 'ROS cannot read the trailing -p flag'),
        (['-p', 'questions:=[1, a]'], "the parameter override rule: '-p questions:=[1, a]'"),
        (['-r', '__node:=bad-name'], "the remap rule: '-r __node:=bad-name'"),
        (['--log-level', 'loud'], "the log level: '--log-level loud'"),
        (['--nonsense'], "got '--nonsense', which ROS does not know"),
    ],
)
def test_a_ros_argument_that_rcl_refuses_is_named(ros_domain, arguments, reason):
    assert reason in refusal(*arguments)


def test_a_parameter_file_that_is_not_yaml_is_named_with_the_reason(ros_domain, tmp_path):
    path = tmp_path / 'drive.yaml'
    path.write_text('/**:\n  ros__parameters:\n\tmodel: p2d-mini\n')
    reason = 'not YAML: line 3: found character that cannot start any token; correct it'
    assert refusal('--params-file', str(path)) == f'{path}: {reason}'


def test_a_list_in_a_list_is_refused_which_rcl_would_join_to_one(ros_domain, tmp_path):
    path = tmp_path / 'drive.yaml'
    path.write_text('/**:\n  ros__parameters:\n    questions: [[a, b]]\n')
    reason = ': got a list or a group in a list, allowed: a list of values; '
    reason += 'write [a, b] instead of [[a, b]]'
    assert refusal('--params-file', str(path)) == f'{path}: questions{reason}'
    assert refusal('-p', 'stop:=[[a], [b]]') == f'stop{reason}'
    assert 'nested 33 deep, allowed: 32' in refusal('-p', f'stop:={"[" * 3000}a{"]" * 3000}')


@pytest.mark.attack(
    'a parameter file of a few kilobytes that the YAML reader of ROS reads for hours',
    'refused before ROS reads it: nested too deeply, too large or with aliases',
)
@pytest.mark.parametrize(
    ('value', 'reason'),
    [
        ('[' * 200_000, 'line 3: got lists or groups nested 33 deep, allowed: 32; write'),
        ('&a [*a]', r'line 3: got an alias (*), allowed: plain values'),
        ('#' * (1 << 20), 'got 1048615 bytes, allowed: at most 1048576; name a parameter file'),
    ],
    ids=['deep', 'alias', 'large'],
)
def test_a_parameter_file_that_is_a_bomb_is_refused_before_rcl_reads_it(
    ros_domain, tmp_path, value, reason
):
    path = tmp_path / 'drive.yaml'
    path.write_text(f'/**:\n  ros__parameters:\n    questions: {value}')
    assert refusal('--params-file', str(path)).startswith(f'{path}: {reason}')


def test_a_parameter_that_a_file_sets_twice_is_refused(ros_domain, tmp_path):
    path = tmp_path / 'drive.yaml'
    path.write_text(
        '/**:\n  ros__parameters:\n    sync:\n      deadline_ms: 90.0\n      deadline_ms: 80.0\n'
    )
    message = refusal('--params-file', str(path))
    assert message.startswith(f'{path}: sync.deadline_ms: set in line 4 and in line 5, allowed:')


def test_one_parameter_in_several_sections_and_flat_lists_are_accepted(ros_domain, tmp_path):
    path = tmp_path / 'drive.yaml'
    path.write_text(
        '/**:\n  ros__parameters:\n    questions: [a, b]\n'
        '/p2d:\n  ros__parameters:\n    questions: []\n'
    )
    context = rclpy.Context()
    init_rclpy(['drive', '--ros-args', '--params-file', str(path), '--', '-p'], context=context)
    rclpy.try_shutdown(context=context)


@pytest.mark.parametrize('value', ['abc', '300', '-1', '1.5', ' 1'])
def test_a_domain_that_does_not_exist_is_refused_by_every_process(ros_domain, monkeypatch, value):
    monkeypatch.setenv('ROS_DOMAIN_ID', value)
    with (
        pytest.raises(ConfigError, match=f"ROS_DOMAIN_ID: got '{value}', allowed: 0 to 232"),
        spinning_node('watcher'),
    ):
        pass


@pytest.mark.skipif('ROS_STATIC_PEERS' in os.environ, reason='the test sets ROS_STATIC_PEERS')
def test_peers_that_cannot_be_resolved_are_refused(ros_domain, monkeypatch):
    monkeypatch.setenv('ROS_STATIC_PEERS', 'no..such..peer')
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    with (
        pytest.raises(ConfigError, match=r'node cannot be created: .*no\.\.such\.\.peer'),
        spinning_node('watcher'),
    ):
        pass


def test_a_signal_while_the_node_is_created_ends_the_process_in_silence(
    ros_domain, monkeypatch, capfd
):
    def shut_down_and_fail():
        rclpy.shutdown()
        raise RuntimeError('the context is gone')

    module = importlib.import_module('p2d_node.ros.drive_node')
    monkeypatch.setattr(module, 'DriveNode', shut_down_and_fail)
    assert drive.main([]) == drive.EXIT_OK
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('folder', ['/proc/nope', '/proc'])
def test_a_log_folder_that_cannot_be_written_is_named(ros_domain, folder):
    # rcl opens its log once per process.
    code = 'from p2d_node.ros.rcl_errors import init_rclpy; init_rclpy([])'
    result = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'ROS_LOG_DIR': folder},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    line = result.stderr.strip().splitlines()[-1]
    assert 'ConfigError: ROS_LOG_DIR: ROS cannot write its log: Failed' in line
    assert folder in line
    assert line.endswith(
        'No such file or directory; set ROS_LOG_DIR to a folder that can be written'
    )


def test_the_process_ends_with_code_two_and_one_line(ros_domain, tmp_path):
    missing = str(tmp_path / 'missing.yaml')
    untrained = ['-p', 'model:=untrained']
    cases = {
        missing: ['--params-file', missing],
        'cameras.CAM_BACK.topic': [*untrained, '-p', 'cameras.CAM_BACK.topic:=/back-cam'],
        'cameras.back-cam.topic': [
            *untrained,
            *('-p', 'camera_names:=["back-cam"]', '-p', 'sync.reference_camera:=back-cam'),
        ],
        'camera_names: got [0, 1]': [*untrained, '-p', 'camera_names:=[0, 1]'],
        'camera_names: got []': [*untrained, '-p', 'camera_names:=[]'],
        "'use_sim_time' to '5'": [*untrained, '-p', 'use_sim_time:=5'],
        'autostart: got 3': [*untrained, '-p', 'autostart:=3'],
        'max_new_tokens: got []': [*untrained, '-p', 'max_new_tokens:=[]'],
        "model: got '/nowhere'": ['-p', 'model:=/nowhere'],
    }
    result = subprocess.run(
        [sys.executable, '-c', CALL_MAIN, json.dumps(list(cases.values()))],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert 'Traceback' not in result.stderr
    ours = ('[ERROR]', '[FATAL]', '[WARN]', 'status')
    lines = [line for line in result.stderr.splitlines() if line.startswith(ours)]
    for word in cases:
        assert word in lines.pop(0)
        assert lines.pop(0) == 'status 2'
    assert not lines


def test_a_signal_before_the_executor_is_there_leaves_no_message(ros_domain):
    """rclpy's destructor reads an attribute that its constructor may not have set."""
    code = (
        'import rclpy; from p2d_node.ros.drive import _create; rclpy.init(); '
        'print(_create(rclpy.shutdown))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ('None\n', '')


@pytest.mark.parametrize('words', [['--help'], ['-p', 'access:=locked'], ['access:=locked']])
def test_words_that_are_no_ros_arguments_are_refused(words, capfd):
    """Without `--ros-args` a parameter would be left out, and the node start without it."""
    assert drive.main(['drive', *words]) == drive.EXIT_BAD_INPUT
    error = capfd.readouterr().err
    assert error.startswith(f'drive: got {" ".join(words)}, allowed: ROS arguments')
    assert error.count('\n') == 1
