"""What a quadruped's policy sees: numbers that the robot's own sensors and its command give."""

import numpy as np

from robopolicy.sim.quadruped.robots import JOINTS, Robot

SEEN = 45
NAMES = (
    *("command_forward", "command_sideways", "command_yaw_rate"),
    *(f"angular_velocity_{a}" for a in "xyz"),
    *(f"gravity_{a}" for a in "xyz"),
    *(f"position_{j}" for j in JOINTS),
    *(f"velocity_{j}" for j in JOINTS),
    *(f"previous_action_{j}" for j in JOINTS),
)
COMMAND = np.array([2.0, 2.0, 0.25])
RATE, JOINT_VELOCITY, VELOCITY = 0.25, 0.05, 2.0
"""Scales of the observation; those of gravity, joint angles and previous action are 1."""


def observation(
    command: np.ndarray,
    rate: np.ndarray,
    gravity: np.ndarray,
    joints: np.ndarray,
    joint_velocities: np.ndarray,
    action: np.ndarray,
) -> np.ndarray:
    """[K, 45] of the command [K, 3] (m/s, m/s, rad/s), angular velocity [K, 3] (rad/s) and gravity's direction [K, 3]
    in the base frame, joint angles from the default posture [K, 12] (rad), their velocities (rad/s) and the previous
    action as the policy gave it."""
    result = np.empty((len(command), SEEN))
    result[:, :3] = command * COMMAND
    result[:, 3:6] = rate * RATE
    result[:, 6:9] = gravity
    result[:, 9:21] = joints
    result[:, 21:33] = joint_velocities * JOINT_VELOCITY
    result[:, 33:] = action
    return result


UNITS = (*("m/s", "m/s", "rad/s"), *("rad/s",) * 3, *("",) * 3, *("rad",) * 12, *("rad/s",) * 12, *("rad",) * 12)
"""Of `physical` inputs."""


def physical(robot: Robot) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Shift [45], factor [45] and names of inputs in SI units, x, of which (x - shift) * factor is the observation.

    Joint angles are absolute, and in place of the previous action stands the previous target angle of every joint.
    """
    shift, factor = np.zeros(SEEN), np.ones(SEEN)
    shift[9:21] = shift[33:] = robot.posture
    factor[:3], factor[3:6], factor[21:33], factor[33:] = COMMAND, RATE, JOINT_VELOCITY, 1 / robot.action_scale
    return shift, factor, (*NAMES[:33], *(f"previous_target_{joint}" for joint in JOINTS))
