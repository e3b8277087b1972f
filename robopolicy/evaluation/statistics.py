"""Intervals and tests for success rates and scores. Pure numpy and scipy; every random draw has a seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, ndtri

from robopolicy.errors import RobopolicyError

_BLOCK = 4_000_000
"""Numbers held at once while resampling."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits."""

    value: float
    low: float
    high: float
    """Not a number, like `low`, when a single value gives no idea of the spread."""

    def __str__(self) -> str:
        if not np.isfinite(self.low):
            return f"{self.value:.3f} [no interval]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a success rate (Wilson 1927), good down to small n and at 0 or n successes."""
    if not 0 <= successes <= n or n < 1:
        raise RobopolicyError(f"a success rate needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = float(ndtri(0.5 + confidence / 2))
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # At the ends the limit is exactly 0 or 1; rounding would leave 1e-17 there.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return Interval(p, low, high)


def _vector(values: ArrayLike, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise RobopolicyError(f"{what} must be a non-empty vector, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise RobopolicyError(f"{what} holds NaN or infinite values")
    return array


def _percentiles(means: np.ndarray, value: float, confidence: float) -> Interval:
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(value, float(low), float(high))


def bootstrap_mean(values: ArrayLike, seed: int = 0, n_resamples: int = 10_000, confidence: float = 0.95) -> Interval:
    """Mean of `values` [N] with its percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    N below about 20 gives intervals somewhat too narrow, N = 1 gives none (NaN limits).
    """
    data = _vector(values, "values to average")
    n = len(data)
    if n == 1:
        return Interval(float(data[0]), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    means = [
        data[rng.integers(0, n, size=(min(block, n_resamples - start), n))].mean(axis=1)
        for start in range(0, n_resamples, block)
    ]
    return _percentiles(np.concatenate(means), float(data.mean()), confidence)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, seed: int = 0, n_resamples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Mean of b - a over episodes [N] that both ran from the same initial states, resampled as pairs."""
    first, second = _vector(a, "scores of a"), _vector(b, "scores of b")
    if len(first) != len(second):
        raise RobopolicyError(f"paired scores must have equal length, got {len(first)} and {len(second)}")
    return bootstrap_mean(second - first, seed, n_resamples, confidence)


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> tuple[int, int, float]:
    """Exact two-sided McNemar test on paired successes [N] bool: (b10, b01, p).

    b10 counts the episodes in which only a succeeded, b01 those in which only b did. Without a difference each
    discordant episode is a fair coin (Fagerland, Lydersen & Laake 2013, equation 3).
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise RobopolicyError(f"paired successes must be vectors of equal length, got {first.shape}, {second.shape}")
    b10, b01 = int(np.sum(first & ~second)), int(np.sum(~first & second))
    p = min(1.0, 2 * float(bdtr(min(b10, b01), b10 + b01, 0.5)))
    return b10, b01, p


def mean_over_seeds(scores: ArrayLike, seed: int = 0, n_resamples: int = 10_000, confidence: float = 0.95) -> Interval:
    """Mean of `scores` [S training seeds, E episodes] with an interval that covers both sources of chance.

    All training seeds meet the same initial states, so rows and columns are resampled independently and crossed
    (the two-way or "pigeonhole" bootstrap, Owen 2007): an initial state that is hard for one training seed is
    hard for all of them. With S = 1 the interval speaks about that one trained policy only.
    """
    data = np.asarray(scores, dtype=np.float64)
    if data.ndim != 2 or data.size == 0 or not np.isfinite(data).all():
        raise RobopolicyError(f"scores must be finite and [training seeds, episodes], got shape {data.shape}")
    if data.size == 1:
        return Interval(float(data[0, 0]), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    n_seeds, n_episodes = data.shape
    block = max(1, _BLOCK // (n_seeds + n_episodes))
    means = []
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        rows = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=size)
        columns = rng.multinomial(n_episodes, np.full(n_episodes, 1 / n_episodes), size=size)
        means.append(np.einsum("rs,se,re->r", rows, data, columns, optimize=True) / data.size)
    return _percentiles(np.concatenate(means), float(data.mean()), confidence)


def pairs_needed(differences: ArrayLike, power: float = 0.8, confidence: float = 0.95) -> int | None:
    """Episodes at which a paired test would see the mean of `differences` [N] with this power; None if it is zero.

    Normal approximation, n = ((z_{1-alpha/2} + z_power) * s / mean)^2, taking the observed mean and spread as true.
    """
    data = _vector(differences, "differences")
    mean, spread = float(data.mean()), float(data.std(ddof=1)) if len(data) > 1 else 0.0
    if mean == 0.0 or spread == 0.0:
        return None
    z = float(ndtri(0.5 + confidence / 2) + ndtri(power))
    return int(np.ceil((z * spread / mean) ** 2))
