"""The game of actor and disturber on plants small enough to know the answer."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from robopolicy.errors import RobopolicyError
from robopolicy.features import Feature, FeatureSpec
from robopolicy.rl.adversary import AdversaryConfig, PushedPolicy, disturbed, train_disturber
from robopolicy.rl.buffer import gae
from robopolicy.rl.hinf import Game, GameConfig, ball, combine, random_forces, washed
from robopolicy.rl.lagrange import MultiplierConfig
from robopolicy.rl.nets import NetConfig
from robopolicy.rl.ppo import PPO, Batch, PPOConfig, standardise
from robopolicy.rl.vec import Observations, StepResult, VecEnv, check_environment
from robopolicy.sim.plants import PointMassConfig, ScalarConfig, constant_force_ratio

torch.set_num_threads(1)
SMALL = NetConfig(hidden=(16,), initial_std=0.5)


def make_game(
    env: VecEnv, game: GameConfig, ppo: PPOConfig | None = None, steps: int = 8, iterations: int = 10
) -> Game:
    """A game with small networks, the same for the same settings."""
    env.reset(0)
    torch.manual_seed(0)
    config = ppo or PPOConfig(schedule="fixed", lr=3e-4)
    return Game(env, config, game, SMALL, SMALL, steps, iterations)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def zero(observation: Tensor) -> Tensor:
    return torch.zeros(len(observation), 1)


class FreeFall:
    """Every step of life costs half of the task; an action above zero ends it, for free."""

    n_envs, action_dim, wrench_dim = 64, 1, 1
    task_reward_max, max_force = 1.0, 1.0
    device = torch.device("cpu")
    features = FeatureSpec((Feature("observation.state", (1,)), Feature("action", (1,), kind="action")))
    action_offset, action_scale = torch.zeros(1), torch.ones(1)

    def __init__(self) -> None:
        self.clock = torch.zeros(self.n_envs)

    def observe(self) -> Observations:
        return dict.fromkeys(("policy", "critic", "disturber"), torch.ones(self.n_envs, 1))

    def reset(self, seed: int) -> Observations:
        self.clock.zero_()
        return self.observe()

    def step(self, actions: Tensor, wrenches: Tensor | None = None) -> StepResult:
        self.clock += 1
        terminated = actions[:, 0] > 0
        timeout = (self.clock >= 20) & ~terminated
        self.clock[terminated | timeout] = 0
        copies = int((terminated | timeout).sum())
        final = {"critic": torch.ones(copies, 1)}
        half = torch.full((self.n_envs,), 0.5)
        # The reward is nothing: only the task's half, through lambda, says whether to live.
        return StepResult(self.observe(), 0 * half, half, terminated, timeout, final)

    def state(self) -> dict[str, Tensor]:
        return {"clock": self.clock}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.clock = state["clock"].clone()

    def fingerprint(self) -> dict[str, str]:
        return {}

    def close(self) -> None: ...


def share_of_falls(game: Game) -> float:
    """Probability that the actor ends its life in a step."""
    with torch.no_grad():
        mean = game.actor(game.normalisers["policy"](torch.ones(1, 1)))
        return 0.5 * (1 + math.erf(float(mean) / float(game.actor.log_std.exp()) / math.sqrt(2)))


def test_a_large_lambda_does_not_make_the_actor_fall() -> None:
    multiplier = MultiplierConfig(initial=10.0, rate=1e-9)
    settings = GameConfig(multiplier=multiplier, eta=1e-6, fall="literal", random_share=0.0)
    ppo = PPOConfig(schedule="fixed", lr=3e-3, entropy_coef=0.0, reward_scale=0.1)
    game = make_game(FreeFall(), settings, ppo, steps=16)
    assert share_of_falls(game) == pytest.approx(0.5, abs=0.02)
    for i in range(10):
        game.iterate(i, generator(i))
    assert share_of_falls(game) < 0.2


def test_the_cost_read_literally_would_pay_for_falling() -> None:
    """Why the actor is on the absorbing reading: minus the literal cost advantage points the other way."""
    game = make_game(FreeFall(), GameConfig(fall="literal", random_share=0.0), steps=32)
    game.iterate(0, generator())
    advantages, _, _ = game.advantages()
    fell = game.buffer["terminated"]
    absorbing, literal = advantages[..., 1], -advantages[..., 2]
    assert absorbing[fell].mean() < absorbing[~fell].mean()
    assert literal[fell].mean() > literal[~fell].mean()


@pytest.mark.parametrize("dim", [1, 3])
def test_forces_stay_in_the_ball(dim: int) -> None:
    raw = 3 * torch.randn(100_000, dim, generator=generator())
    forces = 100.0 * ball(raw)
    assert forces.norm(dim=-1).max() <= 100.0 * (1 + 1e-6)
    inside = raw.norm(dim=-1) < 1
    torch.testing.assert_close(forces[inside], 100.0 * raw[inside])
    cosine = torch.nn.functional.cosine_similarity(forces, raw)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_a_force_that_lasts_is_washed_out_and_its_end_is_a_push_the_other_way() -> None:
    lasting = torch.zeros(1, 1)
    found = [float(washed(torch.tensor([[p]]), lasting, 2.0)) for p in (0.8, 0.8, 0.8, 0.0, -0.8)]
    # The means are 0, 0.4, 0.6, 0.7 and 0.35; the last difference is -1.15, beyond the ball.
    np.testing.assert_allclose(found, [0.8, 0.4, 0.2, -0.7, -1.0], atol=1e-6)


def test_what_the_disturber_applies_is_washed_out_since_the_beginning_of_the_episode() -> None:
    env = PointMassConfig(episode=5).make(8)
    settings = GameConfig(curriculum=0.0, random_share=0.25, quiet_share=0.25, washout=2.0)
    game = make_game(env, settings, steps=12)
    assert game.disturber is not None
    game.disturber.sample = lambda mean, generator: torch.ones_like(mean)  # type: ignore[method-assign]
    env.reset(0)
    game._collect(1, generator())
    ended, force = game.buffer["ended"], game.buffer["force"]
    assert ended.any()
    for copy in game.pushed.nonzero()[:, 0]:
        since = 0
        for t in range(12):
            assert float(force[t, copy]) == pytest.approx(4.0 * 0.5**since, abs=1e-5)
            since = 0 if ended[t, copy] else since + 1
    assert not game.lasting[~game.pushed].any()
    assert game.lasting[game.pushed].any()


def test_random_forces_are_uniform_held_and_of_equal_length_on_average() -> None:
    forces = random_forces(40, 2000, 3, 10, generator())
    norms = forces.norm(dim=-1)
    assert norms.max() <= 1 + 1e-6
    assert float(norms.mean()) == pytest.approx(0.5, abs=0.02)
    assert forces.mean(dim=(0, 1)).norm() < 0.02
    changes = (forces[1:] != forces[:-1]).any(dim=-1)
    assert float(changes.float().mean()) == pytest.approx(0.1, abs=0.01)
    first = changes.float().argmax(dim=0)
    assert len(first.unique()) == 10, "the holds begin anywhere"


def test_the_applied_force_is_the_logged_one_and_acts_for_the_whole_step() -> None:
    env = PointMassConfig(drag=0.0).make(4)
    env.reset(0)
    before = env.observe()["policy"][:, 0].clone()
    force = torch.tensor([[0.0], [4.0], [-4.0], [1.0]])
    after = env.step(torch.zeros(4, 1), force).observations["policy"][:, 0]
    torch.testing.assert_close(after - before, force[:, 0] * 0.05, atol=1e-6, rtol=0)

    game = make_game(env, GameConfig(curriculum=0.0, random_share=0.25, quiet_share=0.25))
    game.iterate(3, generator())
    pushed, logged = game.pushed, game.buffer["force"]
    expected = 4.0 * ball(game.buffer["push"]).norm(dim=-1)
    torch.testing.assert_close(logged[:, pushed], expected[:, pushed])
    assert int(pushed.sum()) == 2
    assert int((logged == 0).all(dim=0).sum()) == 1, "one copy is left alone"


def test_zero_force_is_the_plain_environment_bit_for_bit() -> None:
    plain, zeros = (PointMassConfig().make(8) for _ in range(2))
    for env in (plain, zeros):
        env.reset(3)
    for i in range(120):
        action = torch.randn(8, 1, generator=generator(i))
        a, b = plain.step(action), zeros.step(action, torch.zeros(8, 1))
        assert torch.equal(a.reward, b.reward)
        assert torch.equal(a.observations["policy"], b.observations["policy"])


def test_cost_of_the_point_mass_is_within_its_bounds_and_zero_on_the_command() -> None:
    env = PointMassConfig(drag=0.0, effort=0.0).make(256)
    env.reset(0)
    for i in range(20):
        result = env.step(3 * torch.randn(256, 1, generator=generator(i)), 4 * torch.ones(256, 1))
        assert ((result.task_reward >= 0) & (result.task_reward <= 1)).all()
    env.restore(env.state() | {"values": torch.tensor([[0.7, 0.7]]).repeat(256, 1)})
    assert (env.step(torch.zeros(256, 1)).task_reward == 1).all()
    tired, fresh = (PointMassConfig(effort=e).make(256) for e in (5.0, 0.0))
    for env in (tired, fresh):
        env.reset(1)
    a, b = (env.step(torch.ones(256, 1)) for env in (tired, fresh))
    assert torch.equal(a.task_reward, b.task_reward), "what is not the task does not count"
    torch.testing.assert_close(b.reward - a.reward, torch.full((256,), 5.0))


def test_ratio_of_the_scalar_plant_by_hand() -> None:
    for steps, expected in ((50, 4.5), (200, 4.875), (1000, 4.975)):
        assert constant_force_ratio(0.8, steps) == pytest.approx(expected, abs=1e-4)
        env = ScalarConfig(episode=steps).make(1)
        env.reset(0)
        found = disturbed(env, zero, lambda o: torch.ones(len(o), 1), steps, 0)
        # The plant's cost is absolute, the ratio that of a share of its largest task reward.
        assert found.ratio * env.task_reward_max == pytest.approx(expected, abs=1e-3)
    signs = iter(random_signs := torch.randint(2, (200, 500, 1), generator=generator()) * 2.0 - 1)
    assert random_signs.mean().abs() < 0.01
    env = ScalarConfig().make(500)
    found = disturbed(env, zero, lambda o: next(signs), 200, 0)
    assert found.ratio * env.task_reward_max == pytest.approx(1.34, abs=0.02)


def test_a_trained_disturber_finds_the_scalar_plants_gain_and_not_more() -> None:
    ppo = PPOConfig(gamma=0.95, lr=3e-3, epochs=3, value_clip=0.0, entropy_coef=0.0, reward_scale=0.05)
    config = AdversaryConfig(8, 32, ppo, SMALL, SMALL)
    env = ScalarConfig().make(64)
    push = train_disturber(env, zero, config, 1.0, seed=0, progress=False)
    found = disturbed(env, zero, push, 200, seed=1)
    assert 4.0 < found.ratio * env.task_reward_max < 5.0


def proportional(observation: Tensor) -> Tensor:
    """A soft controller of the point mass."""
    return observation[:, 1:] - observation[:, :1] + observation[:, 1:] / 8


def test_a_trained_disturber_costs_more_per_newton_than_random_forces() -> None:
    ppo = PPOConfig(gamma=0.95, lr=3e-3, epochs=3, value_clip=0.0, entropy_coef=0.0, reward_scale=0.05)
    env = PointMassConfig().make(64)
    push = train_disturber(env, proportional, AdversaryConfig(12, 32, ppo, SMALL, SMALL), 4.0, 0, progress=False)
    learned = disturbed(env, proportional, push, 200, seed=1)
    draws = random_forces(200, 64, 1, 1, generator())
    scale = learned.force / float(draws.norm(dim=-1).mean())
    forces = iter(scale * draws)
    at_random = disturbed(env, proportional, lambda o: next(forces), 200, seed=1)
    assert at_random.force == pytest.approx(learned.force, rel=1e-3)
    nothing = disturbed(env, proportional, None, 200, seed=1)
    assert nothing.cost < at_random.cost
    assert learned.ratio > 1.5 * at_random.ratio


def test_each_side_moves_its_own_weights_only() -> None:
    game = make_game(PointMassConfig().make(16), GameConfig(curriculum=0.0))
    assert game.disturber is not None
    actor, critic, disturber = (weights(m) for m in (game.actor, game.critic, game.disturber))
    game._collect(1, generator())
    advantages, _, _ = game.advantages()
    batch = game._batch("disturber", "push", game.disturber, standardise(-advantages[..., 1]))
    game.disturber_ppo.update(batch, generator())
    assert same(actor, weights(game.actor))
    assert same(critic, weights(game.critic))
    assert not same(disturber, weights(game.disturber))
    moved = weights(game.disturber)
    batch = game._batch("policy", "action", game.actor, standardise(advantages[..., 0]))
    game.ppo.networks = game.ppo.networks[:1]
    game.ppo.critic = None
    game.ppo.update(batch, generator())
    assert same(moved, weights(game.disturber))
    assert same(critic, weights(game.critic))
    assert not same(actor, weights(game.actor))


def test_without_lambda_the_actor_is_plain_ppos_bit_for_bit() -> None:
    """The same rollout, once through the game with lambda at zero, once through PPO on the reward alone."""
    settings = GameConfig(curriculum=0.0, multiplier=MultiplierConfig(initial=0.0), dual_start=1.0)
    game = make_game(PointMassConfig().make(16), settings)
    twin = make_game(PointMassConfig().make(16), settings)
    game.iterate(1, generator())

    chance = generator()
    twin._collect(1, chance)
    advantages, values, returns = twin.advantages()
    pushed = twin.pushed.expand(8, -1)
    assert twin.disturber is not None
    batch = twin._batch("disturber", "push", twin.disturber, standardise(-advantages[..., 1], pushed))
    twin.disturber_ppo.update(batch.select(pushed.flatten()), chance)
    buffer = twin.buffer
    with torch.no_grad():
        log_prob = twin.actor.log_prob(buffer.flat("mean"), buffer.flat("action"))
    plain = Batch(
        buffer.flat("policy"),
        buffer.flat("action"),
        log_prob,
        buffer.flat("mean"),
        standardise(advantages[..., 0]).flatten(),
        buffer.flat("critic"),
        values.flatten(0, 1),
        returns.flatten(0, 1),
    )
    PPO(twin.actor, twin.critic, twin.config).update(plain, chance)
    assert same(weights(game.actor), weights(twin.actor))


def test_advantages_standardised_by_role_have_unit_deviation_in_each() -> None:
    game = make_game(PointMassConfig().make(16), GameConfig(by_role=True, random_share=0.25, quiet_share=0.25))
    game._collect(1, generator())
    assert (int(game.pushed.sum()), int(game.at_random.sum())) == (8, 4)
    quiet = ~(game.pushed | game.at_random)
    advantages = torch.randn(8, 16, generator=generator()) * torch.where(game.pushed, 100.0, 1.0) + 3 * quiet
    valid = torch.ones(8, 16, dtype=torch.bool)
    valid[0, quiet.nonzero()[0]] = False
    found = game._standardised(advantages, valid)
    for role in (game.pushed, game.at_random, quiet):
        chosen = found[valid & role]
        assert chosen.mean().abs() < 1e-5
        assert chosen.std() == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(found[~valid], torch.zeros(1))


def test_lambda_acts_where_the_disturber_pushes_and_nowhere_else() -> None:
    game = make_game(PointMassConfig().make(16), GameConfig(random_share=0.25, quiet_share=0.25))
    game._collect(1, generator())
    advantages = torch.randn(8, 16, 2, generator=generator())
    valid = torch.ones(8, 16, dtype=torch.bool)
    reward, task = (standardise(advantages[..., i], valid) for i in range(2))
    assert torch.equal(game._actor_advantage(advantages, valid, 0.0), reward)
    found = game._actor_advantage(advantages, valid, 3.0)
    assert int(game.pushed.sum()) == 8
    torch.testing.assert_close(found[:, game.pushed], ((reward + 3 * task) / 4)[:, game.pushed])
    assert torch.equal(found[:, ~game.pushed], reward[:, ~game.pushed])


def test_with_fixed_lambda_the_gradient_is_ppos_on_the_weighted_reward() -> None:
    """Un-standardised advantages, no failures: A_R + lambda A_T is the advantage of r + lambda r_task."""
    weight = 2.5
    game = make_game(PointMassConfig(episode=100_000).make(16), GameConfig(curriculum=0.0))
    game._collect(1, generator())
    advantages, values, _ = game.advantages()
    buffer, config = game.buffer, game.config
    rewards = buffer["reward"] + weight * buffer["task_reward"]
    value = values[..., :1] + weight * values[..., 1:]
    with torch.no_grad():
        last = game.critic(game.after)
    following = buffer.next_values(value, last[:, :1] + weight * last[:, 1:], None, config.gamma)
    assert buffer.finals() is None
    summed, _ = gae(rewards.unsqueeze(-1), value, following, buffer["ended"], config.gamma, config.lam)
    gradients = []
    for advantage in ((1 + weight) * combine(advantages[..., 0], advantages[..., 1], weight), summed[..., 0]):
        batch = game._batch("policy", "action", game.actor, advantage)
        log_prob = game.actor.log_prob(game.actor(batch.observation), batch.action)
        game.actor.zero_grad()
        (-(log_prob - batch.log_prob).exp() * batch.advantage).mean().backward()
        gradients.append([p.grad.clone() for p in game.actor.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert any(g.abs().max() > 1e-3 for g in gradients[0])


def test_lambda_rises_where_the_bound_is_violated_and_falls_where_there_is_slack() -> None:
    for eta, rises in ((1e-4, True), (10.0, False)):
        game = make_game(PointMassConfig().make(16), GameConfig(eta=eta, curriculum=0.0, dual_start=0.0))
        found = game.iterate(0, generator())
        assert (game.multiplier.value > 1.0) == rises
        assert found["slack"] == pytest.approx(eta * found["force"] - found["cost"], rel=1e-5)
        assert found["lambda"] == 1.0, "the value that was used"
    held = make_game(PointMassConfig().make(16), GameConfig(eta=1e-4, curriculum=0.0, dual_start=0.5))
    held.iterate(4, generator())
    assert held.multiplier.value == 1.0
    held.iterate(5, generator())
    assert held.multiplier.value > 1.0


def test_an_endless_tolerance_is_adversarial_training() -> None:
    env = PointMassConfig().make(16)
    loose = make_game(env, GameConfig(eta=1e9, curriculum=0.0, dual_start=0.0))
    loose.iterate(0, generator())
    assert loose.multiplier.value == 0.0
    free = make_game(PointMassConfig().make(16), GameConfig(constrained=False, curriculum=0.0))
    start = MultiplierConfig(initial=0.0)
    loose = make_game(PointMassConfig().make(16), GameConfig(eta=1e9, curriculum=0.0, multiplier=start))
    for i in range(3):
        loose.iterate(i, generator(i))
        free.iterate(i, generator(i))
    assert loose.disturber is not None
    assert free.disturber is not None
    assert same(weights(loose.actor), weights(free.actor))
    assert same(weights(loose.disturber), weights(free.disturber))


def test_force_grows_over_the_first_iterations() -> None:
    game = make_game(PointMassConfig().make(4), GameConfig(curriculum=0.5), iterations=10)
    assert [game.force_cap(i) for i in (0, 1, 5, 9)] == pytest.approx([0.0, 0.8, 4.0, 4.0])
    found = game.iterate(0, generator())
    assert found["force"] == 0.0
    assert "cost_per_newton" not in found, "undefined without any force"


def test_soft_and_literal_disturbers_are_paid_as_said() -> None:
    game = make_game(PointMassConfig().make(4), GameConfig(soft=True, eta=0.1, curriculum=0.0))
    game.iterate(1, generator())
    streams, buffer = game._streams(), game.buffer
    torch.testing.assert_close(streams[..., 2], -buffer["task_reward"] - 0.1 * buffer["force"])
    literal = make_game(PointMassConfig().make(4), GameConfig(fall="literal", curriculum=0.0))
    literal.iterate(1, generator())
    torch.testing.assert_close(literal._streams()[..., 2], 1 - literal.buffer["task_reward"])
    assert game.heads == literal.heads == 3
    assert make_game(PointMassConfig().make(4), GameConfig()).heads == 2


def test_failed_physics_is_counted_and_left_out() -> None:
    class Failing(FreeFall):
        def step(self, actions: Tensor, wrenches: Tensor | None = None) -> StepResult:
            result = super().step(-actions.abs())
            result.invalid = torch.arange(self.n_envs) < 3
            result.timeout = result.timeout | result.invalid
            result.reward = result.reward.masked_fill(result.invalid, math.nan)
            result.final_observations = {"critic": torch.ones(int(result.timeout.sum()), 1)}
            return result

    game = make_game(Failing(), GameConfig(random_share=0.0))
    found = game.iterate(0, generator())
    assert found["count/invalid"] == 3 * 8
    assert all(math.isfinite(v) for v in found.values())

    class Silent(Failing):
        def step(self, actions: Tensor, wrenches: Tensor | None = None) -> StepResult:
            result = super().step(actions)
            result.invalid = None
            return result

    with pytest.raises(RobopolicyError, match="not finite"):
        make_game(Silent(), GameConfig()).iterate(0, generator())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (GameConfig(eta=0.0), "game.eta: expected above 0"),
        (GameConfig(eta=float("nan")), "game.eta"),
        (GameConfig(max_force=4.5), "game.max-force: expected 0 to 4 N"),
        (GameConfig(random_share=0.6, quiet_share=0.4), "leave copies to the disturber"),
        (GameConfig(random_share=0.4, quiet_share=0.45), "of 4 copies leave none to the disturber"),
        (GameConfig(random_hold=0), "random-hold"),
        (GameConfig(washout=0.5), "game.washout: expected 0 or at least 1 control step, found 0.5"),
        (GameConfig(washout=float("nan")), "game.washout"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: GameConfig, message: str) -> None:
    with pytest.raises(RobopolicyError, match=message):
        make_game(PointMassConfig().make(4), settings)


def test_environments_describe_themselves() -> None:
    for env in (PointMassConfig().make(3), ScalarConfig().make(3)):
        env.reset(0)
        check_environment(env)
        check_environment(PushedPolicy(env, zero, 1.0))
    broken = FreeFall()
    broken.features = FeatureSpec((Feature("observation.state", (2,)), Feature("action", (1,), kind="action")))
    with pytest.raises(RobopolicyError, match="features say"):
        check_environment(broken)


def test_ppo_learns_to_follow_the_command() -> None:
    ppo = PPOConfig(gamma=0.9, lr=3e-3, epochs=3, value_clip=0.0, entropy_coef=0.0, reward_scale=0.1)
    game = make_game(PointMassConfig(effort=0.05).make(64), GameConfig(disturbance="none"), ppo, steps=16)
    rewards = [game.iterate(i, generator(i))["reward"] for i in range(25)]
    assert rewards[0] < 0.7
    assert rewards[-1] > 0.9
