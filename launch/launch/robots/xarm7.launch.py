"""Robot side of xarm7: its ROS 2 driver, started by you."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo


def generate_launch_description():
    """A word about what has to run."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "driver", default_value="ros", choices=("ros",), description="ros: there is no direct driver"
            ),
            LogInfo(msg="xarm7: xarm_ros2 has to run, with xarm7_traj_controller active"),
        ]
    )
