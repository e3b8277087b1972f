"""Robot side of franka_fr3: franka_ros2, started by you, or with driver:=direct our driver."""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, LogInfo
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import EqualsSubstitution, LaunchConfiguration

HERE = Path(__file__).resolve().parent


def generate_launch_description():
    """Our driver, or a word about what has to run."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "driver",
                default_value="ros",
                choices=("ros", "direct"),
                description="ros: franka_ros2 is running; direct: the vendor's Python package, needs robot_ip",
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(HERE.parent / "direct_driver.launch.py")),
                launch_arguments=[("robot", "franka_fr3"), ("robot_ip", LaunchConfiguration("robot_ip"))],
                condition=IfCondition(EqualsSubstitution(LaunchConfiguration("driver"), "direct")),
            ),
            LogInfo(
                msg="franka_fr3: franka_ros2 has to run, with joint_trajectory_controller active",
                condition=IfCondition(EqualsSubstitution(LaunchConfiguration("driver"), "ros")),
            ),
        ]
    )
