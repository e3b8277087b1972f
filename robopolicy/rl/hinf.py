"""H-infinity locomotion: an actor and the disturber that looks for its weakest state, in one rollout.

After Long et al., "Learning H-Infinity Locomotion Control" (arXiv 2404.14405), of which no code was published: the
losses are those of the paper's overview figure, the rest is our reading. The disturber maximises the cost, which is
what lacks to the largest task reward; the actor maximises its reward plus lambda times the task's, where lambda is the
price of the constraint E[eta * |d| - C] >= 0: eta, in 1/N, bounds the cost per newton. Costs are shares of the largest
task reward, so that eta depends neither on the control rate nor on the weights of the reward. Given the state, the
force does not depend on the action, so that the constraint acts on the actor as a larger weight of the task, chosen by
lambda.

Three baselines are configurations of the same code: no force (`disturbance="none"`), random forces ("random"), and a
disturber without the constraint (`constrained=False`).
"""

import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from robopolicy.errors import RobopolicyError
from robopolicy.rl.buffer import RolloutBuffer, gae
from robopolicy.rl.lagrange import Multiplier, MultiplierConfig
from robopolicy.rl.nets import Critic, GaussianActor, NetConfig
from robopolicy.rl.normalise import RunningNormaliser
from robopolicy.rl.ppo import PPO, Batch, PPOConfig, explained_variance, process_mean, standardise
from robopolicy.rl.vec import Observations, VecEnv


def _disturber_ppo() -> PPOConfig:
    return PPOConfig(lr=3e-4, schedule="fixed", entropy_coef=0.005)


@dataclass
class GameConfig:
    """Who pushes, how hard, and whether the actor's cost per newton is bounded."""

    disturbance: Literal["none", "random", "learned"] = "learned"
    constrained: bool = True
    """Bound the cost by eta per newton; otherwise the actor sees its reward alone. Only with a learned disturber."""
    eta: float = 0.005
    """Tolerated cost per newton, 1/N: the share of the largest task reward that is lost, over the force."""
    multiplier: MultiplierConfig = field(default_factory=MultiplierConfig)
    max_force: float = 0.0
    """Largest force in newtons; 0 takes the environment's."""
    curriculum: float = 0.3
    """Share of the iterations over which the force grows from zero to its maximum."""
    dual_start: float = 0.1
    """Share of the iterations before lambda begins to move."""
    random_share: float = 0.1
    """Share of the copies that are pushed at random instead of by the disturber, and below of those left alone, so
    that the undisturbed gait is not forgotten."""
    quiet_share: float = 0.1
    random_hold: int = 10
    """Control steps for which a random force stays as it is."""
    washout: float = 0.0
    """Control steps over which the mean of a lasting force is taken from the disturber's; 0 leaves it. What leans on
    the robot all the time, a policy that cannot see its velocity answers by walking at another speed than commanded,
    also where nothing leans."""
    by_role: bool = False
    """Standardise the actor's advantages separately for copies pushed by the disturber, pushed at random and left
    alone. Together, what is lost under pushes drowns the small differences of a gait without any."""
    fall: Literal["absorbing", "literal"] = "absorbing"
    """What a failure pays the disturber. absorbing: as if no task reward ever followed. literal: the cost just ends,
    so that it seeks the worst state from which the robot recovers. The actor always reads it as absorbing, or it would
    gain by falling."""
    soft: bool = False
    """Pay the disturber cost minus eta per newton (the zero-sum H-infinity game) instead of the cost alone."""
    net: NetConfig = field(default_factory=lambda: NetConfig(initial_std=0.5))
    """The disturber."""
    ppo: PPOConfig = field(default_factory=_disturber_ppo)

    def check(self, env: VecEnv) -> float:
        """The largest force in newtons; an error for settings that cannot be."""
        if self.constrained and self.disturbance == "learned" and not self.eta > 0:
            raise RobopolicyError(f"game.eta: expected above 0 (cost per newton), found {self.eta:g}")
        if not 0 <= self.max_force <= env.max_force:
            raise RobopolicyError(
                f"game.max-force: expected 0 to {env.max_force:g} N, what the environment is made for, "
                f"found {self.max_force:g}"
            )
        if self.random_share < 0 or self.quiet_share < 0 or self.random_share + self.quiet_share >= 1:
            raise RobopolicyError(
                f"game: random-share and quiet-share must leave copies to the disturber, found {self.random_share:g} "
                f"and {self.quiet_share:g}"
            )
        left = env.n_envs - round(self.random_share * env.n_envs) - round(self.quiet_share * env.n_envs)
        if self.disturbance == "learned" and left < 1:
            raise RobopolicyError(
                f"game: random-share {self.random_share:g} and quiet-share {self.quiet_share:g} of {env.n_envs} "
                "copies leave none to the disturber"
            )
        if self.washout and not self.washout >= 1:
            raise RobopolicyError(f"game.washout: expected 0 or at least 1 control step, found {self.washout:g}")
        if not (0 <= self.curriculum <= 1 and 0 <= self.dual_start <= 1 and self.random_hold > 0):
            raise RobopolicyError(
                "game: expected curriculum and dual-start within [0, 1] and random-hold above 0, found "
                f"{self.curriculum:g}, {self.dual_start:g} and {self.random_hold}"
            )
        return self.max_force or env.max_force


def ball(raw: Tensor) -> Tensor:
    """`raw` [..., W], pulled back radially to the unit ball where it lies outside."""
    return raw / raw.norm(dim=-1, keepdim=True).clamp_min(1.0)


def washed(push: Tensor, lasting: Tensor, steps: float) -> Tensor:
    """`push` [N, W], without what lasts, in the unit ball; `lasting` [N, W], its mean over `steps`, moves on.

    A first-order high-pass filter, the frequency weight that H-infinity synthesis puts on disturbances.
    """
    applied = ball(push - lasting)
    lasting += (push - lasting) / steps
    return applied


def random_forces(steps: int, copies: int, dim: int, hold: int, generator: torch.Generator) -> Tensor:
    """[T, N, W] in the unit ball: directions and magnitudes uniform, held for `hold` steps that begin anywhere."""
    device = generator.device
    draws = (steps - 1) // hold + 2
    direction = torch.randn(draws, copies, dim, generator=generator, device=device)
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    force = direction * torch.rand(draws, copies, 1, generator=generator, device=device)
    phase = torch.randint(hold, (copies,), generator=generator, device=device)
    index = (torch.arange(steps, device=device)[:, None] + phase) // hold
    return force.gather(0, index[:, :, None].expand(-1, -1, dim))


def combine(reward: Tensor, task: Tensor, weight: float) -> Tensor:
    """The actor's advantage under lambda = `weight`: both standardised, one clip for both."""
    return (reward + weight * task) / (1 + weight)


class Game:
    """Actor, critic and, if one learns, disturber; `iterate` is one rollout and its updates."""

    def __init__(
        self,
        env: VecEnv,
        ppo: PPOConfig,
        game: GameConfig,
        actor: NetConfig,
        critic: NetConfig,
        rollout_steps: int,
        iterations: int,
        normalise: bool = True,
    ) -> None:
        """`env` must have been reset. Weights are drawn from torch's global generator."""
        self.env, self.config, self.game, self.iterations = env, ppo, game, iterations
        self.max_force = game.check(env)
        self.learned = game.disturbance == "learned"
        self.constrained = self.learned and game.constrained
        dims = {group: value.shape[-1] for group, value in env.observe().items()}
        groups = ["policy", "critic", "disturber"] if self.learned else ["policy", "critic"]
        device = env.device
        self.normalisers = {g: RunningNormaliser(dims[g], normalise).to(device) for g in groups}
        # Value heads: the reward, the task's part of it, and what the disturber is paid where that is not the task's.
        self.heads = 3 if self.learned and (game.soft or game.fall == "literal") else 2
        self.actor = GaussianActor(dims["policy"], env.action_dim, actor).to(device)
        self.critic = Critic(dims["critic"], self.heads, critic).to(device)
        self.ppo = PPO(self.actor, self.critic, ppo)
        shapes: dict[str, tuple[int, ...]] = {g: (dims[g],) for g in groups}
        shapes |= {
            "action": (env.action_dim,),
            "mean": (env.action_dim,),
            "reward": (),
            "task_reward": (),
            "force": (),
        }
        self.disturber: GaussianActor | None = None
        if self.learned:
            self.disturber = GaussianActor(dims["disturber"], env.wrench_dim, game.net).to(device)
            self.disturber_ppo = PPO(self.disturber, None, game.ppo)
            shapes |= {"push": (env.wrench_dim,), "push_mean": (env.wrench_dim,)}
        self.multiplier = Multiplier(game.multiplier)
        self.buffer = RolloutBuffer(rollout_steps, env.n_envs, shapes, device)
        # Return and length so far of the episode in each copy.
        self.episodes = torch.zeros(2, env.n_envs, device=device)
        self.lasting = torch.zeros(env.n_envs, env.wrench_dim, device=device)

    def force_cap(self, iteration: int) -> float:
        """Largest force of an iteration, in newtons."""
        rise = self.game.curriculum * self.iterations
        return self.max_force * min(1.0, iteration / rise if rise else 1.0)

    def iterate(self, iteration: int, generator: torch.Generator) -> dict[str, float]:
        """One rollout and one update of everything; returns what to log."""
        begin = time.perf_counter()
        found = self._collect(iteration, generator)
        collected = time.perf_counter()
        found |= self._learn(iteration, generator)
        found["time/rollout_s"] = collected - begin
        found["time/learning_s"] = time.perf_counter() - collected
        return found

    def _normalised(self, observations: Observations) -> Observations:
        return {group: n(observations[group]) for group, n in self.normalisers.items()}

    def _roles(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which copies the disturber pushes in this rollout, [N] bool, and which are pushed at random."""
        n, device = self.env.n_envs, self.env.device
        if self.game.disturbance == "none":
            nobody = torch.zeros(n, dtype=torch.bool, device=device)
            return nobody, nobody
        if self.game.disturbance == "random":
            quiet = torch.randperm(n, generator=generator, device=device) < round(self.game.quiet_share * n)
            return torch.zeros_like(quiet), ~quiet
        order = torch.randperm(n, generator=generator, device=device)
        at_random, quiet_n = round(self.game.random_share * n), round(self.game.quiet_share * n)
        return order >= at_random + quiet_n, order < at_random

    @torch.no_grad()
    def _collect(self, iteration: int, generator: torch.Generator) -> dict[str, float]:
        """Fills the buffer; both policies are stochastic."""
        env, buffer, cap = self.env, self.buffer, self.force_cap(iteration)
        buffer.clear()
        by_disturber, at_random = self.pushed, self.at_random = self._roles(generator)
        random = None
        if self.game.disturbance != "none":
            random = random_forces(buffer.steps, env.n_envs, env.wrench_dim, self.game.random_hold, generator)
            random *= cap * at_random[:, None]
        info: dict[str, list[float]] = {}
        finished: list[Tensor] = []
        physics = 0.0
        observations = env.observe()
        for t in range(buffer.steps):
            for group, normaliser in self.normalisers.items():
                normaliser.add(observations[group])
            seen = self._normalised(observations)
            buffer.put(t, **seen)
            mean = self.actor(seen["policy"])
            action = self.actor.sample(mean, generator)
            buffer.put(t, mean=mean, action=action)
            wrench = None if random is None else random[t]
            if self.disturber is not None and wrench is not None:
                push_mean = self.disturber(seen["disturber"])
                push = self.disturber.sample(push_mean, generator)
                buffer.put(t, push=push, push_mean=push_mean)
                force = ball(push)
                if self.game.washout:
                    force = washed(force, self.lasting, self.game.washout)
                    self.lasting *= by_disturber[:, None]
                wrench = torch.where(by_disturber[:, None], cap * force, wrench)
            if wrench is not None:
                buffer.put(t, force=wrench.norm(dim=-1))
            begin = time.perf_counter()
            result = env.step(action, wrench)
            physics += time.perf_counter() - begin
            ended = result.terminated | result.timeout
            reward, task_reward = result.reward, result.task_reward
            if result.invalid is not None:
                # Whatever failed physics returned, which need not be a number.
                reward, task_reward = (r.masked_fill(result.invalid, 0.0) for r in (reward, task_reward))
                buffer.put(t, invalid=result.invalid)
            else:
                buffer["invalid"][t] = False
            buffer.put(t, reward=reward, task_reward=task_reward, terminated=result.terminated, ended=ended)
            self.episodes += torch.stack([reward, torch.ones_like(reward)])
            copies = ended.nonzero().squeeze(1)
            if len(copies):
                timed_out = result.timeout[copies]
                final = self.normalisers["critic"](result.final_observations["critic"][timed_out])
                buffer.put_final(t, copies[timed_out], final)
                finished.append(self.episodes[:, copies].clone())
                self.episodes[:, copies] = 0.0
                self.lasting[copies] = 0.0
            for name, value in result.info.items():
                info.setdefault(name, []).append(value)
            observations = result.observations
        self.after = self._normalised(observations)["critic"].clone()
        found = {k: sum(v) / (1 if k.startswith("count/") else len(v)) for k, v in info.items()}
        if finished:
            returns, lengths = torch.cat(finished, dim=1)
            found |= {"episode/return": float(returns.mean()), "episode/length": float(lengths.mean())}
        return found | {"force_cap": cap, "time/physics_s": physics}

    def _streams(self) -> Tensor:
        """What each value head sums, [T, N, k]; zero where the physics failed."""
        buffer, game = self.buffer, self.game
        streams = [buffer["reward"], buffer["task_reward"]]
        if self.heads == 3:
            paid = -buffer["task_reward"]
            if game.fall == "literal":
                paid = paid + self.env.task_reward_max
            if game.soft:
                paid = paid - game.eta * self.env.task_reward_max * buffer["force"]
            streams.append(paid)
        scaled = self.config.reward_scale * torch.stack(streams, dim=-1)
        return scaled.masked_fill(buffer["invalid"].unsqueeze(-1), 0.0)

    @torch.no_grad()
    def advantages(self) -> tuple[Tensor, Tensor, Tensor]:
        """Advantages, values and returns of the rollout in the buffer, each [T, N, k]."""
        buffer, config = self.buffer, self.config
        rewards = self._streams()
        if not torch.isfinite(rewards).all():
            raise RobopolicyError("the environment returned rewards that are not finite without marking them invalid")
        values = self.critic(buffer.flat("critic")).view(*rewards.shape)
        finals = buffer.finals()
        following = buffer.next_values(
            values, self.critic(self.after), None if finals is None else self.critic(finals[1]), config.gamma
        )
        advantages, returns = gae(rewards, values, following, buffer["ended"], config.gamma, config.lam)
        return advantages, values, returns

    def _learn(self, iteration: int, generator: torch.Generator) -> dict[str, float]:
        """Disturber, then actor and critic, then lambda, all from the same rollout."""
        buffer = self.buffer
        advantages, values, returns = self.advantages()
        valid = ~buffer["invalid"]
        everything = bool(valid.all())
        found: dict[str, float] = {}
        if self.disturber is not None:
            pushed = valid & self.pushed
            gain = advantages[..., 2] if self.heads == 3 else -advantages[..., 1]
            batch = self._batch("disturber", "push", self.disturber, standardise(gain, pushed))
            numbers = self.disturber_ppo.update(batch.select(pushed.flatten()), generator)
            found |= {f"disturber/{k}": v for k, v in numbers.items()}
        weight = self.multiplier.value if self.constrained else 0.0
        advantage = self._actor_advantage(advantages, valid, weight)
        batch = self._batch("policy", "action", self.actor, advantage)
        batch.critic_observation = buffer.flat("critic")
        batch.value, batch.returns = values.flatten(0, 1), returns.flatten(0, 1)
        found |= self.ppo.update(batch if everything else batch.select(valid.flatten()), generator)
        found |= self._dual(iteration, valid)
        share = explained_variance(values[valid], returns[valid])
        found |= {f"explained_variance_{i}": float(v) for i, v in enumerate(share)}
        found |= {"reward": float(buffer["reward"][valid].mean()), "lambda": weight}
        if not everything:
            found["count/invalid"] = float((~valid).sum())
        for normaliser in self.normalisers.values():
            normaliser.update()
        return found

    def _actor_advantage(self, advantages: Tensor, valid: Tensor, weight: float) -> Tensor:
        """What the actor climbs, [T, N]: its reward and, where the disturber pushes, lambda times the task's.

        The bound is on the cost under the disturber: elsewhere lambda would only trade smoothness for the task.
        """
        reward = self._standardised(advantages[..., 0], valid)
        if not weight:
            return reward
        return torch.where(self.pushed, combine(reward, self._standardised(advantages[..., 1], valid), weight), reward)

    def _standardised(self, advantages: Tensor, valid: Tensor) -> Tensor:
        """The actor's advantages [T, N] with mean 0 and deviation 1, over all copies or over those of each role."""
        if not self.game.by_role:
            return standardise(advantages, valid)
        found = torch.zeros_like(advantages)
        for role in (self.pushed, self.at_random, ~(self.pushed | self.at_random)):
            # Every process goes through all roles: what they average is exchanged.
            mine = valid & role
            found = torch.where(mine, standardise(advantages, mine), found)
        return found

    def _batch(self, group: str, action: str, policy: GaussianActor, advantage: Tensor) -> Batch:
        mean = "mean" if action == "action" else f"{action}_mean"
        actions, means = self.buffer.flat(action), self.buffer.flat(mean)
        with torch.no_grad():
            log_prob = policy.log_prob(means, actions)
        return Batch(self.buffer.flat(group), actions, log_prob, means, advantage.flatten())

    def _dual(self, iteration: int, valid: Tensor) -> dict[str, float]:
        """Cost, force and their ratio where the disturber pushes (everywhere without one); moves lambda."""
        buffer = self.buffer
        chosen = valid & self.pushed if self.learned else valid
        cost = process_mean(1 - buffer["task_reward"][chosen].mean() / self.env.task_reward_max)
        force = process_mean(buffer["force"][chosen].mean())
        found = {"cost": float(cost), "force": float(force)}
        if found["force"] > 0:
            found["cost_per_newton"] = found["cost"] / found["force"]
        if self.constrained:
            slack = self.game.eta * found["force"] - found["cost"]
            found["slack"] = slack
            if iteration >= self.game.dual_start * self.iterations:
                self.multiplier.step(slack / max(found["cost"], 1e-8))
        return found
