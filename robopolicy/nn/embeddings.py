"""Embeddings of the noise level (or time) that a denoiser is asked about."""

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """[B] real numbers to [B, dim] sines and cosines, with periods from 2 pi to 2 pi 10^4 (Vaswani et al. 2017).

    `scale` multiplies the input first: times in 0..100 need 1, a log noise level in about -1..1 needs 100.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        if dim % 2 or dim < 4:
            raise ValueError(f"embedding dimension must be even and at least 4, is {dim}")
        half = dim // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1)) * scale
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        angles = time.float()[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeMLP(nn.Sequential):
    """Sinusoidal embedding followed by the two-layer network of Diffusion Policy's U-Net, [B] to [B, dim]."""

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__(SinusoidalEmbedding(dim, scale), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))
