"""Robot side of unitree_go2: a bridge to rt/lowcmd, started by you."""

from launch import LaunchDescription
from launch.actions import LogInfo


def generate_launch_description():
    """A word about what has to run."""
    return LaunchDescription(
        [LogInfo(msg="unitree_go2: a bridge to rt/lowcmd has to run, as the only writer of motor commands")]
    )
