"""ROS 2 nodes. Only what is below this folder imports rclpy, and only when a node is started."""
