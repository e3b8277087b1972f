"""Writes the Diffusion Policy replay buffer: zarr v2, one array per key under data/, and meta/episode_ends.

Arrays have the names that Diffusion Policy uses: action, state, img for a single camera, and so on. Which key each
came from, and all that the layout has no place for, is in the attribute "robopolicy" of the group.
"""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.source import EXTENSION, extension
from robopolicy.datasets.writer import DatasetWriter
from robopolicy.datasets.zarr_dp import ARRAYS, CHECKSUMS
from robopolicy.errors import DataError
from robopolicy.features import FeatureSpec

CHUNK_BYTES = 2_000_000
"""Decoded size of a chunk, as Diffusion Policy's ReplayBuffer chooses it; chunks divide only the steps."""


def array_names(features: FeatureSpec) -> dict[str, str]:
    """Key to the name of its array under data/."""
    cameras = [f.key for f in features.of_kind("image")]
    names = {}
    for f in features:
        short = f.key.removeprefix("observation.").removeprefix("images.")
        names[f.key] = "img" if cameras == [f.key] else re.sub(r"[^A-Za-z0-9_-]", "_", short) or "_"
    return names


class ReplayBufferWriter(DatasetWriter):
    """Writes a replay buffer, a chunk at a time."""

    format = "zarr"

    def __init__(self, path: Path, features: FeatureSpec, *args: Any, **kwargs: Any) -> None:
        super().__init__(path, features, *args, **kwargs)
        self._names = array_names(features)
        if len(set(self._names.values())) < len(self._names):
            raise DataError(f"{self.path}: two keys of {features.keys()} would share one array: {self._names}")
        self._arrays: dict[str, _Stream] = {}

    def _start(self) -> None:
        for name in (".", "data", "meta"):
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            (folder / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
        for f in self.features:
            rows = max(CHUNK_BYTES // max(int(np.prod(f.shape)) * np.dtype(f.dtype).itemsize, 1), 1)
            self._arrays[f.key] = _Stream(self.folder / "data" / self._names[f.key], f.shape, f.dtype, rows)

    def _append(self, episode: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
        for key, array in self._arrays.items():
            array.append(episode[key])

    def _finish(self) -> None:
        ends = _Stream(self.folder / "meta" / "episode_ends", (), "int64", len(self.ends))
        ends.append(np.asarray(self.ends, np.int64))
        checksums = {self._names[key]: array.close() for key, array in self._arrays.items()}
        described = extension(self.features, self.tasks, self.fingerprint, self.metadata) | {
            ARRAYS: self._names,
            CHECKSUMS: checksums | {"episode_ends": ends.close()},
        }
        (self.folder / ".zattrs").write_text(json.dumps({EXTENSION: described}))
        # So that a dataset that lost its description is not taken for one that never had any.
        (self.folder / "meta" / ".zattrs").write_text(json.dumps({EXTENSION: "described in ../.zattrs"}))


class _Stream:
    """One zarr array that grows; rows wait in memory until they fill a chunk."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str, rows: int) -> None:
        import zarr
        from numcodecs import Blosc  # type: ignore[import-untyped]

        self.path = path
        self._waiting = np.empty((rows, *shape), dtype)
        self._n_waiting = 0
        self._array = zarr.create_array(
            str(path),
            shape=(0, *shape),
            chunks=(rows, *shape),
            dtype=dtype,
            compressors=Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE),
            fill_value=0,
            zarr_format=2,
            # Otherwise chunks of zeros are left out, which cannot be told from chunks that were lost.
            config={"write_empty_chunks": True},
        )

    def append(self, rows: np.ndarray) -> None:
        """Writes every chunk that is full."""
        while len(rows):
            fits = min(len(rows), len(self._waiting) - self._n_waiting)
            self._waiting[self._n_waiting : self._n_waiting + fits] = rows[:fits]
            self._n_waiting += fits
            rows = rows[fits:]
            if self._n_waiting == len(self._waiting):
                self._flush()

    def _flush(self) -> None:
        start = self._array.shape[0]
        self._array.resize((start + self._n_waiting, *self._array.shape[1:]))
        self._array[start:] = self._waiting[: self._n_waiting]
        self._n_waiting = 0

    def close(self) -> list[int]:
        """Writes what waits; returns the CRC-32 of every chunk file."""
        if self._n_waiting:
            self._flush()
        indices = range(-(-self._array.shape[0] // self._array.chunks[0]))
        rest = [0] * (len(self._array.shape) - 1)
        return [zlib.crc32((self.path / ".".join(map(str, [i, *rest]))).read_bytes()) for i in indices]
