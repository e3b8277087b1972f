"""robosuite's Lift with joint position targets: a Panda at its table, a cube, a parallel gripper (extra `robomimic`).

The arm's targets g pass through a computed-torque law in every physics step, tau = M(q) (K_P (g - q) - K_D q') + h,
where h is gravity and Coriolis forces, limited to the motors' torques: what a Panda's joint position interface does,
seen from outside. Metres and radians.
"""

from typing import Any, ClassVar

import numpy as np

from robopolicy.errors import RobopolicyError
from robopolicy.sim.rendering import Quality, Renderer
from robopolicy.sim.robots.base import JointReading, SimRobot

STIFFNESS, DAMPING = 1600.0, 80.0
"""1/s^2 and 1/s: critically damped, 40 rad/s."""
FINGER_OPEN = 0.04
"""Way of one finger, m."""
PICTURE = (240, 320)


class PandaRobot(SimRobot):
    """Seven joints and one finger; the cube's pose as a stream; robosuite's cameras."""

    name = "sim_panda"
    joints: ClassVar[tuple[str, ...]] = (*(f"panda_joint{i}" for i in range(1, 8)), "panda_finger_joint1")
    streams: ClassVar[dict[str, tuple[str, ...]]] = {
        "object_state": tuple(f"cube_pos_{a}" for a in "xyz")
        + tuple(f"cube_quat_{a}" for a in "wxyz")
        + tuple(f"gripper_to_cube_pos_{a}" for a in "xyz")
    }
    cameras: ClassVar[dict[str, tuple[int, int]]] = {"agentview": PICTURE, "robot0_eye_in_hand": PICTURE}
    step_s = 0.002
    steps_per_control = 25
    max_steps = 400

    def __init__(self) -> None:
        super().__init__()
        from robopolicy.sim.robomimic import Lift

        self._task = Lift()
        env = self._task.env
        self._model: Any = env.sim.model._model
        self._data: Any = env.sim.data._data
        if abs(self._model.opt.timestep - self.step_s) > 1e-12:
            raise RobopolicyError(f"{self.name}: physics step {self._model.opt.timestep} s, expected {self.step_s}")
        robot = env.robots[0]
        arm = robot.part_controllers["right"]
        self._qpos, self._dofs = np.array(arm.qpos_index), np.array(arm.qvel_index)
        self._motors = np.array(robot._ref_actuators_indexes_dict["right"])
        self._fingers = np.array(robot._ref_actuators_indexes_dict["right_gripper"])
        names = [self._model.joint(self._model.actuator(i).trnid[0]).name for i in self._fingers]
        self._finger_qpos = np.array([self._model.joint(n).qposadr[0] for n in names])
        self._finger_dof = np.array([self._model.joint(n).dofadr[0] for n in names])
        # One finger moves along its axis, the other against it.
        self._finger_sign = np.sign(self._model.actuator_ctrlrange[self._fingers].sum(axis=1))
        self._torque_limits = self._model.actuator_ctrlrange[self._motors].T.copy()
        self._inertia = np.zeros((self._model.nv, self._model.nv))
        self._target = np.zeros(8)
        self._renderer: Renderer | None = None

    def _reset(self, seed: int) -> None:
        self._task.reset(seed=seed)
        self.hold()

    def hold(self) -> None:
        self._target = self.joint_state().position

    def _follow(self, target: np.ndarray) -> None:
        self._target = target.copy()

    def _advance(self, steps: int) -> None:
        import mujoco

        model, data = self._model, self._data
        low, high = self._torque_limits
        opening = np.clip(self._target[7], 0.0, FINGER_OPEN)
        for _ in range(steps):
            mujoco.mj_step1(model, data)
            mujoco.mj_fullM(model, self._inertia, data.qM)
            wanted = STIFFNESS * (self._target[:7] - data.qpos[self._qpos]) - DAMPING * data.qvel[self._dofs]
            torque = self._inertia[np.ix_(self._dofs, self._dofs)] @ wanted + data.qfrc_bias[self._dofs]
            data.ctrl[self._motors] = np.clip(torque, low, high)
            data.ctrl[self._fingers] = self._finger_sign * opening
            mujoco.mj_step2(model, data)

    def _assess(self) -> tuple[float, bool]:
        success = self._task.success
        return float(success), success

    def joint_state(self) -> JointReading:
        data = self._data
        finger = self._finger_sign * data.qpos[self._finger_qpos]
        speed = self._finger_sign * data.qvel[self._finger_dof]
        return JointReading(
            self.joints,
            np.concatenate([data.qpos[self._qpos], finger[:1]]),
            np.concatenate([data.qvel[self._dofs], speed[:1]]),
        )

    def _stream(self, name: str) -> np.ndarray:
        data, env = self._data, self._task.env
        cube = data.xpos[env.cube_body_id]
        hand = data.site_xpos[env.robots[0].eef_site_id["right"]]
        return np.concatenate([cube, data.xquat[env.cube_body_id], hand - cube])

    def _picture(self, camera: str) -> np.ndarray:
        if self._renderer is None:
            self._renderer = Renderer(self._model, PICTURE[1], PICTURE[0], Quality(), {0: False, 1: True})
        return self._renderer(self._data, camera)

    def mirror(self, position: np.ndarray, streams: dict[str, np.ndarray]) -> None:
        import mujoco

        data, cube = self._data, self._model.joint(self._task.env.cube.joints[0]).qposadr[0]
        data.qpos[self._qpos] = position[:7]
        data.qpos[self._finger_qpos] = self._finger_sign * position[7]
        data.qpos[cube : cube + 7] = streams["object_state"][:7]
        mujoco.mj_forward(self._model, data)

    def fingerprint(self) -> dict[str, str]:
        return self._task.fingerprint()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._task.close()
