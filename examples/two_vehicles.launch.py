"""Runs the nodes of two vehicles side by side: ros2 launch examples/two_vehicles.launch.py.

Each node has its own namespace: /car1/p2d hears /car1/CAM_FRONT/image_rect/compressed and so on,
and publishes /car1/p2d/answer. Both report on /diagnostics, by their full names.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

DRIVE = Path(get_package_share_directory('p2d_node')) / 'launch' / 'drive.launch.py'


def run_vehicle(namespace):
    """Return the node of one vehicle; the group keeps its arguments from the other one."""
    arguments = {'namespace': namespace, 'model': LaunchConfiguration('model')}
    source = PythonLaunchDescriptionSource(str(DRIVE))
    return GroupAction([IncludeLaunchDescription(source, launch_arguments=arguments.items())])


def generate_launch_description():
    """Return what `ros2 launch` runs."""
    model = DeclareLaunchArgument(
        'model', default_value='p2d-mini', description='Checkpoint folder of both vehicles.'
    )
    return LaunchDescription([model, run_vehicle('car1'), run_vehicle('car2')])
