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
