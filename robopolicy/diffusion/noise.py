"""Gaussian noise from explicit generators, one for a batch or one per batch row."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for a whole batch, or one per row: then a row's noise does not depend on its neighbours."""


def randn(shape: Sequence[int], generator: Generators, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise of `shape` [B, ...]; drawn where each generator lives, then moved to `device`."""
    return _draw(torch.randn, shape, generator, device)


def rand(shape: Sequence[int], generator: Generators, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1) of `shape` [B, ...], drawn like `randn`."""
    return _draw(torch.rand, shape, generator, device)


def _draw(
    kind: Callable[..., Tensor], shape: Sequence[int], generator: Generators, device: torch.device | str
) -> Tensor:
    if isinstance(generator, torch.Generator):
        return kind(tuple(shape), generator=generator, device=generator.device).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}")
    return torch.stack([kind(tuple(shape[1:]), generator=g, device=g.device) for g in generator]).to(device)
