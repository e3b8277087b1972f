"""Simulated robots: tasks whose physics advances in slices, as a controller and its sensors see it.

A `Task` steps at the rate of its policy. A robot takes set-points at whatever rate they come, is looked at whenever
somebody asks, and does not wait. `make_robot` makes one by name.
"""

from robopolicy.errors import unknown
from robopolicy.sim.robots.base import EpisodeResult, ImuReading, JointReading, LeggedRobot, SimRobot

ROBOTS = ("sim_pusht", "sim_panda", "sim_a1")


def make_robot(name: str) -> SimRobot:
    """A simulated robot, not yet reset. RobopolicyError for an unknown name or a missing package."""
    if name == "sim_pusht":
        from robopolicy.sim.robots.pusht import PushTRobot

        return PushTRobot()
    if name == "sim_panda":
        from robopolicy.sim.robots.panda import PandaRobot

        return PandaRobot()
    if name == "sim_a1":
        from robopolicy.sim.robots.a1 import A1Robot

        return A1Robot()
    raise unknown("simulated robot", name, ROBOTS)


__all__ = ["ROBOTS", "EpisodeResult", "ImuReading", "JointReading", "LeggedRobot", "SimRobot", "make_robot"]
