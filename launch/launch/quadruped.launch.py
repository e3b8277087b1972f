"""A quadruped under a policy: `ros2 launch robopolicy quadruped.launch.py robot:=unitree_a1 checkpoint:=DIR`."""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

HERE = Path(__file__).resolve().parent
ROBOTS = ("unitree_go2", "unitree_a1", "sim_a1")


def generate_launch_description():
    """The robot's side from its own file, and the graph that all robots share."""
    robot_side = [str(HERE / "robots"), "/", LaunchConfiguration("robot"), ".launch.py"]
    return LaunchDescription(
        [
            DeclareLaunchArgument("robot", default_value=None, choices=ROBOTS, description="the robot"),
            DeclareLaunchArgument("checkpoint", description="folder of a checkpoint, or of a run"),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(robot_side)),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(HERE / "graph.launch.py")),
                launch_arguments=[(name, LaunchConfiguration(name)) for name in ("robot", "checkpoint")],
            ),
        ]
    )
