"""An arm under a policy.

ros2 launch robopolicy manipulator.launch.py robot:=ur5e checkpoint:=outputs/run contract:=ur5e_camera.yaml
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

HERE = Path(__file__).resolve().parent
ROBOTS = ("franka_panda", "franka_fr3", "ur5e", "xarm7", "so101", "sim_panda")


def generate_launch_description():
    """The robot's side from its own file, and the graph that all robots share."""
    robot_side = [str(HERE / "robots"), "/", LaunchConfiguration("robot"), ".launch.py"]
    return LaunchDescription(
        [
            DeclareLaunchArgument("robot", default_value=None, choices=ROBOTS, description="the robot"),
            DeclareLaunchArgument("checkpoint", description="folder of a checkpoint, or of a run"),
            DeclareLaunchArgument(
                "driver",
                default_value="ros",
                choices=("ros", "direct"),
                description="ros: the robot's ROS 2 driver is running; direct: the vendor's Python package",
            ),
            DeclareLaunchArgument("robot_ip", default_value="", description="its address, for driver:=direct"),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(robot_side)),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(HERE / "graph.launch.py")),
                launch_arguments=[(name, LaunchConfiguration(name)) for name in ("robot", "checkpoint")],
            ),
        ]
    )
