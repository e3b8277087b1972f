"""Gaussian noise from explicit generators, one for a batch or one per batch row."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for a whole batch, or one per row: then a row's noise does not depend on its neighbours."""


def randn(shape: Sequence[int], generator: Generators, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise of `shape` [B, ...]; drawn where each generator lives, then moved to `device`."""
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, device=generator.device).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}")
    rows = [torch.randn(tuple(shape[1:]), generator=g, device=g.device) for g in generator]
    return torch.stack(rows).to(device)


def rand(shape: Sequence[int], generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1) of `shape`, drawn where the generator lives, then moved to `device`."""
    return torch.rand(tuple(shape), generator=generator, device=generator.device).to(device)
