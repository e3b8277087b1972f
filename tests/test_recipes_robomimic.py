"""Robomimic's recipes: published numbers, and scales that fit what each method learns."""

import pytest

from robopolicy.configs import to_dict
from robopolicy.policies.base import Policy
from robopolicy.recipes import RECIPES, recipe
from robopolicy.recipes_robomimic import METHODS, TASKS
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
