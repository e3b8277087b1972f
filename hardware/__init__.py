"""Safety gate, robot profiles, drivers and ROS 2 nodes."""
