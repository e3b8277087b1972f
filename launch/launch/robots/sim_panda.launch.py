"""Robot side of sim_panda: the simulation."""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

HERE = Path(__file__).resolve().parent


def generate_launch_description():
    """Only the simulated robot."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("driver", default_value="ros", choices=("ros",), description="ros: it is simulated"),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(HERE.parent / "sim_robot.launch.py")),
                launch_arguments=[("robot", "sim_panda")],
            ),
        ]
    )
