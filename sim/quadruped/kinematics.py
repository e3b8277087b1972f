"""Closed-form kinematics of all legs of N robots, and rotations; quaternions are wxyz."""

import numpy as np

from robopolicy.sim.quadruped.robots import ENDS, SIDES, Robot


def rotations(quaternions: np.ndarray) -> np.ndarray:
    """Matrices [N, 3, 3] that turn base coordinates into world coordinates, of unit quaternions [N, 4]."""
    w, x, y, z = quaternions.T
    xx, yy, zz, xy, xz, yz = x * x, y * y, z * z, x * y, x * z, y * z
    wx, wy, wz = w * x, w * y, w * z
    result = np.empty((len(quaternions), 3, 3))
    result[:, 0, 0], result[:, 0, 1], result[:, 0, 2] = 1 - 2 * (yy + zz), 2 * (xy - wz), 2 * (xz + wy)
    result[:, 1, 0], result[:, 1, 1], result[:, 1, 2] = 2 * (xy + wz), 1 - 2 * (xx + zz), 2 * (yz - wx)
    result[:, 2, 0], result[:, 2, 1], result[:, 2, 2] = 2 * (xz - wy), 2 * (yz + wx), 1 - 2 * (xx + yy)
    return result


def into_base(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """World vectors [N, 3] in the base frames [N, 3, 3]."""
    return np.einsum("nij,ni->nj", rotation, vectors)


def into_world(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Base vectors [N, 3] in the world."""
    return np.einsum("nij,nj->ni", rotation, vectors)


def level_into_base(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, 3] of the frame that turns with the heading and stays level, in the base frames [N, 3, 3]."""
    turn = yaw(rotation)
    cosine, sine, (x, y, z) = np.cos(turn), np.sin(turn), vectors.T
    return into_base(rotation, np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=1))


def yaw(rotation: np.ndarray) -> np.ndarray:
    """Heading [N] of the base's x axis in the world, rad."""
    return np.asarray(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]))


def feet(robot: Robot, joints: np.ndarray, speeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities of the feet's centres in the base frame, [3, N, 4] each, m and m/s.

    `joints` and `speeds` are [N, 12]; the velocities are those the joints give, without the trunk's own motion.
    """
    angles, rates = joints.reshape(-1, 4, 3), speeds.reshape(-1, 4, 3)
    hip, thigh, shank = angles[:, :, 0], angles[:, :, 1], angles[:, :, 1] + angles[:, :, 2]
    hip_rate, thigh_rate, shank_rate = rates[:, :, 0], rates[:, :, 1], rates[:, :, 1] + rates[:, :, 2]
    across, across_shank = robot.thigh_length * np.cos(thigh), robot.shank_length * np.cos(shank)
    along, along_shank = robot.thigh_length * np.sin(thigh), robot.shank_length * np.sin(shank)
    # In the leg's plane, which the hip turns about x: y is the sideways offset, z points along the leg.
    side, down = SIDES * robot.hip_offset, -(across + across_shank)
    down_speed = along * thigh_rate + along_shank * shank_rate
    sine, cosine = np.sin(hip), np.cos(hip)
    position, velocity = np.empty((3, *hip.shape)), np.empty((3, *hip.shape))
    turned_y, turned_z = side * cosine - down * sine, side * sine + down * cosine
    position[0] = ENDS * robot.hip_x - along - along_shank
    position[1] = SIDES * robot.hip_y + turned_y
    position[2] = turned_z
    velocity[0] = -(across * thigh_rate + across_shank * shank_rate)
    velocity[1] = -turned_z * hip_rate - sine * down_speed
    velocity[2] = turned_y * hip_rate + cosine * down_speed
    return position, velocity
