"""The Diffusion Policy replay buffer (Chi et al. 2023): a zarr v2 group with data/* and meta/episode_ends.

Every array under data/ holds all steps of all episodes. The layout says nothing about the rate, names or units;
datasets of our own writer say it in the attribute "robopolicy" of the group, which plain zarr ignores.
"""

import hashlib
import itertools
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.episodes import Episodes, check_structure, locate
from robopolicy.datasets.source import EXTENSION, Source, read_extension
from robopolicy.datasets.untrusted import read_json
from robopolicy.errors import DataError
from robopolicy.features import ACTION, Feature, FeatureSpec

KEYS = {"action": ACTION, "img": "observation.images.img"}
"""Our key of an array; any other array X is observation.X."""
BLOSC_HEADER = 16
"""Bytes; the last four are the length of the chunk (c-blosc, README_CHUNK_FORMAT)."""
SAMPLED_BYTES = 4096
"""Bytes at the start and at the end of every chunk file that enter the cache key."""
MAX_CHUNK_BYTES = 2**30
"""Decoded size of one chunk, which is allocated at once."""
MAX_SIDE = 8192
"""Pixels of an image in either direction."""
ARRAYS = "arrays"
"""Entry of our extension: the array of every key."""
CHECKSUMS = "checksums"
"""Entry of our extension: CRC-32 of every chunk file of every array, in order; neither zarr nor blosc has any."""
CHANGED = f"the dataset was changed after it was written; without {EXTENSION!r} in .zattrs and meta/.zattrs it reads"
CODECS = {None, "blosc", "zstd", "lz4", "zlib", "gzip", "shuffle", "delta"}
ZLIB_OR_GZIP = 47
"""zlib's `wbits` that recognises both headers."""
ARRAY_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def is_replay_buffer(path: Path) -> bool:
    return (path / ".zgroup").is_file() or (path / ".zmetadata").is_file() or (path / "zarr.json").is_file()


@dataclass(frozen=True)
class _Array:
    """One zarr v2 array on disk, known from its .zarray file."""

    path: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    fill_value: object
    separator: str
    compressor: str | None
    checksums: tuple[int, ...] | None = None

    @classmethod
    def at(cls, path: Path, checksums: tuple[int, ...] | None = None) -> "_Array":
        file = path / ".zarray"
        if not file.exists():
            raise DataError(f"{file}: missing; a replay buffer has data/* and meta/episode_ends")
        try:
            meta = read_json(file)
            dtype = np.dtype(meta["dtype"])
            array = cls(
                path,
                tuple(int(n) for n in meta["shape"]),
                tuple(int(n) for n in meta["chunks"]),
                dtype,
                meta["fill_value"],
                meta.get("dimension_separator", "."),
                (meta.get("compressor") or {}).get("id"),
                checksums,
            )
            codecs = [
                None if array.compressor is None else str(array.compressor),
                *(str(c["id"]) for c in meta.get("filters") or []),
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise DataError(f"{file}: damaged ({type(error).__name__}: {error})") from error
        if dtype.kind not in "biuf" or dtype.itemsize > 8 or not set(codecs) <= CODECS:
            raise DataError(f"{path}: holds {dtype} encoded by {codecs}; only plain numbers are read")
        lengths = len(array.shape), len(array.chunks)
        if lengths[0] != lengths[1] or not 1 <= lengths[0] <= 32 or min(array.chunks) < 1 or min(array.shape) < 0:
            raise DataError(f"{file}: damaged (shape {array.shape}, chunks {array.chunks})")
        if array.chunk_bytes > MAX_CHUNK_BYTES:
            raise DataError(f"{file}: chunks of {array.chunk_bytes} bytes, at most {MAX_CHUNK_BYTES} are read")
        if array.separator not in (".", "/"):
            raise DataError(f"{file}: dimension separator {array.separator!r}, expected '.' or '/'")
        return array

    @property
    def chunk_bytes(self) -> int:
        """Decoded."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 4 and self.shape[-1] in (1, 3, 4)

    @property
    def key(self) -> str:
        return KEYS.get(self.path.name, f"observation.{self.path.name}")

    @property
    def feature(self) -> Feature:
        """What is delivered: images as uint8, other floating-point values as float32."""
        if self.is_image:
            return Feature(self.key, self.shape[1:], "uint8", "image")
        dtype = "float32" if self.dtype.kind == "f" else self.dtype.name
        return Feature(self.key, self.shape[1:], dtype, "action" if self.key == ACTION else "state")

    @property
    def grid(self) -> list[int]:
        """Number of chunks along every axis."""
        return [-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True)]

    def chunk_files(self) -> Iterator[Path]:
        for number in range(math.prod(self.grid)):
            index = []
            for n in reversed(self.grid):
                number, place = divmod(number, n)
                index.append(str(place))
            yield self.path / self.separator.join(reversed(index))

    def check_chunks(self, contents: bool = True) -> None:
        """Raises DataError when a chunk file is missing or truncated, or its `contents` are not what was written.

        zarr returns the fill value for a missing chunk, and blosc reads past the end of a short incompressible one.
        """
        n_chunks = math.prod(self.grid)
        n_files = sum(name[0] != "." for _, _, names in os.walk(self.path) for name in names)
        # One name more than there are files: enough to meet a missing one, however many chunks are declared.
        missing = [file for file in itertools.islice(self.chunk_files(), n_files + 1) if not file.is_file()]
        if missing:
            raise DataError(
                f"{missing[0]}: chunk file missing ({max(len(missing), n_chunks - n_files)} of {n_chunks} of array "
                f"{self.path.name!r}); its steps would silently read as {self.fill_value}"
            )
        if self.checksums is not None and len(self.checksums) != n_chunks:
            raise DataError(f"{self.path}: {n_chunks} chunks, but {len(self.checksums)} checksums; {CHANGED}")
        for number, file in enumerate(self.chunk_files()):
            if self.compressor == "blosc":
                self._check_blosc(file)
            elif self.compressor in ("zlib", "gzip") and contents:
                self._check_deflate(file)
            if self.checksums is not None and contents and zlib.crc32(file.read_bytes()) != self.checksums[number]:
                raise DataError(f"{file}: chunk truncated or corrupt (its checksum differs); {CHANGED}")

    def _check_blosc(self, file: Path) -> None:
        with file.open("rb") as stream:
            header = stream.read(BLOSC_HEADER)
            size = os.fstat(stream.fileno()).st_size
        if len(header) < BLOSC_HEADER or int.from_bytes(header[12:16], "little") != size:
            raise DataError(f"{file}: chunk truncated or corrupt ({size} bytes are not what it declares)")
        decoded = int.from_bytes(header[4:8], "little")
        if decoded != self.chunk_bytes:
            raise DataError(f"{file}: chunk truncated or corrupt (decodes to {decoded} bytes, not {self.chunk_bytes})")

    def _check_deflate(self, file: Path) -> None:
        """Decodes no further than the chunk may be long: the codec itself would not stop."""
        try:
            decoded = len(zlib.decompressobj(ZLIB_OR_GZIP).decompress(file.read_bytes(), self.chunk_bytes + 1))
        except zlib.error as error:
            raise DataError(f"{file}: chunk truncated or corrupt ({error})") from error
        if decoded != self.chunk_bytes:
            raise DataError(f"{file}: chunk truncated or corrupt (does not decode to {self.chunk_bytes} bytes)")

    @cached_property
    def _opened(self) -> Any:
        import zarr

        return zarr.open_array(str(self.path), mode="r", zarr_format=2)

    def block(self, row: int) -> np.ndarray:
        """The rows of the chunks that begin at `row`, a multiple of the chunk length."""
        try:
            return np.asarray(self._opened[row : row + self.chunks[0]])
        except Exception as error:  # zarr and its codecs raise many kinds of their own.
            name = self.separator.join([str(row // self.chunks[0])] + ["0"] * (len(self.shape) - 1))
            raise DataError(f"{self.path / name}: chunk truncated or corrupt ({error})") from error

    def read(self, dtype: str) -> np.ndarray:
        """The whole array in memory."""
        self.check_chunks()
        out = np.empty(self.shape, dtype)
        # One row of chunks after another, so that nothing else of this size is in memory.
        for row in range(0, self.shape[0], self.chunks[0]):
            block = self.block(row)
            out[row : row + len(block)] = block
        return out


class ReplayBufferSource(Source):
    """A replay buffer; compressed chunks are decoded when an episode asks for them."""

    format = "zarr"

    def __init__(self, path: Path) -> None:
        if (path / "zarr.json").is_file():
            raise DataError(f"{path}: is a zarr v3 group; the Diffusion Policy replay buffer is zarr v2")
        extension = _extension(path)
        self._exact = extension is not None
        if extension is None:
            self._arrays, described = _arrays(path)
        else:
            self._arrays, described = _described_arrays(path, extension)
        ends_path = path / "meta" / "episode_ends"
        ends = _Array.at(ends_path, _checksums(path, extension, ends_path.name)).read("int64")
        check_structure(Episodes({}, ends, FeatureSpec(()), path, self.format))
        super().__init__(path, described["features"], np.diff(ends, prepend=0), **described["other"])
        for key, array in self._arrays.items():
            feature = self.features[key]
            if array.shape[0] != self.n_steps:
                raise DataError(f"{path}: key {key!r} has {array.shape[0]} steps, the episodes end at {self.n_steps}")
            if self._exact and (array.shape[1:], array.dtype.name) != (feature.shape, feature.dtype):
                raise DataError(
                    f"{path}: key {key!r} should be {feature.dtype} {list(feature.shape)} per step, "
                    f"found {array.dtype.name} {list(array.shape[1:])}"
                )
            if feature.kind == "image" and max(feature.shape, default=0) > MAX_SIDE:
                raise DataError(f"{path}: key {key!r}: images of {feature.shape}, at most {MAX_SIDE} a side")
        self._checked: set[str] = set()
        self._block = lru_cache(maxsize=len(self._arrays))(self._decode_block)

    def _decode_block(self, key: str, row: int) -> np.ndarray:
        array = self._arrays[key]
        if key not in self._checked:
            array.check_chunks()
            self._checked.add(key)
        block = array.block(row)
        return _as_uint8(array, block, row, self.episode_ends) if self.features[key].kind == "image" else block

    def read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        stop = int(self.episode_ends[episode])
        return {key: self._rows(key, stop - int(self.lengths[episode]), stop) for key in keys}

    def _rows(self, key: str, start: int, stop: int) -> np.ndarray:
        size = self._arrays[key].chunks[0]
        parts = []
        for first in range(start // size * size, stop, size):
            block = self._block(key, first)
            parts.append(block[max(start - first, 0) : stop - first])
        return np.concatenate(parts).astype(self.features[key].dtype, copy=False)

    def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {key: self._arrays[key].read(self.features[key].dtype) for key in keys}

    def frames(self, key: str, rows: np.ndarray) -> np.ndarray:
        size = self._arrays[key].chunks[0]
        return np.stack([self._block(key, int(row) // size * size)[int(row) % size] for row in rows])

    def identity(self, key: str) -> str:
        return _cache_key(self._arrays[key])


def _arrays(path: Path) -> tuple[dict[str, _Array], dict[str, Any]]:
    """The arrays of a replay buffer that does not describe them, by key."""
    folder = path / "data"
    if not folder.is_dir():
        raise DataError(f"{folder}: missing; a replay buffer has data/* and meta/episode_ends")
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and not (child / ".zgroup").exists()]
    found = [_Array.at(child) for child in children]
    if not found:
        raise DataError(f"{folder}: holds no arrays")
    features = FeatureSpec(tuple(array.feature for array in found))
    return {array.key: array for array in found}, {"features": features, "other": {}}


def _extension(path: Path) -> dict[str, Any] | None:
    file = path / ".zattrs"
    found = _attributes(file).get(EXTENSION)
    if found is None and EXTENSION in _attributes(path / "meta" / ".zattrs"):
        raise DataError(f"{file}: lacks {EXTENSION!r}, which meta/.zattrs announces; {CHANGED}")
    if found is not None and not isinstance(found, dict):
        raise DataError(f"{file}: {EXTENSION} metadata should be an object, found {type(found).__name__}")
    return found


def _attributes(file: Path) -> dict[str, Any]:
    found = read_json(file) if file.exists() else {}
    if not isinstance(found, dict):
        raise DataError(f"{file}: should be an object, found {type(found).__name__}")
    return found


def _described_arrays(path: Path, extension: dict[str, Any]) -> tuple[dict[str, _Array], dict[str, Any]]:
    """The arrays of a replay buffer of our own writer."""
    features, tasks, fingerprint, metadata = read_extension(path / ".zattrs", extension)
    names = extension.get(ARRAYS)
    if not isinstance(names, dict) or sorted(names) != sorted(features.keys()) or not names:
        raise DataError(f"{path / '.zattrs'}: damaged ({ARRAYS!r} should name the array of each of {features.keys()})")
    for name in names.values():
        if not isinstance(name, str) or not ARRAY_NAME.fullmatch(name):
            raise DataError(f"{path / '.zattrs'}: {name!r} is not the name of an array")
    arrays = {
        f.key: _Array.at(path / "data" / names[f.key], _checksums(path, extension, names[f.key])) for f in features
    }
    return arrays, {
        "features": features,
        "other": {"tasks": tasks, "fingerprint": fingerprint, "metadata": metadata},
    }


def _checksums(path: Path, extension: dict[str, Any] | None, name: str) -> tuple[int, ...] | None:
    if extension is None:
        return None
    try:
        return tuple(int(n) for n in extension[CHECKSUMS][name])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path / '.zattrs'}: damaged (no checksums of array {name!r})") from error


def _cache_key(array: _Array) -> str:
    """Covers the array's metadata and every chunk's size, time of change, first and last 4 KiB."""
    array.check_chunks(contents=False)
    digest = hashlib.sha256((array.path / ".zarray").read_bytes())
    for file in array.chunk_files():
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
            digest.update(stream.read(SAMPLED_BYTES))
            stream.seek(max(status.st_size - SAMPLED_BYTES, 0))
            digest.update(stream.read())
    return digest.hexdigest()[:32]


def _as_uint8(array: _Array, block: np.ndarray, row: int, ends: np.ndarray) -> np.ndarray:
    """A block of images as uint8; `row` is the number of its first step."""
    if block.dtype == np.uint8:
        return block
    inside = (block >= 0) & (block <= 255)  # False for NaN, too.
    if not inside.all():
        bad = row + int(np.argmin(inside.reshape(len(block), -1).all(axis=1)))
        raise DataError(f"{array.path}: image values should be 0..255, others at {locate(ends, bad)} (row {bad})")
    if 0 < block.max(initial=0) <= 1:
        raise DataError(f"{array.path}: image values should be 0..255, found at most {block.max():g}")
    return np.rint(block).astype(np.uint8)
