"""What one training run is: a recipe is an instance of `TrainConfig`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from robopolicy.policies.base import PolicyConfig
from robopolicy.training.ema import EMAConfig


@dataclass
class GoalConfig:
    """Where the goals of goal-conditioned tasks come from while training: later observations of the same episode."""

    choice: Literal["uniform", "tail", "next"] = "uniform"
    """Uniform over all later ones, the end of the episode, or those right after the window."""
    min_separation: int = 0
    """Steps between the window and the earliest goal, for uniform."""
    keep_without: bool = True
    """Keep windows after which no goal is left, with a zero goal, as published; otherwise drop them."""


@dataclass
class DataConfig:
    """Which demonstrations, and how they are split."""

    path: Path | None = None
    """Dataset of any supported format; without one, scripted demonstrations are recorded first."""
    scripted_episodes: int = 400
    """Demonstrations to record when no path is given."""
    validation_fraction: float = 0.02
    """Share of the episodes kept out of training."""
    mirror: bool = False
    """Add the mirror image of every training episode, for tasks that have such a symmetry."""
    max_episodes: int = 0
    """Use only this many training episodes, chosen by the seed; 0 uses all."""
    cache: Path | None = None
    """Folder for decoded images; default $ROBOPOLICY_CACHE or ~/.cache/robopolicy."""
    goals: GoalConfig = field(default_factory=GoalConfig)


@dataclass
class OptimConfig:
    """AdamW with linear warm-up and a decaying rate."""

    lr: float = 1e-4
    decay: Literal["cosine", "step", "constant"] = "cosine"
    """cosine: half a cosine to zero at the end; step: times 0.99 after every 100 steps (BESO)."""
    betas: tuple[float, float] = (0.95, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-6
    decay_vectors: bool = True
    """Decay biases, norms and positions as well as matrices (Diffusion Policy's U-Net does, its transformer not)."""
    warmup_steps: int = 500
    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""


@dataclass
class EvalConfig:
    """Rollouts during training, on validation seeds."""

    every: int = 0
    """Steps between evaluations; 0 evaluates never."""
    episodes: int = 20
    n_envs: int = 20
    """Environments stepped beside each other with one batched policy."""


@dataclass
class TrainConfig:
    """A training run; every field can be overridden on the command line."""

    policy: PolicyConfig
    task: str = "pusht"
    """Registered task whose features the policy reads and on which it is evaluated."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    steps: int = 100_000
    """Optimiser steps."""
    batch_size: int = 256
    """Windows per optimiser step, over all processes."""
    accumulate: int = 1
    """Micro-batches per process and step; N processes x M micro-batches give the same losses for equal N x M."""
    seed: int = 42
    device: str = "auto"
    """auto takes cuda when there is one, otherwise cpu."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """bf16 runs the networks under autocast, weights stay fp32; auto takes bf16 where the processor computes in it."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default. Use 1 when the cores are shared with other work."""
    log_every: int = 50
    validate_every: int = 1000
    """Steps between validation losses."""
    save_every: int = 5000
    """Steps between checkpoints."""
    keep: int = 3
    """Newest checkpoints kept, beside the best one."""
    output: Path | None = None
    """Folder of this run; default outputs/<date>_<recipe>."""
    wandb: bool = False
    """Also log to Weights & Biases (extra `wandb`)."""


@dataclass(frozen=True)
class Recipe:
    """A named run and what it is for."""

    about: str
    make: Callable[[], TrainConfig]
    """Returns a fresh configuration, of which any field may be changed."""
