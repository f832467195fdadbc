"""Says how to get a Python package that the node or a verb needs; needs no ROS itself."""

ROS_PACKAGES = (
    'ament_index_python',
    'builtin_interfaces',
    'cv_bridge',
    'diagnostic_msgs',
    'lifecycle_msgs',
    'p2d_msgs',
    'rcl_interfaces',
    'rclpy',
    'rosgraph_msgs',
    'sensor_msgs',
    'std_msgs',
)

# A plain `colcon build` does not look for packages inside the package p2d_node.
BUILD_COMMAND = (
    'colcon build --base-paths src src/p2d_node/ros2_ws/src && source install/setup.bash'
)


def explain_missing_package(module: str) -> str:
    """Return in one line what is missing and the command that brings it.

    Args:
        module: Name of the package, or of a module in it.
    """
    package = module.partition('.')[0]
    if package == 'p2d_msgs':
        step = f'build it and source the workspace: {BUILD_COMMAND}'
    elif package in ROS_PACKAGES:
        step = 'source the setup files of ROS 2, such as /opt/ros/jazzy/setup.bash'
    else:
        step = 'pip install -r requirements/vehicle.txt'
    return f'{package} is not installed; {step}'
