"""What robomimic's `env_args` say about the data: simulator, rate, and the meaning of an action."""

import hashlib
import json
from typing import Any, Literal

from robopolicy.features import Control

SIMULATORS = {1: "robosuite", 2: "gym", 3: "igibson"}
"""robomimic's `EnvType` numbers."""
UNKNOWN_ENV = {"env_name": "unknown", "type": 2, "env_kwargs": {}}
"""Written where no simulator is known: robomimic reads a dataset without `env_args`, but does not train on it."""


def fingerprint(env_args: dict[str, Any]) -> dict[str, str]:
    """Simulator and version, task, and a hash of the arguments that the task was made with."""
    found = {}
    simulator = _simulator(env_args)
    if env_args.get("env_version") is not None:
        found[simulator] = str(env_args["env_version"])
    if env_args.get("env_name"):
        found["env"] = str(env_args["env_name"])
    if env_args.get("env_kwargs"):
        text = json.dumps(env_args["env_kwargs"], sort_keys=True, separators=(",", ":"))
        found["env_kwargs"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def _simulator(env_args: dict[str, Any]) -> str:
    kind = env_args.get("type")
    return SIMULATORS.get(kind, "simulator") if isinstance(kind, int) else "simulator"


def rate_hz(env_args: dict[str, Any]) -> float | None:
    """robosuite's control frequency."""
    rate = _kwargs(env_args).get("control_freq")
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        return None
    return float(rate) if 0 < rate < 1e6 else None


def _kwargs(env_args: dict[str, Any]) -> dict[str, Any]:
    kwargs = env_args.get("env_kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def control(env_args: dict[str, Any]) -> Control | None:
    """The meaning of robosuite's actions under its usual controllers, the same for every arm; None when unknown.

    robosuite 1.4 has one controller per robot (`control_delta`; deltas in the world frame), 1.5 one per body part
    (`input_type`, `input_ref_frame`). Its grippers close at +1.
    """
    config = _kwargs(env_args).get("controller_configs")
    if not isinstance(config, dict):
        return None
    parts = config.get("body_parts")
    arms = list(parts.values()) if isinstance(parts, dict) else [config]
    arms = [arm for arm in arms if isinstance(arm, dict) and str(arm.get("type")).startswith(("OSC", "JOINT"))]
    known = {_arm_control(arm) for arm in arms}
    return known.pop() if len(known) == 1 else None


def _arm_control(arm: dict[str, Any]) -> Control | None:
    delta = arm.get("input_type") == "delta" if "input_type" in arm else arm.get("control_delta", True) is True
    mode: Literal["absolute", "delta"] = "delta" if delta else "absolute"
    name, frame, gripper = arm["type"], str(arm.get("input_ref_frame", "world")), "positive_closes"
    if name in ("OSC_POSE", "OSC_POSITION"):
        rotation = "axis_angle" if name == "OSC_POSE" else "none"
        return Control("end_effector_pose", mode, frame, rotation, gripper)
    if name == "JOINT_POSITION":
        return Control("joint", mode, gripper=gripper)
    if name == "JOINT_VELOCITY":
        return Control("velocity", "absolute", gripper=gripper)
    return None


def instruction(data: dict[str, Any], demo: dict[str, Any]) -> str | None:
    """The instruction of a demonstration, from its `ep_meta` (robocasa) or the file's `problem_info` (LIBERO)."""
    for text, key in ((demo.get("ep_meta"), "lang"), (data.get("problem_info"), "language_instruction")):
        try:
            found = json.loads(text)[key] if isinstance(text, str) else None
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        if isinstance(found, str):
            return found.strip('"')
    return None
