"""The Diffusion Policy replay buffer (Chi et al. 2023): a zarr v2 group with data/* and meta/episode_ends.

Every array under data/ holds all steps of all episodes. The layout says nothing about the rate, names or units, so
neither do the features read here.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.episodes import Episodes, check_structure, locate
from robopolicy.datasets.source import Source
from robopolicy.errors import DataError
from robopolicy.features import ACTION, Feature, FeatureSpec

KEYS = {"action": ACTION, "img": "observation.images.img"}
"""Our key of an array; any other array X is observation.X."""
BLOSC_HEADER = 16
"""Bytes; the last four are the length of the chunk (c-blosc, README_CHUNK_FORMAT)."""
SAMPLED_BYTES = 4096
"""Bytes at the start and at the end of every chunk file that enter the cache key."""


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

    @classmethod
    def at(cls, path: Path) -> "_Array":
        file = path / ".zarray"
        try:
            meta = json.loads(file.read_text())
            dtype = np.dtype(meta["dtype"])
            array = cls(
                path,
                tuple(int(n) for n in meta["shape"]),
                tuple(int(n) for n in meta["chunks"]),
                dtype,
                meta["fill_value"],
                meta.get("dimension_separator", "."),
                (meta.get("compressor") or {}).get("id"),
            )
            codecs = [array.compressor, *(c["id"] for c in meta.get("filters") or [])]
        except FileNotFoundError:
            raise DataError(f"{file}: missing; a replay buffer has data/* and meta/episode_ends") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: damaged ({type(error).__name__}: {error})") from error
        if dtype.kind not in "biuf" or "pickle" in codecs:
            raise DataError(f"{path}: holds {dtype} encoded by {codecs}; only plain numbers are read")
        if len(array.shape) != len(array.chunks) or not array.shape or min(array.chunks) < 1:
            raise DataError(f"{file}: damaged (shape {array.shape}, chunks {array.chunks})")
        return array

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

    def chunk_files(self) -> Iterator[Path]:
        grid = (range(-(-n // c)) for n, c in zip(self.shape, self.chunks, strict=True))
        return (self.path / self.separator.join(map(str, index)) for index in itertools.product(*grid))

    def check_chunks(self) -> None:
        """Raises DataError when a chunk file is missing or truncated.

        zarr returns the fill value for a missing chunk, and blosc reads past the end of a short incompressible one.
        """
        files = list(self.chunk_files())
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"{missing[0]}: chunk file missing ({len(missing)} of {len(files)} of array {self.path.name!r}); "
                f"its steps would silently read as {self.fill_value}"
            )
        if self.compressor == "blosc":
            for file in files:
                with file.open("rb") as stream:
                    header = stream.read(BLOSC_HEADER)
                    size = os.fstat(stream.fileno()).st_size
                if len(header) < BLOSC_HEADER or int.from_bytes(header[12:16], "little") != size:
                    raise DataError(f"{file}: chunk truncated or corrupt ({size} bytes are not what it declares)")

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

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) one row of chunks after another, so that memory stays bounded."""
        self.check_chunks()
        for row in range(0, self.shape[0], self.chunks[0]):
            yield row, self.block(row)

    def read(self) -> np.ndarray:
        """The whole array in memory, in the dtype of `feature`."""
        out = np.empty(self.shape, dtype=self.feature.dtype)
        for row, block in self.blocks():
            out[row : row + len(block)] = block
        return out


class ReplayBufferSource(Source):
    """A replay buffer; compressed chunks are decoded when an episode asks for them."""

    format = "zarr"

    def __init__(self, path: Path) -> None:
        self._arrays = _arrays(path)
        ends = _Array.at(path / "meta" / "episode_ends").read().astype(np.int64)
        check_structure(Episodes({}, ends, FeatureSpec(()), path, self.format))
        features = FeatureSpec(tuple(array.feature for array in self._arrays.values()))
        super().__init__(path, features, np.diff(ends, prepend=0))
        for key, array in self._arrays.items():
            if array.shape[0] != self.n_steps:
                raise DataError(f"{path}: key {key!r} has {array.shape[0]} steps, the episodes end at {self.n_steps}")
        self._block = lru_cache(maxsize=len(self._arrays))(self._decode_block)

    def _decode_block(self, key: str, row: int) -> np.ndarray:
        array = self._arrays[key]
        block = array.block(row)
        return _as_uint8(array, block, row, self.episode_ends) if array.is_image else block

    def read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        stop = int(self.episode_ends[episode])
        return {key: self._rows(key, stop - int(self.lengths[episode]), stop) for key in keys}

    def _rows(self, key: str, start: int, stop: int) -> np.ndarray:
        array = self._arrays[key]
        if start == 0:
            array.check_chunks()
        size = array.chunks[0]
        parts = []
        for first in range(start // size * size, stop, size):
            block = self._block(key, first)
            parts.append(block[max(start - first, 0) : stop - first])
        return np.concatenate(parts).astype(array.feature.dtype, copy=False)

    def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {key: self._arrays[key].read() for key in keys}

    def frames(self, key: str, rows: np.ndarray) -> np.ndarray:
        array = self._arrays[key]
        array.check_chunks()
        size = array.chunks[0]
        return np.stack([self._block(key, int(row) // size * size)[int(row) % size] for row in rows])

    def identity(self, key: str) -> str:
        return _cache_key(self._arrays[key])


def _arrays(path: Path) -> dict[str, _Array]:
    if (path / "zarr.json").is_file():
        raise DataError(f"{path}: is a zarr v3 group; the Diffusion Policy replay buffer is zarr v2")
    folder = path / "data"
    if not folder.is_dir():
        raise DataError(f"{folder}: missing; a replay buffer has data/* and meta/episode_ends")
    found = [_Array.at(child) for child in sorted(folder.iterdir()) if (child / ".zarray").exists()]
    if not found:
        raise DataError(f"{folder}: holds no arrays")
    return {array.key: array for array in found}


def _cache_key(array: _Array) -> str:
    """Covers the array's metadata and every chunk's size, time of change, first and last 4 KiB."""
    array.check_chunks()
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
