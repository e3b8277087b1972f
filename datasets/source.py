"""Datasets on disk, read one episode at a time whatever their format, and loaded for training."""

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from robopolicy.datasets.cache import cached_array
from robopolicy.datasets.episodes import Episodes, check_structure, select_keys
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import TASK_INDEX, FeatureSpec

EXTENSION = "robopolicy"
"""Name under which a foreign format carries what it has no place for; see `extension` and `read_extension`."""
EXTENSION_VERSION = 1
SEAL = "crc32"
"""Entry of metadata that we wrote: its checksum, so that a changed byte does not become a changed unit or rate."""


class Source(ABC):
    """A dataset on disk, opened: what it holds is known, and episodes are read when asked for.

    Opening checks everything that is cheap to check (metadata, presence and sizes of files) and raises DataError;
    damage inside a compressed part is a DataError naming file and episode when that episode is read.
    """

    format: ClassVar[str]
    """Name in `robopolicy.datasets.detect.FORMATS`."""
    mapped: ClassVar[bool] = False
    """Whether `columns` returns memory maps, so that images cost nothing until they are looked at."""

    def __init__(
        self,
        path: Path,
        features: FeatureSpec,
        lengths: np.ndarray,
        *,
        tasks: Sequence[str] = (),
        fingerprint: dict[str, str] | None = None,
        metadata: dict[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.features = features
        """Every key that can be read, and the rate when the format knows it."""
        self.lengths = np.asarray(lengths, dtype=np.int64)
        """Steps of each episode, [E]."""
        self.tasks = tuple(tasks)
        """The instructions that `task_index` counts; empty without language."""
        self.fingerprint = dict(fingerprint or {})
        """Versions of the simulator that produced the data, when the format knows them."""
        self.metadata = dict(metadata or {})
        """What else the format says about the whole dataset, in plain JSON types."""
        self.notes = list(notes)
        """One line for each thing that was repaired or left out while opening."""
        if not features.keys():
            raise DataError(f"{path}: describes no features")
        if len(self.lengths) == 0:
            raise DataError(f"{path}: holds no episode")
        if self.lengths.min() < 1:
            raise DataError(f"{path}: episode {int(np.argmin(self.lengths))} has {self.lengths.min()} steps")

    @property
    def n_episodes(self) -> int:
        return len(self.lengths)

    @property
    def n_steps(self) -> int:
        return int(self.lengths.sum())

    @property
    def episode_ends(self) -> np.ndarray:
        """[E] int64."""
        return np.cumsum(self.lengths)

    @abstractmethod
    def read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Arrays [T, *shape] of one episode in the features' dtypes; read in order, no episode is decoded twice."""

    def attributes(self, episode: int) -> dict[str, Any]:
        """What the format says about one episode beyond its arrays, in plain JSON types."""
        return {}

    def stamps(self, episode: int) -> np.ndarray | None:
        """Recorded times [T] in s of the steps of one episode; None when the format keeps none."""
        return None

    def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Low-dimensional keys of all episodes, [N, *shape]."""
        parts = [self.read(e, keys) for e in range(self.n_episodes)]
        return {key: np.concatenate([part[key] for part in parts]) for key in keys}

    def frames(self, key: str, rows: np.ndarray) -> np.ndarray:
        """A few rows [len(rows), *shape] of one key, without reading everything."""
        ends = self.episode_ends
        found = []
        for row in rows:
            episode = int(np.searchsorted(ends, row, side="right"))
            found.append(self.read(episode, [key])[key][int(row) - int(ends[episode] - self.lengths[episode])])
        return np.stack(found)

    def image_blocks(self, key: str) -> Iterator[np.ndarray]:
        """All frames of an image key in order, in blocks [n, height, width, C] of bounded size."""
        for episode in range(self.n_episodes):
            yield self.read(episode, [key])[key]

    def identity(self, key: str) -> str:
        """32 hexadecimal digits that change when the encoded bytes of an image key change; names its cache."""
        raise DataError(f"{self.path}: key {key!r} cannot be cached")

    def close(self) -> None:  # noqa: B027
        """Releases open files; reading afterwards is an error."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    source: Source, keys: Sequence[str] | None = None, images: bool = False, cache_dir: Path | None = None
) -> Episodes:
    """All episodes as arrays for training: low-dimensional keys in memory, images as memory maps.

    Images of other formats than our own are decoded once, into a cache named by their content. `keys=None` takes
    every low-dimensional key, and images if `images` is true or they are memory maps already.
    """
    features = source.features
    if keys is None:
        chosen = [f.key for f in features if f.kind != "image" or images or source.mapped]
    else:
        chosen = select_keys(source.path, keys, features.keys())
    encoded = [] if source.mapped else [k for k in chosen if features[k].kind == "image"]
    arrays = source.columns([k for k in chosen if k not in encoded])
    if encoded:
        arrays |= decode_images(source, encoded, cache_dir)
    episodes = Episodes(
        {key: arrays[key] for key in chosen},
        source.episode_ends,
        features.select(chosen),
        source.path,
        source.format,
        source.fingerprint,
        tuple(f for f in features if f.key not in chosen),
        source.tasks,
    )
    check_structure(episodes)
    return episodes


def decode_images(source: Source, keys: Sequence[str], cache_dir: Path | None) -> dict[str, np.ndarray]:
    """Memory maps [N, height, width, C] uint8 of image keys, decoded on first use."""
    return {
        key: cached_array(
            source.identity(key),
            (source.n_steps, *source.features[key].shape),
            partial(source.image_blocks, key),
            f"decoding {key}",
            cache_dir,
        )
        for key in keys
    }


def extension(
    features: FeatureSpec, tasks: Sequence[str], fingerprint: dict[str, str], metadata: dict[str, Any]
) -> dict[str, Any]:
    """What a foreign format has no place for, as plain JSON types that a writer puts beside its own metadata."""
    return sealed(
        {
            "version": EXTENSION_VERSION,
            **features.to_dict(),
            "tasks": list(tasks),
            "fingerprint": dict(fingerprint),
            "metadata": dict(metadata),
        }
    )


def sealed(described: dict[str, Any]) -> dict[str, Any]:
    """`described` with the checksum of its JSON; entries that are added later are not covered."""
    return described | {SEAL: _checksum(described), "sealed": sorted(described)}


def check_seal(where: Path, data: dict[str, Any]) -> None:
    """Raises DataError when what `sealed` covered was changed; metadata without a checksum is taken as it is."""
    if SEAL not in data and "sealed" not in data:
        return
    listed = data.get("sealed")
    names = listed if isinstance(listed, list) and all(isinstance(n, str) and n in data for n in listed) else None
    if names is None or data.get(SEAL) != _checksum({n: data[n] for n in names}):
        raise DataError(
            f"{where}: the metadata was changed after it was written; remove {SEAL!r} and 'sealed' if meant"
        )


def _checksum(described: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(described))
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def read_description(data: dict[str, Any]) -> tuple[FeatureSpec, tuple[str, ...], dict[str, str], dict[str, Any]]:
    """Features, instructions, fingerprint and metadata as our own files spell them; any of the last three may lack.

    Raises TypeError, ValueError, KeyError, AttributeError or RobopolicyError where it is not that.
    """
    features = FeatureSpec.from_dict(data)
    tasks, fingerprint, metadata = data.get("tasks", []), data.get("fingerprint", {}), data.get("metadata", {})
    if type(tasks) is not list or not all(type(t) is str for t in tasks):
        raise ValueError("'tasks' is not a list of texts")
    if type(fingerprint) is not dict or not all(type(v) is str for v in fingerprint.values()):
        raise ValueError("'fingerprint' is not a table of texts")
    if type(metadata) is not dict:
        raise ValueError("'metadata' is not a table")
    return features, tuple(tasks), fingerprint, metadata


def read_extension(where: Path, data: Any) -> tuple[FeatureSpec, tuple[str, ...], dict[str, str], dict[str, Any]]:
    """The inverse of `extension`; the caller compares the features with what the files really hold."""
    try:
        if data["version"] != EXTENSION_VERSION:
            raise DataError(f"{where}: {EXTENSION} metadata of version {data['version']}, this release reads 1")
        check_seal(where, data)
        features, tasks, fingerprint, metadata = read_description(data)
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RobopolicyError) as error:
        raise DataError(f"{where}: damaged {EXTENSION} metadata ({type(error).__name__}: {error})") from error
    if TASK_INDEX in features and not tasks:
        raise DataError(f"{where}: {TASK_INDEX!r} is described but there is no table of instructions")
    return features, tasks, fingerprint, metadata
