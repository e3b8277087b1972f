"""Policy, safety gate and recorder, for whatever robot is there. The other launch files include this one.

One down, all down: when a process ends, other than recorder and cameras, everything ends and `ros2 launch` returns 1.
"""

import os
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, RegisterEventHandler, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, NotEqualsSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

CONFIG = Path(__file__).resolve().parent.parent / "config"
MAY_END = ("recorder_node", "camera_node")
ARGUMENTS = {
    "robot": (None, "robot profile: a name such as ur5e, or the path of a YAML file"),
    "checkpoint": (None, "folder of a checkpoint, or of a run whose last one is taken"),
    "contract": (
        LaunchConfiguration("robot"),
        "YAML file that says which topics are which features, or the name of one that is here",
    ),
    "device": ("cpu", "device of the policy: cpu, cuda or cuda:N"),
    "namespace": ("", "namespace of all topics and nodes, for several robots"),
    "dry_run": ("false", "true: the gate computes set-points and sends nothing to the robot"),
    "autostart": ("true", "true: the nodes configure and activate themselves; false: by `ros2 lifecycle set`"),
    "use_sim_time": ("false", "true: ROS time comes from /clock"),
    "time_scale": ("1.0", "seconds of the control clock per second; other than 1 only for simulated robots"),
    "record": ("", "folder for a recording, begun as soon as all topics speak; empty records nothing"),
    "params_file": (str(CONFIG / "params.yaml"), "ROS parameters of the nodes, under keys /**/<node>"),
    "log_level": ("info", "debug, info, warn, error"),
}


def text(name):
    """A launch argument as a string parameter, however much it looks like a number."""
    return ParameterValue(LaunchConfiguration(name), value_type=str)


def common():
    """Parameters of every node."""
    return {
        "autostart": ParameterValue(LaunchConfiguration("autostart"), value_type=bool),
        "use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool),
        "time_scale": ParameterValue(LaunchConfiguration("time_scale"), value_type=float),
    }


def node(executable, parameters, **options):
    """A node of this package; the file's parameters come first, those of the arguments win."""
    return Node(
        package="robopolicy",
        executable=executable,
        name=executable,
        namespace=LaunchConfiguration("namespace"),
        parameters=[ParameterFile(LaunchConfiguration("params_file")), common() | parameters],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
        sigterm_timeout="5",
        sigkill_timeout="5",
        # The node ends when this process is gone before it could ask the kernel for a signal.
        additional_env={"ROBOPOLICY_PARENT_PID": str(os.getpid())},
        **options,
    )


def all_down():
    """Ends the launch with an error when a process that the robot needs ends by itself; Ctrl-C ends all anyway."""

    def ended(event, context):
        if not context.is_shutdown and not event.process_name.startswith(MAY_END):
            raise RuntimeError(f"{event.process_name} ended with exit status {event.returncode}: everything ends")

    return RegisterEventHandler(OnProcessExit(on_exit=ended))


def generate_launch_description():
    """Arguments, environment, nodes."""
    gate = node(
        "gate_node",
        {"robot": text("robot"), "dry_run": ParameterValue(LaunchConfiguration("dry_run"), value_type=bool)},
    )
    policy = node(
        "policy_node",
        {name: text(name) for name in ("robot", "checkpoint", "contract", "device")},
    )
    recorder = node(
        "recorder_node",
        {"contract": text("contract"), "output": text("record"), "record": True},
        condition=IfCondition(NotEqualsSubstitution(LaunchConfiguration("record"), "")),
    )
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(n, default_value=d, description=t) for n, (d, t) in ARGUMENTS.items()),
            # Raw pictures need large shared memory; a profile that is set already stays.
            SetEnvironmentVariable(
                "FASTDDS_DEFAULT_PROFILES_FILE",
                EnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", default_value=str(CONFIG / "fastdds.xml")),
            ),
            # Before the processes, so that none ends unseen.
            all_down(),
            recorder,
            gate,
            policy,
        ]
    )
