"""Starts the drive node and plays a bag: ros2 launch p2d_node replay.launch.py bag:=scene-0061."""

import os
from pathlib import Path
import sys

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import (
    get_launch_description_from_python_launch_file,
    PythonLaunchDescriptionSource,
)
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage
from p2d_node.ros.dds_profile import DISCOVERIES, discovery_environment
from p2d_node.ros.launching import check_argument_names, check_exit

DRIVE = Path(get_package_share_directory('p2d_node')) / 'launch' / 'drive.launch.py'

LAST_ANSWER_S = 5.0
"""Time that the node gets for the last sweep."""

FIXED = {'use_sim_time': 'true', 'build_only': 'false', 'autostart': 'true', 'required': 'true'}
"""Arguments of the drive node that a replay sets."""

WITHOUT_EFFECT = ('camera_size',)

ARGUMENTS = (
    DeclareLaunchArgument('bag', description='Folder of the rosbag2 to play.'),
    DeclareLaunchArgument('rate', default_value='1.0', description='Speed relative to real time.'),
    DeclareLaunchArgument(
        'loop',
        default_value='false',
        choices=['true', 'false'],
        description='Whether to start again at the end.',
    ),
    DeclareLaunchArgument(
        'keep_alive',
        default_value='false',
        choices=['true', 'false'],
        description='Leave the node running after the last message of the bag.',
    ),
    DeclareLaunchArgument(
        'discovery',
        default_value='localhost',
        choices=[*DISCOVERIES],
        description='Machines that the bag is played to. localhost: this one; subnet: all '
        'of the local network, which may take the bag for the cameras.',
    ),
)


def _arguments_of_drive():
    """Return the arguments of drive.launch.py that a replay leaves open."""
    ours = (*FIXED, *WITHOUT_EFFECT, *(argument.name for argument in ARGUMENTS))
    description = get_launch_description_from_python_launch_file(str(DRIVE))
    arguments = description.get_launch_arguments()
    return [argument for argument in arguments if argument.name not in ours]


def _start_node(context):
    """Include drive.launch.py; out of sight of --show-args, which would show all it declares."""
    source = PythonLaunchDescriptionSource(str(DRIVE))
    arguments = dict(FIXED)
    namespace, of_cameras = (
        LaunchConfiguration(name).perform(context) for name in ('namespace', 'camera_namespace')
    )
    if namespace and not of_cameras:
        # The bag keeps its topics, whatever the namespace of the node.
        arguments['camera_namespace'] = '/'
    return [IncludeLaunchDescription(source, launch_arguments=arguments.items())]


def _play(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    p2d = ExecutableInPackage(package='p2d_node', executable='p2d')
    command = [p2d, 'replay', '--clock', '--wait', '300']
    command += ['--bag', value('bag'), '--rate', value('rate')]
    if value('loop') == 'true':
        command.append('--loop')
    environment = {**os.environ, **discovery_environment(value('discovery'))}
    player = ExecuteProcess(cmd=command, output='screen', env=environment)
    keeps_alive = value('keep_alive') == 'true'

    def end(event, context):
        check_exit('p2d replay', event.returncode, is_shutdown=context.is_shutdown)
        if keeps_alive or context.is_shutdown:
            return []
        shutdown = Shutdown(reason='the bag has been played')
        text = f'the bag has been played; the node ends in {LAST_ANSWER_S:g} s'
        return [LogInfo(msg=text), TimerAction(period=LAST_ANSWER_S, actions=[shutdown])]

    return [player, RegisterEventHandler(OnProcessExit(target_action=player, on_exit=end))]


def generate_launch_description():
    arguments = [*ARGUMENTS, *_arguments_of_drive()]

    def check(context):
        check_argument_names(context.argv, [a.name for a in arguments], __file__, sys.argv)

    steps = [OpaqueFunction(function=step) for step in (check, _start_node, _play)]
    return LaunchDescription([*arguments, *steps])
