"""The Policy contract: what training, evaluation, composition and the robot rely on.

A policy has no hidden state. History, action queues and previous chunks belong to the runner, and every
source of randomness is an explicit generator.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.diffusion.noise import Generators
from robopolicy.features import FeatureSpec
from robopolicy.nn.normalizer import Mode, Normalizer

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor]


@dataclass
class NormalizationConfig:
    """How states and actions are scaled; see `Normalizer`."""

    state: Mode = "min_max"
    action: Mode = "min_max"

    def modes(self) -> dict[str, str]:
        return {"state": self.state, "action": self.action}


@dataclass
class PolicyConfig:
    """What every policy has: its place in time, and the scaling of its inputs and outputs."""

    n_obs_steps: int = 2
    """T_o: observation steps the policy sees."""
    horizon: int = 16
    """H: length of a predicted chunk of actions."""
    n_action_steps: int = 8
    """T_a: actions executed before the next chunk is asked for."""
    mask_padding: bool = False
    """Leave the rows that repeat an episode's first or last action out of the loss."""
    state_noise: float = 0.0
    """Standard deviation of Gaussian noise on the normalised states while training."""
    normalization: NormalizationConfig = field(default_factory=NormalizationConfig)


@dataclass
class GoalConditioned:
    """What the configuration of a goal-conditioned policy says about goals; training fills it in from the task."""

    goal_source: str = "observation.state"
    """Observation that goals are values of, and are scaled like."""
    goal_dims: tuple[int, ...] = ()
    """Dimensions of it that a goal may specify, the others are set to zero after scaling; empty for all."""


@dataclass(frozen=True)
class Stage:
    """A part of a training run; each has its own warm-up and decay."""

    steps: int
    """Optimiser steps of this stage."""
    lr: float | None = None
    """Peak learning rate, betas and weight decay; None takes the run's."""
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None


class Policy(nn.Module):
    """Maps the last T_o observations to a chunk of H actions.

    Observations are dictionaries of [B, T_o, ...] tensors in physical units, images [B, T_o, height, width, 3]
    uint8. Chunks are [B, H, D_a] in physical units; row `first_action` is the one to execute at the time of the
    newest observation.
    """

    uses_past_actions: ClassVar[bool] = False
    """The runner then adds to the observation "past.action" [B, T_o - 1, D_a], the actions executed before the newest
    observation, newest last, and "past.length" [B] int64, how many of the T_o observations have been made (the rest
    repeat the first one)."""

    uses_step_count: ClassVar[bool] = False
    """The runner then adds to the observation "past.steps" [B] int64, the control steps since the episode's first
    observation."""

    stage: int = 0
    """Number of the training stage under way, which `loss` may depend on; set by the trainer."""

    config: PolicyConfig
    features: FeatureSpec
    """Inputs this policy reads and the action it writes."""
    normalizer: Normalizer
    """Part of the state dictionary; fitted once, on the training split."""

    def __init__(self, config: PolicyConfig, features: FeatureSpec, normalizer: Normalizer) -> None:
        super().__init__()
        self.config = config
        self.features = features
        self.normalizer = normalizer
        self.action_dim = features.action.shape[0]

    @property
    def first_action(self) -> int:
        """Row of a chunk that belongs to the time of the newest observation: T_o - 1, or 0."""
        return 0

    @property
    def whole_windows(self) -> bool:
        """Train only on windows whose T_o observations have all been made."""
        return False

    @property
    def extra_windows(self) -> int:
        """Train also on windows whose newest step is up to so many steps after the end, where the last one repeats."""
        return 0

    @property
    def inpaints(self) -> bool:
        """Whether `predict` can continue actions that are already committed. The runner then adds to the observation
        "prefix.action" [B, H, D_a], in physical units, and "prefix.weight" [B, H], how firmly each row is committed,
        from 0 (free) to 1; and it calls `predict` without inference mode, since continuing takes gradients."""
        return False

    def fit(self, actions: np.ndarray) -> None:
        """Takes what a policy needs of its training actions [N, D_a], in physical units, beside the normaliser."""

    def stages(self, steps: int) -> list[Stage]:
        """The stages of a run of `steps` optimiser steps. Parameters that a stage does not use stay as they are."""
        return [Stage(steps)]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Scalar training loss and named detached scalars.

        `batch` holds observations [B, T_o, ...], "action" [B, H, D_a] and "action_is_pad" [B, H] bool.
        """

    @abstractmethod
    def predict(self, observation: Batch, generator: Generators) -> Tensor:
        """A chunk [B, H, D_a] in physical units. With one generator per row, rows are independent of each other."""

    def golden(self, observation: Batch, generator: torch.Generator) -> Tensor:
        """A cheap output that any change of weights, normaliser or code shows in; stored in checkpoints."""
        return self.predict(observation, generator)


def chunk_error(output: Tensor, target: Tensor, is_pad: Tensor, mask_padding: bool) -> Tensor:
    """Mean squared error of two chunks [B, H, D_a], over the rows that are not padding [B, H] when masked."""
    return row_mean((output.float() - target.float()).square().mean(dim=-1), is_pad, mask_padding)


def row_mean(error: Tensor, is_pad: Tensor, mask_padding: bool) -> Tensor:
    """Mean of what each row of a chunk contributes [B, H], over the rows that are not padding [B, H] when masked."""
    if not mask_padding:
        return error.mean()
    real = (~is_pad).to(error.dtype)
    return (error * real).sum() / real.sum().clamp_min(1)
