"""Makes robosuite environments (extra `robomimic`) from our defaults, without warnings and global random state.

Everything that knows robosuite's own conventions for arguments and controllers is here; `sim/robomimic.py` has the
tasks. Lengths are metres, angles radians, quaternions in robosuite's order xyzw.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import ModuleType
from typing import Any

import numpy as np

from robopolicy.errors import RobopolicyError

VERSIONS = "1.5."
"""Versions of robosuite whose environments these tasks are."""
RATE_HZ = 20.0
ROBOSUITE_TYPE = 1
"""robomimic's number for robosuite environments in `env_args`."""
ARM = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
    "gripper": {"type": "GRIP"},
}
"""The operational-space controller of the published datasets, in the form of robosuite 1.5."""


def load_robosuite(task: str) -> ModuleType:
    """The robosuite package. Raises RobopolicyError when it is missing or of another version than `VERSIONS`."""
    # robosuite warns on import about packages for robots that no task here uses.
    quiet, before = logging.WARNING, logging.root.manager.disable
    logging.disable(max(quiet, before))
    try:
        import robosuite
    except ImportError as error:
        raise RobopolicyError(f"task {task!r} needs robosuite ({error}); install robopolicy[robomimic]") from error
    finally:
        logging.disable(before)
    if not robosuite.__version__.startswith(VERSIONS):
        raise RobopolicyError(f"task {task!r} needs robosuite {VERSIONS}x, found {robosuite.__version__}")
    return robosuite


def default_env_args(env_name: str, robots: int, absolute: bool, version: str) -> dict[str, Any]:
    """robomimic's `env_args` of an environment with our defaults: what a recorder writes and what we make.

    The controller takes poses in the world frame, as it did for the published datasets (robosuite 1.4).
    """
    arm = deepcopy(ARM) | {"input_type": "absolute" if absolute else "delta", "input_ref_frame": "world"}
    kwargs: dict[str, Any] = {
        "robots": ["Panda"] * robots,
        "controller_configs": {"type": "BASIC", "body_parts": {"right": arm}},
        "control_freq": int(RATE_HZ),
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "ignore_done": True,
        "use_object_obs": True,
        "use_camera_obs": False,
        "camera_depths": False,
        "reward_shaping": False,
        "lite_physics": True,
    }
    if robots == 2:
        kwargs["env_configuration"] = "opposed"
    return {"env_name": env_name, "env_version": version, "type": ROBOSUITE_TYPE, "env_kwargs": kwargs}


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """robosuite draws from numpy's global generator; afterwards that is where it was before."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def make_environment(robosuite: ModuleType, env_args: dict[str, Any]) -> Any:
    """The robosuite environment of `env_args`; numpy's global generator stays untouched."""
    kwargs = deepcopy(env_args["env_kwargs"])
    with numpy_seed(0):
        return robosuite.make(env_args["env_name"], **kwargs)


def controller_hash(env_args: dict[str, Any]) -> str:
    """16 hexadecimal digits of the controller's settings."""
    text = json.dumps(env_args["env_kwargs"]["controller_configs"], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def matrix_to_rot6d(matrix: np.ndarray) -> np.ndarray:
    """The first two rows [..., 6] of rotation matrices [..., 3, 3], as Diffusion Policy's actions have them."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def rot6d_to_matrix(six: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] nearest to six numbers in Gram-Schmidt order (Zhou et al. 2019, section B)."""
    first, second = six[..., :3], six[..., 3:]
    x = first / np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), 1e-12)
    y = second - (x * second).sum(axis=-1, keepdims=True) * x
    y = y / np.maximum(np.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
    return np.stack([x, y, np.cross(x, y)], axis=-2)
