"""Demonstrations in memory: concatenated arrays with episode ends, and the checks they must pass."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from robopolicy.errors import DataError, did_you_mean
from robopolicy.features import Feature, FeatureSpec

HASHED_FRAMES = 256
"""Frames of an image key that enter the content hash: that many, evenly spaced, or all when there are fewer."""


@dataclass
class Episodes:
    """All steps of all episodes, one after the other. Step t of episode e is row `episode_ends[e - 1] + t`."""

    arrays: dict[str, np.ndarray]
    """Key to [N, *shape]; may be read-only memory maps."""
    episode_ends: np.ndarray
    """[E] int64, strictly increasing, the last one is N."""
    features: FeatureSpec
    """Describes exactly the keys of `arrays`, and the rate when the source knows it."""
    source: Path
    format: str
    """Name of the format that was read, one of `robopolicy.datasets.detect.FORMATS`."""
    fingerprint: dict[str, str] = field(default_factory=dict)
    """Versions of the simulator that produced the data, when the source knows them."""
    unloaded: tuple[Feature, ...] = ()
    """Present in the source but not read: images nobody asked for, videos."""
    tasks: tuple[str, ...] = ()
    """The instructions that `task_index` counts; empty without language."""

    @property
    def n_episodes(self) -> int:
        return len(self.episode_ends)

    @property
    def n_steps(self) -> int:
        return int(self.episode_ends[-1])

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, [E] int64."""
        return np.diff(self.episode_ends, prepend=0)

    def slice(self, episode: int) -> slice:
        """The rows of one episode."""
        start = self.episode_ends[episode - 1] if episode > 0 else 0
        return slice(int(start), int(self.episode_ends[episode]))

    def episode(self, episode: int) -> dict[str, np.ndarray]:
        """Views [T, *shape] of one episode."""
        rows = self.slice(episode)
        return {key: array[rows] for key, array in self.arrays.items()}

    def content_hash(self) -> str:
        """64 hexadecimal digits over episode ends and every loaded key's name, dtype, shape and values.

        Low-dimensional values enter completely, images by `HASHED_FRAMES` evenly spaced frames. Bytes are taken
        little-endian, so the hash is the same on every machine and for every format that holds the same values.
        """
        digest = hashlib.sha256()
        digest.update(np.ascontiguousarray(self.episode_ends, dtype="<i8").data)
        for key in sorted(self.arrays):
            array = self.arrays[key]
            digest.update(f"{key} {array.dtype.name} {array.shape}".encode())
            if self.features[key].kind == "image":
                array = array[sampled_rows(len(array), HASHED_FRAMES)]
            digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
        return digest.hexdigest()


def sampled_rows(n_rows: int, count: int) -> np.ndarray:
    """At most `count` evenly spaced row numbers that include the first and the last."""
    return np.unique(np.linspace(0, n_rows - 1, count).astype(np.int64)) if n_rows > count else np.arange(n_rows)


def select_keys(source: Path, keys: Sequence[str], known: Sequence[str]) -> list[str]:
    """`keys` without repetitions; a DataError with a suggestion when one is not in `known`."""
    for key in keys:
        if key not in known:
            raise DataError(f"{source}: no key {key!r}.{did_you_mean(key, known)}")
    return list(dict.fromkeys(keys))


def locate(episode_ends: np.ndarray, row: int) -> str:
    """`"episode 3, step 17"` for a row of the concatenated arrays."""
    episode = int(np.searchsorted(episode_ends, row, side="right"))
    start = int(episode_ends[episode - 1]) if episode else 0
    return f"episode {episode}, step {row - start}"


def check_structure(episodes: Episodes) -> None:
    """Raises DataError unless ends, lengths, shapes and dtypes agree with each other and with the features."""
    source, ends = episodes.source, np.asarray(episodes.episode_ends)
    if ends.ndim != 1 or ends.dtype != np.int64 or len(ends) == 0:
        raise DataError(f"{source}: episode ends should be a non-empty list of int64, found {ends.dtype} {ends.shape}")
    previous = np.concatenate([[0], ends[:-1]])
    if not (ends > previous).all():
        e = int(np.argmin(ends > previous))
        raise DataError(f"{source}: episode ends must increase, but episode {e} ends at {ends[e]} after {previous[e]}")
    if sorted(episodes.arrays) != sorted(episodes.features.keys()):
        raise DataError(
            f"{source}: arrays {sorted(episodes.arrays)} are not those described: {sorted(episodes.features.keys())}"
        )
    for key, array in episodes.arrays.items():
        feature = episodes.features[key]
        if len(array) != ends[-1]:
            raise DataError(f"{source}: key {key!r} has {len(array)} steps, the episodes end at {ends[-1]}")
        if array.shape[1:] != feature.shape or array.dtype.name != feature.dtype:
            raise DataError(
                f"{source}: key {key!r} should be {feature.dtype} {list(feature.shape)} per step, "
                f"found {array.dtype.name} {list(array.shape[1:])}"
            )


def validate(episodes: Episodes) -> None:
    """`check_structure`, and no NaN or infinity in any floating-point key. Raises DataError for the first offence."""
    check_structure(episodes)
    for key, array in episodes.arrays.items():
        if array.dtype.kind != "f":
            continue
        row = first_not_finite(array)
        if row is not None:
            value = array[row].ravel()[np.argmin(np.isfinite(array[row].ravel()))]
            raise DataError(
                f"{episodes.source}: key {key!r} holds {value} at {locate(episodes.episode_ends, row)} (row {row})"
            )


def first_not_finite(array: np.ndarray) -> int | None:
    """First row [N, ...] that holds a NaN or an infinity; None when there is none."""
    good = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return None if good.all() else int(np.argmin(good))
