"""Robot side of so101: its ROS 2 driver, started by you."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo


def generate_launch_description():
    """A word about what has to run."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "driver", default_value="ros", choices=("ros",), description="ros: there is no direct driver"
            ),
            LogInfo(
                msg="so101: ros2_control driver of the SO-101 has to run, with forward_position_controller active"
            ),
        ]
    )
