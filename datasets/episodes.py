"""Demonstrations: concatenated arrays with episode ends, their checks, and our own store on disk.

A store is a directory of standard .npy files that numpy opens without this package:

    episodes.json       format version, features, rate, numbers of episodes and steps, simulator versions
    episode_ends.npy    [E] int64
    <key>.npy           [N, *shape], images uint8
"""

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from robopolicy.datasets.npy import NpyStream, map_npy
from robopolicy.errors import DataError, RobopolicyError, did_you_mean
from robopolicy.features import Feature, FeatureSpec

FORMAT_VERSION = 1
MANIFEST = "episodes.json"
ENDS = "episode_ends.npy"
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
    """Name of the format that was read: episodes, zarr or lerobot."""
    fingerprint: dict[str, str] = field(default_factory=dict)
    """Versions of the simulator that produced the data, when the source knows them."""
    unloaded: tuple[Feature, ...] = ()
    """Present in the source but not read: images nobody asked for, videos."""

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


def file_name(key: str) -> str:
    """The .npy file of a key: characters other than letters, digits, `.`, `_` and `-` become `_`."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", key) + ".npy"


class EpisodeWriter:
    """Streams episodes into a new store, one at a time; use it in a `with` statement.

    Everything goes to a hidden directory beside `path`, which takes the name `path` when the statement ends
    without an error and is removed otherwise: a store is either complete or absent. Directories left by writers
    that were killed are removed by the next writer of the same path.
    """

    def __init__(self, path: Path, features: FeatureSpec, fingerprint: dict[str, str] | None = None) -> None:
        self.path = Path(path)
        self.features = features
        self.fingerprint = dict(fingerprint or {})
        self.n_steps = 0
        self._ends: list[int] = []
        self._streams: dict[str, NpyStream] = {}
        self._temporary = self.path.parent / f".{self.path.name}.{uuid.uuid4().hex[:12]}.tmp"
        self._lock: int | None = None
        names = [ENDS, *(file_name(f.key) for f in features)]
        if len(set(names)) < len(names):
            raise DataError(f"{self.path}: two keys of {features.keys()} would share one file")

    @property
    def n_episodes(self) -> int:
        return len(self._ends)

    def __enter__(self) -> "EpisodeWriter":
        if self.path.exists():
            raise DataError(f"{self.path}: already exists; choose another name or remove it first")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(self.path)
            self._temporary.mkdir()
            self._lock = _lock(self._temporary)
            for f in self.features:
                self._streams[f.key] = NpyStream(self._temporary / file_name(f.key), f.shape, f.dtype)
        except BaseException as error:
            self._abort()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        return self

    def add(self, episode: dict[str, np.ndarray]) -> None:
        """Appends one episode of [T, *shape] arrays, one per feature.

        Raises DataError before anything is written when keys, shapes, dtypes or lengths differ from the features
        or a value is not finite, and when the disk is full, after which the writer is of no more use.
        """
        if not self._streams:
            raise DataError(f"{self.path}: the writer is closed")
        arrays = {key: np.asarray(value) for key, value in episode.items()}
        self._check(arrays)
        try:
            for key, stream in self._streams.items():
                stream.append(arrays[key])
        except BaseException as error:
            self._abort()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        self.n_steps += len(next(iter(arrays.values())))
        self._ends.append(self.n_steps)

    def _check(self, arrays: dict[str, np.ndarray]) -> None:
        where = f"{self.path}: episode {self.n_episodes}"
        if sorted(arrays) != sorted(self.features.keys()):
            raise DataError(f"{where} has keys {sorted(arrays)}, expected {sorted(self.features.keys())}")
        lengths = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
        if min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
            raise DataError(f"{where} needs equally many steps of every key, at least one, found {lengths}")
        for key, array in arrays.items():
            feature = self.features[key]
            if array.shape[1:] != feature.shape or array.dtype.name != feature.dtype:
                raise DataError(
                    f"{where}: key {key!r} should be {feature.dtype} {list(feature.shape)} per step, "
                    f"found {array.dtype.name} {list(array.shape[1:])}"
                )
            step = first_not_finite(array) if array.dtype.kind == "f" else None
            if step is not None:
                raise DataError(f"{where}, step {step}: key {key!r} is not finite")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abort()
            return
        try:
            self._commit()
        except BaseException as failure:
            self._abort()
            if isinstance(failure, OSError):
                raise self._failure(failure) from failure
            raise
        self._release()

    def _commit(self) -> None:
        if not self._streams:
            raise DataError(f"{self.path}: not written, an earlier episode failed")
        if not self._ends:
            raise DataError(f"{self.path}: not written, no episode was added")
        for stream in self._streams.values():
            stream.close()
        ends = NpyStream(self._temporary / ENDS, (), "int64")
        ends.append(np.asarray(self._ends, dtype=np.int64))
        ends.close()
        manifest = {
            "format_version": FORMAT_VERSION,
            "n_episodes": self.n_episodes,
            "n_steps": self.n_steps,
            **self.features.to_dict(),
            "fingerprint": self.fingerprint,
        }
        with (self._temporary / MANIFEST).open("w") as file:
            json.dump(manifest, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        _sync_directory(self._temporary)
        self._temporary.rename(self.path)
        _sync_directory(self.path.parent)

    def _abort(self) -> None:
        for stream in self._streams.values():
            stream.abandon()
        self._streams = {}
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._streams = {}

    def _failure(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: cannot be written ({error.strerror or error}); nothing was kept")


def _lock(directory: Path) -> int:
    """A descriptor holding an exclusive lock that the kernel drops when this process ends, however it ends."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_stale(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            descriptor = _lock(left)
        except OSError:
            continue  # Its writer is alive.
        shutil.rmtree(left, ignore_errors=True)
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_store(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def read_store(path: Path, keys: Sequence[str] | None = None) -> Episodes:
    """The store at `path` as memory maps; `keys` limits what is opened. Damage is a DataError naming the file."""
    manifest = path / MANIFEST
    try:
        data = json.loads(manifest.read_text())
        version = data["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{manifest}: unreadable ({type(error).__name__}: {error})") from error
    if version != FORMAT_VERSION:
        raise DataError(f"{manifest}: format version {version}, this release reads {FORMAT_VERSION}")
    try:
        features = FeatureSpec.from_dict(data)
        fingerprint = {str(k): str(v) for k, v in data["fingerprint"].items()}
        counts = int(data["n_episodes"]), int(data["n_steps"])
    except (KeyError, TypeError, ValueError, AttributeError, RobopolicyError) as error:
        raise DataError(f"{manifest}: damaged ({type(error).__name__}: {error})") from error
    if keys is not None:
        features = features.select(select_keys(path, keys, features.keys()))
    arrays = {f.key: map_npy(path / file_name(f.key)) for f in features}
    ends = np.array(map_npy(path / ENDS))
    episodes = Episodes(arrays, ends, features, path, "episodes", fingerprint)
    check_structure(episodes)
    if (episodes.n_episodes, episodes.n_steps) != counts:
        raise DataError(
            f"{path / ENDS}: {episodes.n_episodes} episodes of {episodes.n_steps} steps, "
            f"{MANIFEST} says {counts[0]} of {counts[1]}"
        )
    return episodes
