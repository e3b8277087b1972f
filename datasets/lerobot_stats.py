"""Statistics in the layout of LeRobot: minimum, maximum, mean, standard deviation, count and quantiles of each key.

Numbers are summarised per dimension; images per channel over evenly spaced frames, scaled to 0..1 and shaped
[channels, 1, 1] (lerobot 0.4, compute_stats.py).
"""

from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
LARGE_SIDE, TARGET_SIDE = 300, 150
"""Images with a side of at least the first are thinned to about the second, as LeRobot does."""

Stats = dict[str, np.ndarray]


def number_stats(values: np.ndarray) -> Stats:
    """Of one episode [T, *shape]; results have the shape of a step, scalars [1]."""
    values = values.reshape(len(values), *(values.shape[1:] or (1,)))
    exact = values.astype(np.float64)
    quantiles = np.quantile(exact, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": exact.mean(axis=0),
        "std": exact.std(axis=0),
        "count": np.array([len(values)]),
    } | dict(zip(QUANTILES, quantiles, strict=True))


def image_stats(frames: np.ndarray) -> Stats:
    """Of one episode uint8 [T, height, width, C]; results are [C, 1, 1] in 0..1."""
    n, height, width, channels = frames.shape
    rows = np.rint(np.linspace(0, n - 1, max(min(100, n), min(int(n**0.75), 10_000)))).astype(np.int64)
    thin = max(height, width) // TARGET_SIDE if max(height, width) >= LARGE_SIDE else 1
    counts = np.zeros((channels, 256), np.int64)
    for row in rows:
        for c in range(channels):
            counts[c] += np.bincount(frames[row, ::thin, ::thin, c].ravel(), minlength=256)
    levels = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    below = np.cumsum(counts, axis=1)
    found = {
        "min": levels[(counts > 0).argmax(axis=1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(axis=1) / total),
    } | {name: levels[(below >= q * total[:, None]).argmax(axis=1)] for name, q in QUANTILES.items()}
    return {name: value.reshape(channels, 1, 1) for name, value in found.items()} | {"count": np.array([len(rows)])}


def merge_stats(a: Stats, b: Stats) -> Stats:
    """Of both parts together; quantiles are averaged, as LeRobot does."""
    n, m = int(a["count"][0]), int(b["count"][0])
    mean = (a["mean"] * n + b["mean"] * m) / (n + m)
    variance = sum(w * (s["std"] ** 2 + (s["mean"] - mean) ** 2) for s, w in ((a, n), (b, m))) / (n + m)
    return {
        "min": np.minimum(a["min"], b["min"]),
        "max": np.maximum(a["max"], b["max"]),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": a["count"] + b["count"],
    } | {name: (a[name] * n + b[name] * m) / (n + m) for name in QUANTILES if name in a}


def as_lists(stats: dict[str, Stats]) -> dict[str, dict[str, Any]]:
    """Plain types for JSON and parquet."""
    return {key: {name: value.tolist() for name, value in found.items()} for key, found in stats.items()}
