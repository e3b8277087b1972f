"""Set-points of the gate as the messages that controllers take, one class per kind of controller.

What comes after the gate must end well without it. Position and trajectory commands leave the robot at or on the way
to a standstill; velocity commands need a controller that stops by itself when they cease.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from builtin_interfaces.msg import Time as Stamp
from geometry_msgs.msg import Point, PoseStamped, Quaternion, TwistStamped
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robopolicy.hardware.geometry import RobotGeometry, quaternion, rotation_vector
from robopolicy.hardware.profiles import Command, RobotProfile
from robopolicy.hardware.ros.messages import array_message, duration, gains_message, vector
from robopolicy.hardware.ros.node import COMMAND

STOP_POINTS = 6
"""Points of the way of braking in a trajectory message."""


@dataclass(frozen=True)
class Setpoint:
    """What the gate lets through in one period; arrays [n] in the order of the profile."""

    stamp: Stamp
    position: np.ndarray
    velocity: np.ndarray
    stop: np.ndarray
    """Set-points [K, n] of braking from here, one per period; none when at rest."""
    measured: np.ndarray | None
    faulty: bool
    """Whether a fault is latched."""


class Adapter(Protocol):
    """Sends set-points to one controller."""

    needs_stop: bool
    """Whether it sends the way of braking too."""

    def send(self, setpoint: Setpoint) -> None: ...


class TrajectoryAdapter:
    """trajectory_msgs/JointTrajectory for a joint_trajectory_controller.

    Each message is stamped and has the set-point with its velocity one `lead_s` ahead, then the way of braking to a
    standstill. Without velocities the controller would interpolate in jerks, without the end it would refuse the
    trajectory (the last velocity must be zero) or run on where the next message is lost: if none follows, the robot
    brakes along the way that the gate has checked.
    """

    needs_stop = True

    def __init__(self, node: Node, command: Command, names: Sequence[str], joints: np.ndarray, period: float) -> None:
        self._publisher = node.create_publisher(JointTrajectory, command.topic, COMMAND)
        self._names, self._joints, self._period = list(names), joints, period
        self._lead = command.lead_s or period

    def send(self, setpoint: Setpoint) -> None:
        message = JointTrajectory(joint_names=self._names)
        message.header.stamp = setpoint.stamp
        path = np.concatenate([setpoint.position[None], setpoint.stop])[:, self._joints]
        speeds = np.concatenate([setpoint.velocity[None, self._joints], np.diff(path, axis=0) / self._period])
        speeds[-1] = 0.0
        rows = np.unique(np.linspace(0, len(path) - 1, min(STOP_POINTS, len(path))).astype(int))
        for row in rows.tolist():
            time = duration(self._lead + row * self._period)
            message.points.append(
                JointTrajectoryPoint(
                    positions=path[row].tolist(), velocities=speeds[row].tolist(), time_from_start=time
                )
            )
        self._publisher.publish(message)


class PositionAdapter:
    """std_msgs/Float64MultiArray of positions, in the order of the profile, for a forward_position_controller."""

    needs_stop = False

    def __init__(self, node: Node, command: Command, joints: np.ndarray) -> None:
        self._publisher = node.create_publisher(Float64MultiArray, command.topic, COMMAND)
        self._joints = joints

    def send(self, setpoint: Setpoint) -> None:
        self._publisher.publish(array_message(setpoint.position[self._joints]))


class VelocityAdapter:
    """std_msgs/Float64MultiArray of velocities for a forward_velocity_controller.

    Velocity of the set-points plus `gain` times what the robot lags behind them, within the limits of the joints; a
    latched fault ends the correction, for the measured positions may be what is wrong.
    """

    needs_stop = False

    def __init__(self, node: Node, command: Command, joints: np.ndarray, limits: np.ndarray) -> None:
        self._publisher = node.create_publisher(Float64MultiArray, command.topic, COMMAND)
        self._joints, self._limits, self._gain = joints, limits, command.gain

    def send(self, setpoint: Setpoint) -> None:
        velocity = setpoint.velocity
        if setpoint.measured is not None and not setpoint.faulty:
            velocity = velocity + self._gain * (setpoint.position - setpoint.measured)
        self._publisher.publish(array_message(np.clip(velocity, -self._limits, self._limits)[self._joints]))


class PoseAdapter:
    """geometry_msgs/PoseStamped of the frame of the profile's geometry, for servo controllers."""

    needs_stop = False

    def __init__(self, node: Node, command: Command, geometry: RobotGeometry) -> None:
        self._publisher = node.create_publisher(PoseStamped, command.topic, COMMAND)
        self._geometry, self._frame = geometry, command.frame

    def send(self, setpoint: Setpoint) -> None:
        place, matrix = self._geometry.pose(setpoint.position)
        w, x, y, z = quaternion(matrix).tolist()
        message = PoseStamped()
        message.header.stamp, message.header.frame_id = setpoint.stamp, self._frame
        message.pose.position = Point(x=float(place[0]), y=float(place[1]), z=float(place[2]))
        message.pose.orientation = Quaternion(x=x, y=y, z=z, w=w)
        self._publisher.publish(message)


class TwistAdapter:
    """geometry_msgs/TwistStamped of the frame of the profile's geometry, along the axes of the model's world."""

    needs_stop = False

    def __init__(self, node: Node, command: Command, geometry: RobotGeometry, period: float) -> None:
        self._publisher = node.create_publisher(TwistStamped, command.topic, COMMAND)
        self._geometry, self._frame, self._period = geometry, command.frame, period

    def send(self, setpoint: Setpoint) -> None:
        place, matrix = self._geometry.pose(setpoint.position)
        next_place, next_matrix = self._geometry.pose(setpoint.position + setpoint.velocity * self._period)
        message = TwistStamped()
        message.header.stamp, message.header.frame_id = setpoint.stamp, self._frame
        message.twist.linear = vector((next_place - place) / self._period)
        message.twist.angular = vector(rotation_vector(next_matrix @ matrix.T) / self._period)
        self._publisher.publish(message)


class GainsAdapter:
    """Joint targets with gains for legged robots: std_msgs/Float64MultiArray [n, 5] of q, dq, tau, kp, kd.

    One message, so that targets and gains never come from different periods. Targets have no velocity of their own
    (dq 0), as policies are trained. With `hold: damp` a latched fault takes kp away and leaves the damping.
    """

    needs_stop = False

    def __init__(self, node: Node, profile: RobotProfile) -> None:
        self._publisher = node.create_publisher(Float64MultiArray, profile.command.topic, COMMAND)
        self._gains, self._damp = profile.gains, profile.hold == "damp"

    def send(self, setpoint: Setpoint) -> None:
        assert self._gains is not None
        limp = setpoint.faulty and self._damp
        kp, kd = (0.0, self._gains.damping) if limp else (self._gains.kp, self._gains.kd)
        q = setpoint.position
        zero, one = np.zeros_like(q), np.ones_like(q)
        self._publisher.publish(gains_message(q, zero, zero, kp * one, kd * one))


def make_adapters(node: Node, profile: RobotProfile, velocity_limits: np.ndarray) -> list[Adapter]:
    """The adapters of a robot: one for all joints, or one for the arm and one for its gripper."""
    apart = profile.gripper is not None and profile.gripper.command is not None
    arm = np.nonzero(profile.blended)[0] if apart else np.arange(len(profile.names))
    adapters = [_adapter(node, profile, profile.command, arm, velocity_limits)]
    if profile.gripper is not None and profile.gripper.command is not None:
        finger = np.nonzero(~profile.blended)[0]
        adapters.append(_adapter(node, profile, profile.gripper.command, finger, velocity_limits))
    return adapters


def _adapter(node: Node, profile: RobotProfile, command: Command, joints: np.ndarray, limits: np.ndarray) -> Adapter:
    period = 1 / profile.rate_hz
    if command.adapter == "joint_trajectory":
        names = [profile.names[i] for i in joints.tolist()]
        return TrajectoryAdapter(node, command, names, joints, period)
    if command.adapter == "forward_position":
        return PositionAdapter(node, command, joints)
    if command.adapter == "forward_velocity":
        return VelocityAdapter(node, command, joints, limits)
    if command.adapter == "joint_gains":
        return GainsAdapter(node, profile)
    geometry = RobotGeometry(profile)
    if command.adapter == "pose":
        return PoseAdapter(node, command, geometry)
    return TwistAdapter(node, command, geometry, period)
