"""robomimic's diffusion policy (`algo_name` "diffusion_policy", robomimic 0.5) as ours.

Both are the U-Net of Chi et al. (2023), the same layers under other names. Beside the weights a checkpoint says which
noise scheduler of diffusers samples and how, how long histories and chunks are, and how actions were scaled.
"""

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robopolicy.diffusion.processes import BETAS
from robopolicy.errors import CheckpointError, one_line
from robopolicy.features import Control
from robopolicy.nn.normalizer import Mode
from robopolicy.nn.unet1d import ConditionalUnet1D
from robopolicy.policies.diffusion import DiffusionConfig, SamplerConfig, UnetConfig, VPConfig
from robopolicy.training.robomimic_file import Table, finite_weights

PREFIX = "policy.noise_pred_net."
PARTS = {
    "diffusion_step_encoder.": "time.",
    "mid_modules.": "middle.",
    "down_modules.": "down.",
    "up_modules.": "up.",
    ".2.conv.": ".2.",
    ".blocks.0.block.": ".first.",
    ".blocks.1.block.": ".second.",
    ".cond_encoder.": ".film.",
    ".residual_conv.": ".residual.",
    "final_conv.0.block.": "head.0.",
    "final_conv.": "head.",
}
GROUPS = 8
"""Of every group normalisation, which no weight shows; robomimic builds its network with 8 whatever is configured."""
HORIZONS = ("observation", "action", "prediction")
MOST = 1000
"""Steps of histories and chunks."""
MOST_LEVELS = 10_000
"""Noise levels of a scheduler."""
ARM = (3, 6, 1)
"""Position, rotation and gripper of an action with rotations as six numbers."""


def mapped_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of our `ConditionalUnet1D` from robomimic's state dictionary; names that we lack stay recognisable."""
    mapped = {}
    for name, value in weights.items():
        ours = name.removeprefix(PREFIX)
        for part, own in PARTS.items():
            ours = ours.replace(part, own)
        mapped[ours] = value
    return mapped


def acting_weights(saved: Table, config: Table) -> dict[str, Tensor]:
    """State of our `ConditionalUnet1D` with the weights that robomimic acts with: averaged ones, if it averages."""
    model = saved.table("model")
    averaged = config.get("algo.ema.enabled", bool)
    if averaged and model.values.get("ema") is None:
        raise CheckpointError(
            f"{saved.path}: model.ema is missing, though config.algo.ema.enabled is true: robomimic acts with the "
            "averaged weights, which this file lacks"
        )
    return mapped_weights(finite_weights(saved.path, model.table("ema" if averaged else "nets").values))


def diffusion_config(config: Table, weights: dict[str, Tensor]) -> DiffusionConfig:
    """Our configuration, without the scaling, for `weights` of our U-Net."""
    if not config.get("algo.unet.enabled", bool):
        raise CheckpointError(f"{config.path}: config.algo.unet.enabled is false; known is the U-Net")
    observed, acted, predicted = (config.get(f"algo.horizon.{n}_horizon", int) for n in HORIZONS)
    network = _network(config, weights)
    halved = 2 ** (len(network.down_dims) - 1)
    if not (1 <= observed <= predicted <= MOST) or acted < 1 or predicted % halved:
        raise CheckpointError(
            f"{config.path}: config.algo.horizon of {observed} observed, {acted} executed and {predicted} predicted "
            f"steps makes no policy; known are 1 <= observed <= predicted <= {MOST}, predicted a multiple of {halved}"
        )
    stacked = config.get("train.frame_stack", int, 1)
    if stacked != observed:
        raise CheckpointError(
            f"{config.path}: config.train.frame_stack is {stacked} and observation_horizon {observed}; known are "
            "equal ones, others cannot act in robomimic"
        )
    if (randomizer := config.get("observation.encoder.low_dim", dict, {}).get("obs_randomizer_class")) is not None:
        raise CheckpointError(f"{config.path}: changes its states by {str(randomizer)[:80]}, which is not known")
    process, sampler = _scheduler(config)
    return DiffusionConfig(
        n_obs_steps=observed,
        horizon=predicted,
        # robomimic cuts its actions from the chunk, which may end first.
        n_action_steps=min(acted, predicted - observed + 1),
        network=network,
        process=process,
        sampler=sampler,
    )


def _network(config: Table, weights: dict[str, Tensor]) -> UnetConfig:
    """Sizes as the weights have them: robomimic builds its network without looking at `algo.unet`."""
    if (groups := config.get("algo.unet.n_groups", int, GROUPS)) != GROUPS:
        raise CheckpointError(
            f"{config.path}: config.algo.unet.n_groups is {groups}; known is {GROUPS}, which robomimic uses whatever "
            "is configured"
        )
    firsts: list[Tensor] = []
    while isinstance(first := weights.get(f"down.{len(firsts)}.0.first.0.weight"), Tensor):
        firsts.append(first)
    time = weights.get("time.1.weight")
    if not firsts or time is None or time.ndim != 2 or any(first.ndim != 3 for first in firsts):
        raise CheckpointError(
            f"{config.path}: its weights lack {PREFIX}down_modules or {PREFIX}diffusion_step_encoder: no U-Net of "
            "robomimic"
        )
    dims, size, kernel = tuple(first.shape[0] for first in firsts), time.shape[1], firsts[0].shape[2]
    if size < 4 or size % 2 or kernel % 2 == 0 or any(dim < 1 or dim % GROUPS for dim in dims):
        raise CheckpointError(
            f"{config.path}: weights with down_dims {list(dims)}, kernel_size {kernel} and diffusion_step_embed_dim "
            f"{size} make no network"
        )
    return UnetConfig(dims, size, kernel, GROUPS)


def check_fit(config: Table, policy: DiffusionConfig, weights: dict[str, Tensor], states: int, actions: int) -> None:
    """CheckpointError unless `weights` are all those of the network for so many numbers of a state and an action."""
    net = policy.network
    assert isinstance(net, UnetConfig)
    # Sizes that a damaged file asks for are not allocated before its weights are known to have them.
    with torch.device("meta"):
        network = ConditionalUnet1D(
            actions, policy.n_obs_steps * states, net.down_dims, net.time_dim, net.kernel_size, net.groups
        )
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{config.path}: its weights do not fit its configuration ({one_line(error)})"
        ) from error


def _scheduler(config: Table) -> tuple[VPConfig, SamplerConfig]:
    """Noise process and sampler of robomimic's scheduler; as in robomimic, DDPM where both are enabled.

    robomimic requires diffusers 0.11.1. Of its DDPM only all steps are known: with fewer it still takes each for one
    of `num_train_timesteps`, which leaves noise in the chunk.
    """
    kind = next((k for k in ("ddpm", "ddim") if config.get(f"algo.{k}.enabled", bool, False)), None)
    if kind is None:
        raise CheckpointError(f"{config.path}: neither config.algo.ddpm nor ddim is enabled; known are these two")

    def refuse(name: str, found: Any, known: str) -> CheckpointError:
        return CheckpointError(f"{config.path}: config.algo.{kind}.{name} is {found!r}; known is {known}")

    trained, taken = (config.get(f"algo.{kind}.num_{n}_timesteps", int) for n in ("train", "inference"))
    betas, predicted = (config.get(f"algo.{kind}.{n}", str) for n in ("beta_schedule", "prediction_type"))
    clips = config.get(f"algo.{kind}.clip_sample", bool)
    if not 2 <= trained <= MOST_LEVELS:
        raise refuse("num_train_timesteps", trained, f"2 to {MOST_LEVELS}")
    if predicted != "epsilon":
        raise refuse("prediction_type", predicted, "'epsilon', which robomimic trains whatever is configured")
    if betas not in BETAS:
        raise refuse("beta_schedule", betas, " or ".join(BETAS))
    if kind == "ddpm":
        if taken < trained:
            raise refuse("num_inference_timesteps", taken, f"num_train_timesteps, {trained}")
        return _vp(trained, betas, clips), SamplerConfig("ddpm", trained)
    if not 1 <= taken <= trained:
        raise refuse("num_inference_timesteps", taken, f"1 to num_train_timesteps, {trained}")
    if not config.get("algo.ddim.set_alpha_to_one", bool):
        raise refuse("set_alpha_to_one", False, "True: the last step ends without noise")
    if offset := config.get("algo.ddim.steps_offset", int):
        raise refuse("steps_offset", offset, "0")
    # diffusers' DDIM clips the clean chunk of a step but keeps its direction.
    return _vp(trained, betas, clips, clip_direction=not clips), SamplerConfig("ddim", taken)


def _vp(steps: int, betas: str, clips: bool, clip_direction: bool = True) -> VPConfig:
    return VPConfig(steps, betas, "epsilon", 1.0 if clips else 0.0, clip_direction)  # type: ignore[arg-type]


def action_scales(saved: Table, config: Table) -> tuple[list[float], list[float], tuple[int, ...]]:
    """Offset and scale of all numbers of an action, and how many each of robomimic's action keys has of them.

    An action is offset + scale * what the network says. Files without statistics have actions as they are.
    """
    total = saved.get("shape_metadata.ac_dim", int)
    if saved.values.get("action_normalization_stats") is None:
        return [0.0] * total, [1.0] * total, ()
    stats = saved.table("action_normalization_stats")
    offset: list[float] = []
    scale: list[float] = []
    sizes: list[int] = []
    for key in _action_keys(config):
        own = stats.table(key)
        widths = own.numbers("scale", positive=True)
        offset += own.numbers("offset", len(widths))
        scale += widths
        sizes.append(len(widths))
    if len(scale) != total:
        raise CheckpointError(
            f"{saved.path}: action_normalization_stats of {_action_keys(config)} have {len(scale)} numbers, "
            f"shape_metadata.ac_dim is {total}"
        )
    return offset, scale, tuple(sizes)


def action_control(config: Table, sizes: tuple[int, ...], control: Control | None) -> Control | None:
    """What actions mean, by the controller of the simulator that robomimic gives them to and their own keys."""
    keys = _action_keys(config)
    for word, mode in (("abs", "absolute"), ("rel", "delta")):
        if control and control.mode != mode and any(word in re.split(r"[^a-z]+", k) for k in keys):
            raise CheckpointError(
                f"{config.path}: config.train.action_keys {keys} say {mode} actions, env_metadata says {control.mode} "
                "ones; known are files that agree"
            )
    own = _action_settings(config)
    formats = [o.get("format") for o in own]
    if "rot_6d" not in formats:
        return control
    turned = {str(o.get("convert_at_runtime", "rot_axis_angle")) for o in own if o.get("format") == "rot_6d"}
    arms = len(sizes) // 3
    # Our tasks take the six numbers as they are, and convert them as robomimic does before the simulator.
    if (
        turned != {"rot_axis_angle"}
        or sizes != ARM * arms
        or formats != [None, "rot_6d", None] * arms
        or control is None
        or (control.target, control.mode, control.rotation) != ("end_effector_pose", "absolute", "axis_angle")
    ):
        raise CheckpointError(
            f"{config.path}: config.train.action_keys {keys} of sizes {list(sizes)} have rotations of the format "
            f"rot_6d, made {', '.join(sorted(turned))} for {control.mode if control else 'unknown'} control; known "
            "are position, rotation and gripper of sizes 3, 6 and 1, made rot_axis_angle for absolute control of poses"
        )
    return replace(control, rotation="rot6d")


def _action_keys(config: Table) -> list[str]:
    keys = config.get("train.action_keys", list, ["actions"])
    if not keys or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"{config.path}: config.train.action_keys should be names, found {str(keys)[:80]}")
    return keys


def _action_settings(config: Table) -> list[dict[str, Any]]:
    """What is configured for each of the action keys."""
    settings = config.get("train.action_config", dict, {})
    return [found if isinstance(found := settings.get(key), dict) else {} for key in _action_keys(config)]


def action_mode(config: Table) -> Mode:
    """The mode of our normaliser nearest to how the scales were made, which training on would take."""
    found = {str(settings.get("normalization")) for settings in _action_settings(config)}
    return "min_max" if "min_max" in found else "mean_std" if "gaussian" in found else "identity"
