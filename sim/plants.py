"""Two small plants whose answers are known or quickly found: where the game of actor and disturber is tried first.

Both are torch on the processor and step thousands of copies at once.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robopolicy.errors import RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.rl.vec import EnvConfig, Observations, StepResult, VecEnv

RATE_HZ = 20.0


class Plant:
    """What both plants share: clocks, random numbers, observations and the reset of copies whose time is up."""

    action_dim = 1
    wrench_dim = 1
    device = torch.device("cpu")

    def __init__(self, name: str, state: tuple[str, ...], n_envs: int, episode: int, max_force: float) -> None:
        if n_envs < 1 or episode < 1:
            raise RobopolicyError(f"{name}: expected copies and steps above 0, found {n_envs} and {episode}")
        self.name, self.n_envs, self.episode, self.max_force = name, n_envs, episode, max_force
        velocity = Control("velocity", "absolute")
        self.features = FeatureSpec(
            (
                Feature("observation.state", (len(state),), names=state),
                Feature("action", (1,), kind="action", control=velocity),
            ),
            RATE_HZ,
        )
        self.action_offset, self.action_scale = torch.zeros(1), torch.ones(1)
        self.generator = torch.Generator()
        self.values = torch.zeros(n_envs, len(state))
        self.clock = torch.zeros(n_envs, dtype=torch.int64)

    def draw(self, copies: int) -> Tensor:
        """First states [copies, D] of episodes."""
        return torch.zeros(copies, self.values.shape[1])

    def observe(self) -> Observations:
        return dict.fromkeys(("policy", "critic", "disturber"), self.values)

    def reset(self, seed: int) -> Observations:
        self.generator.manual_seed(seed)
        self.values = self.draw(self.n_envs)
        self.clock.zero_()
        return self.observe()

    def finish(self, values: Tensor, reward: Tensor, task_reward: Tensor) -> StepResult:
        """Moves the clocks on, ends episodes whose time is up, and makes `values` [N, D] the present state."""
        self.clock = self.clock + 1
        timeout = self.clock >= self.episode
        copies = timeout.nonzero().squeeze(1)
        final = values[copies]
        if len(copies):
            values = values.index_copy(0, copies, self.draw(len(copies)))
            self.clock = self.clock.masked_fill(timeout, 0)
        self.values = values
        groups = dict.fromkeys(("policy", "critic", "disturber"), final)
        return StepResult(self.observe(), reward, task_reward, torch.zeros_like(timeout), timeout, groups)

    def state(self) -> dict[str, Tensor]:
        return {"values": self.values, "clock": self.clock, "generator": self.generator.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        if state["values"].shape != self.values.shape:
            found, expected = list(state["values"].shape), list(self.values.shape)
            raise RobopolicyError(f"{self.name}: the stored state is {found}, expected {expected}")
        self.values, self.clock = state["values"].clone(), state["clock"].clone()
        self.generator.set_state(state["generator"])

    def fingerprint(self) -> dict[str, str]:
        return {"plant": self.name, "episode": str(self.episode), "max_force": f"{self.max_force:g}"}

    def close(self) -> None:
        """Nothing to free."""


class ScalarPlant(Plant):
    """x' = decay * x + action + force, from x = 0, and the cost of a step is abs(x) before it.

    Without action the cost per unit of force is below 1 / (1 - decay), which a force of constant sign approaches.
    """

    def __init__(self, config: "ScalarConfig", n_envs: int) -> None:
        super().__init__("scalar", ("x",), n_envs, config.episode, 1.0)
        if not 0 <= config.decay < 1:
            raise RobopolicyError(f"scalar: expected decay in [0, 1), found {config.decay:g}")
        self.decay = config.decay
        # No larger cost can be reached by forces up to one.
        self.task_reward_max = 1 / (1 - config.decay)

    def step(self, actions: Tensor, wrenches: Tensor | None = None) -> StepResult:
        x = self.values
        task_reward = (self.task_reward_max - x[:, 0].abs()).clamp_min(0)
        pushed = actions if wrenches is None else actions + wrenches
        return self.finish(self.decay * x + pushed, task_reward, task_reward)


class PointMass(Plant):
    """A mass on a line that follows a commanded velocity, v' = v + dt / m * (strength * action - drag * v + force).

    The task reward is exp(-(command - v)^2 / 0.25), as of the quadruped; effort costs a little. The command is drawn
    from +-1 m/s for every episode, which begins at rest, at a clock of its own.
    """

    task_reward_max = 1.0

    def __init__(self, config: "PointMassConfig", n_envs: int) -> None:
        super().__init__("pointmass", ("velocity", "command"), n_envs, config.episode, config.max_force)
        if not (config.mass > 0 and config.strength > 0 and config.max_force > 0):
            raise RobopolicyError(
                f"pointmass: expected mass, strength and max-force above 0, found {config.mass:g}, "
                f"{config.strength:g} and {config.max_force:g}"
            )
        self.config = config

    def draw(self, copies: int) -> Tensor:
        command = 2 * torch.rand(copies, generator=self.generator) - 1
        return torch.stack([torch.zeros(copies), command], dim=1)

    def reset(self, seed: int) -> Observations:
        observations = super().reset(seed)
        self.clock = torch.randint(self.episode, (self.n_envs,), generator=self.generator)
        return observations

    def step(self, actions: Tensor, wrenches: Tensor | None = None) -> StepResult:
        config, (velocity, command) = self.config, self.values.unbind(1)
        action = actions[:, 0].clamp(-1, 1)
        force = config.strength * action - config.drag * velocity
        if wrenches is not None:
            force = force + wrenches[:, 0]
        velocity = velocity + force / (config.mass * RATE_HZ)
        task_reward = torch.exp(-(command - velocity).square() / 0.25)
        reward = task_reward - config.effort * action.square()
        return self.finish(torch.stack([velocity, command], dim=1), reward, task_reward)


@dataclass
class ScalarConfig(EnvConfig):
    """The scalar plant."""

    kind: ClassVar[str] = "scalar"
    decay: float = 0.8
    episode: int = 200

    def make(self, n_envs: int, device: str = "cpu") -> VecEnv:
        return ScalarPlant(self, n_envs)


@dataclass
class PointMassConfig(EnvConfig):
    """The velocity-tracking mass; SI units."""

    kind: ClassVar[str] = "pointmass"
    mass: float = 1.0
    strength: float = 8.0
    """Largest force of the actuator, N."""
    drag: float = 1.0
    """N s/m"""
    max_force: float = 4.0
    """Of the disturbance, N."""
    effort: float = 2.0
    """Reward lost at full effort."""
    episode: int = 100
    """Control steps at 20 Hz."""

    def make(self, n_envs: int, device: str = "cpu") -> VecEnv:
        return PointMass(self, n_envs)


def constant_force_ratio(decay: float, steps: int) -> float:
    """Cost per unit of force on the scalar plant from x = 0 under a force of constant sign and size, no action."""
    states = [(1 - decay**t) / (1 - decay) for t in range(steps)]
    return math.fsum(states) / steps
