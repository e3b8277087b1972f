"""The worst case of a finished policy: a fresh disturber trained against it, by plain PPO.

The policy and the plant together are an environment whose actions are forces and whose reward is the cost.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.progress import progress_bar
from robopolicy.rl.hinf import Game, GameConfig, ball
from robopolicy.rl.nets import NetConfig
from robopolicy.rl.ppo import PPOConfig
from robopolicy.rl.vec import Observations, StepResult, VecEnv

ActorFunction = Callable[[Tensor], Tensor]
"""Actions [N, A] for observations [N, D] of the group "policy", without noise."""


class PushedPolicy:
    """A frozen policy in its environment, as the environment of whoever pushes it.

    Actions are pushes in units of `max_force`, pulled back to the unit ball; the reward is minus the task's, so that a
    failure, after which there is none, pays as much as a lost task does.
    """

    action_dim: int
    wrench_dim = 0
    max_force = 0.0

    def __init__(self, env: VecEnv, policy: ActorFunction, max_force: float) -> None:
        self.env, self.policy, self.force = env, policy, max_force
        self.n_envs, self.action_dim, self.device = env.n_envs, env.wrench_dim, env.device
        self.task_reward_max = env.task_reward_max
        width = env.observe()["disturber"].shape[-1]
        push = Feature("action", (env.wrench_dim,), kind="action", control=Control("velocity", "absolute", "base"))
        self.features = FeatureSpec((Feature("observation.state", (width,)), push), env.features.rate_hz)
        self.action_offset = torch.zeros(env.wrench_dim)
        self.action_scale = torch.full((env.wrench_dim,), max_force)

    @staticmethod
    def _groups(observations: Observations) -> Observations:
        return observations | {"policy": observations["disturber"]}

    def observe(self) -> Observations:
        return self._groups(self.env.observe())

    def reset(self, seed: int) -> Observations:
        return self._groups(self.env.reset(seed))

    def step(self, actions: Tensor, wrenches: Tensor | None = None) -> StepResult:
        wrench = self.force * ball(actions)
        result = self.env.step(self.policy(self.env.observe()["policy"]), wrench)
        cost = self.task_reward_max - result.task_reward
        info = {"pushed/cost": float(cost.mean()), "pushed/force": float(wrench.norm(dim=-1).mean())}
        final = self._groups(result.final_observations) if "disturber" in result.final_observations else {}
        return StepResult(
            self._groups(result.observations),
            -result.task_reward,
            result.task_reward,
            result.terminated,
            result.timeout,
            final or result.final_observations,
            info,
            result.invalid,
        )

    def state(self) -> dict[str, Tensor]:
        return self.env.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.env.restore(state)

    def fingerprint(self) -> dict[str, str]:
        return self.env.fingerprint() | {"pushed": "1"}

    def close(self) -> None:
        self.env.close()


def _ppo() -> PPOConfig:
    return PPOConfig(lr=1e-3, schedule="adaptive", entropy_coef=0.005, value_clip=0.0)


@dataclass
class AdversaryConfig:
    """The training of a fresh disturber."""

    iterations: int = 50
    rollout_steps: int = 32
    ppo: PPOConfig = field(default_factory=_ppo)
    actor: NetConfig = field(default_factory=lambda: NetConfig(initial_std=0.5))
    critic: NetConfig = field(default_factory=NetConfig)


@dataclass(frozen=True)
class Disturbed:
    """A policy under a disturbance, over all steps of all copies."""

    cost: float
    """Mean share of the largest task reward that was lost per step, the unit of `GameConfig.eta`; after a failure it
    counts as all of it until the clock would have ended the episode only where the environment lets the episode go on,
    so report survival too."""
    force: float
    """Mean norm of the force, N."""
    falls: int
    """Episodes that ended by a failure."""

    @property
    def ratio(self) -> float:
        """Cost per newton; sums are divided, not ratios averaged."""
        return self.cost / self.force if self.force else float("nan")


def train_disturber(
    env: VecEnv, policy: ActorFunction, config: AdversaryConfig, max_force: float, seed: int, progress: bool = True
) -> ActorFunction:
    """The forces [N, W], in newtons, of a disturber trained against `policy`, for the group "disturber" [N, D].

    Without noise: the mean of what it learned.
    """
    torch.manual_seed(seed)
    env.reset(seed)
    pushed = PushedPolicy(env, policy, max_force)
    game = GameConfig(disturbance="none")
    learner = Game(pushed, config.ppo, game, config.actor, config.critic, config.rollout_steps, config.iterations)
    generator = torch.Generator(env.device).manual_seed(seed)
    for iteration in progress_bar(
        iterable=range(config.iterations), desc="disturber", unit="iteration", disable=not progress
    ):
        learner.iterate(iteration, generator)

    @torch.no_grad()
    def push(observation: Tensor) -> Tensor:
        return max_force * ball(learner.actor(learner.normalisers["policy"](observation)))

    return push


@torch.no_grad()
def disturbed(env: VecEnv, policy: ActorFunction, push: ActorFunction | None, steps: int, seed: int) -> Disturbed:
    """Runs `steps` control steps from a reset; `push` maps the group "disturber" to forces [N, W] in newtons."""
    observations = env.reset(seed)
    cost = force = 0.0
    falls = 0
    for _ in range(steps):
        wrench = None if push is None else push(observations["disturber"])
        result = env.step(policy(observations["policy"]), wrench)
        cost += float(1 - result.task_reward.double().mean() / env.task_reward_max)
        force += 0.0 if wrench is None else float(wrench.norm(dim=-1).double().mean())
        falls += int(result.terminated.sum())
        observations = result.observations
    return Disturbed(cost / steps, force / steps, falls)
