"""What is in a dataset: counts, shapes, ranges and oddities, for people and as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.detect import open_dataset
from robopolicy.datasets.episodes import Episodes, sampled_rows
from robopolicy.datasets.zarr_dp import sample_images
from robopolicy.features import Feature

MAPPED_FRAMES = 64
"""Frames of a memory-mapped image key whose values are looked at."""
ENCODED_FRAMES = 3
"""Frames of an image key still in compressed chunks whose values are looked at; each costs decoding a chunk."""
FORMATS = {
    "episodes": "robopolicy episode store",
    "zarr": "Diffusion Policy replay buffer (zarr v2)",
    "lerobot": "LeRobot v3.0",
}


@dataclass(frozen=True)
class KeyInfo:
    """One key; minimum, maximum and mean are over its finite values and None when it has none or was not read."""

    key: str
    kind: str
    shape: list[int]
    dtype: str
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    n_nan: int = 0
    n_inf: int = 0
    constant_dims: tuple[int, ...] = ()
    """Flat indices of dimensions that never change."""
    frames_read: int | None = None
    """For images: how many frames the numbers are taken from; 0 when they cannot be read. None: all steps."""


@dataclass(frozen=True)
class DatasetInfo:
    """Summary of a dataset."""

    path: str
    format: str
    n_episodes: int
    n_steps: int
    rate_hz: float | None
    hours: float | None
    """None when the rate is unknown."""
    length_min: int
    length_median: float
    length_max: int
    fingerprint: dict[str, str]
    keys: tuple[KeyInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


def describe(path: Path) -> DatasetInfo:
    """Summarises the dataset at `path`. NaN and infinity are counted; structural damage raises DataError."""
    episodes = open_dataset(path)
    keys = [_describe_array(f, episodes.arrays[f.key]) for f in episodes.features]
    keys += [_describe_unloaded(episodes, f) for f in episodes.unloaded]
    rate = episodes.features.rate_hz
    lengths = episodes.lengths
    return DatasetInfo(
        path=str(path),
        format=episodes.format,
        n_episodes=episodes.n_episodes,
        n_steps=episodes.n_steps,
        rate_hz=rate,
        hours=episodes.n_steps / rate / 3600 if rate else None,
        length_min=int(lengths.min()),
        length_median=float(np.median(lengths)),
        length_max=int(lengths.max()),
        fingerprint=episodes.fingerprint,
        keys=tuple(keys),
    )


def _describe_unloaded(episodes: Episodes, feature: Feature) -> KeyInfo:
    if episodes.format != "zarr":
        return KeyInfo(feature.key, feature.kind, list(feature.shape), feature.dtype, frames_read=0)
    rows = sampled_rows(episodes.n_steps, ENCODED_FRAMES)
    return _summarise(feature, sample_images(episodes.source, feature.key, rows), len(rows))


def _describe_array(feature: Feature, array: np.ndarray) -> KeyInfo:
    if feature.kind != "image":
        return _summarise(feature, array, None)
    rows = sampled_rows(len(array), MAPPED_FRAMES)
    return _summarise(feature, array[rows], len(rows))


def _summarise(feature: Feature, values: np.ndarray, frames_read: int | None) -> KeyInfo:
    flat = np.asarray(values).reshape(len(values), -1)
    finite = np.isfinite(flat)
    numbers = flat[finite]
    constant = () if feature.kind == "image" else tuple(np.flatnonzero((flat == flat[0]).all(axis=0)).tolist())
    return KeyInfo(
        key=feature.key,
        kind=feature.kind,
        shape=list(feature.shape),
        dtype=feature.dtype,
        minimum=float(numbers.min()) if numbers.size else None,
        maximum=float(numbers.max()) if numbers.size else None,
        mean=float(numbers.mean(dtype=np.float64)) if numbers.size else None,
        n_nan=int(np.isnan(flat).sum()),
        n_inf=int(np.isinf(flat).sum()),
        constant_dims=constant,
        frames_read=frames_read,
    )


def format_info(info: DatasetInfo) -> str:
    """The summary as text of about 100 columns."""
    rate = "rate unknown" if info.rate_hz is None else f"{info.rate_hz:g} Hz, {info.hours:.2f} h"
    lines = [
        f"{info.path}: {FORMATS[info.format]}",
        f"{info.n_episodes:,} episodes, {info.n_steps:,} steps, {rate}; "
        f"episode length {info.length_min} / {info.length_median:g} / {info.length_max} (min / median / max)",
    ]
    if info.fingerprint:
        lines.append(", ".join(f"{k} {v}" for k, v in info.fingerprint.items()))
    width = max(24, *(len(k.key) for k in info.keys))
    lines += [
        "",
        f"{'key':<{width}} {'shape':<10} {'dtype':<8} {'min':>9} {'max':>9} {'mean':>9} {'NaN/inf':>7}  note",
    ]
    for k in info.keys:
        numbers = " ".join(f"{'-' if v is None else f'{v:.4g}':>9}" for v in (k.minimum, k.maximum, k.mean))
        shape = "x".join(map(str, k.shape)) or "scalar"
        bad = k.n_nan + k.n_inf
        lines.append(f"{k.key:<{width}} {shape:<10} {k.dtype:<8} {numbers} {bad:>7}  {_note(k)}".rstrip())
    return "\n".join(lines)


def _note(key: KeyInfo) -> str:
    if key.frames_read is not None:
        return f"{key.frames_read} frames read" if key.frames_read else "not loaded"
    if not key.constant_dims:
        return ""
    shown = ",".join(map(str, key.constant_dims[:6])) + ("..." if len(key.constant_dims) > 6 else "")
    return f"constant: {shown}"
