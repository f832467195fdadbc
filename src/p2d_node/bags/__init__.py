"""Reading data sets and writing and reading rosbag2, without ROS."""
