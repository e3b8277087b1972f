"""Robots through their vendors' own Python packages: joint set-points in, joint states out.

A driver is what stands behind `hardware.ros.driver_node`, on the robot's side of the safety gate; it checks nothing
that the gate has checked. `make_driver` makes one by the name of its robot. None of them has been run on hardware.
"""

from robopolicy.errors import unknown
from robopolicy.hardware.drivers.base import Driver, DriverError, JointReading

DRIVERS = {"franka_panda": "franky", "franka_fr3": "franky", "ur5e": "ur_rtde"}
"""The driver of each robot that has one."""


def make_driver(robot: str, address: str) -> Driver:
    """The driver of `robot` at a network address, not yet connected; RobopolicyError for a robot without one."""
    if robot not in DRIVERS:
        raise unknown("robot with a direct driver", robot, DRIVERS)
    if DRIVERS[robot] == "franky":
        from robopolicy.hardware.drivers.franky import FrankyDriver

        return FrankyDriver(address)
    from robopolicy.hardware.drivers.ur_rtde import UrDriver

    return UrDriver(address)


__all__ = ["DRIVERS", "Driver", "DriverError", "JointReading", "make_driver"]
