"""Robomimic's recipes: published numbers, and scales that fit what each method learns."""

import pytest

from robopolicy.cli import main
from robopolicy.configs import to_dict
from robopolicy.policies.base import Policy
from robopolicy.recipes import RECIPES, recipe
from robopolicy.recipes_robomimic import IMAGE_METHODS, LISTED, METHODS, ROBOMIMIC, TASKS
from robopolicy.registry import task_class
from robopolicy.training.checkpoint import build
from robopolicy.training.data import window_shape
from robopolicy.training.trainer import learning_rate


def built(name: str) -> Policy:
    config = recipe(name)
    return build(to_dict(config.policy), task_class(config.task).features)


def size(name: str) -> int:
    return sum(p.numel() for p in built(name).parameters())


def test_bc_rnn_gmm_as_published() -> None:
    config = to_dict(recipe("square-bcrnn-paper"))
    policy, optim = config["policy"], config["optim"]
    assert (policy["cell"], policy["hidden"], policy["layers"], policy["mlp"]) == ("lstm", 400, 2, [])
    assert (policy["head"], policy["modes"], policy["min_std"], policy["low_noise"]) == ("gmm", 5, 1e-4, True)
    assert (policy["n_obs_steps"], policy["normalization"]) == (10, {"state": "identity", "action": "identity"})
    assert (optim["lr"], optim["decay"], optim["warmup_steps"], optim["weight_decay"]) == (1e-4, "constant", 0, 0.0)
    assert (config["batch_size"], config["steps"], config["ema"]["max_decay"]) == (100, 200_000, 0.0)
    assert learning_rate(recipe("square-bcrnn-paper").optim, 150_000, 200_000) == 1e-4
    # Counted by robomimic 0.3.0.
    assert size("lift-bcrnn-paper") == 1_986_875
    assert size("square-bcrnn-paper") == size("can-bcrnn-paper") == 1_993_275


def test_diffusion_policy_as_published() -> None:
    config = to_dict(recipe("can-dp-paper"))
    policy, optim = config["policy"], config["optim"]
    assert (policy["n_obs_steps"], policy["horizon"], policy["n_action_steps"]) == (2, 16, 8)
    assert (policy["network"]["kind"], policy["network"]["down_dims"]) == ("unet", [256, 512, 1024])
    assert (policy["process"]["betas"], policy["process"]["prediction"]) == ("squaredcos_cap_v2", "epsilon")
    assert (optim["lr"], optim["betas"], optim["weight_decay"]) == (1e-4, [0.95, 0.999], 1e-6)
    assert (optim["warmup_steps"], config["batch_size"], config["ema"]["max_decay"]) == (500, 256, 0.9999)
    assert policy["normalization"]["action"] == "pose"
    config = to_dict(recipe("can-dp-transformer-paper"))
    network, optim = config["policy"]["network"], config["optim"]
    assert (network["layers"], network["heads"], network["width"], network["dropout"]) == (8, 4, 256, 0.3)
    assert (optim["betas"], optim["weight_decay"], optim["warmup_steps"]) == ([0.9, 0.95], 1e-3, 1000)


def test_carp_has_the_published_size() -> None:
    policy = built("square-carp")
    # The published number includes position embeddings of 10 action dimensions, but no tokenizer.
    assert sum(p.numel() for p in policy.network.parameters()) == 649_536


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_builds_a_policy_of_its_task(task: str, method: str) -> None:
    config, policy = recipe(f"{task}-{method}"), built(f"{task}-{method}")
    assert f"{task}-{method}" in RECIPES
    action = task_class(config.task).features.action
    if method.startswith("bcrnn"):
        assert (config.task, action.shape) == (f"robomimic-{task}", (7,))
        assert window_shape(policy).extra_last == 9
    else:
        assert (config.task, action.shape) == (f"robomimic-{task}-abs", (10,))
        assert config.policy.normalization == recipe(f"{task}-dp").policy.normalization, "they can be composed"
    if "paper" not in method:
        assert config.threads == 1


def test_image_policies_have_the_published_sizes() -> None:
    # CARP's table of image policies says 255.61 M and 7.58 M without the encoders.
    unet = built("lift-image-dp")
    assert sum(p.numel() for p in unet.network.parameters()) == 255_612_042
    assert [f.key for f in unet.features.of_kind("image")] == [
        "observation.images.agentview",
        "observation.images.robot0_eye_in_hand",
    ]
    assert unet.encoder.dim == 64 + 64 + 3 + 4 + 2
    assert sum(p.numel() for p in built("lift-image-carp").network.parameters()) == 7_584_608
    # Counted by robomimic 0.3.0, whose BatchNorm has as many parameters as our GroupNorm.
    assert size("lift-image-bcrnn") == 35_033_251


def test_image_hyper_parameters_as_published() -> None:
    made = {name: to_dict(recipe(f"can-{name}")) for name in IMAGE_METHODS}
    for name, config in made.items():
        vision = config["policy"]["vision"]
        assert (vision["crop"], vision["keypoints"], vision["features"], vision["share_encoder"]) == (
            76,
            32,
            64,
            False,
        )
        assert config["task"] == ("robomimic-can-image" if name == "image-bcrnn" else "robomimic-can-image-abs")
    for name in ("image-dp", "image-dp-transformer", "image-flow", "image-beso", "image-carp"):
        assert (made[name]["batch_size"], made[name]["policy"]["normalization"]["action"]) == (64, "pose"), name
    unet, optim = made["image-dp"]["policy"], made["image-dp"]["optim"]
    assert (unet["network"]["down_dims"], unet["network"]["time_dim"]) == ([512, 1024, 2048], 128)
    assert (unet["n_obs_steps"], unet["horizon"], unet["n_action_steps"]) == (2, 16, 8)
    assert (optim["lr"], optim["betas"], optim["weight_decay"], optim["warmup_steps"]) == (
        1e-4,
        [0.95, 0.999],
        1e-6,
        500,
    )
    assert made["image-flow"]["policy"]["network"] == unet["network"]
    transformer, optim = made["image-dp-transformer"]["policy"], made["image-dp-transformer"]["optim"]
    assert (transformer["horizon"], transformer["network"]["dropout"]) == (10, 0.3)
    assert (optim["betas"], optim["weight_decay"], optim["warmup_steps"]) == ([0.9, 0.95], 1e-3, 1000)
    carp, optim = made["image-carp"]["policy"], made["image-carp"]["optim"]
    assert (carp["n_obs_steps"], carp["depth"], carp["width"]) == (1, 16, 160)
    assert (optim["lr"], optim["clip_norm"]) == (2.5e-5, 2.0)
    recurrent = made["image-bcrnn"]
    assert (recurrent["policy"]["hidden"], recurrent["policy"]["n_obs_steps"]) == (1000, 10)
    assert (recurrent["batch_size"], recurrent["steps"], recurrent["ema"]["max_decay"]) == (16, 300_000, 0.0)


@pytest.mark.parametrize(("task", "steps"), [("lift", 9666), ("can", 23_207), ("square", 30_154)])
def test_image_runs_last_the_published_epochs(task: str, steps: int) -> None:
    # A window of 16 may begin one step before an episode and end 7 steps after it.
    epoch = 0.98 * (steps - 200 * (16 - 1 - 7 - 1)) / 64
    assert recipe(f"{task}-image-dp").steps == pytest.approx(3000 * epoch, rel=0.005)
    carp = recipe(f"{task}-image-carp")
    assert carp.policy.tokenizer.steps == pytest.approx(400 * epoch, rel=0.005)
    assert carp.steps - carp.policy.tokenizer.steps == pytest.approx(4000 * epoch, rel=0.005)


def test_help_lists_a_method_once_for_all_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    listed = capsys.readouterr().out
    lines = [line for line in listed.splitlines() if line.startswith("  {lift,can,square}-")]
    assert len(lines) == len(LISTED) == len(METHODS) + len(IMAGE_METHODS)
    assert max(map(len, lines)) < 120
    expanded = {f"{task}-{line.split()[0].split('}-')[1]}" for line in lines for task in TASKS}
    assert expanded == set(ROBOMIMIC)


def test_help_of_an_image_recipe_shows_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "lift-image-dp", "--data.path", "x.hdf5", "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 512 1024 2048)" in shown
    assert "--policy.vision.crop INT" in shown
    assert "(default: 76)" in shown
