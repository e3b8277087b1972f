"""The A1 of `robopolicy.sim.quadruped` on level ground, asked to walk straight ahead for 20 s.

Its motors' controllers act in every physics step, as in training. The physics is that of `QuadrupedEnv` with the
nominal robot, to the last bit where commands come once per control step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np

from robopolicy.errors import RobopolicyError
from robopolicy.sim.quadruped import kinematics
from robopolicy.sim.quadruped.rewards import TRACKING_WIDTH
from robopolicy.sim.quadruped.robots import (
    CLEARANCE,
    CONTACT,
    CONTROL_DT,
    JOINTS,
    MIN_UPRIGHT,
    PHYSICS_DT,
    SUBSTEPS,
    compiled,
    robot,
)
from robopolicy.sim.rendering import Quality, Renderer
from robopolicy.sim.robots.base import EpisodeResult, ImuReading, JointReading, LeggedRobot

SPEED = 0.5
"""m/s ahead, what the operator asks for."""
HEADING_GAIN, MAX_YAW_RATE = 0.5, 2.0
"""1/s and rad/s: the operator keeps the heading with which the training's commands are made."""
SETTLE_S = 1.0
"""Seconds from the start that the tracking error does not count."""
SPREAD = (0.9, 1.1)
"""Factors on the default angles at the start of an episode, drawn by its seed."""
GRAVITY = 9.81
LOST = 1e4
"""Any coordinate or speed beyond this, like one that is not a number, is failed physics."""
PICTURE = (240, 320)


class A1Robot(LeggedRobot):
    """Twelve joints with gains, an IMU; the trunk's true pose as a stream, as a motion capture system would see it.

    The score is the mean of exp(-|v - v*|^2 / 0.25) over the whole episode, v the horizontal velocity in the base
    frame and v* the one asked for, 0 after a fall. Success is not to fall.
    """

    name = "sim_a1"
    joints = JOINTS
    streams: ClassVar[dict[str, tuple[str, ...]]] = {
        "base_state": (
            *(f"position_{a}" for a in "xyz"),
            *(f"quat_{a}" for a in "wxyz"),
            *(f"velocity_{a}" for a in "xyz"),
        )
    }
    cameras: ClassVar[dict[str, tuple[int, int]]] = {"side": PICTURE}
    step_s = PHYSICS_DT
    steps_per_control = SUBSTEPS
    max_steps = round(20.0 / CONTROL_DT)

    def __init__(self) -> None:
        super().__init__()
        import mujoco

        self._machine = robot("a1")
        self._model = compiled(self._machine)
        self._data = mujoco.MjData(self._model)
        self._target = self._machine.posture
        self._renderer: Renderer | None = None
        self._restart()

    def _restart(self) -> None:
        self._commanded: np.ndarray | None = None
        self._others: np.ndarray | None = None
        self._acceleration = np.zeros(3)
        self._phase, self._touched, self._lost = 0, 0.0, False
        self._rewards, self._errors = 0.0, list[float]()
        self._start = np.zeros(2)

    def _reset(self, seed: int) -> None:
        import mujoco

        machine, data = self._machine, self._data
        self._restart()
        self.gains(np.full(12, machine.kp), np.full(12, machine.kd))
        mujoco.mj_resetData(self._model, data)
        low, high = machine.joint_ranges.T
        joints = np.clip(machine.posture * np.random.default_rng(seed).uniform(*SPREAD, 12), low, high)
        feet, _ = kinematics.feet(machine, joints[None], np.zeros((1, 12)))
        height = -feet[2].min() + machine.foot_radius + CLEARANCE
        data.qpos[:7], data.qpos[7:] = (0, 0, height, 1, 0, 0, 0), joints
        mujoco.mj_forward(self._model, data)
        self.hold()

    # What is asked of it

    def hold(self) -> None:
        self._target = self._data.qpos[7:].copy()

    def gains(self, kp: np.ndarray, kd: np.ndarray) -> None:
        for values in (kp, kd):
            if values.shape != (12,) or not (np.isfinite(values).all() and (values >= 0).all()):
                raise RobopolicyError(f"{self.name}: expected 12 gains kp and kd, not negative, found {values!r}")
        self._model.actuator_gainprm[:, 0] = kp
        self._model.actuator_biasprm[:, 1] = -kp
        self._model.actuator_biasprm[:, 2] = -kd

    def _begins(self, target: np.ndarray) -> bool:
        # A gate sends where the robot stands until the first target of a policy comes, or a fault.
        before, self._commanded = self._commanded, np.concatenate([target, *self._model.actuator_biasprm[:, 1:3].T])
        return before is not None and bool((self._commanded != before).any())

    def _follow(self, target: np.ndarray) -> None:
        if self._begun and not self._physics_steps:
            self._start = self._data.qpos[:2].copy()
        self._target = target.copy()

    def asked(self) -> np.ndarray:
        if self._others is not None:
            return self._others.copy()
        heading = float(kinematics.yaw(self._rotation())[0])
        return np.array([SPEED, 0.0, np.clip(-HEADING_GAIN * heading, -MAX_YAW_RATE, MAX_YAW_RATE)])

    def ask(self, velocity: np.ndarray | None) -> None:
        self._others = None if velocity is None else np.array(velocity, np.float64)

    # Physics

    def _advance(self, steps: int) -> None:
        import mujoco

        model, data = self._model, self._data
        with _without_warnings():
            for _ in range(steps):
                if self._phase % SUBSTEPS == 0:  # As the training's physics does.
                    data.qacc_warmstart[:] = 0
                before, state = data.qvel[:3].copy(), data.qpos.copy()
                data.ctrl[:] = self._target
                mujoco.mj_step(model, data)
                self._phase += 1
                if not max(np.abs(data.qpos).max(), np.abs(data.qvel).max()) < LOST:
                    self._lost = True
                    data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = state, 0, 0
                    mujoco.mj_forward(model, data)
                self._acceleration = (data.qvel[:3] - before) / PHYSICS_DT
                self._touched = max(self._touched, float(data.sensordata[0]))

    def _judge(self) -> None:
        self._control_steps += 1
        reward, up = self._assess()
        self._rewards += reward * up
        if self._control_steps * CONTROL_DT > SETTLE_S and up:
            self._errors.append(abs(float(self._velocity()[0] - self.asked()[0])))
        if not up or self._control_steps >= self.max_steps:
            assert self.seed is not None
            details = {"distance_m": float(np.linalg.norm(self._data.qpos[:2] - self._start))}
            if self._errors:
                details["forward_error_m_s"] = float(np.mean(self._errors))
            score = self._rewards / self.max_steps
            self.result = EpisodeResult(self.seed, score, up, self._control_steps, details)

    def _assess(self) -> tuple[float, bool]:
        fallen = self._lost or self._touched > CONTACT or self._rotation()[0, 2, 2] < MIN_UPRIGHT
        self._touched = 0.0
        error = self._velocity() - self.asked()[:2]
        return float(np.exp(-(error @ error) / TRACKING_WIDTH)), not fallen

    def _rotation(self) -> np.ndarray:
        return kinematics.rotations(self._data.qpos[None, 3:7])

    def _velocity(self) -> np.ndarray:
        """Of the trunk in the base frame, forward and sideways [2]."""
        return kinematics.into_base(self._rotation(), self._data.qvel[None, :3])[0, :2]

    # What it says

    def joint_state(self) -> JointReading:
        data = self._data
        return JointReading(self.joints, data.qpos[7:].copy(), data.qvel[6:].copy(), data.actuator_force.copy())

    def imu(self) -> ImuReading:
        data = self._data
        proper = self._acceleration + np.array([0.0, 0.0, GRAVITY])
        return ImuReading(
            data.qpos[3:7].copy(), data.qvel[3:6].copy(), kinematics.into_base(self._rotation(), proper[None])[0]
        )

    def _stream(self, name: str) -> np.ndarray:
        return np.concatenate([self._data.qpos[:7], self._data.qvel[:3]])

    def _picture(self, camera: str) -> np.ndarray:
        if self._renderer is None:
            self._renderer = Renderer(self._model, PICTURE[1], PICTURE[0], Quality(), {})
        import mujoco

        # A step leaves places from before it; mj_forward would also touch what the next step starts from.
        for compute in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight):
            compute(self._model, self._data)
        return self._renderer(self._data, camera)

    def mirror(self, position: np.ndarray, streams: dict[str, np.ndarray]) -> None:
        base = streams["base_state"]
        self._data.qpos[:7], self._data.qpos[7:], self._data.qvel[:3] = base[:7], position, base[7:]

    def fingerprint(self) -> dict[str, str]:
        import mujoco

        return {"robot": self._machine.name, "terrain": "flat", "mujoco": mujoco.__version__}

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


@contextmanager
def _without_warnings() -> Iterator[None]:
    """MuJoCo would write of failed physics into a file in the working directory; the episode ends with it."""
    import mujoco

    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)
