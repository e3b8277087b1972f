"""Standard ROS messages to arrays and back. Joints are mapped by name, never by place."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Duration
from builtin_interfaces.msg import Time as Stamp
from geometry_msgs.msg import Quaternion, Twist, Vector3
from sensor_msgs.msg import Imu, JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robopolicy.errors import RobopolicyError, did_you_mean
from robopolicy.hardware.chunks import MAX_ROWS

GAIN_COLUMNS = ("q", "dq", "tau", "kp", "kd")
"""Of a joint command with gains: torque = kp (q - position) + kd (dq - velocity) + tau, in the motor."""


def seconds(value: Stamp | Duration) -> float:
    """Of a stamp or a duration."""
    return float(value.sec) + float(value.nanosec) * 1e-9


def duration(value: float) -> Duration:
    """`value` in seconds, not negative."""
    nanoseconds = round(value * 1e9)
    return Duration(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def chunk_message(
    stamp: Stamp, session: str, number: int, names: Sequence[str], times: np.ndarray, rows: np.ndarray
) -> JointTrajectory:
    """An action chunk: rows [K, n] for the joints `names`, each `times` [K] seconds after the observation's stamp."""
    message = JointTrajectory(joint_names=list(names))
    message.header.stamp = stamp
    message.header.frame_id = f"{session}:{number}"
    for time, row in zip(np.asarray(times).tolist(), np.asarray(rows, np.float64).tolist(), strict=True):
        message.points.append(JointTrajectoryPoint(positions=row, time_from_start=duration(time)))
    return message


@dataclass(frozen=True)
class ChunkContent:
    """What an action chunk says, apart from its stamp."""

    session: str
    number: int
    times: np.ndarray
    """[K]"""
    rows: np.ndarray
    """[K, n], columns in the order of the names asked for."""


def chunk_content(message: JointTrajectory, names: Sequence[str]) -> ChunkContent:
    """Reads an action chunk for the joints `names`; RobopolicyError for wrong joints, sizes or numbering."""
    session, colon, number = message.header.frame_id.rpartition(":")
    if not (colon and session and number.isascii() and number.isdigit() and len(number) < 19):
        raise RobopolicyError(f"frame_id is {message.header.frame_id!r}, expected <session>:<number>")
    places = _places(list(message.joint_names), names)
    if not 1 <= len(message.points) <= MAX_ROWS:
        raise RobopolicyError(f"{len(message.points)} points, expected 1 to {MAX_ROWS}")
    for k, point in enumerate(message.points):
        if len(point.positions) != len(message.joint_names):
            raise RobopolicyError(f"point {k} has {len(point.positions)} positions, expected {len(names)}")
    times = np.array([seconds(p.time_from_start) for p in message.points])
    rows = np.array([p.positions for p in message.points], np.float64)
    return ChunkContent(session, int(number), times, rows[:, places])


def _places(found: list[str], names: Sequence[str]) -> list[int]:
    """Where each of `names` is in `found`, which must hold these and no others."""
    place = {name: i for i, name in enumerate(found)}
    if len(place) != len(found):
        raise RobopolicyError(f"joint_names repeat: {', '.join(found)}")
    for name in names:
        if name not in place:
            raise RobopolicyError(f"joint_names lack {name!r}.{did_you_mean(name, found)}")
    if extra := [name for name in found if name not in set(names)]:
        raise RobopolicyError(f"unknown joint {extra[0]!r}.{did_you_mean(extra[0], names)}")
    return [place[name] for name in names]


def joint_state(
    stamp: Stamp, names: Sequence[str], position: np.ndarray, velocity: np.ndarray | None = None
) -> JointState:
    """Positions and velocities [n]."""
    message = JointState(name=list(names), position=np.asarray(position, np.float64).tolist())
    if velocity is not None:
        message.velocity = np.asarray(velocity, np.float64).tolist()
    message.header.stamp = stamp
    return message


def positions(message: JointState, names: Sequence[str]) -> np.ndarray:
    """Positions [n] of the joints `names`, NaN for those that the message does not have."""
    values = np.full(len(names), np.nan)
    place = {name: i for i, name in enumerate(message.name)}
    for i, name in enumerate(names):
        j = place.get(name, len(message.position))
        if j < len(message.position):
            values[i] = message.position[j]
    return values


def array_message(values: np.ndarray) -> Float64MultiArray:
    """A vector for a forward controller."""
    return Float64MultiArray(data=np.asarray(values, np.float64).ravel().tolist())


def gains_message(q: np.ndarray, dq: np.ndarray, tau: np.ndarray, kp: np.ndarray, kd: np.ndarray) -> Float64MultiArray:
    """Joint targets with the gains that belong to them, in one message, as legged robots take them: [n, 5]."""
    table = np.stack([q, dq, tau, kp, kd], axis=1)
    message = array_message(table)
    message.layout.dim = [
        MultiArrayDimension(label="joint", size=len(table), stride=table.size),
        MultiArrayDimension(label=",".join(GAIN_COLUMNS), size=len(GAIN_COLUMNS), stride=len(GAIN_COLUMNS)),
    ]
    return message


def imu_message(
    stamp: Stamp, frame: str, orientation: np.ndarray, angular_velocity: np.ndarray, linear_acceleration: np.ndarray
) -> Imu:
    """Orientation wxyz, which ROS has as xyzw; rad/s and m/s^2 in the frame of the IMU; covariances unknown."""
    message = Imu()
    message.header.stamp, message.header.frame_id = stamp, frame
    w, x, y, z = map(float, orientation)
    message.orientation = Quaternion(x=x, y=y, z=z, w=w)
    message.angular_velocity = vector(angular_velocity)
    message.linear_acceleration = vector(linear_acceleration)
    return message


def twist_message(velocity: np.ndarray) -> Twist:
    """Of a velocity [3]: forward and sideways m/s, yaw rate rad/s."""
    forward, sideways, yaw_rate = map(float, velocity)
    return Twist(linear=Vector3(x=forward, y=sideways), angular=Vector3(z=yaw_rate))


def vector(values: np.ndarray) -> Vector3:
    """[3]"""
    return Vector3(x=float(values[0]), y=float(values[1]), z=float(values[2]))


def gains_content(message: Float64MultiArray, n: int) -> np.ndarray:
    """The table [n, 5] of a message of `gains_message`; RobopolicyError for another size or labels."""
    label = message.layout.dim[1].label if len(message.layout.dim) == 2 else ""
    if len(message.data) != n * len(GAIN_COLUMNS) or label != ",".join(GAIN_COLUMNS):
        raise RobopolicyError(
            f"joint command with {len(message.data)} numbers {label!r}, expected {n} x {','.join(GAIN_COLUMNS)}"
        )
    return np.array(message.data).reshape(n, len(GAIN_COLUMNS))
