"""Starts the drive node and plays a bag: ros2 launch p2d_node replay.launch.py bag:=scene-0061."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from p2d_node.ros.dds_profile import DISCOVERIES, profile_environment

DRIVE = Path(get_package_share_directory('p2d_node')) / 'launch' / 'drive.launch.py'


def _play(context):
    command = ['ros2', 'run', 'p2d_node', 'p2d', 'replay', '--clock', '--wait', '300']
    command += ['--bag', LaunchConfiguration('bag').perform(context)]
    command += ['--rate', LaunchConfiguration('rate').perform(context)]
    if LaunchConfiguration('loop').perform(context) == 'true':
        command.append('--loop')
    return [ExecuteProcess(cmd=command, output='screen')]


def generate_launch_description():
    environment = [SetEnvironmentVariable(*item) for item in profile_environment().items()]
    drive = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(DRIVE)),
        launch_arguments={
            'use_sim_time': 'true',
            'discovery': LaunchConfiguration('discovery'),
        }.items(),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument('bag', description='Folder of the rosbag2 to play.'),
            DeclareLaunchArgument(
                'rate', default_value='1.0', description='Speed relative to real time.'
            ),
            DeclareLaunchArgument(
                'loop',
                default_value='false',
                choices=['true', 'false'],
                description='Whether to start again at the end.',
            ),
            DeclareLaunchArgument(
                'discovery',
                default_value='localhost',
                choices=[*DISCOVERIES],
                description='Machines that the bag is played to. localhost: this one; subnet: all '
                'of the local network, which may take the bag for the cameras.',
            ),
            *environment,
            drive,
            OpaqueFunction(function=_play),
        ]
    )
