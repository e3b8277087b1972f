"""Diffusion policies of robomimic: real ones sample the same actions as in robomimic, all others are refused.

The package of a version that has them is not needed: `robomimic_unet` is its network, the schedulers are those of
diffusers, as in robomimic, and the sampling loop is written out here.
"""

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robomimic_unet import PREFIX, predicted_noise, random_weights, shapes

from robopolicy.cli import main
from robopolicy.errors import CheckpointError
from robopolicy.inference.runner import PolicyRunner
from robopolicy.policies.composed import compose
from robopolicy.training import checkpoint
from robopolicy.training.robomimic import load_robomimic

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = OrderedDict([("object", 5), ("robot0_eef_pos", 3), ("robot0_eef_quat", 4)])
"""In the order of the file, which is the one that robomimic concatenates them in."""
CONTROLLER = {"type": "OSC_POSE", "input_type": "delta", "input_ref_frame": "world"}
STEPS = 20
OFFSET = [0.5, -0.5, 0.0, 0.1, 0.2, 0.3, 1.0]
SCALE = [2.0, 1.0, 0.5, 0.25, 3.0, 1.5, 0.1]
MEANS = {k: [0.1 * (i + 1) for i in range(n)] for k, n in SIZES.items()}
STDS = {k: [2.0 - 0.2 * i for i in range(n)] for k, n in SIZES.items()}


def environment(**controller: Any) -> dict[str, Any]:
    """What robomimic says about robosuite 1.5, with changes to the controller of the arm."""
    parts = {"type": "BASIC", "body_parts": {"right": CONTROLLER | controller}}
    kwargs = {"control_freq": 20, "controller_configs": parts}
    return {"env_name": "Lift", "env_version": "1.5.1", "type": 1, "env_kwargs": kwargs, "lang": None}


def configuration() -> dict[str, Any]:
    """The parts that matter of robomimic's template diffusion_policy.json, with fewer noise levels."""
    scheduler = {
        "num_train_timesteps": STEPS,
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": True,
        "prediction_type": "epsilon",
    }
    return {
        "algo_name": "diffusion_policy",
        "train": {
            "frame_stack": 2,
            "seq_length": 16,
            "hdf5_normalize_obs": True,
            "action_keys": ["actions"],
            "action_config": {"actions": {"normalization": "min_max"}},
        },
        "algo": {
            "horizon": {"observation_horizon": 2, "action_horizon": 3, "prediction_horizon": 8},
            # As in robomimic these sizes are not those of the network.
            "unet": {
                "enabled": True,
                "diffusion_step_embed_dim": 256,
                "down_dims": [256, 512, 1024],
                "kernel_size": 5,
                "n_groups": 8,
            },
            "ema": {"enabled": True, "power": 0.75},
            "ddpm": {"enabled": True, "num_inference_timesteps": STEPS} | scheduler,
            "ddim": {"enabled": False, "num_inference_timesteps": 6, "set_alpha_to_one": True, "steps_offset": 0}
            | scheduler,
        },
        "observation": {
            "modalities": {
                "obs": {"low_dim": list(reversed(SIZES)), "rgb": [], "depth": [], "scan": []},
                "goal": {"low_dim": [], "rgb": [], "depth": [], "scan": []},
            },
            "encoder": {"low_dim": {"core_class": None, "obs_randomizer_class": None}},
        },
    }


def contents(config: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """What robomimic 0.5 saves, with entries at the top changed."""
    wanted = shapes(7, 2 * sum(SIZES.values()), (16, 32, 24), 16, 3)
    nets, averaged = (random_weights(wanted, seed) for seed in (1, 2))
    saved = {
        "model": {
            "nets": nets,
            "optimizers": {"policy": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]}},
            "lr_schedulers": {"policy": {"base_lrs": [1e-4], "last_epoch": 3, "lr_lambdas": [None]}},
            "ema": averaged,
        },
        "config": json.dumps(config or configuration()),
        "algo_name": "diffusion_policy",
        "env_metadata": environment(),
        "shape_metadata": {
            "ac_dim": 7,
            "all_shapes": OrderedDict((k, [n]) for k, n in SIZES.items()),
            "all_obs_keys": list(SIZES),
            "use_images": False,
            "use_depths": False,
        },
        # The results of rollouts are means by numpy.
        "variable_state": {"epoch": 50, "best_valid_loss": None, "best_return": {"Lift": np.float64(0.62)}},
        "obs_normalization_stats": {k: {"offset": [MEANS[k]], "scale": [STDS[k]]} for k in SIZES},
        "action_normalization_stats": OrderedDict(actions={"scale": [SCALE], "offset": [OFFSET]}),
    }
    return saved | changes


def configured(**changes: Any) -> dict[str, Any]:
    """The same with entries of its configuration changed; double underscores stand for dots."""
    config = configuration()
    for name, value in changes.items():
        table, parts = config, name.split("__")
        for part in parts[:-1]:
            table = table[part]
        table[parts[-1]] = value
    return contents(config)


DDIM = {"algo__ddpm__enabled": False, "algo__ddim__enabled": True}


def written(path: Path, saved: Any) -> Path:
    torch.save(saved, path)
    return path


def observed(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two steps of every observation, [B, 2, n]."""
    generator = torch.Generator().manual_seed(seed)
    return {k: 0.3 + 2 * torch.randn(batch, 2, n, generator=generator) for k, n in SIZES.items()}


def condition(observation: dict[str, torch.Tensor]) -> torch.Tensor:
    """What robomimic's network is given, [B, 2 * 12]: scaled, side by side in the file's order, then step by step."""
    scaled = [(observation[k] - torch.tensor(MEANS[k])) / torch.tensor(STDS[k]) for k in SIZES]
    return torch.cat(scaled, dim=2).flatten(1)


def scheduler_of(algo: dict[str, Any]) -> tuple[Any, int]:
    """The scheduler that robomimic makes, and the number of steps it takes."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    kind, made = ("ddpm", DDPMScheduler) if algo["ddpm"]["enabled"] else ("ddim", DDIMScheduler)
    options = {k: v for k, v in algo[kind].items() if k not in ("enabled", "num_inference_timesteps")}
    return made(**options), algo[kind]["num_inference_timesteps"]


def sampled(
    saved: dict[str, Any], observation: dict[str, torch.Tensor], generator: torch.Generator, **options: Any
) -> torch.Tensor:
    """A chunk [B, 8, 7] of physical actions by robomimic's loop; `options` go to the scheduler's steps."""
    weights = saved["model"]["ema"]
    scheduler, taken = scheduler_of(json.loads(saved["config"])["algo"])
    scheduler.set_timesteps(taken)
    chunk = torch.randn(len(observation["object"]), 8, 7, generator=generator)
    for step in scheduler.timesteps:
        noise = predicted_noise(weights, chunk, int(step), condition(observation))
        chunk = scheduler.step(noise, step, chunk, generator=generator, **options).prev_sample
    return torch.tensor(OFFSET) + torch.tensor(SCALE) * chunk


def prefixed(observation: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"observation.{k}": v for k, v in observation.items()}


def test_a_checkpoint_becomes_a_run_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "model.pth", contents())
    assert main(["import", str(file), str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "as diffusion (unet, 20 steps of ddpm, chunks of 8, 3 executed)" in out
    assert f"next: robopolicy eval {tmp_path / 'run'}" in out
    assert "warning" not in out
    policy, about = checkpoint.load(tmp_path / "run")
    assert about["task"] == "robomimic-lift"
    assert about["provenance"]["robomimic"] == {"algorithm": "diffusion_policy", "env_metadata": environment()}
    config = policy.config
    assert (config.n_obs_steps, config.horizon, config.n_action_steps, policy.first_action) == (2, 8, 3, 1)
    assert (config.network.down_dims, config.network.time_dim, config.network.kernel_size) == ((16, 32, 24), 16, 3)
    assert (config.process.train_steps, config.process.clip, config.process.clip_direction) == (20, 1.0, True)
    assert (config.normalization.state, config.normalization.action) == ("mean_std", "min_max")
    assert policy.features.keys() == [*(f"observation.{k}" for k in SIZES), "action"]
    assert policy.features.action.control.mode == "delta"
    # The averaged weights, all of them, and no others.
    ema = contents()["model"]["ema"]
    assert torch.equal(policy.network.down[1][2].weight, ema[f"{PREFIX}down_modules.1.2.conv.weight"])
    assert sum(p.numel() for p in policy.parameters()) == sum(v.numel() for v in ema.values())
    # (x - offset) / scale of states; offset + scale * u of actions.
    values = torch.tensor([2.1, 0.2, 0.3, 0.4, 0.5])
    expected = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    assert torch.allclose(policy.normalizer.normalize("observation.object", values), expected, atol=1e-6)
    assert torch.allclose(policy.normalizer.unnormalize("action", torch.ones(7))[:3], torch.tensor([2.5, 0.5, 0.5]))


def test_states_of_an_older_robosuite_are_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = contents(env_metadata=environment() | {"env_version": "1.4.1"})
    assert main(["import", str(written(tmp_path / "model.pth", saved)), str(tmp_path / "run")]) == 0
    assert "warning: trained on robosuite 1.4.1, which orders the numbers of `object`" in capsys.readouterr().out


def test_the_denoiser_says_what_robomimics_network_says(tmp_path: Path) -> None:
    saved = contents()
    policy, _, _ = load_robomimic(written(tmp_path / "model.pth", saved))
    observation = observed(3)
    noisy = torch.randn(3, 8, 7, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        context = policy.encoder(prefixed(observation), policy.normalizer)
        assert torch.allclose(context.flatten(1), condition(observation), atol=1e-6)
        for step in (0, 1, 7, STEPS - 1):
            theirs = predicted_noise(saved["model"]["ema"], noisy, step, condition(observation))
            ours = policy.network(noisy, torch.full((3,), float(step)), context)
            assert float((ours - theirs).abs().max()) < 1e-5
            # The frame of our samplers: x = noisy / sqrt(abar), and D is the clean chunk that the noise leaves.
            sigma = policy.process.levels[step]
            x = noisy * (1 + sigma**2).sqrt().float()
            clean = (x - sigma.float() * theirs).clamp(-1, 1)
            assert float((policy.denoiser(prefixed(observation))(x, sigma) - clean).abs().max()) < 1e-4
    other = predicted_noise(saved["model"]["nets"], noisy, 7, condition(observation))
    assert float((other - theirs).abs().max()) > 0.1, "the weights that are not averaged are others"


SAMPLERS: dict[str, tuple[dict[str, Any], float]] = {
    "ddpm": ({}, 2e-5),
    "ddpm, both enabled": ({"algo__ddim__enabled": True}, 2e-5),
    "ddpm, linear": ({"algo__ddpm__beta_schedule": "linear"}, 2e-4),
    "ddpm, not clipped": ({"algo__ddpm__clip_sample": False}, 2e-4),
    "ddim": (DDIM, 2e-5),
    "ddim, 7 of 20 steps": (DDIM | {"algo__ddim__num_inference_timesteps": 7}, 2e-5),
    "ddim, all steps": (DDIM | {"algo__ddim__num_inference_timesteps": STEPS}, 2e-5),
    "ddim, not clipped": (DDIM | {"algo__ddim__clip_sample": False}, 2e-4),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_chunk_is_the_one_of_robomimics_loop(tmp_path: Path, name: str) -> None:
    changes, limit = SAMPLERS[name]
    saved = configured(**changes)
    policy, _, _ = load_robomimic(written(tmp_path / "model.pth", saved))
    observation = observed(4)
    with torch.inference_mode():
        theirs = sampled(saved, observation, torch.Generator().manual_seed(3))
        ours = policy.predict(prefixed(observation), torch.Generator().manual_seed(3))
        largest = float((theirs.abs() / torch.tensor(SCALE)).max())
    difference = float(((ours - theirs).abs() / torch.tensor(SCALE)).max())
    assert difference < limit * max(largest, 1.0), (difference, largest)


def test_ddim_clips_as_diffusers_does_by_default(tmp_path: Path) -> None:
    saved, observation = configured(**DDIM), observed(4)
    policy, _, _ = load_robomimic(written(tmp_path / "model.pth", saved))
    with torch.inference_mode():
        theirs = sampled(saved, observation, torch.Generator().manual_seed(3), use_clipped_model_output=True)
        assert (
            float((policy.predict(prefixed(observation), torch.Generator().manual_seed(3)) - theirs).abs().max())
            > 0.01
        )
        policy.config.process.clip_direction = True
        ours = policy.predict(prefixed(observation), torch.Generator().manual_seed(3))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_it_acts_as_robomimic_does_step_by_step(tmp_path: Path) -> None:
    """Histories begin with the first observation repeated; rows 1, 2 and 3 of a chunk are executed."""
    saved = contents()
    policy, _, _ = load_robomimic(written(tmp_path / "model.pth", saved))
    runner = PolicyRunner(policy, 1, seeds=[11])
    generator = torch.Generator().manual_seed(11)
    rng = np.random.default_rng(0)
    queue: list[torch.Tensor] = []
    previous = None
    for step in range(8):
        now = {k: rng.normal(0.3, 2.0, n).astype(np.float32) for k, n in SIZES.items()}
        stacked = {k: torch.from_numpy(np.stack([(previous or now)[k], now[k]]))[None] for k in SIZES}
        if not queue:
            queue = list(sampled(saved, stacked, generator)[0, 1:4])
        action = runner.step({f"observation.{k}": v[None] for k, v in now.items()})[0]
        np.testing.assert_allclose(action, queue.pop(0).numpy(), atol=1e-4, err_msg=f"step {step}")
        previous = now


def test_without_statistics_states_and_actions_stay_as_they_are(tmp_path: Path) -> None:
    saved = contents(obs_normalization_stats=None, action_normalization_stats=None)
    policy, _, _ = load_robomimic(written(tmp_path / "model.pth", saved))
    value = torch.tensor([0.3, -4.0, 2.0, 0.5, 9.0])
    assert torch.equal(policy.normalizer.normalize("observation.object", value), value)
    assert torch.equal(policy.normalizer.unnormalize("action", torch.full((7,), 0.7)), torch.full((7,), 0.7))
    assert policy.config.normalization.state == "identity"


def test_without_averaging_robomimic_acts_with_the_trained_weights(tmp_path: Path) -> None:
    saved = configured(algo__ema__enabled=False)
    saved["model"]["ema"] = None
    policy, _, _ = load_robomimic(written(tmp_path / "model.pth", saved))
    assert torch.equal(policy.network.head[1].bias, saved["model"]["nets"][f"{PREFIX}final_conv.1.bias"])


def test_the_end_of_a_chunk_limits_the_executed_actions(tmp_path: Path) -> None:
    policy, _, _ = load_robomimic(written(tmp_path / "a.pth", configured(algo__horizon__action_horizon=8)))
    assert policy.config.n_action_steps == 7, "of 8 rows the first belongs to the past"


def keyed(**controller: Any) -> dict[str, Any]:
    """Absolute poses of 3 + 6 + 1 numbers from three action keys, listed in another order than the statistics."""
    config = configuration()
    config["train"]["action_keys"] = ["action_dict/abs_pos", "action_dict/abs_rot_6d", "action_dict/gripper"]
    config["train"]["action_config"] = {
        "action_dict/gripper": {"normalization": "min_max"},
        "action_dict/abs_pos": {"normalization": "min_max"},
        "action_dict/abs_rot_6d": {"normalization": None, "format": "rot_6d"},
    }
    stats = {
        "action_dict/gripper": {"scale": [[4.0]], "offset": [[0.25]]},
        "action_dict/abs_rot_6d": {"scale": [[1.0] * 6], "offset": [[0.0] * 6]},
        "action_dict/abs_pos": {"scale": [[0.5, 0.25, 0.125]], "offset": [[1.0, 2.0, 3.0]]},
    }
    weights = random_weights(shapes(10, 2 * sum(SIZES.values()), (16, 32), 16, 5), 4)
    metadata = {"ac_dim": 10, "all_shapes": {k: [n] for k, n in SIZES.items()}}
    return contents(
        config,
        model={"nets": weights, "ema": copy.deepcopy(weights)},
        shape_metadata=metadata,
        action_normalization_stats=stats,
        env_metadata=environment(**({"input_type": "absolute"} | controller)),
    )


def test_absolute_poses_with_rotations_of_six_numbers_are_those_of_our_tasks(tmp_path: Path) -> None:
    policy, task, _ = load_robomimic(written(tmp_path / "model.pth", keyed()))
    assert task == "robomimic-lift-abs"
    control = policy.features.action.control
    assert (control.mode, control.rotation, control.frame) == ("absolute", "rot6d", "world")
    expected = [1.5, 2.25, 3.125, *[1.0] * 6, 4.25]
    assert policy.normalizer.unnormalize("action", torch.ones(10)).tolist() == expected
    elsewhere = load_robomimic(written(tmp_path / "base.pth", keyed(input_ref_frame="base")))
    assert elsewhere[1] is None, "our tasks have poses in the frame of the world"


def test_imported_policies_can_be_composed(tmp_path: Path) -> None:
    first, _, _ = load_robomimic(written(tmp_path / "a.pth", contents()))
    other = contents()
    other["model"]["ema"] = other["model"]["nets"]
    second, _, _ = load_robomimic(written(tmp_path / "b.pth", other))
    composed = compose([first, second], (0.5, 0.5))
    chunk = composed.predict(prefixed(observed(2)), torch.Generator().manual_seed(0))
    assert chunk.shape == (2, 8, 7)
    assert torch.isfinite(chunk).all()
    alone = composed.with_weights((1.0, 0.0)).predict(prefixed(observed(2)), torch.Generator().manual_seed(0))
    assert torch.equal(alone, first.predict(prefixed(observed(2)), torch.Generator().manual_seed(0)))


def changed_weights(**changes: Any) -> dict[str, Any]:
    """Averaged weights changed, by the end of their name with double underscores for dots; None takes one away."""
    saved = contents()
    for end, value in changes.items():
        name = next(n for n in saved["model"]["ema"] if n.endswith(end.replace("__", ".")))
        if value is None:
            del saved["model"]["ema"][name]
        else:
            saved["model"]["ema"][name] = value
    return saved


def changed_model(**changes: Any) -> dict[str, Any]:
    saved = contents()
    return saved | {"model": saved["model"] | changes}


STATS = {"actions": {"scale": [SCALE], "offset": [OFFSET]}}
ROTATION = {"actions": {"format": "rot_6d"}}
HUGE = torch.zeros(1).expand(10**9, 16, 3)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (changed_model(ema=None), "model.ema is missing"),
        ({k: v for k, v in contents().items() if k != "model"}, "model should be dict"),
        (contents(model=contents()["model"]["ema"]), "model.ema is missing"),
        (configured(algo__unet__enabled=False), "unet.enabled is false; known is the U-Net"),
        (configured(algo__unet__n_groups=4), "n_groups is 4; known is 8"),
        (configured(algo__ddpm__enabled=False), "neither config.algo.ddpm nor ddim is enabled"),
        (configured(algo__ddpm__prediction_type="v_prediction"), "type is 'v_prediction'; known is 'epsilon'"),
        (configured(algo__ddpm__prediction_type="sample"), "prediction_type is 'sample'; known is 'epsilon'"),
        (configured(algo__ddpm__beta_schedule="scaled_linear"), "'scaled_linear'; known is squaredcos_cap_v2 or l"),
        (configured(algo__ddpm__num_inference_timesteps=10), "num_inference_timesteps is 10; known is num_train"),
        (configured(algo__ddpm__num_train_timesteps=10**9), "num_train_timesteps is 1000000000; known is 2 to"),
        (configured(algo__ddpm__clip_sample=None), "clip_sample should be bool"),
        (configured(**DDIM, algo__ddim__set_alpha_to_one=False), "set_alpha_to_one is False; known is True"),
        (configured(**DDIM, algo__ddim__steps_offset=1), "steps_offset is 1; known is 0"),
        (configured(**DDIM, algo__ddim__num_inference_timesteps=0), "num_inference_timesteps is 0; known is 1 to"),
        (configured(algo__horizon__prediction_horizon=6), "and 6 predicted steps makes no policy; .*a multiple of 4"),
        (configured(algo__horizon__observation_horizon=9, train__frame_stack=9), "makes no policy"),
        (configured(train__frame_stack=3), "frame_stack is 3 and observation_horizon 2"),
        (configured(observation__modalities__obs__rgb=["agentview_image"]), "reads rgb obs .*known are policies on"),
        (configured(observation__modalities__goal__low_dim=["object"]), "reads low_dim goal"),
        (configured(observation__encoder__low_dim__core_class="MLP"), "encodes its states"),
        (configured(observation__encoder__low_dim__obs_randomizer_class="GaussianNoise"), "by GaussianNoise"),
        (configured(train__action_keys=["actions_abs"])
         | {"action_normalization_stats": {"actions_abs": STATS["actions"]}}, "say absolute .*env_metadata says"),
        (configured(train__action_keys=["action_dict/pos"]), "action_normalization_stats.action_dict/pos should be d"),
        (configured(train__action_keys=[]), "action_keys should be names"),
        (configured(train__action_config=ROTATION), r"of sizes \[7\] have rotations of the format rot_6d"),
        (contents(action_normalization_stats={"actions": {"scale": [SCALE], "offset": [[0.0]]}}), "be 7 numbers"),
        (contents(action_normalization_stats={"actions": {"scale": [[0.0] * 7], "offset": [OFFSET]}}), "above 0"),
        (contents(action_normalization_stats={"actions": {"scale": [[1] * 6], "offset": [[0] * 6]}}), "ac_dim is 7"),
        (contents(action_normalization_stats={"actions": {"scale": [SCALE], "offset": [[np.nan] * 7]}}), "7 numbers"),
        (contents(obs_normalization_stats={"object": {"mean": [[0.0]], "std": [[1.0]]}}), "be 5 numbers"),
        (contents(shape_metadata={"ac_dim": 6, "all_shapes": {k: [n] for k, n in SIZES.items()}}), "ac_dim is 6"),
        (contents(shape_metadata={"ac_dim": 10**12, "all_shapes": {k: [n] for k, n in SIZES.items()}}), "1 to 100000"),
        (contents(shape_metadata={"ac_dim": 7, "all_shapes": {k: [6] for k in SIZES}},
                  obs_normalization_stats=None), "do not fit its configuration .*size mismatch"),
        (changed_weights(mid_modules__1__cond_encoder__1__bias=None), "do not fit its configuration .*middle.1.film"),
        (changed_weights(final_conv__1__weight=torch.zeros(7, 8, 1)), "do not fit .*size mismatch for head.1.weight"),
        (changed_weights(down_modules__0__0__blocks__0__block__0__weight=None), "weights lack policy.noise_pred_net"),
        (changed_weights(down_modules__0__0__blocks__0__block__0__weight=torch.zeros(12, 7, 3)), "make no network"),
        (changed_weights(down_modules__0__0__blocks__0__block__0__weight=HUGE), "no finite tensors: policy.noise"),
        (changed_weights(final_conv__1__bias=torch.full((7,), torch.nan)), "no finite tensors: .*final_conv.1.bias"),
        (changed_weights(final_conv__1__bias=3), "no finite tensors: .*final_conv.1.bias"),
        (changed_model(ema=contents()["model"]["ema"] | {"policy.obs_encoder.nets.obs.a": torch.ones(1)}),
         "do not fit .*Unexpected key"),
    ],
)  # fmt: skip
def test_all_else_is_refused_by_name(tmp_path: Path, saved: Any, message: str) -> None:
    file = written(tmp_path / "model.pth", saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_robomimic(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (keyed(input_type="delta"), "say absolute actions, env_metadata says delta"),
        (keyed(type="JOINT_POSITION"), "for absolute control; known are position, rotation and gripper"),
    ],
)
def test_absolute_poses_of_other_controllers_are_refused(tmp_path: Path, saved: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_robomimic(written(tmp_path / "model.pth", saved))


def test_statistics_of_numpy_in_a_file_run_nothing(tmp_path: Path) -> None:
    """Whatever stands for a number of numpy comes back as nothing, so it cannot stand for a setting."""
    saved = contents(shape_metadata={"ac_dim": np.int64(7), "all_shapes": {k: [n] for k, n in SIZES.items()}})
    with pytest.raises(CheckpointError, match="ac_dim should be int, found 'None'"):
        load_robomimic(written(tmp_path / "model.pth", saved))
    arrays = contents(variable_state={"best_return": np.zeros(3)})
    with pytest.raises(CheckpointError, match="holds more than plain data"):
        load_robomimic(written(tmp_path / "model.pth", arrays))
