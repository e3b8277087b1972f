"""robosuite's control step without the bookkeeping between its physics steps: the same numbers, three times as fast.

In each of the 25 physics steps of a control step robosuite looks up names, copies states, updates observables and
keeps histories. Here only what determines the torques is left, with the same operations in the same order, so that
the results are equal to the last bit (tests compare with robosuite and with robomimic's environment).
"""

from typing import Any

import numpy as np


class ArmTorques:
    """The torques of one arm's operational-space controller between two set-points (Khatib 1987).

    All arrays of the simulator are views that MuJoCo keeps current, looked up once.
    """

    def __init__(self, env: Any, robot: Any) -> None:
        from robopolicy.sim.robosuite_torques import write_torques

        self._write_torques = write_torques
        self._controller: Any = robot.part_controllers["right"]
        self._model, data = env.sim.model._model, env.sim.data._data
        self._data = data
        self._site = env.sim.model.site_name2id(self._controller.ref_name)
        qpos, self._dofs = _rows(self._controller.qpos_index), _rows(self._controller.qvel_index)
        actuators = _rows(robot._ref_actuators_indexes_dict["right"])
        self._position, self._orientation = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)
        self._joint_pos, self._joint_vel = data.qpos[qpos], data.qvel[self._dofs]
        self._velocity, self._bias, self._packed_inertia = data.qvel, data.qfrc_bias[self._dofs], data.qM
        self._ctrl = data.ctrl[actuators]
        self._composite, self._gripper = robot.composite_controller, robot.part_controllers["right_gripper"]
        fingers = _rows(robot._ref_actuators_indexes_dict["right_gripper"])
        self._finger_ctrl = data.ctrl[fingers]
        self._finger_low, self._finger_high = self._model.actuator_ctrlrange[fingers].T.copy()
        self._low, self._high = self._model.actuator_ctrlrange[actuators].T.copy()
        nv = self._model.nv
        self._translation, self._rotation = np.zeros((3, nv)), np.zeros((3, nv))
        self._inertia = np.zeros((nv, nv))

    def command(self, action: np.ndarray) -> None:
        """Gives the controllers of arm and fingers an action [7] in the present state."""
        controller = self._controller
        controller.ref_pos[:], controller.ref_ori_mat[:] = self._position, self._orientation
        # Set-points need no more of the state than this.
        controller.new_update = self._gripper.new_update = False
        self._composite.update_state()
        self._composite.set_goal(action)
        fingers = self._gripper.run_controller()
        self._finger_ctrl[:] = np.clip(fingers, self._finger_low, self._finger_high)
        self.begin()

    def begin(self) -> None:
        """Takes over the set-point that the controller was given for this control step."""
        controller = self._controller
        self._goal_position, self._goal_orientation = controller.goal_pos, controller.goal_ori
        if controller.input_ref_frame == "base":
            self._goal_position = controller.origin_pos + np.dot(controller.origin_ori, controller.goal_pos)
            self._goal_orientation = np.dot(controller.origin_ori, controller.goal_ori)
        self._stiffness, self._damping = np.asarray(controller.kp, float), np.asarray(controller.kd, float)

    def apply(self) -> None:
        """Writes the torques for the present state into the simulator's controls."""
        import mujoco

        mujoco.mj_jacSite(self._model, self._data, self._translation, self._rotation, self._site)
        mujoco.mj_fullM(self._model, self._inertia, self._packed_inertia)
        self._write_torques(
            self._ctrl,
            self._inertia,
            self._translation,
            self._rotation,
            self._dofs.start,
            self._joint_pos,
            self._joint_vel,
            self._velocity,
            self._bias,
            self._position,
            self._orientation,
            self._goal_position,
            self._goal_orientation,
            self._stiffness,
            self._damping,
            self._controller.uncoupling,
            self._controller.initial_joint,
            self._low,
            self._high,
        )


class FastStep:
    """`env.step` of an environment whose robots are `supported`; made anew after every reset."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._arms = [ArmTorques(env, robot) for robot in env.robots]
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._first = True

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
        for substep in range(self._substeps):
            mujoco.mj_step1(model, data)
            if self._first:
                # After a reset, robosuite's controllers begin with inertias from before the fingers were placed.
                env._pre_action(action, True)
                for arm in self._arms:
                    arm.begin()
                self._first = False
            else:
                if substep == 0:
                    for arm, part in zip(self._arms, np.split(action, len(self._arms)), strict=True):
                        arm.command(part)
                for arm in self._arms:
                    arm.apply()
            mujoco.mj_step2(model, data)
        env.cur_time += env.control_timestep
        return env._get_observations(force_update=True), float(env.reward(action))


def _rows(index: Any) -> slice:
    """Consecutive numbers as a slice, whose values are views."""
    first = int(index[0])
    assert list(index) == list(range(first, first + len(index)))
    return slice(first, first + len(index))
