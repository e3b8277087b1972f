"""Files in robomimic's layout, written by h5py as robomimic's own scripts write them."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

LENGTHS = {"demo_2": 3, "demo_10": 5, "demo_0": 4}
"""Not in order, and 10 sorts before 2 as text."""
ORDER = ("demo_0", "demo_2", "demo_10")
ENV_14 = {
    "env_name": "Lift",
    "env_version": "1.4.1",
    "type": 1,
    "env_kwargs": {
        "control_freq": 20,
        "controller_configs": {"type": "OSC_POSE", "control_delta": True, "kp": 150},
        "robots": ["Panda"],
    },
}
ENV_15 = {
    "env_name": "Lift",
    "env_version": "1.5.1",
    "type": 1,
    "env_kwargs": {
        "control_freq": 20,
        "controller_configs": {
            "type": "BASIC",
            "body_parts": {
                "right": {
                    "type": "OSC_POSE",
                    "input_type": "delta",
                    "input_ref_frame": "base",
                    "gripper": {"type": "GRIP"},
                }
            },
        },
    },
}


def demonstrations() -> dict[str, dict[str, np.ndarray]]:
    """Arrays of every demonstration by their place in the group; doubles, as robosuite has them."""
    rng = np.random.default_rng(0)
    found = {}
    for name in ORDER:
        n = LENGTHS[name]
        found[name] = {
            "actions": rng.uniform(-1, 1, (n, 7)),
            "states": rng.normal(size=(n, 9)),
            "rewards": rng.random(n),
            "dones": (np.arange(n) == n - 1).astype(np.int64),
            "obs/robot0_eef_quat": rng.normal(size=(n, 4)),
            "obs/object": rng.normal(size=(n, 10)),
            "obs/agentview_image": rng.integers(0, 256, (n, 6, 8, 3), dtype=np.uint8),
        }
    return found


def write_robomimic(path: Path, env_args: dict[str, Any] | None = None, **attributes: Any) -> Path:
    """The demonstrations as a file; images compressed, `next_obs` present, masks train and valid."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name in LENGTHS:
            group = data.create_group(name)
            for place, values in demonstrations()[name].items():
                options = {"compression": "gzip"} if "image" in place else {}
                group.create_dataset(place, data=values, **options)
                if place.startswith("obs/"):
                    group.create_dataset("next_" + place, data=np.roll(values, -1, axis=0), **options)
            group.attrs["num_samples"] = LENGTHS[name]
            group.attrs["model_file"] = f"<mujoco model='{name}'>\n</mujoco>"
        data.attrs["total"] = sum(LENGTHS.values())
        data.attrs["env_args"] = json.dumps(env_args or ENV_14, indent=4)
        for name, value in attributes.items():
            data.attrs[name] = value
        file["mask/train"] = np.array(["demo_10", "demo_0"], dtype="S")
        file["mask/valid"] = np.array(["demo_2"], dtype="S")
    return path
