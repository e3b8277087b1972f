"""Exponential moving average of the weights: what is validated, evaluated and saved."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass
class EMAConfig:
    """How fast the averaged weights follow the trained ones."""

    max_decay: float = 0.9999
    """Largest decay; 0 switches averaging off."""
    warmup: Literal["power", "ratio"] = "power"
    """power: 1 - (1 + step)^-power (Diffusion Policy); ratio: (1 + n) / (10 + n) (BESO)."""
    power: float = 0.75
    """Exponent of the power warm-up."""


def ema_decay(config: EMAConfig, update: int) -> float:
    """Decay used by the `update`-th update, counted from 1."""
    if config.warmup == "ratio":
        return min(config.max_decay, (1 + update) / (10 + update))
    # Diffusion Policy's counter starts at zero one update later, so its first update copies the weights.
    step = update - 1
    return min(config.max_decay, 1 - (1 + step) ** -config.power) if step > 0 else 0.0


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for parameters; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for ours, theirs in zip(average.buffers(), model.buffers(), strict=True):
        ours.copy_(theirs)
