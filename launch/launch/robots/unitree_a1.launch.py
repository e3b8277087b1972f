"""Robot side of unitree_a1: a bridge to unitree_legged_sdk, started by you."""

from launch import LaunchDescription
from launch.actions import LogInfo


def generate_launch_description():
    """A word about what has to run."""
    return LaunchDescription(
        [LogInfo(msg="unitree_a1: a bridge to unitree_legged_sdk has to run, as the only writer of motor commands")]
    )
