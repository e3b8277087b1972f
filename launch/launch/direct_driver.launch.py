"""A real robot through its vendor's Python package, in the place of its ROS 2 driver: driver:=direct robot_ip:=..."""

import os
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

CONFIG = Path(__file__).resolve().parent.parent / "config"
ARGUMENTS = {
    "robot": (None, "robot profile, whose topics the driver speaks"),
    "robot_ip": (None, "network address of the robot"),
    "namespace": ("", "namespace of all topics and nodes"),
    "autostart": ("true", "true: the node configures and activates itself"),
    "params_file": (str(CONFIG / "params.yaml"), "ROS parameters of the nodes, under keys /**/<node>"),
    "log_level": ("info", "debug, info, warn, error"),
}


def generate_launch_description():
    """Arguments and node; graph.launch.py sees to it that its end is the end of everything."""
    driver = Node(
        package="robopolicy",
        executable="driver_node",
        name="driver_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            ParameterFile(LaunchConfiguration("params_file")),
            {
                "robot": ParameterValue(LaunchConfiguration("robot"), value_type=str),
                "address": ParameterValue(LaunchConfiguration("robot_ip"), value_type=str),
                "autostart": ParameterValue(LaunchConfiguration("autostart"), value_type=bool),
            },
        ],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
        sigterm_timeout="5",
        sigkill_timeout="5",
        # The node ends when this process is gone before it could ask the kernel for a signal.
        additional_env={"ROBOPOLICY_PARENT_PID": str(os.getpid())},
    )

    return LaunchDescription(
        [
            *(DeclareLaunchArgument(n, default_value=d, description=t) for n, (d, t) in ARGUMENTS.items()),
            driver,
        ]
    )
