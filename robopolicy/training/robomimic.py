"""Checkpoints of robomimic (.pth) as policies of ours.

A robomimic checkpoint is a pickled dictionary: its configuration as JSON, shapes and statistics of the observations,
what the simulator was made with, and weights. It is read by torch's restricted loader, which builds tensors and plain
containers only and runs nothing; robomimic itself is not needed. Known are BC, BC-GMM, BC-RNN and BC-RNN-GMM on states
as robomimic 0.2 and 0.3 save them; they become `robopolicy.policies.bc_rnn`.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robopolicy.errors import CheckpointError, one_line
from robopolicy.features import ACTION, Feature, FeatureSpec
from robopolicy.nn.normalizer import Normalizer
from robopolicy.policies.base import NormalizationConfig
from robopolicy.policies.bc_rnn import BCRNNConfig, BCRNNPolicy

TASKS = {
    "Lift": "robomimic-lift",
    "PickPlaceCan": "robomimic-can",
    "NutAssemblySquare": "robomimic-square",
    "TwoArmTransport": "robomimic-transport",
    "ToolHang": "robomimic-tool_hang",
}
"""Our tasks with robomimic's own delta actions, by robosuite's names of them."""
PARTS = {
    "policy.nets.rnn.nets.": "recurrent.",
    "policy.nets.mlp._model.": "mlp.",
    "policy.nets.decoder.nets.mean.": "mean.",
    "policy.nets.decoder.nets.action.": "mean.",
    "policy.nets.decoder.nets.scale.": "scale.",
    "policy.nets.decoder.nets.logits.": "logits.",
}
MOST = 1000
"""Layers, and steps until the recurrent state is forgotten."""
REPEATED = "policy.nets.rnn.per_step_net."
"""robomimic lists layers and head after the recurrent network twice."""


def load_robomimic(path: Path) -> tuple[BCRNNPolicy, str | None, dict[str, Any]]:
    """The policy in evaluation mode, our name of its task when there is one, and what robomimic says about it.

    CheckpointError for a file that is no such checkpoint, holds anything but plain data, or an algorithm not known.
    """
    saved = _Table(path, "", _read(path))
    algorithm = saved.get("algo_name", str)
    if algorithm != "bc":
        raise CheckpointError(f"{path}: algorithm {algorithm!r}; known is bc: BC, BC-GMM, BC-RNN and BC-RNN-GMM")
    if saved.values.get("action_normalization_stats"):
        raise CheckpointError(f"{path}: scales its actions, as robomimic does from 0.4 on; known are 0.2 and 0.3")
    try:
        config = _Table(path, "config.", json.loads(saved.get("config", str)))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: config is not valid JSON ({one_line(error)})") from error
    states = _states(config)
    env = _plain(path, saved.get("env_metadata", dict))
    features = _features(saved, states, env)
    policy_config = _policy_config(config)
    stats = saved.values.get("obs_normalization_stats")
    if stats is not None:
        policy_config.normalization.state = "mean_std"
    normalizer = Normalizer(features.features)
    normalizer.load_state_dict(_scales(path, features, stats))
    # Sizes that a damaged file asks for are not allocated before its weights are known to have them.
    with torch.device("meta"):
        policy = BCRNNPolicy(policy_config, features, normalizer)
    _load_weights(path, policy, saved.get("model", dict))
    control = features.action.control
    task = TASKS.get(str(env.get("env_name"))) if control is None or control.mode == "delta" else None
    return policy.eval(), task, {"algorithm": algorithm, "env_metadata": env}


class _Table:
    """A dictionary from a file, whose entries are checked when they are asked for."""

    def __init__(self, path: Path, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: {name.rstrip('.') or 'content'} is no dictionary: no robomimic checkpoint")
        self.path, self.name, self.values = path, name, values

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The entry at a dotted key; without a default it must be there."""
        found: Any = self.values
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        found = default if found is None else found
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise CheckpointError(
                f"{self.path}: {self.name}{key} should be {kind.__name__}, found {str(found)[:80]!r}: no robomimic "
                "checkpoint of a known version"
            )
        return found


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        # Refuses every class but tensors and plain containers; nothing in the file is run.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: no robomimic checkpoint, or one that holds more than plain data ({one_line(error)})"
        ) from error


def _plain(path: Path, env: dict[str, Any]) -> dict[str, Any]:
    """The description of the simulator, which is kept with the policy as JSON."""
    try:
        kept = json.loads(json.dumps(env))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: env_metadata is not plain data ({one_line(error)})") from error
    return dict(kept)


def _states(config: _Table) -> list[str]:
    """Names of the observations, all of which must be plain numbers."""
    for group in ("obs", "goal"):
        for modality, names in config.get(f"observation.modalities.{group}", dict, {}).items():
            if names and (group, modality) != ("obs", "low_dim"):
                raise CheckpointError(f"{config.path}: reads {modality} {group} {names}; known are policies on states")
    if config.get("observation.encoder.low_dim", dict, {}).get("core_class") is not None:
        raise CheckpointError(f"{config.path}: encodes its states by a network of their own, which is not known")
    return list(config.get("observation.modalities.obs.low_dim", list))


def _features(saved: _Table, states: list[str], env: dict[str, Any]) -> FeatureSpec:
    """Inputs in the order in which robomimic concatenates them, which is that of `all_shapes`."""
    # The library never imports its sibling rooms at module level.
    from robopolicy.datasets.robomimic_env import control, rate_hz

    shapes = saved.get("shape_metadata.all_shapes", dict)
    missing = [name for name in states if name not in shapes]
    if missing or not states:
        raise CheckpointError(f"{saved.path}: shape_metadata lacks the observations {', '.join(missing) or '(none)'}")
    inputs = []
    for name in (n for n in shapes if n in states):
        shape = shapes[name]
        if not isinstance(shape, list | tuple) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
            raise CheckpointError(f"{saved.path}: observation {name!r} should have one dimension, found {shape!r}")
        names = ("x", "y", "z", "w") if "_quat" in name and shape[0] == 4 and env.get("type") == 1 else ()
        inputs.append(Feature(f"observation.{name}", tuple(shape), names=names))
    action = Feature(ACTION, (saved.get("shape_metadata.ac_dim", int),), kind="action", control=control(env))
    return FeatureSpec((*inputs, action), rate_hz(env))


def _policy_config(config: _Table) -> BCRNNConfig:
    for name in (
        "gaussian.enabled",
        "vae.enabled",
        "transformer.enabled",
        "rnn.open_loop",
        "rnn.kwargs.bidirectional",
    ):
        if config.get(f"algo.{name}", bool, False):
            raise CheckpointError(
                f"{config.path}: config.algo.{name} is true; known are BC and BC-RNN, with or without GMM"
            )
    recurrent, mixture = (config.get(f"algo.{n}.enabled", bool, False) for n in ("rnn", "gmm"))
    activation = config.get("algo.gmm.std_activation", str, "softplus")
    frames = config.get("train.frame_stack", int, 1)
    if (mixture and activation != "softplus") or frames != 1:
        raise CheckpointError(
            f"{config.path}: std_activation {activation!r} and frame_stack {frames}; known are softplus and 1"
        )
    steps = config.get("algo.rnn.horizon", int) if recurrent else 1
    cell = config.get("algo.rnn.rnn_type", str).lower() if recurrent else "none"
    sizes = config.get("algo.actor_layer_dims", list)
    layers = config.get("algo.rnn.num_layers", int, 1)
    if (
        not (1 <= steps <= MOST and 1 <= layers <= MOST)
        or cell not in ("lstm", "gru", "none")
        or not all(type(n) is int and n > 0 for n in sizes)
    ):
        raise CheckpointError(
            f"{config.path}: rnn.horizon {steps}, rnn.num_layers {layers}, rnn.rnn_type {cell!r} and "
            f"actor_layer_dims {sizes} make no network"
        )
    return BCRNNConfig(
        n_obs_steps=steps,
        horizon=steps,
        normalization=NormalizationConfig("identity", "identity"),
        cell=cell,  # type: ignore[arg-type]
        hidden=config.get("algo.rnn.hidden_dim", int, 1),
        layers=layers,
        mlp=tuple(sizes),
        head="gmm" if mixture else "deterministic",
        modes=config.get("algo.gmm.num_modes", int, 1),
        min_std=config.get("algo.gmm.min_std", float, 1e-4),
        low_noise=config.get("algo.gmm.low_noise_eval", bool, True),
    )


def _scales(path: Path, features: FeatureSpec, stats: Any) -> dict[str, Tensor]:
    """State of the normaliser: robomimic's (x - mean) / std, or the identity."""
    state = {}
    for feature in features:
        name, size = feature.key.replace(".", "_"), feature.shape[0]
        mean, std = [0.0] * size, [1.0] * size
        if stats is not None and feature.kind != "action":
            key = feature.key.removeprefix("observation.")
            entry = _Table(
                path, f"obs_normalization_stats.{key}.", _Table(path, "obs_normalization_stats.", stats).get(key, dict)
            )
            mean, std = (_numbers(entry, n, size) for n in ("mean", "std"))
        state[f"offset_{name}"], state[f"scale_{name}"] = torch.tensor(mean), torch.tensor(std)
    return state


def _numbers(entry: _Table, name: str, size: int) -> list[float]:
    found = entry.get(name, list)
    row = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    good = [float(v) for v in row if isinstance(v, int | float) and math.isfinite(v) and (name != "std" or v > 0)]
    if len(good) != size or len(row) != size:
        raise CheckpointError(f"{entry.path}: {entry.name}{name} should be {size} numbers, found {str(found)[:80]}")
    return good


def mapped_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of our `SequenceNetwork` from robomimic's state dictionary; names that we lack stay as they are."""
    mapped = {}
    for name, value in weights.items():
        if not name.startswith(REPEATED):
            part = next((p for p in PARTS if name.startswith(p)), "")
            mapped[PARTS.get(part, "") + name.removeprefix(part)] = value.float()
    return mapped


def _load_weights(path: Path, policy: BCRNNPolicy, weights: dict[str, Any]) -> None:
    broken = [str(k) for k, v in weights.items() if not isinstance(v, Tensor) or not torch.isfinite(v).all()]
    if broken:
        raise CheckpointError(f"{path}: weights that are no finite tensors: {', '.join(broken[:5])}")
    try:
        policy.network.load_state_dict(mapped_weights(weights), assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its configuration ({one_line(error)})") from error
