"""The arithmetic of robosuite's operational-space controller in one compiled function (extra `robomimic`).

Between two physics steps, calling each of numpy's operations from Python takes longer than the operations themselves.
Importing this module imports robosuite and numba.
"""

import numpy as np
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error
from robosuite.utils.numba import jit_decorator


@jit_decorator
def write_torques(  # type: ignore[no-untyped-def]
    control,
    inertia,
    translation,
    rotation,
    first,
    joint_pos,
    joint_vel,
    velocity,
    bias,
    position,
    orientation,
    goal_position,
    goal_orientation,
    stiffness,
    damping,
    uncoupled,
    posture,
    low,
    high,
):
    """Writes the torques of one arm to `control` [n] within `low` and `high` [n], N m (Khatib 1987).

    Of the scene: inertia [nv, nv], Jacobians of the hand's site `translation` and `rotation` [3, nv], velocity [nv].
    Of the arm, whose n joints begin at `first`: joint_pos, joint_vel, bias and posture [n]. Of the hand: position and
    goal [3] m, orientation and goal [3, 3], stiffness and damping [6], of force before torque. The operations are
    robosuite's in its order, so that the numbers are its to the last bit.
    """
    joints = len(joint_pos)
    j_pos = translation[:, first : first + joints].copy()
    j_ori = rotation[:, first : first + joints].copy()
    j_full = np.concatenate((j_pos, j_ori))
    # Column-major as numpy's indexing with two lists leaves it, which decides the order of sums.
    mass = np.asfortranarray(inertia[first : first + joints, first : first + joints])
    force = (goal_position - position) * stiffness[:3] - np.dot(translation, velocity) * damping[:3]
    error = orientation_error(goal_orientation, orientation)
    torque = error * stiffness[3:] - np.dot(rotation, velocity) * damping[3:]
    full, of_force, of_torque, nullspace = opspace_matrices(mass, j_full, j_pos, j_ori)
    if uncoupled:
        wrench = np.concatenate((np.dot(of_force, force), np.dot(of_torque, torque)))
    else:
        wrench = np.dot(full, np.concatenate((force, torque)))
    torques = np.dot(j_full.T, wrench) + bias
    torques += nullspace_torques(mass, nullspace, posture, joint_pos, joint_vel)
    control[:] = np.minimum(np.maximum(torques, low), high)
