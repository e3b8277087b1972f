"""Where the points of a robot are: forward kinematics of a profile's MuJoCo model, for workspaces and poses.

MuJoCo alone, so that the safety gate's process needs no solver.
"""

from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.errors import RobopolicyError, one_line, unknown
from robopolicy.hardware.profiles import Geometry, RobotProfile


class RobotGeometry:
    """Positions in metres in the frame of the model's world; joint positions [n] in the order of the profile.

    Joints that the model does not have (often the gripper) are ignored. RobopolicyError for a file, site or body that
    is not there.
    """

    def __init__(self, profile: RobotProfile) -> None:
        import mujoco

        if profile.geometry is None:
            raise RobopolicyError(f"profile {profile.name} has no geometry")
        geometry = profile.geometry
        path = profile.source.parent / Path(geometry.mjcf).expanduser()
        if not path.is_file():
            raise RobopolicyError(f"profile {profile.name}: geometry.mjcf {path} does not exist")
        try:
            self._model = mujoco.MjModel.from_xml_path(str(path))
        except ValueError as error:
            raise RobopolicyError(f"{path}: {one_line(error)}") from error
        self._data = mujoco.MjData(self._model)
        self._forward = mujoco.mj_kinematics
        joints = [self._model.joint(i).name for i in range(self._model.njnt)]
        self._here = [i for i, name in enumerate(profile.names) if name in joints]
        if not self._here:
            raise unknown(f"joint in {path.name}:", profile.names[0], joints)
        single = (mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE)
        for name in (profile.names[i] for i in self._here):
            if self._model.joint(name).type[0] not in single:
                raise RobopolicyError(f"{path.name}: joint {name} is neither a hinge nor a slide")
        self._places = [int(self._model.joint(profile.names[i]).qposadr[0]) for i in self._here]
        self._frame = self._find(path.name, geometry.frame) if geometry.frame else None
        self._points = [self._find(path.name, name) for name in _points(geometry)]

    def _find(self, file: str, name: str) -> Any:
        """The view of a site or body, whose xpos and xmat follow every update."""
        sites = [self._model.site(i).name for i in range(self._model.nsite)]
        bodies = [self._model.body(i).name for i in range(self._model.nbody)]
        if name in sites:
            return self._data.site(name)
        if name in bodies:
            return self._data.body(name)
        raise unknown(f"site or body in {file}:", name, [n for n in sites + bodies if n])

    def _place(self, joints: np.ndarray) -> None:
        self._data.qpos[self._places] = np.asarray(joints, np.float64)[self._here]
        self._forward(self._model, self._data)

    def points(self, joints: np.ndarray) -> np.ndarray:
        """Places [k, 3] of the points that must stay in the workspace."""
        self._place(joints)
        return np.array([p.xpos for p in self._points]).reshape(-1, 3)

    def pose(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] and rotation matrix [3, 3] of the frame."""
        if self._frame is None:
            raise RobopolicyError("the geometry names no frame")
        self._place(joints)
        return self._frame.xpos.copy(), self._frame.xmat.reshape(3, 3).copy()


def _points(geometry: Geometry) -> tuple[str, ...]:
    return geometry.points or ((geometry.frame,) if geometry.frame else ())


def quaternion(matrix: np.ndarray) -> np.ndarray:
    """The quaternion wxyz [4] of a rotation matrix, w not negative."""
    import mujoco

    found = np.zeros(4)
    mujoco.mju_mat2Quat(found, np.asarray(matrix, np.float64).ravel())
    return found if found[0] >= 0 else -found


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Axis times angle [3] of a rotation matrix, radians."""
    import mujoco

    found = np.zeros(3)
    mujoco.mju_quat2Vel(found, quaternion(matrix), 1.0)
    return found
