"""robosuite's control step without the bookkeeping between its physics steps: the same numbers, three times as fast.

Of the 25 physics steps in a control step, robosuite itself does the first. In the others it looks up names, copies
states and updates observables 25 times; here only what determines the torques is left, with the same operations in
the same order, so that the results are equal to the last bit (a test compares whole episodes).
"""

from typing import Any

import numpy as np


class ArmTorques:
    """The torques of one arm's operational-space controller between two set-points (Khatib 1987)."""

    def __init__(self, env: Any, robot: Any) -> None:
        from robosuite.utils import control_utils

        self._opspace = control_utils.opspace_matrices
        self._nullspace = control_utils.nullspace_torques
        self._orientation_error = control_utils.orientation_error
        self._controller: Any = robot.part_controllers["right"]
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._site = env.sim.model.site_name2id(self._controller.ref_name)
        self._qpos, self._qvel = _rows(self._controller.qpos_index), _rows(self._controller.qvel_index)
        self._actuators = np.asarray(robot._ref_actuators_indexes_dict["right"])
        self._low, self._high = self._model.actuator_ctrlrange[self._actuators].T.copy()
        joints, nv = len(self._controller.qvel_index), self._model.nv
        self._translation, self._rotation = np.zeros((3, nv)), np.zeros((3, nv))
        self._inertia = np.zeros((nv, nv))
        self._j_pos, self._j_ori, self._j_full = np.zeros((3, joints)), np.zeros((3, joints)), np.zeros((6, joints))

    def begin(self) -> None:
        """Takes over the set-point that the controller was given for this control step."""
        controller = self._controller
        self._goal_position, self._goal_orientation = controller.goal_pos, controller.goal_ori
        if controller.input_ref_frame == "base":
            self._goal_position = controller.origin_pos + np.dot(controller.origin_ori, controller.goal_pos)
            self._goal_orientation = np.dot(controller.origin_ori, controller.goal_ori)
        self._kp, self._kd = controller.kp, controller.kd

    def apply(self) -> None:
        """Writes the torques for the present state into the simulator's controls."""
        import mujoco

        model, data, controller = self._model, self._data, self._controller
        mujoco.mj_jacSite(model, data, self._translation, self._rotation, self._site)
        qvel = data.qvel
        self._j_pos[:] = self._translation[:, self._qvel]
        self._j_ori[:] = self._rotation[:, self._qvel]
        self._j_full[:3], self._j_full[3:] = self._j_pos, self._j_ori
        mujoco.mj_fullM(model, self._inertia, data.qM)
        # Column-major as numpy's indexing with two lists leaves it, which decides the order of sums.
        inertia = np.asfortranarray(self._inertia[self._qvel][:, self._qvel])
        orientation = data.site_xmat[self._site].reshape(3, 3)
        kp, kd = self._kp, self._kd
        force = (self._goal_position - data.site_xpos[self._site]) * kp[:3] - np.dot(self._translation, qvel) * kd[:3]
        error = self._orientation_error(self._goal_orientation, orientation)
        torque = error * kp[3:6] - np.dot(self._rotation, qvel) * kd[3:6]
        full, position, rotation, nullspace = self._opspace(inertia, self._j_full, self._j_pos, self._j_ori)
        if controller.uncoupling:
            wrench = np.concatenate([np.dot(position, force), np.dot(rotation, torque)])
        else:
            wrench = np.dot(full, np.concatenate([force, torque]))
        torques = np.dot(self._j_full.T, wrench) + data.qfrc_bias[self._qvel]
        joint_pos, joint_vel = np.array(data.qpos[self._qpos]), np.array(qvel[self._qvel])
        torques += self._nullspace(inertia, nullspace, controller.initial_joint, joint_pos, joint_vel)
        data.ctrl[self._actuators] = np.minimum(np.maximum(torques, self._low), self._high)


class FastStep:
    """`env.step` of an environment whose robots are `supported`; made anew after every reset."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._arms = [ArmTorques(env, robot) for robot in env.robots]
        self._substeps = int(env.control_timestep / env.model_timestep)

    @staticmethod
    def supported(env: Any) -> bool:
        """Whether every robot is one arm on a fixed base under an operational-space controller of fixed stiffness."""
        from robosuite.controllers.parts.arm.osc import OperationalSpaceController
        from robosuite.robots import FixedBaseRobot

        return bool(env.lite_physics) and all(
            type(robot) is FixedBaseRobot
            and list(robot.part_controllers) == ["right", "right_gripper"]
            and type(robot.part_controllers["right"]) is OperationalSpaceController
            and robot.part_controllers["right"].impedance_mode == "fixed"
            and robot.part_controllers["right"].interpolator_pos is None
            and robot.part_controllers["right"].interpolator_ori is None
            for robot in env.robots
        )

    def __call__(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """One control step with robosuite's action [D_a]; returns its observations and reward."""
        import mujoco

        env = self._env
        model, data = env.sim.model._model, env.sim.data._data
        env.timestep += 1
        mujoco.mj_step1(model, data)
        env._pre_action(action, True)
        mujoco.mj_step2(model, data)
        for arm in self._arms:
            arm.begin()
        for _ in range(self._substeps - 1):
            mujoco.mj_step1(model, data)
            for arm in self._arms:
                arm.apply()
            mujoco.mj_step2(model, data)
        env.cur_time += env.control_timestep
        return env._get_observations(force_update=True), float(env.reward(action))


def _rows(index: Any) -> Any:
    """A slice where the numbers are consecutive, which is faster, else their array."""
    numbers = np.asarray(index)
    first = int(numbers[0])
    return slice(first, first + len(numbers)) if (np.diff(numbers) == 1).all() else numbers
