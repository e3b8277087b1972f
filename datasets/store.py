"""Our own episode store: a directory of standard .npy files that numpy opens without this package.

episodes.json       format version, features, rate, instructions, numbers of episodes and steps, simulator versions
episode_ends.npy    [E] int64
<key>.npy           [N, *shape], images uint8
attributes.jsonl    one JSON object per episode, when any episode has attributes
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.episodes import Episodes, check_structure
from robopolicy.datasets.npy import NpyStream, map_npy
from robopolicy.datasets.source import Source, load
from robopolicy.datasets.writer import DatasetWriter
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import FeatureSpec

FORMAT_VERSION = 1
MANIFEST = "episodes.json"
ENDS = "episode_ends.npy"
ATTRIBUTES = "attributes.jsonl"


def file_name(key: str) -> str:
    """The .npy file of a key: characters other than letters, digits, `.`, `_` and `-` become `_`."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", key) + ".npy"


class EpisodeWriter(DatasetWriter):
    """Writes an episode store."""

    format = "episodes"
    holds_attributes = True

    def __init__(self, path: Path, features: FeatureSpec, *args: Any, **kwargs: Any) -> None:
        super().__init__(path, features, *args, **kwargs)
        self._streams: dict[str, NpyStream] = {}
        self._attributes: list[dict[str, Any]] = []
        names = [ENDS, *(file_name(f.key) for f in features)]
        if len(set(names)) < len(names):
            raise DataError(f"{self.path}: two keys of {features.keys()} would share one file")

    def _start(self) -> None:
        for f in self.features:
            self._streams[f.key] = NpyStream(self.folder / file_name(f.key), f.shape, f.dtype)

    def _append(self, episode: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
        for key, stream in self._streams.items():
            stream.append(episode[key])
        self._attributes.append(attributes)

    def _finish(self) -> None:
        for stream in self._streams.values():
            stream.close()
        ends = NpyStream(self.folder / ENDS, (), "int64")
        ends.append(np.asarray(self.ends, dtype=np.int64))
        ends.close()
        if any(self._attributes):
            lines = "".join(json.dumps(a) + "\n" for a in self._attributes)
            (self.folder / ATTRIBUTES).write_text(lines)
        manifest = {
            "format_version": FORMAT_VERSION,
            "n_episodes": self.n_episodes,
            "n_steps": self.n_steps,
            **self.features.to_dict(),
            "fingerprint": self.fingerprint,
            "tasks": list(self.tasks),
            "metadata": self.metadata,
        }
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=2))

    def _abandon(self) -> None:
        for stream in self._streams.values():
            stream.abandon()
        self._streams = {}


def is_store(path: Path) -> bool:
    return (path / MANIFEST).is_file()


class StoreSource(Source):
    """An episode store as memory maps. Damage is a DataError naming the file."""

    format = "episodes"
    mapped = True

    def __init__(self, path: Path) -> None:
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
            tasks, metadata = [str(t) for t in data.get("tasks", [])], dict(data.get("metadata", {}))
        except (KeyError, TypeError, ValueError, AttributeError, RobopolicyError) as error:
            raise DataError(f"{manifest}: damaged ({type(error).__name__}: {error})") from error
        ends = np.array(map_npy(path / ENDS))
        check_structure(Episodes({}, ends, FeatureSpec(()), path, "episodes"))
        super().__init__(
            path, features, np.diff(ends, prepend=0), tasks=tasks, fingerprint=fingerprint, metadata=metadata
        )
        if (self.n_episodes, self.n_steps) != counts:
            raise DataError(
                f"{path / ENDS}: {self.n_episodes} episodes of {self.n_steps} steps, "
                f"{MANIFEST} says {counts[0]} of {counts[1]}"
            )
        self._maps: dict[str, np.ndarray] = {}
        self._attributes = _read_attributes(path, self.n_episodes)

    def _map(self, key: str) -> np.ndarray:
        if key not in self._maps:
            feature, array = self.features[key], map_npy(self.path / file_name(key))
            one = FeatureSpec((feature,))
            check_structure(Episodes({key: array}, self.episode_ends, one, self.path, "episodes"))
            self._maps[key] = array
        return self._maps[key]

    def read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        end = int(self.episode_ends[episode])
        return {key: self._map(key)[end - int(self.lengths[episode]) : end] for key in keys}

    def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {key: self._map(key) for key in keys}

    def frames(self, key: str, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._map(key)[rows])

    def attributes(self, episode: int) -> dict[str, Any]:
        return self._attributes[episode] if self._attributes else {}


def _read_attributes(path: Path, n_episodes: int) -> list[dict[str, Any]]:
    file = path / ATTRIBUTES
    if not file.is_file():
        return []
    try:
        found = [dict(json.loads(line)) for line in file.read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error})") from error
    if len(found) != n_episodes:
        raise DataError(f"{file}: {len(found)} lines for {n_episodes} episodes")
    return found


def read_store(path: Path, keys: Sequence[str] | None = None) -> Episodes:
    """The store at `path` as memory maps; `keys` limits what is opened."""
    return load(StoreSource(path), keys)
