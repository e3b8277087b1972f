"""Robot side of sim_a1: the simulation."""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

HERE = Path(__file__).resolve().parent


def generate_launch_description():
    """Only the simulated robot."""
    return LaunchDescription(
        [
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(HERE.parent / "sim_robot.launch.py")),
                launch_arguments=[("robot", "sim_a1")],
            )
        ]
    )
