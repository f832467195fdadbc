"""Starts the drive node: ros2 launch p2d_node drive.launch.py --show-args."""

from pathlib import Path
import signal
import time

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.substitutions import ExecutableInPackage
from p2d_node.cli.parameter_file import camera_names_in
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.dds_profile import DISCOVERIES, discovery_environment, profile_environment

CONFIG = Path(get_package_share_directory('p2d_node')) / 'config'
EXIT_CODES_OF_NO_FAULT = (0, 2, -signal.SIGINT, -signal.SIGTERM)
"""A shutdown, bad input, which would be refused again, and a signal during the imports."""

FIRST_DELAY_S, LONGEST_DELAY_S, LONG_RUN_S = 1.0, 60.0, 300.0

DATASETS = sorted(path.stem for path in (CONFIG / 'cameras').glob('*.yaml'))

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
        choices=['true', 'false'],
        description='Build the engine of model and encoder_backend for this machine and exit.',
    ),
    DeclareLaunchArgument(
        'camera_size',
        default_value='900x1600',
        description='Size of the camera frames for build_only, as HEIGHTxWIDTH.',
    ),
    DeclareLaunchArgument(
        'use_sim_time',
        default_value='false',
        choices=['true', 'false'],
        description='Use the time of /clock, as for a bag that is played with --clock.',
    ),
    DeclareLaunchArgument(
        'respawn',
        default_value='true',
        choices=['true', 'false'],
        description='Start the node again after a fault (not after bad input or a signal), later '
        'each time.',
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


def _given_parameters(context, camera_names):
    """Return the launch arguments that are set, as parameters."""

    def value(name):
        return LaunchConfiguration(name).perform(context)

    parameters = {'use_sim_time': value('use_sim_time') == 'true'}
    if value('model'):
        parameters['model'] = value('model')
    if value('encoder_backend'):
        parameters['encoder.backend'] = value('encoder_backend')
    if value('retention_ratio'):
        ratio = _parse_ratio(value('retention_ratio'))
        for camera in camera_names:
            parameters[f'retention_ratio.{camera}'] = ratio
    return parameters


def _parse_ratio(text):
    try:
        return float(text)
    except ValueError:
        raise RuntimeError(f'retention_ratio: got {text!r}, allowed: above 0 to 1') from None


def _build_engine(context):
    """Return the process `p2d build-engine`, which runs instead of the node."""

    def value(name):
        return LaunchConfiguration(name).perform(context)

    options = {
        '--model': value('model'),
        '--backend': value('encoder_backend'),
        '--camera-size': value('camera_size'),
        '--params-file': value('params_file'),
    }
    words = [word for name, text in options.items() if text for word in (name, text)]
    p2d = ExecutableInPackage(package='p2d_node', executable='p2d')
    return ExecuteProcess(cmd=[p2d, 'build-engine', *words], output='screen')


def _start(context):
    if LaunchConfiguration('build_only').perform(context) == 'true':
        return [_build_engine(context)]
    dataset = LaunchConfiguration('dataset').perform(context)
    params_file = LaunchConfiguration('params_file').perform(context)
    if params_file and not Path(params_file).is_file():
        raise RuntimeError(f'params_file: got {params_file!r}, which is not a file')
    camera_names = camera_names_in(Path(params_file)) if params_file else None
    # A preset beside other cameras would leave parameters of cameras that do not exist.
    files = [] if camera_names else [str(CONFIG / 'cameras' / f'{dataset}.yaml')]
    files += [params_file] if params_file else []
    parameters = [*files, _given_parameters(context, camera_names or NUSCENES_CAMERAS)]
    return _run_node(context, parameters, FIRST_DELAY_S)


def _delay_after(returncode, ran_s, delay_s):
    """Return the time until the node starts again, in s; None: it does not."""
    if returncode in EXIT_CODES_OF_NO_FAULT:
        return None
    # A node that has run for long has not failed again and again.
    return FIRST_DELAY_S if ran_s > LONG_RUN_S else delay_s


def _run_node(context, parameters, delay_s):
    """Return the node, and what starts it again after a fault, `delay_s` later."""
    enclave = LaunchConfiguration('enclave').perform(context)
    node = Node(
        package='p2d_node',
        executable='drive',
        name='p2d',
        output='screen',
        emulate_tty=True,
        parameters=parameters,
        ros_arguments=['--enclave', enclave] if enclave else [],
    )
    if LaunchConfiguration('respawn').perform(context) == 'false':
        return [node]
    started_s = time.monotonic()

    def start_again(event, context):
        wait_s = _delay_after(event.returncode, time.monotonic() - started_s, delay_s)
        if wait_s is None or context.is_shutdown:
            return []
        start = OpaqueFunction(
            function=_run_node, args=[parameters, min(2.0 * wait_s, LONGEST_DELAY_S)]
        )
        text = f'the node ended with code {event.returncode}; it starts again in {wait_s:g} s'
        return [LogInfo(msg=text), TimerAction(period=wait_s, actions=[start])]

    return [node, RegisterEventHandler(OnProcessExit(target_action=node, on_exit=start_again))]


def _set_discovery(context):
    discovery = LaunchConfiguration('discovery').perform(context)
    return [SetEnvironmentVariable(*item) for item in discovery_environment(discovery).items()]


def generate_launch_description():
    environment = [SetEnvironmentVariable(*item) for item in profile_environment().items()]
    environment.append(OpaqueFunction(function=_set_discovery))
    return LaunchDescription([*ARGUMENTS, *environment, OpaqueFunction(function=_start)])
