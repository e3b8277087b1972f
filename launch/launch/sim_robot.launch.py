"""The simulated robot `robot`, in the place of a real one and its driver."""

import os
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, NotEqualsSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

CONFIG = Path(__file__).resolve().parent.parent / "config"
ARGUMENTS = {
    "robot": (None, "simulated robot"),
    "mode": ("real_time", "real_time, or stepped: time advances one control period per command (use_sim_time:=true)"),
    "camera_hz": ("0", "rate of the cameras' pictures, 0 for none"),
    "namespace": ("", "namespace of all topics and nodes"),
    "autostart": ("true", "true: the node configures and activates itself"),
    "use_sim_time": ("false", "true: the simulation publishes /clock and stamps by it"),
    "time_scale": ("1.0", "seconds of simulation per second, with use_sim_time:=true"),
    "params_file": (str(CONFIG / "params.yaml"), "ROS parameters of the nodes, under keys /**/<node>"),
    "log_level": ("info", "debug, info, warn, error"),
}


def typed(name, kind):
    """A launch argument as a parameter of that type."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def node(executable, parameters, **options):
    """A node of this package; the file's parameters come first, those of the arguments win."""
    common = {
        "robot": typed("robot", str),
        "autostart": typed("autostart", bool),
        "use_sim_time": typed("use_sim_time", bool),
        "time_scale": typed("time_scale", float),
    }
    return Node(
        package="robopolicy",
        executable=executable,
        name=executable,
        namespace=LaunchConfiguration("namespace"),
        parameters=[ParameterFile(LaunchConfiguration("params_file")), common | parameters],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
        sigterm_timeout="5",
        sigkill_timeout="5",
        # The node ends when this process is gone before it could ask the kernel for a signal.
        additional_env={"ROBOPOLICY_PARENT_PID": str(os.getpid())},
        **options,
    )


def generate_launch_description():
    """Arguments and nodes; graph.launch.py sees to it that the end of the robot is the end of everything."""
    robot = node("sim_node", {"mode": typed("mode", str)})
    cameras = node(
        "camera_node",
        {"camera_hz": typed("camera_hz", float)},
        condition=IfCondition(NotEqualsSubstitution(LaunchConfiguration("camera_hz"), "0")),
    )
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(n, default_value=d, description=t) for n, (d, t) in ARGUMENTS.items()),
            robot,
            cameras,
        ]
    )
