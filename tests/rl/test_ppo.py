"""PPO's losses against CleanRL's formulas, and the loop over minibatches."""

import math

import pytest
import torch
from torch import nn

from robopolicy.errors import RobopolicyError
from robopolicy.rl.lagrange import Multiplier, MultiplierConfig
from robopolicy.rl.nets import Critic, GaussianActor, NetConfig, gaussian_kl
from robopolicy.rl.normalise import RunningNormaliser
from robopolicy.rl.ppo import PPO, Batch, PPOConfig, explained_variance, policy_loss, standardise, value_loss

torch.set_num_threads(1)


def make_batch(actor: GaussianActor, samples: int = 64, heads: int = 1, seed: int = 0) -> Batch:
    """Random observations, actions of the actor itself, random advantages and returns."""
    generator = torch.Generator().manual_seed(seed)
    inputs = actor.network[0].in_features
    observation = torch.randn(samples, inputs, generator=generator)  # type: ignore[arg-type]
    with torch.no_grad():
        mean = actor(observation)
        action = actor.sample(mean, generator)
        log_prob = actor.log_prob(mean, action)
    advantage = torch.randn(samples, generator=generator)
    value, returns = (torch.randn(samples, heads, generator=generator) for _ in range(2))
    return Batch(observation, action, log_prob, mean, advantage, observation, value, returns)


def networks(heads: int = 1, seed: int = 0) -> tuple[GaussianActor, Critic]:
    torch.manual_seed(seed)
    net = NetConfig(hidden=(16,))
    return GaussianActor(3, 2, net), Critic(3, heads, net)


def test_losses_are_those_of_cleanrl() -> None:
    """ppo_continuous_action.py, the update of one minibatch, written out."""
    generator = torch.Generator().manual_seed(0)
    new, old, advantages, values, old_values, returns = (torch.randn(256, generator=generator) for _ in range(6))
    clip = 0.2
    ratio = (new - old).exp()
    pg_loss = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - clip, 1 + clip)).mean()
    v_unclipped = (values - returns) ** 2
    v_clipped = old_values + torch.clamp(values - old_values, -clip, clip)
    v_loss = 0.5 * torch.max(v_unclipped, (v_clipped - returns) ** 2).mean()
    ours, our_ratio = policy_loss(new, old, advantages, clip)
    torch.testing.assert_close(ours, pg_loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(our_ratio, ratio)
    heads = value_loss(values[:, None], old_values[:, None], returns[:, None], clip)
    torch.testing.assert_close(0.5 * heads[0], v_loss, atol=1e-6, rtol=0)
    unclipped = value_loss(values[:, None], old_values[:, None], returns[:, None], 0.0)
    torch.testing.assert_close(unclipped[0], v_unclipped.mean())
    expected = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    torch.testing.assert_close(standardise(advantages), expected, atol=1e-6, rtol=0)


def test_the_gaussian_is_torchs() -> None:
    actor, _ = networks()
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([0.3, -0.5]))
        other_std = torch.tensor([0.1, 0.2])
        mean, action = torch.randn(5, 2), torch.randn(5, 2)
        theirs = torch.distributions.Normal(mean, actor.log_std.exp())
        torch.testing.assert_close(actor.log_prob(mean, action), theirs.log_prob(action).sum(-1))
        torch.testing.assert_close(actor.entropy(), theirs.entropy()[0].sum())
        other = torch.distributions.Normal(action, other_std.exp())
        expected = torch.distributions.kl_divergence(theirs, other).sum(-1)
        torch.testing.assert_close(gaussian_kl(mean, actor.log_std, action, other_std), expected)
        draws = actor.sample(torch.zeros(200_000, 2), torch.Generator().manual_seed(0))
        torch.testing.assert_close(draws.std(dim=0), actor.log_std.exp(), atol=0.01, rtol=0)


def test_one_update_is_one_step_of_adam_on_the_written_out_loss() -> None:
    config = PPOConfig(epochs=1, minibatches=1, schedule="fixed", lr=1e-2, grad_norm=0.5, value_coef=0.7)
    actor, critic = networks()
    batch = make_batch(actor)
    twin, twin_critic = networks()
    parameters = [*twin.parameters(), *twin_critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2, eps=1e-5)
    distribution = torch.distributions.Normal(twin(batch.observation), twin.log_std.exp())
    ratio = (distribution.log_prob(batch.action).sum(-1) - batch.log_prob).exp()
    surrogate = torch.min(ratio * batch.advantage, ratio.clamp(0.8, 1.2) * batch.advantage).mean()
    values = twin_critic(batch.critic_observation)
    near = batch.value + (values - batch.value).clamp(-0.2, 0.2)
    error = torch.max((values - batch.returns) ** 2, (near - batch.returns) ** 2).mean()
    (-surrogate - 0.01 * distribution.entropy().sum(-1).mean() + 0.7 * error).backward()
    for part in (twin, twin_critic):
        nn.utils.clip_grad_norm_(part.parameters(), 0.5)
    optimizer.step()
    PPO(actor, critic, config).update(batch, torch.Generator().manual_seed(0))
    for ours, theirs in zip([*actor.parameters(), *critic.parameters()], parameters, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_head_without_weight_leaves_the_other_as_if_it_were_alone() -> None:
    config = PPOConfig(schedule="fixed")
    results = []
    for returns_of_second in (0.0, 100.0):
        actor, critic = networks(heads=2)
        batch = make_batch(actor, heads=2)
        assert batch.returns is not None
        batch.returns[:, 1] = returns_of_second
        PPO(actor, critic, config, head_coefs=(1.0, 0.0)).update(batch, torch.Generator().manual_seed(0))
        results.append([p.clone() for p in critic.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_the_rate_follows_the_divergence_and_a_large_one_ends_the_update() -> None:
    actor, critic = networks()
    learner = PPO(actor, critic, PPOConfig(lr=1e-3))
    learner._adapt(0.021)
    assert learner.lr == pytest.approx(1e-3 / 1.5)
    learner._adapt(0.0049)
    assert learner.lr == pytest.approx(1e-3)
    learner._adapt(0.01)
    learner._adapt(0.0)
    assert learner.lr == pytest.approx(1e-3)
    for _ in range(50):
        learner._adapt(1.0)
    assert learner.lr == 1e-5
    assert {g["lr"] for g in learner.optimizer.param_groups} == {1e-5}

    split = PPO(actor, critic, PPOConfig(lr=1e-3, critic_lr=5e-4))
    split._adapt(1.0)
    assert [g["lr"] for g in split.optimizer.param_groups] == [pytest.approx(1e-3 / 1.5), 5e-4]

    batch = make_batch(actor)
    stopping = PPO(actor, critic, PPOConfig(lr=0.05, schedule="fixed", kl_stop=0.01, epochs=10))
    found = stopping.update(batch, torch.Generator().manual_seed(0))
    assert found["epochs"] == 1.0
    assert found["kl"] > 0.01


def test_more_minibatches_make_the_same_number_of_samples() -> None:
    actor, critic = networks()
    batch = make_batch(actor, samples=10)
    found = PPO(actor, critic, PPOConfig(minibatches=3, epochs=2)).update(batch, torch.Generator().manual_seed(0))
    assert found["epochs"] == 2.0
    assert all(math.isfinite(v) for v in found.values())


def test_settings_that_cannot_be_are_refused() -> None:
    actor, critic = networks()
    with pytest.raises(RobopolicyError, match="gamma"):
        PPO(actor, critic, PPOConfig(gamma=0.0))
    with pytest.raises(RobopolicyError, match="minibatches"):
        PPO(actor, critic, PPOConfig(minibatches=0))


def test_standardise_only_the_valid_ones() -> None:
    advantages = torch.tensor([1.0, 2.0, 3.0, 1000.0])
    found = standardise(advantages, torch.tensor([True, True, True, False]))
    assert found[:3].tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    values = torch.tensor([[0.0, 0.0], [1.0, 5.0]])
    assert explained_variance(values, returns).tolist() == [0.75, 0.0]


def test_multiplier_rises_with_violation_falls_with_slack_and_keeps_its_limits() -> None:
    multiplier = Multiplier(MultiplierConfig(initial=1.0, rate=0.05, maximum=1.1))
    # eta = 0.01 / N, |d| = 50 N, C = 1: slack -0.5 of a mean cost of 1.
    assert multiplier.step((0.01 * 50 - 1.0) / 1.0) == pytest.approx(1.025)
    assert multiplier.step((0.01 * 50 - 0.25) / 0.25) == pytest.approx(0.975)
    assert multiplier.step(-1000.0) == 1.1
    assert multiplier.step(1000.0) == 0.0
    assert multiplier.step(1.0) == 0.0
    with pytest.raises(RobopolicyError, match="multiplier"):
        Multiplier(MultiplierConfig(initial=-1.0))


def test_running_statistics_equal_those_of_all_values() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 1000.0 + 3.0 * torch.randn(500, 4, generator=generator)
    normaliser = RunningNormaliser(4)
    assert torch.equal(normaliser(values[:1]), torch.full((1, 4), 10.0)), "clipped"
    for part in (values[:10], values[10:300], values[300:]):
        normaliser.add(part[: len(part) // 2])
        normaliser.add(part[len(part) // 2 :])
        before = normaliser(values)
        assert torch.equal(before, normaliser(values)), "adding changes nothing until the update"
        normaliser.update()
    torch.testing.assert_close(normaliser.mean, values.double().mean(dim=0), atol=1e-6, rtol=0)
    torch.testing.assert_close(normaliser.var, values.double().var(dim=0, unbiased=False), atol=1e-6, rtol=1e-6)
    scaled = normaliser(values)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.std(dim=0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)

    copy = RunningNormaliser(4)
    nn.ModuleDict({"n": copy}).load_state_dict({f"n.{k}": v for k, v in normaliser.state_dict().items()})
    assert torch.equal(copy(values), scaled)
    still = RunningNormaliser(4, enabled=False)
    still.add(values)
    still.update()
    assert torch.equal(still(values / 1000), values / 1000)


def test_an_input_that_never_varied_is_centred_and_not_scaled() -> None:
    normaliser = RunningNormaliser(2)
    normaliser.add(torch.tensor([[0.5, 3.0], [-0.5, 3.0]]))
    normaliser.update()
    found = normaliser(torch.tensor([[0.5, 3.001]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.001]]), atol=1e-5, rtol=0)
