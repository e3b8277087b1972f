"""From end-effector poses to joint positions: differential inverse kinematics on a MuJoCo model, with mink.

Every pose is reached by steps that move the joints as little as possible (damped Gauss-Newton, a quadratic program per
step with the joint limits as constraints). A chunk starts from the measured joints, and every row from the one before,
so that a redundant arm follows its own posture instead of jumping between solutions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robopolicy.errors import RobopolicyError, unknown

POSITION_TOLERANCE = 1e-3
"""Largest residual of a pose that counts as reached, m."""
ANGLE_TOLERANCE = np.deg2rad(0.5)
DONE = 0.05
"""Steps end when both residuals are below this share of their tolerances."""
STALLED = 0.98
"""Or when a step leaves more than this share of the residual, several times in a row."""
DAMPING = 1e-3
"""Levenberg-Marquardt damping of far targets, relative to their residual: it vanishes where a pose is reached."""


@dataclass(frozen=True)
class ArmModel:
    """Where an arm is described, and which point of it the poses mean. Quaternions are wxyz."""

    mjcf: str
    """MuJoCo model file of the arm."""
    frame: str
    """Site or body whose pose is commanded."""
    joints: tuple[str, ...]
    """Joints of the model that move the frame, in the order of the joint positions here."""
    frame_type: Literal["site", "body"] = "site"
    tool_position: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Pose of the commanded point in the frame, m."""
    tool_quaternion: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
    base_position: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Pose of the model's origin in the frame that poses are given in, m."""
    base_quaternion: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Solution:
    """Joint positions for one pose, and how far they are from it."""

    joints: np.ndarray
    """[n], within the limits of the model."""
    position_error: float
    """m."""
    angle_error: float
    """Radians."""

    @property
    def reached(self) -> bool:
        return bool(self.position_error <= POSITION_TOLERANCE and self.angle_error <= ANGLE_TOLERANCE)


class ArmKinematics:
    """Kinematics of one arm, both ways: joint positions [n] in radians, poses as (position [3], matrix [3, 3])."""

    def __init__(self, arm: ArmModel, iterations: int = 30) -> None:
        """Loads the model; RobopolicyError for a file, frame or joint that is not there."""
        try:
            import mink
            import mujoco
        except ImportError as error:
            raise RobopolicyError(
                f"inverse kinematics needs {error.name}: pip install 'robopolicy[robomimic]'"
            ) from error
        path = Path(arm.mjcf).expanduser()
        if not path.is_file():
            raise RobopolicyError(f"{path}: no such MuJoCo model")
        try:
            self.model = mujoco.MjModel.from_xml_path(str(path))
        except ValueError as error:
            raise RobopolicyError(f"{path}: not a MuJoCo model ({' '.join(str(error).split())[:200]})") from error
        self.arm, self.iterations, self._mink, self._mujoco = arm, iterations, mink, mujoco
        joint = mujoco.mjtObj.mjOBJ_JOINT
        names = [mujoco.mj_id2name(self.model, joint, i) or "" for i in range(self.model.njnt)]
        for name in arm.joints:
            if name not in names:
                raise unknown(f"joint of {path.name}:", name, names)
        self._ids = [names.index(name) for name in arm.joints]
        if not arm.joints or any(self.model.jnt_type[i] not in (2, 3) for i in self._ids):
            raise RobopolicyError(f"{path.name}: {list(arm.joints)} should be hinges or slides")
        kind = mujoco.mjtObj.mjOBJ_SITE if arm.frame_type == "site" else mujoco.mjtObj.mjOBJ_BODY
        if mujoco.mj_name2id(self.model, kind, arm.frame) < 0:
            count = self.model.nsite if arm.frame_type == "site" else self.model.nbody
            frames = [mujoco.mj_id2name(self.model, kind, i) or "" for i in range(count)]
            raise unknown(f"{arm.frame_type} of {path.name}:", arm.frame, frames)
        self._qpos = [int(self.model.jnt_qposadr[i]) for i in self._ids]
        self._dofs = [int(self.model.jnt_dofadr[i]) for i in self._ids]
        self._configuration = mink.Configuration(self.model)
        self._task = mink.FrameTask(arm.frame, arm.frame_type, 1.0, 0.5, lm_damping=DAMPING)
        self._limits = [mink.ConfigurationLimit(self.model, gain=1.0)]
        others = sorted(set(range(self.model.nv)) - set(self._dofs))
        self._frozen = [mink.DofFreezingTask(self.model, others)] if others else []
        self._tool = _transform(mink, arm.tool_position, arm.tool_quaternion)
        self._base = _transform(mink, arm.base_position, arm.base_quaternion)

    @property
    def low(self) -> np.ndarray:
        """Lower joint limits [n]; -inf where there are none."""
        return self._bounds(0, -np.inf)

    @property
    def high(self) -> np.ndarray:
        return self._bounds(1, np.inf)

    def _bounds(self, side: int, none: float) -> np.ndarray:
        limited = self.model.jnt_limited[self._ids].astype(bool)
        return np.where(limited, self.model.jnt_range[self._ids, side], none)

    def forward(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pose of the commanded point at joint positions [n]."""
        self._place(joints)
        pose = self._pose()
        return np.asarray(pose.translation()), np.asarray(pose.rotation().as_matrix())

    def _place(self, joints: np.ndarray) -> None:
        q = np.array(self._configuration.q)
        q[self._qpos] = joints
        self._configuration.update(q)

    def _pose(self) -> Any:
        frame = self._configuration.get_transform_frame_to_world(self.arm.frame, self.arm.frame_type)
        return self._base.multiply(frame).multiply(self._tool)

    def solve(self, position: np.ndarray, matrix: np.ndarray, start: np.ndarray) -> Solution:
        """Joint positions near `start` [n] for a pose; the nearest found, flagged, when it is out of reach."""
        mink = self._mink
        rotation = mink.SO3.from_matrix(np.asarray(matrix, np.float64))
        wanted = mink.SE3.from_rotation_and_translation(rotation, np.asarray(position, np.float64))
        self._task.set_target(self._base.inverse().multiply(wanted).multiply(self._tool.inverse()))
        # mink refuses a start outside the limits, where a measured joint may be by a hair.
        self._place(np.clip(start, self.low, self.high))
        best, stalls = self._residual(position, matrix), 0
        for _ in range(self.iterations):
            if best.position_error < DONE * POSITION_TOLERANCE and best.angle_error < DONE * ANGLE_TOLERANCE:
                break
            velocity = mink.solve_ik(
                self._configuration,
                [self._task],
                1.0,
                "daqp",
                damping=1e-9,
                limits=self._limits,
                constraints=self._frozen or None,
            )
            self._configuration.integrate_inplace(velocity, 1.0)
            self._place(np.clip(self._configuration.q[self._qpos], self.low, self.high))
            found = self._residual(position, matrix)
            stalls = stalls + 1 if _size(found) > STALLED * _size(best) else 0
            best = found if _size(found) < _size(best) else best
            if stalls >= 3:
                break
        return best

    def _residual(self, position: np.ndarray, matrix: np.ndarray) -> Solution:
        pose = self._pose()
        turn = np.asarray(pose.rotation().as_matrix()).T @ matrix
        # The sine as well as the cosine: the angle of a small rotation is lost in the trace alone.
        axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
        angle = np.arctan2(0.5 * np.linalg.norm(axis), 0.5 * (np.trace(turn) - 1.0))
        distance = float(np.linalg.norm(pose.translation() - position))
        return Solution(np.array(self._configuration.q[self._qpos]), distance, float(angle))

    def chunk(self, positions: np.ndarray, matrices: np.ndarray, start: np.ndarray) -> list[Solution]:
        """Solutions for the poses [k, 3], [k, 3, 3] of a chunk, the first one near the measured joints `start` [n]."""
        found: list[Solution] = []
        for position, matrix in zip(positions, matrices, strict=True):
            start = found[-1].joints if found else np.asarray(start, np.float64)
            found.append(self.solve(position, matrix, start))
        return found


def _size(solution: Solution) -> float:
    return solution.position_error / POSITION_TOLERANCE + solution.angle_error / float(ANGLE_TOLERANCE)


def _transform(mink: Any, position: tuple[float, ...], quaternion: tuple[float, ...]) -> Any:
    wxyz = np.asarray(quaternion, np.float64)
    if len(position) != 3 or wxyz.shape != (4,) or not 0.99 < np.linalg.norm(wxyz) < 1.01:
        raise RobopolicyError(f"expected a position [3] and a unit quaternion [4], found {position} and {quaternion}")
    return mink.SE3.from_rotation_and_translation(mink.SO3(wxyz / np.linalg.norm(wxyz)), np.asarray(position, float))


ROTATION_SIZES = {"rot6d": 6, "quat_wxyz": 4, "axis_angle": 3}
"""Numbers per rotation in actions."""


def rotation_matrices(values: np.ndarray, representation: str) -> np.ndarray:
    """Matrices [k, 3, 3] of rotations [k, m]; rot6d is the first two rows, as in our datasets."""
    if representation not in ROTATION_SIZES:
        raise unknown("rotation representation", representation, ROTATION_SIZES)
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.shape[1] != ROTATION_SIZES[representation]:
        raise RobopolicyError(
            f"{representation} has {ROTATION_SIZES[representation]} numbers, found {list(values.shape)}"
        )
    if representation == "rot6d":
        from robopolicy.sim.robosuite_env import rot6d_to_matrix

        return rot6d_to_matrix(values)
    from scipy.spatial.transform import Rotation

    if representation == "quat_wxyz":
        return np.asarray(Rotation.from_quat(values[:, [1, 2, 3, 0]]).as_matrix())
    return np.asarray(Rotation.from_rotvec(values).as_matrix())
