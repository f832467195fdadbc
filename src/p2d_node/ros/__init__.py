"""The ROS 2 side: node, parameters, conversions; the only package that imports rclpy."""
