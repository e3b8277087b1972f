"""A simulated robot under a policy: `ros2 launch robopolicy sim.launch.py checkpoint:=outputs/run`."""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

HERE = Path(__file__).resolve().parent
ROBOTS = ("sim_pusht", "sim_panda", "sim_a1")


def generate_launch_description():
    """The robot's side from its own file, and the graph that all robots share."""
    robot_side = [str(HERE / "robots"), "/", LaunchConfiguration("robot"), ".launch.py"]
    return LaunchDescription(
        [
            DeclareLaunchArgument("robot", default_value="sim_pusht", choices=ROBOTS, description="the robot"),
            DeclareLaunchArgument("checkpoint", description="folder of a checkpoint, or of a run"),
            DeclareLaunchArgument(
                "mode",
                default_value="real_time",
                choices=("real_time", "stepped"),
                description="stepped: time advances one control period per command, with use_sim_time:=true",
            ),
            DeclareLaunchArgument("camera_hz", default_value="0", description="rate of the pictures, 0 for none"),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(robot_side)),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(HERE / "graph.launch.py")),
                launch_arguments=[(name, LaunchConfiguration(name)) for name in ("robot", "checkpoint")],
            ),
        ]
    )
