"""Real robomimic algorithms and checkpoints, small enough for a test; needs the robomimic package."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

OBSERVATIONS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
"""As in Lift."""
ENV = {
    "env_name": "Lift",
    "env_version": "1.5.1",
    "type": 1,
    "env_kwargs": {
        "control_freq": 20,
        "controller_configs": {
            "type": "BASIC",
            "body_parts": {"right": {"type": "OSC_POSE", "input_type": "delta", "input_ref_frame": "world"}},
        },
    },
}


def write_demonstrations(path: Path, seed: int = 0) -> Path:
    """Three demonstrations of noise in robomimic's layout."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for i, n in enumerate((25, 12, 31)):
            demo = data.create_group(f"demo_{i}")
            demo["actions"] = rng.uniform(-1, 1, (n, 7))
            for key, size in OBSERVATIONS.items():
                demo[f"obs/{key}"] = rng.normal(0.3, 2.0, (n, size))
            demo.attrs["num_samples"] = n
        data.attrs["total"] = 68
        data.attrs["env_args"] = json.dumps(ENV)
    return path


def configuration(path: Path, algo: dict[str, Any], normalize: bool = False, seq_length: int = 10) -> Any:
    """robomimic's locked BC configuration for the demonstrations at `path`; `algo` overrides {"rnn.enabled": True}."""
    from robomimic.config import config_factory

    config = config_factory("bc")
    with config.values_unlocked():
        config.train.data = str(path)
        config.train.seq_length = seq_length
        config.train.hdf5_normalize_obs = normalize
        config.train.cuda = False
        config.observation.modalities.obs.low_dim = list(OBSERVATIONS)
        for name, value in algo.items():
            table, last = config.algo, name.split(".")
            for part in last[:-1]:
                table = table[part]
            table[last[-1]] = value
    config.lock()
    return config


def algorithm(config: Any) -> Any:
    """An untrained robomimic algorithm."""
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.algo import algo_factory

    obs_utils.initialize_obs_utils_with_config(config)
    shapes = OrderedDict((k, [OBSERVATIONS[k]]) for k in sorted(OBSERVATIONS))
    return algo_factory("bc", config, obs_key_shapes=shapes, ac_dim=7, device="cpu")


def train_and_save(config: Any, checkpoint: Path, steps: int = 2) -> Any:
    """Trains a few steps with robomimic's own loader and saves with its own function.

    Observations are normalised by the loader; robomimic 0.3.0 would do so again after it, which fails.
    """
    import robomimic.utils.file_utils as file_utils
    import robomimic.utils.train_utils as train_utils
    from torch.utils.data import DataLoader

    model = algorithm(config)
    meta = file_utils.get_env_metadata_from_dataset(config.train.data)
    shapes = file_utils.get_shape_metadata_from_dataset(config.train.data, all_obs_keys=config.all_obs_keys)
    dataset, _ = train_utils.load_data_for_training(config, obs_keys=shapes["all_obs_keys"])
    stats = dataset.get_obs_normalization_stats() if config.train.hdf5_normalize_obs else None
    model.set_train()
    for step, batch in zip(range(steps), DataLoader(dataset, batch_size=16, shuffle=True), strict=False):
        inputs = model.process_batch_for_training(batch)
        inputs = model.postprocess_batch_for_training(inputs, obs_normalization_stats=None)
        model.train_on_batch(inputs, epoch=step, validate=False)
    train_utils.save_model(model, config, meta, shapes, str(checkpoint), stats)
    return model
