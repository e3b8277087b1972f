"""The seam between simulation and learning: N environments that step together.

An environment is built for a number of copies and a seed and is a function of that seed and of the actions alone.
Copies whose episode ends start a new one within the same `step`, so that rollouts never pause; what a copy looked
like at the end of its episode comes back separately, because the value of a time-out is the value of that moment.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from robopolicy.errors import RobopolicyError
from robopolicy.features import FeatureSpec

Observations = dict[str, Tensor]
"""Groups of observations, each [N, ...] float32: "policy" is what the deployed actor sees, "critic" and "disturber"
may hold what only the simulator knows."""

GROUPS = ("policy", "critic", "disturber")


@dataclass
class StepResult:
    """What one control step of all N copies gave. Tensors may be views of the environment's own arrays that the next
    step overwrites; whoever keeps them copies them."""

    observations: Observations
    """After the step, and after the reset where an episode ended."""
    reward: Tensor
    """[N] float32, everything the actor is paid for."""
    task_reward: Tensor
    """[N] float32, the part of it that measures the task, in [0, task_reward_max]."""
    terminated: Tensor
    """[N] bool, the episode ended by a failure such as a fall; no value follows."""
    timeout: Tensor
    """[N] bool, the episode ended by the clock or at the edge of the terrain; its value goes on. Never both."""
    final_observations: Observations
    """The K copies that ended, in ascending order of their number, as they were before their reset, [K, ...]; the
    group "critic" at least."""
    info: dict[str, float] = field(default_factory=dict)
    """Numbers to log, averaged over the steps of an iteration that report them; those that begin with "count/" are
    summed."""
    invalid: Tensor | None = None
    """[N] bool, copies whose physics failed in this step: they have `timeout` set, their transition is left out of
    everything that is learned, and they are counted. None when there are none."""


class VecEnv(Protocol):
    """N copies of one environment."""

    n_envs: int
    action_dim: int
    wrench_dim: int
    """Numbers of an external force; 3 for a robot, forces in newtons along x, y, z of the base frame, at its centre of
    mass. The environment rotates it into the world once and holds it for the whole control step."""
    task_reward_max: float
    """Largest task reward of one step; the cost of a step is what lacks to it."""
    max_force: float
    """Largest norm of a wrench that the environment was made for, in newtons."""
    device: torch.device
    features: FeatureSpec
    """The deployed actor's input "observation.state" (the group "policy", a vector) and its "action" in physical
    units, which is action_offset + action_scale * action of `step`; rate_hz is the control rate."""
    action_offset: Tensor
    """[A], in the units of the action feature."""
    action_scale: Tensor
    """[A]"""

    def observe(self) -> Observations:
        """The present observations; `reset` must have been called."""

    def step(self, actions: Tensor, wrenches: Tensor | None = None) -> StepResult:
        """One control step with actions [N, A], as the actor gives them, and forces [N, wrench_dim] or none."""

    def reset(self, seed: int) -> Observations:
        """Starts a new episode in every copy; everything that follows is a function of the seed and the actions."""

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on beside the actions: physics, clocks, curricula, random counters."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continues bit for bit where `state` was taken; an error when it is of another environment."""

    def fingerprint(self) -> dict[str, str]:
        """What makes numbers comparable and a run resumable: robot, terrain, simulator version, asset hashes."""

    def close(self) -> None:
        """Frees threads and devices."""


@dataclass
class EnvConfig:
    """What an environment is made of; every simulation has its own, found by its kind (`registry.ENVIRONMENTS`)."""

    def make(self, n_envs: int, device: str = "cpu") -> VecEnv:
        """The environment; `reset` it before anything else. Errors: settings that cannot be."""
        raise NotImplementedError

    def of_process(self, rank: int) -> "EnvConfig":
        """What process `rank` of several makes its copies of; the first one this configuration."""
        return self


def check_environment(env: VecEnv) -> None:
    """Raises when the groups or their shapes do not fit the environment's own description."""
    found = env.observe()
    for group in GROUPS:
        if group not in found:
            raise RobopolicyError(f"environment: observation group {group!r} is missing, it has {sorted(found)}")
        value = found[group]
        if value.ndim != 2 or len(value) != env.n_envs or value.dtype != torch.float32:
            raise RobopolicyError(
                f"environment: group {group!r} is {list(value.shape)} {value.dtype}, "
                f"expected [{env.n_envs}, D] float32"
            )
    state, action = env.features["observation.state"].shape, env.features.action.shape
    if state != found["policy"].shape[1:] or action != (env.action_dim,):
        raise RobopolicyError(
            f"environment: features say {list(state)} -> {list(action)}, group 'policy' and actions are "
            f"{list(found['policy'].shape[1:])} -> {[env.action_dim]}"
        )
