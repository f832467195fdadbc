"""The launch files, run by the launch system of a ROS distribution."""

import os
from pathlib import Path
import re
import runpy
import signal
import subprocess
import sys
import textwrap

from camera_rig import wait_until
from drive_client import Health, values_of
from p2d_node.records import NUSCENES_CAMERAS
import pytest

pytest.importorskip('launch_ros', reason='launch_ros comes with a ROS distribution only')

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.launch_description_sources import (
    get_launch_description_from_python_launch_file,
)

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILES = [*sorted((ROOT / 'launch').glob('*.launch.py'))]
DRIVE = ROOT / 'launch' / 'drive.launch.py'

# As `ros2 launch` does it.
ROS2_LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource
_, _, path, *words = sys.argv
arguments = [word.split(':=', 1) for word in words]
service = LaunchService(argv=words)
include = IncludeLaunchDescription(AnyLaunchDescriptionSource(path), launch_arguments=arguments)
service.include_launch_description(LaunchDescription([include]))
sys.exit(service.run())
"""


def start(path, *arguments):
    return subprocess.Popen(
        [sys.executable, '-c', ROS2_LAUNCH, 'launch', str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(path, *arguments):
    """Run a launch to its end; returns its exit code and output."""
    process = start(path, *arguments)
    output = end(process, timeout_s=100.0)
    return process.returncode, output


def end(process, timeout_s):
    """Wait for the end of a launch; returns its output."""
    try:
        return process.communicate(timeout=timeout_s)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def argument_names(path):
    description = get_launch_description_from_python_launch_file(str(path))
    return [argument.name for argument in description.get_launch_arguments()]


def processes_of(path, **given):
    """Return the processes that a launch file starts, without starting them."""
    context = LaunchContext()
    context.launch_configurations.update(given)
    processes = []

    def visit(entity):
        if isinstance(entity, ExecuteProcess):
            processes.append(entity)
            return
        for part in entity.visit(context) or ():
            visit(part)

    visit(get_launch_description_from_python_launch_file(str(path)))
    return processes


def environment_of(process):
    return {
        ''.join(part.text for part in name): ''.join(part.text for part in value)
        for name, value in process.process_description.env
    }


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda path: path.stem)
def test_launch_files_load_and_describe_their_arguments(path):
    description = get_launch_description_from_python_launch_file(str(path))
    arguments = [a for a in description.entities if isinstance(a, DeclareLaunchArgument)]
    assert arguments
    assert all(argument.description for argument in arguments)


def test_a_replay_offers_only_the_arguments_that_have_an_effect():
    fixed = {'use_sim_time', 'build_only', 'camera_size', 'autostart', 'required'}
    ours = {'bag', 'rate', 'loop', 'keep_alive'}
    of_replay = argument_names(ROOT / 'launch' / 'replay.launch.py')
    assert len(set(of_replay)) == len(of_replay)
    assert set(of_replay) - ours == set(argument_names(DRIVE)) - fixed


def test_a_launch_argument_that_is_not_a_number_is_refused_by_name():
    with pytest.raises(RuntimeError, match="retention_ratio: got 'abc', allowed: above 0 to 1"):
        processes_of(DRIVE, retention_ratio='abc')


@pytest.mark.parametrize(
    ('file', 'given', 'reach'),
    [
        ('drive', {}, None),
        ('drive', {'discovery': 'localhost'}, 'LOCALHOST'),
        ('drive', {'discovery': 'subnet'}, 'SUBNET'),
        ('replay', {'bag': 'scene'}, 'LOCALHOST'),
    ],
)
def test_launch_files_set_the_reach_of_discovery_for_their_processes_only(
    monkeypatch, file, given, reach
):
    for variable in ('ROS_DISTRO', 'ROS_AUTOMATIC_DISCOVERY_RANGE'):
        monkeypatch.delenv(variable, raising=False)
    processes = processes_of(ROOT / 'launch' / f'{file}.launch.py', **given)
    assert len(processes) == (2 if file == 'replay' else 1)
    for process in processes:
        assert environment_of(process).get('ROS_AUTOMATIC_DISCOVERY_RANGE') == reach
    assert 'ROS_AUTOMATIC_DISCOVERY_RANGE' not in os.environ


def test_the_node_starts_again_after_a_fault_and_not_after_bad_input_or_a_signal():
    delay_after = runpy.run_path(str(DRIVE))['_delay_after']
    assert delay_after(1, 10.0, 4.0) == 4.0
    assert delay_after(-11, 10.0, 4.0) == 4.0
    assert delay_after(1, 1000.0, 32.0) == 1.0
    assert delay_after(0, 10.0, 4.0) is None
    assert delay_after(2, 10.0, 4.0) is None


@pytest.mark.parametrize(
    ('file', 'arguments', 'reason'),
    [
        ('drive', ['model:=/nowhere'], 'node /p2d ended with exit code 2'),
        ('drive', ['modle:=/nowhere'], 'no such launch argument; did you mean model?'),
        ('drive', ['build_only:=true', 'model:=/nowhere'], 'build-engine ended with exit code 2'),
        ('replay', ['bag:=/nowhere'], 'p2d replay ended with exit code 2'),
        ('replay', ['bag:=x', 'camera_size:=9x9'], "'camera_size': there is no such launch arg"),
    ],
)
def test_a_refusal_reaches_the_caller_of_the_launch(ros_domain, file, arguments, reason):
    code, output = launch(ROOT / 'launch' / f'{file}.launch.py', *arguments)
    assert code == 1
    assert reason in output
    assert 'Traceback' not in output


def test_the_example_runs_a_node_for_each_of_two_vehicles(node, tiny_checkpoint):
    health = Health(node)
    process = start(ROOT / 'examples' / 'two_vehicles.launch.py', f'model:={tiny_checkpoint}')
    try:
        for vehicle in ('car1', 'car2'):
            for component in ('pipeline', 'synchroniser', *NUSCENES_CAMERAS):
                name = f'/{vehicle}/p2d: {component}'
                wait_until(lambda name=name: name in health.statuses, 60.0)
        topics = {
            values_of(status)['topic']
            for name, status in health.statuses.items()
            if name.endswith('CAM_FRONT')
        }
        assert topics == {f'/{car}/CAM_FRONT/image_rect/compressed' for car in ('car1', 'car2')}
    finally:
        os.killpg(process.pid, signal.SIGINT)
        end(process, timeout_s=30.0)
    assert process.returncode == 0


def test_a_vehicle_that_cannot_start_ends_the_launch_of_both(ros_domain):
    code, output = launch(ROOT / 'examples' / 'two_vehicles.launch.py', 'model:=/nowhere')
    assert code == 1
    assert re.search(r'node /car[12]/p2d ended with exit code 2', output)


def test_a_node_that_is_not_required_leaves_the_launch_running(ros_domain):
    code, output = launch(DRIVE, 'model:=/nowhere', 'required:=false')
    assert code == 0
    assert 'exit code 2' in output
    assert 'Caught exception' not in output


def test_a_node_that_is_started_again_keeps_its_place_in_an_including_launch_file(
    ros_domain, tmp_path
):
    parent = tmp_path / 'bringup.launch.py'
    parent.write_text(
        textwrap.dedent(f"""
        from launch import LaunchDescription
        from launch.actions import GroupAction, IncludeLaunchDescription
        from launch_ros.actions import PushRosNamespace, SetRemap

        def generate_launch_description():
            arguments = {{'namespace': 'car1', 'autostart': 'false'}}.items()
            drive = IncludeLaunchDescription({str(DRIVE)!r}, launch_arguments=arguments)
            parts = [PushRosNamespace('fleet'), SetRemap('/a', '/b'), drive]
            return LaunchDescription([GroupAction(parts)])
        """)
    )
    process = start(parent, 'lidar:=on')
    commands = []
    try:
        for line in process.stdout:
            if match := re.search(r'process started with pid \[(\d+)\]', line):
                pid = int(match[1])
                # A launch that is interrupted while it starts a process may hang.
                maps, exe = (Path(f'/proc/{pid}/{name}') for name in ('maps', 'cmdline'))
                wait_until(lambda maps=maps: '_rclpy' in maps.read_text())
                commands.append(re.sub(r'launch_params_\w+', '', exe.read_text()).split('\0'))
                if len(commands) == 2:
                    break
                os.kill(pid, signal.SIGKILL)
        assert commands[0] == commands[1]
        assert '__ns:=/fleet/car1' in commands[0]
        assert '/a:=/b' in commands[0]
    finally:
        os.killpg(process.pid, signal.SIGINT)
        end(process, timeout_s=30.0)
    assert process.returncode == 0
