"""Recipes: the published numbers, and no state shared between two calls."""

import pytest

from robopolicy.configs import to_dict
from robopolicy.errors import RobopolicyError
from robopolicy.recipes import RECIPES, recipe


def test_paper_recipe_has_the_published_hyper_parameters() -> None:
    config = to_dict(recipe("pusht-diffusion"))
    policy = config["policy"]
    assert (policy["n_obs_steps"], policy["horizon"], policy["n_action_steps"]) == (2, 16, 8)
    assert policy["network"]["down_dims"] == [256, 512, 1024]
    assert (policy["process"]["train_steps"], policy["process"]["betas"]) == (100, "squaredcos_cap_v2")
    assert (policy["process"]["prediction"], policy["sampler"]["steps"]) == ("epsilon", 100)
    optim = config["optim"]
    assert (optim["lr"], optim["betas"], optim["weight_decay"]) == (1e-4, [0.95, 0.999], 1e-6)
    assert (optim["warmup_steps"], config["batch_size"]) == (500, 256)
    assert (config["ema"]["power"], config["ema"]["max_decay"]) == (0.75, 0.9999)
    image = to_dict(recipe("pusht-image-diffusion"))
    assert image["policy"]["network"]["down_dims"] == [512, 1024, 2048]
    assert (image["policy"]["vision"]["crop"], image["batch_size"]) == (84, 64)


def test_beso_paper_recipe_has_the_published_hyper_parameters() -> None:
    config = to_dict(recipe("blocks-beso-paper"))
    policy, optim = config["policy"], config["optim"]
    assert (policy["n_obs_steps"], policy["horizon"], policy["n_action_steps"]) == (5, 5, 1)
    network = policy["network"]
    assert (network["width"], network["layers"], network["heads"]) == (240, 4, 12)
    assert (network["attention_dropout"], network["residual_dropout"], network["embedding_dropout"]) == (0.05, 0.05, 0)
    assert (policy["process"]["sigma_data"], policy["process"]["sigma_min"]) == (0.5, 0.05)
    assert (policy["sampler"]["name"], policy["sampler"]["steps"], policy["sampler"]["sigma_min"]) == ("ddim", 3, 0.1)
    assert (optim["lr"], optim["betas"], optim["weight_decay"], optim["decay"]) == (1e-4, [0.9, 0.999], 0.0, "step")
    assert (optim["warmup_steps"], optim["clip_norm"]) == (0, 0.0)
    assert (config["batch_size"], config["steps"]) == (1024, 60_000)
    assert (config["ema"]["warmup"], config["ema"]["max_decay"]) == ("ratio", 0.999)
    small, ddpm = (to_dict(recipe(n))["policy"] for n in ("blocks-beso", "blocks-ddpm"))
    sizes = ("width", "layers", "heads")
    assert all(small["network"][s] == network[s] == ddpm["network"][s] for s in sizes), "of equal size"


def test_carp_paper_recipes_have_the_published_hyper_parameters() -> None:
    state, image = (to_dict(recipe(f"pusht-carp-{n}")) for n in ("paper", "image"))
    for config, size, batch, lr in ((state, (2, 8, 64), 256, 1e-4), (image, (1, 16, 160), 64, 2.5e-5)):
        policy, optim = config["policy"], config["optim"]
        assert (policy["n_obs_steps"], policy["depth"], policy["width"]) == size
        assert (policy["horizon"], policy["n_action_steps"], policy["top_k"]) == (16, 8, 1)
        tokenizer = policy["tokenizer"]
        assert (tokenizer["scales"], tokenizer["codes"], tokenizer["matching"]) == ([1, 2, 3, 4], 512, "cosine")
        assert (tokenizer["lr"], tokenizer["betas"], tokenizer["weight_decay"]) == (3e-4, [0.5, 0.9], 0.005)
        assert (optim["lr"], optim["betas"], optim["weight_decay"]) == (lr, [0.9, 0.95], 0.05)
        assert (optim["clip_norm"], config["batch_size"]) == (2.0, batch)
        assert (config["ema"]["power"], config["ema"]["max_decay"]) == (0.75, 0.9999)


@pytest.mark.parametrize("name", list(RECIPES))
def test_changing_one_recipe_changes_no_other(name: str) -> None:
    before = {n: to_dict(recipe(n)) for n in RECIPES}
    changed = recipe(name)
    changed.optim.lr, changed.data.max_episodes, changed.ema.power = 77.0, 77, 77.0
    changed.eval.every, changed.policy.normalization.state = 77, "identity"
    assert {n: to_dict(recipe(n)) for n in RECIPES} == before


def test_unknown_recipe() -> None:
    with pytest.raises(RobopolicyError, match="Did you mean 'pusht-small'"):
        recipe("pusht-smal")
