"""Our own episode store: a directory of standard .npy files that numpy opens without this package.

episodes.json       format version, features, rate, instructions, numbers of episodes and steps, simulator versions
episode_ends.npy    [E] int64
<key>.npy           [N, *shape], images uint8
attributes.jsonl    one JSON object per episode, when any episode has attributes
checksums.npy       [E, K] uint32, CRC-32 of the values of every episode and key

Reading an episode compares its checksums; the memory maps that training uses are not looked through.
"""

import json
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.episodes import Episodes, check_structure
from robopolicy.datasets.npy import NpyStream, map_npy
from robopolicy.datasets.source import Source, check_seal, load, read_description, sealed
from robopolicy.datasets.untrusted import read_json
from robopolicy.datasets.writer import DatasetWriter
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import FeatureSpec

FORMAT_VERSION = 1
MANIFEST = "episodes.json"
ENDS = "episode_ends.npy"
ATTRIBUTES = "attributes.jsonl"
CHECKSUMS = "checksums.npy"


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
        self._checksums: list[list[int]] = []
        names = [ENDS, CHECKSUMS, *(file_name(f.key) for f in features)]
        if len(set(names)) < len(names):
            raise DataError(f"{self.path}: two keys of {features.keys()} would share one file")

    def _start(self) -> None:
        for f in self.features:
            self._streams[f.key] = NpyStream(self.folder / file_name(f.key), f.shape, f.dtype)

    def _append(self, episode: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
        for key, stream in self._streams.items():
            stream.append(episode[key])
        self._attributes.append(attributes)
        self._checksums.append([_crc(episode[key]) for key in self._streams])

    def _finish(self) -> None:
        for stream in self._streams.values():
            stream.close()
        ends = np.asarray(self.ends, np.int64)
        checksums = np.asarray(self._checksums, np.uint32)
        for name, values in ((ENDS, ends), (CHECKSUMS, checksums)):
            stream = NpyStream(self.folder / name, values.shape[1:], values.dtype.name)
            stream.append(values)
            stream.close()
        lines = "".join(json.dumps(a) + "\n" for a in self._attributes) if any(self._attributes) else ""
        if lines:
            (self.folder / ATTRIBUTES).write_text(lines)
        manifest = {
            "format_version": FORMAT_VERSION,
            "n_episodes": self.n_episodes,
            "n_steps": self.n_steps,
            **self.features.to_dict(),
            "fingerprint": self.fingerprint,
            "tasks": list(self.tasks),
            "metadata": self.metadata,
            "checksums": {ENDS: _crc(ends), CHECKSUMS: _crc(checksums), ATTRIBUTES: zlib.crc32(lines.encode())},
        }
        (self.folder / MANIFEST).write_text(json.dumps(sealed(manifest), indent=2))

    def _abandon(self) -> None:
        for stream in self._streams.values():
            stream.abandon()
        self._streams = {}


def _crc(values: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def is_store(path: Path) -> bool:
    return (path / MANIFEST).is_file()


class StoreSource(Source):
    """An episode store as memory maps. Damage is a DataError naming the file."""

    format = "episodes"
    mapped = True

    def __init__(self, path: Path) -> None:
        manifest = path / MANIFEST
        data = read_json(manifest)
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(f"{manifest}: format version {version}, this release reads {FORMAT_VERSION}")
        check_seal(manifest, data)
        try:
            features, tasks, fingerprint, metadata = read_description(data)
            known = {str(k): int(v) for k, v in data.get("checksums", {}).items()}
            counts = int(data["n_episodes"]), int(data["n_steps"])
        except (KeyError, TypeError, ValueError, AttributeError, RobopolicyError) as error:
            raise DataError(f"{manifest}: damaged ({type(error).__name__}: {error})") from error
        ends = _checked(path / ENDS, known)
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
        self._attributes = _read_attributes(path, self.n_episodes, known)
        self._checksums = _checked(path / CHECKSUMS, known) if known else None
        expected = self.n_episodes, len(features.keys())
        if self._checksums is not None and (self._checksums.shape, self._checksums.dtype) != (expected, np.uint32):
            raise DataError(f"{path / CHECKSUMS}: should hold {list(expected)} uint32")

    def _map(self, key: str) -> np.ndarray:
        if key not in self._maps:
            feature, array = self.features[key], map_npy(self.path / file_name(key))
            one = FeatureSpec((feature,))
            check_structure(Episodes({key: array}, self.episode_ends, one, self.path, "episodes"))
            self._maps[key] = array
        return self._maps[key]

    def read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        found = {}
        for key in keys:
            found[key] = self._rows(key, episode)
            place = self.features.keys().index(key)
            if self._checksums is not None and _crc(found[key]) != self._checksums[episode, place]:
                raise DataError(f"{self.path / file_name(key)}: episode {episode} is corrupt (its checksum differs)")
        return found

    def _rows(self, key: str, episode: int) -> np.ndarray:
        """A copy: pages of a map that were read stay in memory, and all episodes together may be large."""
        array, file = self._map(key), self.path / file_name(key)
        count = int(self.lengths[episode])
        row = array.dtype.itemsize * math.prod(array.shape[1:])
        values = np.empty((count, *array.shape[1:]), array.dtype)
        rest = values.reshape(-1).view(np.uint8).data
        with file.open("rb", buffering=0) as stream:
            stream.seek(array.offset + (int(self.episode_ends[episode]) - count) * row)  # type: ignore[attr-defined]
            while len(rest):
                got = stream.readinto(rest)
                if not got:
                    raise DataError(f"{file}: truncated while it was read")
                rest = rest[got:]
        return values

    def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {key: self._map(key) for key in keys}

    def frames(self, key: str, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._map(key)[rows])

    def attributes(self, episode: int) -> dict[str, Any]:
        return self._attributes[episode] if self._attributes else {}


def _checked(file: Path, known: dict[str, int]) -> np.ndarray:
    """The array in `file`, compared with its checksum when that is known."""
    values = np.array(map_npy(file))
    if known.get(file.name, _crc(values)) != _crc(values):
        raise DataError(f"{file}: corrupt (its checksum is not the one in {MANIFEST})")
    return values


def _read_attributes(path: Path, n_episodes: int, known: dict[str, int]) -> list[dict[str, Any]]:
    file = path / ATTRIBUTES
    try:
        data = file.read_bytes() if file.is_file() else b""
        if known.get(ATTRIBUTES, zlib.crc32(data)) != zlib.crc32(data):
            raise DataError(f"{file}: missing or corrupt (its checksum is not the one in {MANIFEST})")
        found = [dict(json.loads(line)) for line in data.decode().splitlines()]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: damaged ({error})") from error
    if data and len(found) != n_episodes:
        raise DataError(f"{file}: {len(found)} lines for {n_episodes} episodes")
    return found


def read_store(path: Path, keys: Sequence[str] | None = None) -> Episodes:
    """The store at `path` as memory maps; `keys` limits what is opened."""
    return load(StoreSource(path), keys)
