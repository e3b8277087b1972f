"""BESO: network, context of executed actions, guidance, goals, and what it learns from play."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from obstacle import CONFIG, GOAL, SPEC, rollouts, trained
from toys import train

from robopolicy.configs import to_dict
from robopolicy.errors import FeatureMismatch, RobopolicyError
from robopolicy.features import Feature, FeatureSpec
from robopolicy.inference.runner import PolicyRunner
from robopolicy.policies.base import NormalizationConfig
from robopolicy.policies.beso import (
    BESOConfig,
    BESOPolicy,
    BESOProcessConfig,
    GPTConfig,
    GuidedSamplerConfig,
    ScoreTransformer,
)
from robopolicy.policies.diffusion import MLPConfig, UnetConfig, VPConfig
from robopolicy.training.checkpoint import build

TINY = GPTConfig(width=16, layers=2, heads=2, attention_dropout=0.0, residual_dropout=0.0)
KITCHEN = GPTConfig(width=360, layers=6, heads=6, attention_dropout=0.3, residual_dropout=0.0)


def make(spec: FeatureSpec = SPEC, **changes: Any) -> BESOPolicy:
    """An untrained policy with identity scaling, and weights large enough for every input to show."""
    torch.manual_seed(0)
    policy = build(to_dict(replace(CONFIG, network=TINY) if not changes else replace(CONFIG, **changes)), spec)
    for feature in spec:
        if feature.kind != "image":
            policy.normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "identity", feature)
    for parameter in policy.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return policy.eval()  # type: ignore[return-value]


def tiny(**changes: Any) -> BESOPolicy:
    return make(**({"network": TINY} | changes))


def observation(n: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(n, 4, 2, generator=generator)
    goal = torch.randn(n, 1, 1, 2, generator=generator).expand(n, 4, 1, 2)
    return {"observation.state": state, "observation.goal": goal}


def with_past(observed: dict[str, torch.Tensor], *lengths: int) -> dict[str, torch.Tensor]:
    past = torch.linspace(-0.8, 0.8, 3 * 2).view(1, 3, 2).repeat(len(lengths), 1, 1)
    return observed | {"past.action": past, "past.length": torch.tensor(lengths)}


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


@pytest.mark.parametrize(
    ("config", "goals", "states", "actions", "window", "count"),
    [(KITCHEN, 2, 30, 9, 4, 9_381_249), (GPTConfig(), 1, 10, 2, 5, 2_783_762)],
)
def test_published_parameter_counts(config, goals, states, actions, window, count):
    network = ScoreTransformer(config, actions, states, goals, None, window)
    assert sum(p.numel() for p in network.parameters()) == count


def test_states_and_goals_share_one_embedding():
    network = ScoreTransformer(TINY, 2, 3, 1, None, 4)
    vector = torch.randn(1, 1, 3)
    assert torch.equal(network.goal_in(vector), network.state_in(vector))
    apart = ScoreTransformer(TINY, 2, 3, 1, 5, 4)
    assert apart.goal_in.in_features == 5
    other = FeatureSpec((*SPEC.features, Feature("observation.environment_state", (3,))), 10)
    assert make(other, network=TINY).network.goal_in is not make(other, network=TINY).network.state_in
    assert tiny().network.goal_in.in_features == 2


def test_causal_masks_and_exact_prefixes():
    torch.manual_seed(0)
    network = ScoreTransformer(TINY, 2, 3, 1, None, 4).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, states, goal, time = torch.randn(2, 4, 2), torch.randn(2, 4, 3), torch.randn(2, 1, 3), torch.randn(2)
    with torch.inference_mode():
        output = network(x, time, states, goal)
        for row in range(4):
            moved, seen = x.clone(), states.clone()
            moved[:, row] += 1
            seen[:, row] += 1
            for changed in (network(moved, time, states, goal), network(x, time, seen, goal)):
                same = (changed == output).all(-1).all(0)
                assert same.tolist() == [True] * row + [False] * (4 - row)
        for everything in (network(x, time, states, goal + 1), network(x, time + 1, states, goal)):
            assert ((everything - output).abs().amax(-1) > 1e-4).all()
        for length in (1, 2, 3):
            prefix = network(x[:, :length], time, states[:, :length], goal)
            assert torch.allclose(prefix, output[:, :length], atol=1e-6)


def test_an_unmasked_network_lets_later_rows_show():
    network = ScoreTransformer(replace(TINY, causal=False), 2, 3, 1, None, 4).eval()
    x, states, goal = torch.randn(1, 4, 2), torch.randn(1, 4, 3), torch.randn(1, 1, 3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    moved = x.clone()
    moved[:, 3] += 1
    assert not torch.allclose(network(x, torch.zeros(1), states, goal), network(moved, torch.zeros(1), states, goal))


@pytest.mark.parametrize("mode", ["drift", "clamp", "noised"])
def test_a_young_episode_is_a_shorter_window(mode):
    """With L observations, the action equals that of a policy whose network is given L pairs and nothing else."""
    policy = tiny(sampler=GuidedSamplerConfig("ddim", 3, past_actions=mode))
    for length in (1, 2, 3, 4):
        observed = with_past(observation(1), length)
        with torch.inference_mode():
            chunk = policy.predict(observed, seeds(5))
            generator = torch.Generator().manual_seed(5)
            start, again = (torch.randn(4, 2, generator=generator) for _ in range(2))
            past = observed["past.action"][:, 3 - (length - 1) :]
            states, goal = observed["observation.state"][:, 4 - length :], observed["observation.goal"][:, 0]
            x = torch.cat([past, start[None, 3:]], dim=1)
            network = partial(policy.network, states=states, goal=goal)
            for s, s_next in pairwise(policy.noise_levels().tolist()):
                if mode != "drift":
                    noise = s * again[None, 4 - length : 3] if mode == "noised" else 0.0
                    x[:, :-1] = past + noise
                denoised = policy.process.denoise(network, x, s)
                x = s_next / s * x + (1 - s_next / s) * denoised
        assert torch.allclose(chunk[:, 3], x[:, -1], atol=1e-5), length


def test_chunks_are_given_the_executed_actions_and_no_others():
    policy = tiny(horizon=7, n_action_steps=4, sampler=GuidedSamplerConfig("ddim", 3, past_actions="clamp"))
    assert not policy.whole_windows
    given, forward = [], policy.network.forward
    policy.network.forward = lambda x, *rest: given.append(x) or forward(x, *rest)
    observed = with_past(observation(2), 4, 2)
    with torch.inference_mode():
        chunk = policy.predict(observed, seeds(1, 2))
    assert chunk.shape == (2, 7, 2)
    for x, sigma in zip(given, policy.noise_levels().float(), strict=False):
        clean = x * (sigma**2 + 0.25).sqrt()
        same = torch.isclose(clean[:, :3], observed["past.action"], atol=1e-5).all(-1)
        assert same.tolist() == [[True, True, True], [False, False, True]]


def test_rows_of_different_age_do_not_disturb_each_other():
    policy = tiny()
    observed = with_past(observation(3), 1, 4, 2)
    with torch.inference_mode():
        together = policy.predict(observed, seeds(1, 2, 3))
        for row in range(3):
            alone = policy.predict({k: v[row : row + 1] for k, v in observed.items()}, seeds(row + 1))
            assert torch.allclose(alone[0, 3], together[row, 3], atol=1e-5)


def test_the_runner_grows_the_context_and_reset_clears_it():
    policy, seen = tiny(), []
    denoiser = policy.denoiser
    policy.denoiser = lambda o: seen.append({k: v.clone() for k, v in o.items()}) or denoiser(o)
    policy.normalizer.scale_action.fill_(50.0)
    policy.action_bounds.copy_(torch.tensor([[-0.01, -0.01], [0.01, 0.01]]))
    runner = PolicyRunner(policy, 1)
    executed = []
    for step in range(6):
        state = np.full((1, 2), step, np.float32)
        executed.append(runner.step({"observation.state": state, "observation.goal": np.ones((1, 1, 2), np.float32)}))
    assert [int(s["past.length"]) for s in seen] == [1, 2, 3, 4, 4, 4]
    assert seen[5]["observation.state"][0, :, 0].tolist() == [2, 3, 4, 5]
    # Executed actions come back in physical units; scaled, they are what was clipped.
    assert np.array_equal(seen[5]["past.action"][0].numpy(), np.concatenate(executed[2:5]))
    assert policy.normalizer.normalize("action", seen[5]["past.action"]).abs().max() <= 0.01 + 1e-7
    runner.reset()
    runner.step({"observation.state": state, "observation.goal": np.ones((1, 1, 2), np.float32)})
    assert int(seen[6]["past.length"]) == 1
    assert seen[6]["past.action"].abs().max() == 0


def test_a_window_without_executed_actions_is_sampled_as_a_whole():
    policy = tiny()
    with torch.inference_mode():
        chunk = policy.predict(observation(2), seeds(1, 2))
        again = policy.predict(with_past(observation(2), 4, 4), seeds(1, 2))
    assert chunk.shape == (2, 4, 2)
    assert not torch.allclose(chunk, again)
    assert torch.allclose(chunk[:, 0], policy.predict(observation(2), seeds(1, 2))[:, 0])


def test_sampled_actions_stay_within_a_tenth_of_the_data():
    policy = tiny()
    policy.fit(np.array([[0.1, -0.4], [0.2, 0.5]], np.float32))
    assert torch.allclose(policy.action_bounds, torch.tensor([[0.09, -0.44], [0.22, 0.55]]))
    for bound, push in zip(policy.action_bounds, (-20.0, 20.0), strict=True):
        torch.nn.init.constant_(policy.network.head.bias, push)
        with torch.inference_mode():
            chunk = policy.predict(observation(2), torch.Generator().manual_seed(0))
        assert torch.allclose(chunk, bound.expand_as(chunk))


def test_guidance():
    policy, observed, x, sigma = tiny(), observation(), torch.randn(3, 4, 2), torch.tensor(0.4)
    blind = observed | {"observation.goal": torch.zeros(3, 4, 1, 2)}

    def denoised(weight: float, seen: dict[str, torch.Tensor] = observed) -> torch.Tensor:
        policy.config.sampler.guidance = weight
        with torch.inference_mode():
            return policy.denoiser(seen)(x, sigma)

    policy.config = replace(policy.config, sampler=replace(policy.config.sampler))
    assert torch.equal(denoised(0.0), denoised(1.0, blind))
    assert not torch.allclose(denoised(0.0), denoised(1.0), atol=1e-3)
    for weight in (0.5, 2.0):
        line = denoised(0.0) + weight * (denoised(1.0) - denoised(0.0))
        assert torch.allclose(denoised(weight), line, atol=1e-6)
    # A network that ignores the goal: its projection says the same whatever it is.
    policy.network.separate_goal = torch.nn.Linear(2, 16)
    torch.nn.init.zeros_(policy.network.separate_goal.weight)
    for weight in (0.0, 0.5, 2.0):
        assert torch.allclose(denoised(weight), denoised(1.0), atol=1e-5)


def test_masked_dimensions_and_absent_goals_are_zero_after_scaling():
    policy = tiny(goal_dims=(1,))
    policy.normalizer.offset_observation_goal.fill_(3.0)
    goal = torch.full((2, 4, 1, 2), 7.0)
    batch = {"observation.goal": goal}
    assert policy._goal(batch).tolist() == [[[0.0, 4.0]]] * 2
    absent = batch | {"goal_is_pad": torch.tensor([False, True])}
    assert policy._goal(absent).tolist() == [[[0.0, 4.0]], [[0.0, 0.0]]]


@pytest.mark.parametrize("mode", ["elementwise", "per_sample"])
def test_goal_dropout_rates(mode):
    policy = tiny(goal_dropout=0.1, goal_dropout_mode=mode)
    goal = torch.ones(20_000, 2, 5)
    zero = policy.drop_goals(goal, torch.Generator().manual_seed(0)) == 0
    assert float(zero.float().mean()) == pytest.approx(0.1, abs=0.01)
    whole = float(zero.flatten(1).all(1).float().mean())
    assert whole == (pytest.approx(0.1, abs=0.01) if mode == "per_sample" else 0.0)
    # Only while training: a loss of the policy in evaluation mode keeps every goal.
    batch = observation() | {"action": torch.zeros(3, 4, 2), "action_is_pad": torch.zeros(3, 4, dtype=torch.bool)}
    blind = tiny(goal_dropout=1.0, goal_dropout_mode=mode)
    other = batch | {"observation.goal": batch["observation.goal"] + 1}
    for training in (False, True):
        blind.train(training)
        with torch.inference_mode():
            one, two = (blind.loss(b, torch.Generator().manual_seed(0))[0] for b in (batch, other))
        assert torch.equal(one, two) == training


def test_loss_of_a_silent_network_is_one_and_training_on_noise_keeps_it_there():
    """For N(0, sigma_data^2) actions the best output is 0, with loss 1, and the best denoiser is c_skip x."""
    spec = FeatureSpec(tuple(f for f in SPEC if f.kind != "goal"), 10)
    policy = make(spec, network=TINY, goal_dropout=0.0)

    def batch(step: int) -> dict[str, torch.Tensor]:
        action = 0.5 * torch.randn(512, 4, 2, generator=torch.Generator().manual_seed(step))
        pad = torch.zeros(512, 4, dtype=torch.bool)
        return {"observation.state": torch.zeros(512, 4, 2), "action": action, "action_is_pad": pad}

    losses = train(policy, batch, 200)
    assert np.mean(losses[-50:]) == pytest.approx(1.0, abs=0.05)
    sigma, x = torch.tensor(0.5), torch.randn(500, 4, 2, generator=torch.Generator().manual_seed(1)) * 0.5**0.5
    with torch.inference_mode():
        denoised = policy.denoiser({"observation.state": torch.zeros(500, 4, 2)})(x, sigma)
    assert (denoised - 0.5 * x).abs().mean() < 0.03
    for name in ("head.weight", "head.bias"):
        policy.network.get_parameter(name).data.zero_()
    with torch.inference_mode():
        silent = [policy.loss(batch(s), torch.Generator().manual_seed(s))[0].item() for s in range(20)]
    assert np.mean(silent) == pytest.approx(1.0, abs=0.01)


def test_loss_on_the_newest_action_only():
    batch = observation() | {"action": torch.zeros(3, 4, 2), "action_is_pad": torch.zeros(3, 4, dtype=torch.bool)}
    policy = tiny(last_action_only=True)
    with torch.inference_mode():
        loss, _ = policy.loss(batch, torch.Generator().manual_seed(0))
    sample = policy.process.training_sample(batch["action"], torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = policy.network(sample.input, sample.time, batch["observation.state"], batch["observation.goal"][:, 0])
    assert torch.allclose(loss, (output - sample.target)[:, 3].square().mean())


def test_the_same_network_as_a_ddpm():
    policy = tiny(process=VPConfig(), sampler=GuidedSamplerConfig("ddpm", 100, "native"))
    same = tiny()
    assert sum(p.numel() for p in policy.parameters()) == sum(p.numel() for p in same.parameters())
    assert len(policy.noise_levels()) == 101
    told = []
    forward = policy.network.forward
    policy.network.forward = lambda x, time, *rest: told.append(time[0].item()) or forward(x, time, *rest)
    with torch.inference_mode():
        chunk = policy.predict(with_past(observation(2), 4, 1), seeds(1, 2))
    assert chunk.shape == (2, 4, 2)
    assert chunk.abs().max() <= 1.0 + 1e-6
    assert told == pytest.approx([t / 100 for t in range(99, -1, -1)], abs=1e-5)


def test_images_are_the_state_and_the_goal_has_its_own_projection():
    camera = Feature("observation.images.top", (72, 72, 3), "uint8", "image")
    spec = FeatureSpec((camera, *(f for f in SPEC if f.kind != "state")), 10)
    policy = make(spec, network=TINY)
    policy.encoder.crop = 64
    images = torch.zeros(2, 4, 72, 72, 3, dtype=torch.uint8)
    images[:, :, 8:28, 8:64] = 255
    observed = {"observation.images.top": images, "observation.goal": observation(2)["observation.goal"]}
    assert policy.network.state_in.in_features == 64
    assert policy.network.goal_in.in_features == 2
    batch = observed | {"action": torch.zeros(2, 4, 2), "action_is_pad": torch.zeros(2, 4, dtype=torch.bool)}
    policy.loss(batch, torch.Generator().manual_seed(0))[0].backward()
    assert next(policy.encoder.cameras.parameters()).grad.abs().max() > 0
    with torch.inference_mode():
        chunk = policy.predict(with_past(observed, 4, 2), seeds(1, 2))
        flipped = policy.predict(with_past(observed | {"observation.images.top": images.flip(2)}, 4, 2), seeds(1, 2))
    assert not torch.allclose(chunk[:, 3], flipped[:, 3], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": GuidedSamplerConfig("ddimm")}, r"unknown sampler 'ddimm'\. Did you mean 'ddim'"),
        ({"sampler": GuidedSamplerConfig(schedule="expo")}, r"unknown schedule 'expo'\. Did you mean 'exponential'"),
        ({"sampler": GuidedSamplerConfig(sigma_min=1.0)}, "0 < sigma_min < sigma_max, are 1.0 and 1.0"),
        ({"sampler": GuidedSamplerConfig(schedule="native", sigma_min=0.1)}, "leave sigma_min and sigma_max at 0"),
        ({"sampler": GuidedSamplerConfig(steps=0)}, "at least 1, is 0"),
        ({"process": BESOProcessConfig(sigma_min=2.0)}, "0 < sigma_min < sigma_max, are 2.0 and 1.0"),
        ({"horizon": 3}, "horizon must be at least n_obs_steps 4, is 3"),
        ({"goal_dims": (0, 2)}, r"goal_dims must be within 0\.\.1, are \[0, 2\]"),
        ({"network": replace(TINY, heads=3)}, "width 16 does not divide into 3 heads"),
        ({"network": UnetConfig()}, "BESO's network is 'gpt' or 'mlp', found 'unet'"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(RobopolicyError, match=message):
        tiny(**changes)


def test_goals_of_another_shape_are_refused():
    flat = FeatureSpec(tuple(replace(f, shape=(2,)) if f is GOAL else f for f in SPEC), 10)
    with pytest.raises(FeatureMismatch, match=r"one goal of shape \[G, S\], .* observation\.goal \[2\]"):
        make(flat, network=TINY)
    runner = PolicyRunner(tiny(), 1)
    seen = {"observation.state": np.zeros((1, 2), np.float32), "observation.goal": np.zeros((1, 2, 2), np.float32)}
    with pytest.raises(FeatureMismatch, match=r"'observation\.goal' must have shape \[1, 1, 2\]"):
        runner.step(seen)


def test_every_published_default():
    config = BESOConfig()
    assert (config.n_obs_steps, config.horizon, config.n_action_steps) == (5, 5, 1)
    assert config.normalization == NormalizationConfig("mean_std", "min_max")
    assert config.process == BESOProcessConfig(0.5, 0.005, 1.0, "log_logistic")
    assert (config.sampler.name, config.sampler.steps, config.sampler.past_actions) == ("ddim", 3, "drift")


def results(**sampler: Any) -> Any:
    """Outcome of rollouts of the trained policy with a changed sampler."""
    policy = trained()
    kept = policy.config.sampler
    policy.config.sampler = replace(kept, **sampler)
    try:
        return rollouts(policy)
    finally:
        policy.config.sampler = kept


def test_the_goal_decides_where_it_goes_and_both_ways_there_are_used():
    followed, blind = results(), results(guidance=0.0)
    assert followed.result >= 0.9
    assert followed.result - blind.result >= 0.25
    assert blind.reward >= 0.9, "competent without a goal"
    assert blind.result == pytest.approx(0.5, abs=0.12)
    for outcome in (followed, blind):
        assert outcome.crashed < 0.05, "through the middle"
        assert 0.25 <= outcome.left <= 0.75


def test_noise_levels_follow_the_sampler_settings():
    policy = tiny(sampler=GuidedSamplerConfig(schedule="karras", rho=5.0, sigma_min=0.005, sigma_max=1.0))
    torch.testing.assert_close(
        policy.noise_levels(), torch.tensor([1.0, 0.1384, 0.005, 0.0]).double(), atol=5e-5, rtol=0
    )
    policy.config.sampler.schedule = "linear"
    torch.testing.assert_close(
        policy.noise_levels(), torch.tensor([1.0, 0.5025, 0.005, 0.0]).double(), atol=5e-5, rtol=0
    )


def test_the_small_network_sees_goal_states_and_time_and_guides():
    policy = make(network=MLPConfig(width=16, blocks=1), n_obs_steps=4, horizon=6)
    observed = observation()
    x, sigma = torch.randn(3, 6, 2), torch.tensor(0.3)

    def denoised(guidance=1.0, sigma=sigma, **changes):
        policy.config.sampler.guidance = guidance
        return policy.denoiser(observed | changes)(x, sigma)

    goal = observed["observation.goal"]
    told, blind, twice = denoised(), denoised(0.0), denoised(2.0)
    torch.testing.assert_close(blind, denoised(**{"observation.goal": torch.zeros_like(goal)}))
    torch.testing.assert_close(twice, blind + 2 * (told - blind))
    assert not torch.allclose(told, blind)
    assert not torch.allclose(told, denoised(sigma=torch.tensor(0.1)))
    for step in range(4):
        state = observed["observation.state"].clone()
        state[:, step] += 1
        assert not torch.allclose(told, denoised(**{"observation.state": state}))


def test_shuffled_goals_are_followed_to_the_wrong_place():
    shuffled = rollouts(trained(), shown=np.random.default_rng(0).permutation)
    assert shuffled.reward >= 0.9
    assert shuffled.result == pytest.approx(0.5, abs=0.12)


def test_three_steps_do_as_well_as_fifty_and_better_than_one():
    three, fifty, one = results(), results(steps=50), results(steps=1)
    assert abs(three.result - fifty.result) < 0.05
    assert one.result < three.result - 0.05
