"""Makes robosuite environments (extra `robomimic`) from our defaults, without warnings and global random state.

Everything that knows robosuite's own conventions for arguments and controllers is here; `sim/robomimic.py` has the
tasks. Lengths are metres, angles radians, quaternions in robosuite's order xyzw.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import ModuleType
from typing import Any

import numpy as np

from robopolicy.errors import DataError, RobopolicyError
from robopolicy.sim.rendering import PACKAGES, asked_for

VERSIONS = "1.5."
"""Versions of robosuite whose environments these tasks are."""
RATE_HZ = 20.0
ROBOSUITE_TYPE = 1
"""robomimic's number for robosuite environments in `env_args`."""
ARM: dict[str, Any] = {
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
    asked = os.environ.get("MUJOCO_GL")
    # robosuite warns on import about packages for robots that no task here uses.
    before = logging.root.manager.disable
    logging.disable(max(logging.WARNING, before))
    try:
        import robosuite
    except ImportError as error:
        raise RobopolicyError(f"task {task!r} needs robosuite ({error}); install robopolicy[robomimic]") from error
    except AttributeError as error:
        # What is left of a missing OpenGL library that MUJOCO_GL makes MuJoCo load at once.
        package = PACKAGES.get(asked_for())
        if package is None:
            raise
        raise RobopolicyError(
            f"MUJOCO_GL={asked} needs a library that is missing ({error}); install the Debian package {package}, or "
            "unset MUJOCO_GL"
        ) from error
    finally:
        logging.disable(before)
        # robosuite sets this variable for everyone; `sim/rendering.py` has its own choice.
        if asked is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = asked
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


def present_env_args(task: str, recorded: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Our `env_args` with the controller settings of those of a dataset, of robosuite 1.4 or 1.5.

    Version 1.4 describes one controller with `damping`, `control_delta` and no frame; 1.5 one for each part of the
    body, and ignores names that it does not know, so that an absolute action would silently become a delta. Whether
    actions are absolute is the task variant's choice and their frame always the world's (see `adapt`).
    Raises DataError for another environment, robot, rate or kind of controller than the task's.
    """
    kwargs, expected = recorded.get("env_kwargs"), ours["env_kwargs"]
    found = kwargs if isinstance(kwargs, dict) else {}
    robots = found.get("robots", expected["robots"])
    robots = [robots] if isinstance(robots, str) else robots
    for name, said, wanted in (
        ("type", recorded.get("type"), ROBOSUITE_TYPE),
        ("env_name", recorded.get("env_name"), ours["env_name"]),
        ("robots", robots, expected["robots"]),
        ("control_freq", found.get("control_freq", RATE_HZ), expected["control_freq"]),
    ):
        if said != wanted:
            raise DataError(f"env_args: {name} is {said!r}, task {task!r} has {wanted!r}")
    arm = _recorded_arm(task, found.get("controller_configs"))
    body = expected["controller_configs"]["body_parts"]["right"]
    fixed = {k: body[k] for k in ("input_type", "input_ref_frame", "gripper")}
    settings = {"controller_configs": {"type": "BASIC", "body_parts": {"right": body | arm | fixed}}}
    # Until 1.4 the controllers saw the state after each physics step, which costs time.
    former = tuple(str(recorded.get("env_version") or VERSIONS).split(".")[:2]) < ("1", "5")
    lite = found.get("lite_physics", not former) is True
    return ours | {"env_kwargs": expected | settings | {"lite_physics": lite}}


def _recorded_arm(task: str, config: Any) -> dict[str, Any]:
    """Settings of the arm's controller in robosuite 1.5's names; empty when the dataset does not say any."""
    if config is None:
        return {}
    arm = config.get("body_parts", {"right": config}) if isinstance(config, dict) else None
    arm = arm.get("right", arm.get("arms", {}).get("right")) if isinstance(arm, dict) else None
    if not isinstance(arm, dict) or arm.get("type") != "OSC_POSE" or arm.get("impedance_mode", "fixed") != "fixed":
        raise DataError(
            f"env_args: task {task!r} needs an OSC_POSE controller of fixed stiffness, found {config!r:.200}"
        )
    renamed = {
        {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}.get(k, k): v for k, v in arm.items()
    }
    found = {k: v for k, v in renamed.items() if k in ARM and k != "gripper"}
    for name, value in found.items():
        numbers = value if isinstance(value, list) else [value]
        if type(ARM[name]) in (int, list) and not all(type(n) in (int, float) and abs(n) < 1e6 for n in numbers):
            raise DataError(f"env_args: {name} of the controller should be numbers, found {value!r:.100}")
    return found


def make_environment(robosuite: ModuleType, env_args: dict[str, Any], hard_reset: bool = True) -> Any:
    """The robosuite environment of `env_args`; numpy's global generator stays untouched.

    `hard_reset` compiles the scene again in each reset, which changes nothing where no shape is drawn anew.
    """
    kwargs = deepcopy(env_args["env_kwargs"])
    try:
        with numpy_seed(0):
            return robosuite.make(env_args["env_name"], **kwargs, hard_reset=hard_reset)
    except (AssertionError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise DataError(f"robosuite cannot make {env_args['env_name']!r} of these env_args: {error!r:.200}") from error


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
