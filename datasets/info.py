"""What is in a dataset: counts, shapes, ranges and oddities, for people and as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.detect import FORMATS, open_source
from robopolicy.datasets.episodes import sampled_rows
from robopolicy.datasets.source import Source
from robopolicy.datasets.untrusted import damage
from robopolicy.features import Feature

MAPPED_FRAMES = 64
"""Frames of a memory-mapped image key whose values are looked at."""
ENCODED_FRAMES = 3
"""Frames of an image key still in compressed chunks whose values are looked at; each costs decoding a chunk."""


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
    """For images: how many frames the numbers are taken from. None: all steps."""


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
    tasks: tuple[str, ...]
    """Instructions."""
    notes: tuple[str, ...]
    """What was repaired or left out while opening."""
    keys: tuple[KeyInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


def describe(path: Path) -> DatasetInfo:
    """Summarises the dataset at `path`. NaN and infinity are counted; structural damage raises DataError."""
    with open_source(path) as source, damage(path):
        numeric = [f.key for f in source.features if f.kind != "image"]
        # Not the source's own `columns`, which may be maps of files whose checksums only `read` looks at.
        columns = Source.columns(source, numeric)
        keys = [
            _summarise(f, columns[f.key], None) if f.kind != "image" else _describe_images(source, f)
            for f in source.features
        ]
    rate = source.features.rate_hz
    lengths = source.lengths
    return DatasetInfo(
        path=str(path),
        format=source.format,
        n_episodes=source.n_episodes,
        n_steps=source.n_steps,
        rate_hz=rate,
        hours=source.n_steps / rate / 3600 if rate else None,
        length_min=int(lengths.min()),
        length_median=float(np.median(lengths)),
        length_max=int(lengths.max()),
        fingerprint=source.fingerprint,
        tasks=source.tasks,
        notes=tuple(source.notes),
        keys=tuple(keys),
    )


def _describe_images(source: Source, feature: Feature) -> KeyInfo:
    rows = sampled_rows(source.n_steps, MAPPED_FRAMES if source.mapped else ENCODED_FRAMES)
    return _summarise(feature, source.frames(feature.key, rows), len(rows))


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
        f"{info.path}: {FORMATS[info.format].title}",
        f"{info.n_episodes:,} episodes, {info.n_steps:,} steps, {rate}; "
        f"episode length {info.length_min} / {info.length_median:g} / {info.length_max} (min / median / max)",
    ]
    if info.fingerprint:
        lines.append(", ".join(f"{k} {v}" for k, v in info.fingerprint.items()))
    if info.tasks:
        shown = "; ".join(info.tasks[:3]) + (f"; and {len(info.tasks) - 3} more" if len(info.tasks) > 3 else "")
        lines.append(f"{len(info.tasks)} instructions: {shown}")
    lines += [f"note: {note}" for note in info.notes]
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
        return f"{key.frames_read} frames read"
    if not key.constant_dims:
        return ""
    shown = ",".join(map(str, key.constant_dims[:6])) + ("..." if len(key.constant_dims) > 6 else "")
    return f"constant: {shown}"
