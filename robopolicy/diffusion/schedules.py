"""Noise levels a sampler steps through.

Every schedule returns n + 1 float64 numbers on the CPU: n positive and strictly decreasing from exactly sigma_max
to exactly sigma_min, then 0. One step (n = 1) is [sigma_max, 0].
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robopolicy.errors import RobopolicyError, unknown


def _between(n: int, sigma_min: float, sigma_max: float, curve: Callable[[Tensor], Tensor]) -> Tensor:
    """Levels `curve(r)` for r evenly spaced in [0, 1], with exact ends and the final 0."""
    if n < 1:
        raise RobopolicyError(f"sampler steps must be at least 1, is {n}")
    if not 0 < sigma_min < sigma_max:
        raise RobopolicyError(f"noise levels must satisfy 0 < sigma_min < sigma_max, are {sigma_min} and {sigma_max}")
    sigmas = torch.zeros(n + 1, dtype=torch.float64)
    sigmas[:n] = curve(torch.linspace(0, 1, n, dtype=torch.float64))
    sigmas[n - 1] = sigma_min
    sigmas[0] = sigma_max
    return sigmas


def karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Evenly spaced in sigma^(1 / rho) (Karras et al. 2022, eq. 5)."""
    a, b = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _between(n, sigma_min, sigma_max, lambda r: (a + r * (b - a)) ** rho)


def exponential(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in ln(sigma); the limit of `karras` for large rho."""
    return _between(n, sigma_min, sigma_max, lambda r: sigma_max * (sigma_min / sigma_max) ** r)


def linear(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in sigma."""
    return _between(n, sigma_min, sigma_max, lambda r: sigma_max + r * (sigma_min - sigma_max))


def vp(n: int, sigma_min: float, sigma_max: float, beta_d: float = 19.9, beta_min: float = 0.1) -> Tensor:
    """Evenly spaced in the time of the continuous VP process, sigma^2 = exp(beta_d t^2 / 2 + beta_min t) - 1.

    Song et al. (2021) in the notation of Karras et al. (2022, table 1), between the times of the two ends.
    """

    def time(sigma: float) -> float:
        return (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(sigma**2)) - beta_min) / beta_d

    first, last = time(sigma_max), time(sigma_min)

    def curve(r: Tensor) -> Tensor:
        t = first + r * (last - first)
        return (beta_d * t**2 / 2 + beta_min * t).expm1().sqrt()

    return _between(n, sigma_min, sigma_max, curve)


def cosine(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in the angle of sigma = tan(angle), the cosine VP process (Nichol & Dhariwal 2021)."""
    first, last = math.atan(sigma_max), math.atan(sigma_min)
    return _between(n, sigma_min, sigma_max, lambda r: (first + r * (last - first)).tan())


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "karras": karras,
    "exponential": exponential,
    "linear": linear,
    "vp": vp,
    "cosine": cosine,
}


def schedule(name: str, n: int, sigma_min: float, sigma_max: float, **options: float) -> Tensor:
    """The [n + 1] noise levels of the schedule called `name`; RobopolicyError for a name or range that is wrong."""
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    return SCHEDULES[name](n, sigma_min, sigma_max, **options)
