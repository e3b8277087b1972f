"""Checkpoints of robomimic (.pth) as policies of ours.

A robomimic checkpoint is a pickled dictionary: its configuration as JSON, shapes and statistics of the observations,
what the simulator was made with, and weights. It is read by torch's restricted loader, which builds tensors and plain
containers only and runs nothing; robomimic itself is not needed. Known are, on states, BC, BC-GMM, BC-RNN and
BC-RNN-GMM as robomimic 0.2 and 0.3 save them, which become `robopolicy.policies.bc_rnn`, and the diffusion policy of
robomimic 0.5, which becomes `robopolicy.policies.diffusion`.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from robopolicy.errors import CheckpointError, one_line
from robopolicy.features import ACTION, Control, Feature, FeatureSpec
from robopolicy.nn.normalizer import Normalizer
from robopolicy.policies.base import NormalizationConfig, Policy
from robopolicy.policies.bc_rnn import BCRNNConfig, BCRNNPolicy
from robopolicy.policies.diffusion import DiffusionPolicy
from robopolicy.training.robomimic_diffusion import (
    acting_weights,
    action_control,
    action_mode,
    action_scales,
    check_fit,
    diffusion_config,
)
from robopolicy.training.robomimic_file import Table, finite_weights, plain, read_file

TASKS = {
    "Lift": "robomimic-lift",
    "PickPlaceCan": "robomimic-can",
    "NutAssemblySquare": "robomimic-square",
    "TwoArmTransport": "robomimic-transport",
    "ToolHang": "robomimic-tool_hang",
}
"""Our tasks with robomimic's own delta actions, by robosuite's names of them; with absolute ones they end in -abs."""
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
WIDEST = 100_000
"""Numbers of one observation or action."""
REPEATED = "policy.nets.rnn.per_step_net."
"""robomimic lists layers and head after the recurrent network twice."""


def load_robomimic(path: Path) -> tuple[Policy, str | None, dict[str, Any]]:
    """The policy in evaluation mode, our name of its task when there is one, and what robomimic says about it.

    CheckpointError for a file that is no such checkpoint, holds anything but plain data, or an algorithm not known.
    """
    saved = Table(path, "", read_file(path))
    algorithm = saved.get("algo_name", str)
    if algorithm not in MAKERS:
        raise CheckpointError(
            f"{path}: algorithm {algorithm!r}; known is bc: BC, BC-GMM, BC-RNN and BC-RNN-GMM, and diffusion_policy"
        )
    try:
        config = Table(path, "config.", json.loads(saved.get("config", str)))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: config is not valid JSON ({one_line(error)})") from error
    env = plain(path, saved.get("env_metadata", dict))
    policy = MAKERS[algorithm](saved, config, env)
    return policy.eval(), _task(policy.features.action.control, env), {"algorithm": algorithm, "env_metadata": env}


def _bc(saved: Table, config: Table, env: dict[str, Any]) -> Policy:
    if saved.values.get("action_normalization_stats"):
        raise CheckpointError(
            f"{saved.path}: scales its actions, as robomimic does from 0.5 on; for bc known are 0.2 and 0.3"
        )
    features = _features(saved, _states(config), env)
    policy_config = _policy_config(config)
    normalizer, policy_config.normalization.state = _normalizer(saved, features)
    # Sizes that a damaged file asks for are not allocated before its weights are known to have them.
    with torch.device("meta"):
        policy = BCRNNPolicy(policy_config, features, normalizer)
    _load_weights(saved.path, policy, saved.get("model", dict))
    return policy


def _diffusion(saved: Table, config: Table, env: dict[str, Any]) -> Policy:
    # The library never imports its sibling rooms at module level.
    from robopolicy.datasets.robomimic_env import control

    features = _features(saved, _states(config), env)
    offset, scale, sizes = action_scales(saved, config)
    action = replace(features.action, control=action_control(config, sizes, control(env)))
    features = FeatureSpec((*features.inputs, action), features.rate_hz)
    weights = acting_weights(saved, config)
    policy_config = diffusion_config(config, weights)
    check_fit(config, policy_config, weights, sum(f.shape[0] for f in features.inputs), action.shape[0])
    normalizer, policy_config.normalization.state = _normalizer(saved, features, (offset, scale))
    policy_config.normalization.action = action_mode(config)
    policy = DiffusionPolicy(policy_config, features, normalizer)
    policy.network.load_state_dict(weights)
    return policy


MAKERS: dict[str, Callable[[Table, Table, dict[str, Any]], Policy]] = {"bc": _bc, "diffusion_policy": _diffusion}


def _task(control: Control | None, env: dict[str, Any]) -> str | None:
    """Our name of the task that robomimic calls `env_name`, with the actions of the policy."""
    task = TASKS.get(str(env.get("env_name")))
    if task is None or control is None or control.mode == "delta":
        return task
    return f"{task}-abs" if (control.frame, control.rotation) == ("world", "rot6d") else None


def _states(config: Table) -> list[str]:
    """Names of the observations, all of which must be plain numbers."""
    for group in ("obs", "goal"):
        for modality, names in config.get(f"observation.modalities.{group}", dict, {}).items():
            if names and (group, modality) != ("obs", "low_dim"):
                raise CheckpointError(f"{config.path}: reads {modality} {group} {names}; known are policies on states")
    if config.get("observation.encoder.low_dim", dict, {}).get("core_class") is not None:
        raise CheckpointError(f"{config.path}: encodes its states by a network of their own, which is not known")
    return list(config.get("observation.modalities.obs.low_dim", list))


def _features(saved: Table, states: list[str], env: dict[str, Any]) -> FeatureSpec:
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
        if not isinstance(shape, list | tuple) or len(shape) != 1 or not _size(shape[0]):
            raise CheckpointError(f"{saved.path}: observation {name!r} should have one dimension, found {shape!r}")
        names = ("x", "y", "z", "w") if "_quat" in name and shape[0] == 4 and env.get("type") == 1 else ()
        inputs.append(Feature(f"observation.{name}", tuple(shape), names=names))
    size = saved.get("shape_metadata.ac_dim", int)
    if not _size(size):
        raise CheckpointError(f"{saved.path}: shape_metadata.ac_dim should be 1 to {WIDEST}, is {size}")
    action = Feature(ACTION, (size,), kind="action", control=control(env))
    return FeatureSpec((*inputs, action), rate_hz(env))


def _size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= WIDEST


def _policy_config(config: Table) -> BCRNNConfig:
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


def _normalizer(
    saved: Table, features: FeatureSpec, action: tuple[list[float], list[float]] | None = None
) -> tuple[Normalizer, Literal["mean_std", "identity"]]:
    """robomimic's (x - mean) / std of states, or the identity, and its mode; `action` are offset and scale."""
    stats = saved.table("obs_normalization_stats") if saved.values.get("obs_normalization_stats") is not None else None
    state = {}
    for feature in features:
        name, size = feature.key.replace(".", "_"), feature.shape[0]
        offset, scale = [0.0] * size, [1.0] * size
        if feature.kind == "action" and action is not None:
            offset, scale = action
        if stats is not None and feature.kind != "action":
            own = stats.table(feature.key.removeprefix("observation."))
            # robomimic 0.5 has other names for the same numbers.
            mean, std = ("offset", "scale") if "offset" in own.values else ("mean", "std")
            offset, scale = own.numbers(mean, size), own.numbers(std, size, positive=True)
        state[f"offset_{name}"], state[f"scale_{name}"] = torch.tensor(offset), torch.tensor(scale)
    normalizer = Normalizer(features.features)
    normalizer.load_state_dict(state)
    return normalizer, "identity" if stats is None else "mean_std"


def mapped_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of our `SequenceNetwork` from robomimic's state dictionary; names that we lack stay as they are."""
    mapped = {}
    for name, value in weights.items():
        if not name.startswith(REPEATED):
            part = next((p for p in PARTS if name.startswith(p)), "")
            mapped[PARTS.get(part, "") + name.removeprefix(part)] = value
    return mapped


def _load_weights(path: Path, policy: BCRNNPolicy, weights: dict[str, Any]) -> None:
    try:
        policy.network.load_state_dict(mapped_weights(finite_weights(path, weights)), assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its configuration ({one_line(error)})") from error
