"""Opens rqt on a running drive node: ros2 launch p2d_node watch.launch.py."""

import os
from pathlib import Path
import sys
import tempfile

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage
from p2d_node.errors import BackendUnavailableError
from p2d_node.ros.dds_profile import DISCOVERIES, discovery_environment
from p2d_node.ros.launching import check_argument_names, check_exit, full_node_name

PERSPECTIVE = Path(get_package_share_directory('p2d_node')) / 'config' / 'p2d.perspective'
NAME_IN_PERSPECTIVE = '/p2d'

ARGUMENTS = (
    DeclareLaunchArgument(
        'node', default_value=NAME_IN_PERSPECTIVE, description='Full name of the drive node.'
    ),
    DeclareLaunchArgument(
        'discovery',
        default_value='',
        choices=['', *DISCOVERIES],
        description='Machines whose nodes rqt sees. localhost: this one only; subnet: all of the '
        'local network; empty: as the environment says, subnet if it says nothing.',
    ),
)


def perspective_of(node):
    """Return the text of the perspective for a node with another name."""
    text = PERSPECTIVE.read_text(encoding='utf-8')
    for end in ('/', "'"):
        text = text.replace(f"'{NAME_IN_PERSPECTIVE}{end}", f"'{node}{end}")
    return text


def _find_rqt(context):
    try:
        return ExecutableInPackage(package='rqt_gui', executable='rqt_gui').perform(context)
    except PackageNotFoundError as err:
        raise BackendUnavailableError(
            'rqt is not installed; sudo apt install ros-$ROS_DISTRO-rqt-common-plugins '
            'ros-$ROS_DISTRO-rqt-runtime-monitor'
        ) from err


def _open(context):
    check_argument_names(context.argv, [a.name for a in ARGUMENTS], __file__, sys.argv)
    rqt = _find_rqt(context)
    node = full_node_name('', '', LaunchConfiguration('node').perform(context))
    folder = tempfile.TemporaryDirectory(prefix='p2d-watch-')
    # rqt keeps what the user arranges under the name of the file, for each node.
    file = Path(folder.name) / f'{node.strip("/").replace("/", "_")}.perspective'
    file.write_text(perspective_of(node), encoding='utf-8')
    discovery = LaunchConfiguration('discovery').perform(context)
    environment = {**os.environ, **discovery_environment(discovery)}
    window = ExecuteProcess(
        cmd=[rqt, '--perspective-file', str(file)], output='screen', env=environment
    )

    def end(event, context):
        folder.cleanup()
        check_exit('rqt', event.returncode, is_shutdown=context.is_shutdown)

    return [window, RegisterEventHandler(OnProcessExit(target_action=window, on_exit=end))]


def generate_launch_description():
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=_open)])
