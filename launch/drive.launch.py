"""Starts the drive node: ros2 launch p2d_node drive.launch.py --show-args."""

import os
from pathlib import Path
import sys
import time

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    LogInfo,
    OpaqueFunction,
    PopLaunchConfigurations,
    PushLaunchConfigurations,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.substitutions import ExecutableInPackage
from p2d_node.cli.parameter_file import camera_names_in
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.dds_profile import DISCOVERIES, discovery_environment, profile_environment
from p2d_node.ros.launching import (
    check_argument_names,
    check_exit,
    EXIT_CODES_OF_NO_FAULT,
    full_node_name,
)

CONFIG = Path(get_package_share_directory('p2d_node')) / 'config'
BAD_INPUT = 2

FIRST_DELAY_S, LONGEST_DELAY_S, LONG_RUN_S = 1.0, 60.0, 300.0

DATASETS = sorted(path.stem for path in (CONFIG / 'cameras').glob('*.yaml'))
TRUE_OR_FALSE = ['true', 'false']

ARGUMENTS = (
    DeclareLaunchArgument(
        'model',
        default_value='',
        description='Checkpoint folder (Hugging Face format, safetensors), or p2d-mini, the model '
        'that ships with the package; empty: the value of the parameter files.',
    ),
    DeclareLaunchArgument(
        'dataset',
        default_value='nuscenes',
        choices=DATASETS,
        description='Preset of camera topics, transport, exposure offsets and frame rates. Not '
        'used if the params_file has camera_names.',
    ),
    DeclareLaunchArgument(
        'camera_namespace',
        default_value='',
        description='Namespace of the camera topics of the preset, such as /car1/sensors; empty: '
        'the value of the parameter files, or the namespace of the node.',
    ),
    DeclareLaunchArgument(
        'namespace',
        default_value='',
        description='Namespace of the node, such as car1; empty: that of the launch.',
    ),
    DeclareLaunchArgument('name', default_value='p2d', description='Name of the node.'),
    DeclareLaunchArgument(
        'retention_ratio',
        default_value='',
        description='Share of the visual tokens to keep, for all cameras, above 0 to 1; empty: '
        'the values of the parameter files, or those tuned for the model.',
    ),
    DeclareLaunchArgument(
        'encoder_backend',
        default_value='',
        description='Runtime of the vision encoder: auto, tensorrt, tensorrt_rtx, onnxruntime or '
        'torch; empty: the value of the parameter files.',
    ),
    DeclareLaunchArgument(
        'build_only',
        default_value='false',
        choices=TRUE_OR_FALSE,
        description='Build the engine of model and encoder_backend for this machine and exit.',
    ),
    DeclareLaunchArgument(
        'camera_size',
        default_value='900x1600',
        description='Size of the camera frames for build_only, as HEIGHTxWIDTH.',
    ),
    DeclareLaunchArgument(
        'autostart',
        default_value='',
        choices=['', *TRUE_OR_FALSE],
        description='Whether the node configures and activates itself; false: a lifecycle manager '
        'does; empty: the value of the parameter files, or true.',
    ),
    DeclareLaunchArgument(
        'use_sim_time',
        default_value='',
        choices=['', *TRUE_OR_FALSE],
        description='Use the time of /clock, as for a bag that is played with --clock; empty: the '
        'value of the parameter files, or false.',
    ),
    DeclareLaunchArgument(
        'log_level',
        default_value='info',
        choices=['debug', 'info', 'warn', 'error', 'fatal'],
        description='Lowest level of the messages that the node logs.',
    ),
    DeclareLaunchArgument(
        'respawn',
        default_value='true',
        choices=TRUE_OR_FALSE,
        description='Start the node again after a fault (not after bad input or a signal), later '
        'each time.',
    ),
    DeclareLaunchArgument(
        'required',
        default_value='true',
        choices=TRUE_OR_FALSE,
        description='End the whole launch, with exit code 1, if the node fails and is not started '
        'again.',
    ),
    DeclareLaunchArgument(
        'params_file',
        default_value='',
        description='ROS parameter file. It overrides the dataset preset; other launch arguments '
        'override it.',
    ),
    DeclareLaunchArgument(
        'discovery',
        default_value='',
        choices=['', *DISCOVERIES],
        description='Machines whose nodes the node talks to. localhost: this one only, if the '
        'cameras run on it; subnet: all of the local network; empty: as the environment says, '
        'subnet if it says nothing.',
    ),
    DeclareLaunchArgument(
        'enclave',
        default_value='',
        description='SROS 2 enclave of the node, such as /p2d/drive; empty: none.',
    ),
)

PARAMETERS = {
    'model': 'model',
    'encoder_backend': 'encoder.backend',
    'camera_namespace': 'camera_namespace',
}
FLAGS = ('autostart', 'use_sim_time')


def _given_parameters(given, camera_names):
    """Return the launch arguments that are set, as parameters."""
    parameters = {name: given[key] for key, name in PARAMETERS.items() if given[key]}
    parameters |= {name: given[name] == 'true' for name in FLAGS if given[name]}
    if given['retention_ratio']:
        ratio = _parse_ratio(given['retention_ratio'])
        parameters |= {f'retention_ratio.{camera}': ratio for camera in camera_names}
    return parameters


def _parse_ratio(text):
    try:
        return float(text)
    except ValueError:
        raise RuntimeError(f'retention_ratio: got {text!r}, allowed: above 0 to 1') from None


def _build_engine(given):
    """Return the process `p2d build-engine`, which runs instead of the node."""
    options = {
        '--model': given['model'],
        '--backend': given['encoder_backend'],
        '--camera-size': given['camera_size'],
        '--params-file': given['params_file'],
    }
    words = [word for name, text in options.items() if text for word in (name, text)]
    p2d = ExecutableInPackage(package='p2d_node', executable='p2d')
    build = ExecuteProcess(cmd=[p2d, 'build-engine', *words], output='screen')

    def end(event, context):
        check_exit('p2d build-engine', event.returncode, is_shutdown=context.is_shutdown)

    return [build, RegisterEventHandler(OnProcessExit(target_action=build, on_exit=end))]


def _start(context):
    names = [argument.name for argument in ARGUMENTS]
    check_argument_names(context.argv, names, __file__, sys.argv)
    given = {name: LaunchConfiguration(name).perform(context) for name in names}
    if given['build_only'] == 'true':
        return _build_engine(given)
    pushed = context.launch_configurations.get('ros_namespace', '')
    full_name = full_node_name(pushed, given['namespace'], given['name'])
    environment = {
        **os.environ,
        **profile_environment(),
        **discovery_environment(given['discovery']),
    }
    options = {
        'name': given['name'],
        'namespace': full_name.rpartition('/')[0] or '/',
        'parameters': _parameters(given, full_name),
        'ros_arguments': _ros_arguments(given, full_name),
        'env': environment,
    }
    return _run_node(context, full_name, given, options, FIRST_DELAY_S)


def _parameters(given, full_name):
    """Return the parameter files and parameters of the node, the later ones above the others."""
    params_file = given['params_file']
    if params_file and not Path(params_file).is_file():
        raise RuntimeError(f'params_file: got {params_file!r}, which is not a file')
    camera_names = camera_names_in(Path(params_file), full_name) if params_file else None
    # A preset beside other cameras would leave parameters of cameras that do not exist.
    files = [] if camera_names else [str(CONFIG / 'cameras' / f'{given["dataset"]}.yaml')]
    files += [params_file] if params_file else []
    parameters = _given_parameters(given, camera_names or NUSCENES_CAMERAS)
    return [*files, parameters] if parameters else files


def _ros_arguments(given, full_name):
    logger = full_name.strip('/').replace('/', '.')
    enclave = ['--enclave', given['enclave']] if given['enclave'] else []
    return ['--log-level', f'{logger}:={given["log_level"]}', *enclave]


def _delay_after(returncode, ran_s, delay_s):
    """Return the time until the node starts again, in s; None: it does not."""
    if returncode in (*EXIT_CODES_OF_NO_FAULT, BAD_INPUT):
        return None
    # A node that has run for long has not failed again and again.
    return FIRST_DELAY_S if ran_s > LONG_RUN_S else delay_s


def _run_node(context, full_name, given, options, delay_s):
    """Return the node, and what starts it again after a fault, `delay_s` later."""
    node = Node(
        package='p2d_node', executable='drive', output='screen', emulate_tty=True, **options
    )
    started_s = time.monotonic()
    # An including launch file may have remapped topics for this node only.
    scope = dict(context.launch_configurations)

    def end(event, context):
        wait_s = None
        if given['respawn'] == 'true':
            wait_s = _delay_after(event.returncode, time.monotonic() - started_s, delay_s)
        if wait_s is None and given['required'] == 'true':
            check_exit(f'node {full_name}', event.returncode, is_shutdown=context.is_shutdown)
        if wait_s is None or context.is_shutdown:
            return []
        next_delay_s = min(2.0 * wait_s, LONGEST_DELAY_S)
        start = OpaqueFunction(function=_run_node, args=[full_name, given, options, next_delay_s])
        text = f'{full_name} ended with code {event.returncode}; it starts again in {wait_s:g} s'
        return [LogInfo(msg=text), TimerAction(period=wait_s, actions=_within(scope, start))]

    return [node, RegisterEventHandler(OnProcessExit(target_action=node, on_exit=end))]


def _within(scope, action):
    """Return actions that run `action` with the launch configurations `scope`."""

    def use_scope(context):
        context.launch_configurations.clear()
        context.launch_configurations.update(scope)

    return [
        PushLaunchConfigurations(),
        OpaqueFunction(function=use_scope),
        action,
        PopLaunchConfigurations(),
    ]


def generate_launch_description():
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=_start)])
