"""Distributions of the noise level sigma that a denoiser is trained at."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robopolicy.diffusion.noise import rand, randn


class SigmaDistribution(Protocol):
    """Anything that draws one noise level per batch row."""

    def sample(self, batch: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """[B] noise levels, float32."""


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"noise levels must satisfy 0 < sigma_min < sigma_max, are {sigma_min} and {sigma_max}")


@dataclass(frozen=True)
class LogNormal:
    """ln(sigma) ~ N(mean, std^2), unbounded (Karras et al. 2022, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def sample(self, batch: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        return (self.mean + self.std * randn((batch,), generator, device)).exp()


@dataclass(frozen=True)
class LogLogistic:
    """ln(sigma) is logistic around ln(median), cut off at [sigma_min, sigma_max] (BESO, Reuss et al. 2023).

    Drawn by inverting F(s) = 1 / (1 + (median / s)^(1 / scale)) between F(sigma_min) and F(sigma_max).
    """

    median: float
    sigma_min: float
    sigma_max: float
    scale: float = 0.5

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def cdf(self, sigma: float) -> float:
        """F before the cut."""
        return 1 / (1 + (self.median / sigma) ** (1 / self.scale))

    def sample(self, batch: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        low, high = self.cdf(self.sigma_min), self.cdf(self.sigma_max)
        u = low + (high - low) * rand((batch,), generator, device)
        sigma = self.median * (u / (1 - u)) ** self.scale
        return sigma.clamp(self.sigma_min, self.sigma_max)  # float32 rounding may leave the range by one digit


@dataclass(frozen=True)
class LogUniform:
    """ln(sigma) uniform between the ends."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def sample(self, batch: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        span = math.log(self.sigma_max / self.sigma_min)
        return (self.sigma_min * (span * rand((batch,), generator, device)).exp()).clamp(max=self.sigma_max)


@dataclass(frozen=True)
class Uniform:
    """Sigma uniform between the ends."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def sample(self, batch: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        return self.sigma_min + (self.sigma_max - self.sigma_min) * rand((batch,), generator, device)
