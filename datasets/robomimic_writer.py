"""Writes robomimic's HDF5 layout, so that its own SequenceDataset opens the file.

What robomimic has no place for (names, units, rate, instructions, ...) is JSON in the attribute "robopolicy" of the
group data. Every array has checksums, and so has the structure of the file, so that damage is noticed.
"""

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.hdf5_disk import Disk
from robopolicy.datasets.masks import MASKS, read_masks
from robopolicy.datasets.robomimic_env import UNKNOWN_ENV
from robopolicy.datasets.robomimic_hdf5 import EPISODES, FIXED, MASK_NAME, SAVED, dataset_names, stored_dtype
from robopolicy.datasets.source import EXTENSION, extension
from robopolicy.datasets.writer import DATA_FILE, DatasetWriter
from robopolicy.errors import DataError
from robopolicy.features import ACTION, FeatureSpec

CHUNK_BYTES = 2**18
"""Decoded size of a chunk; robomimic reads short sequences."""
GZIP_LEVEL = 1
"""For images. Higher levels gain little on them and take several times as long."""


class RobomimicWriter(DatasetWriter):
    """Writes a robomimic dataset.

    robomimic asks for `rewards` and `dones` whether the data has them or not: absent, they are written as zeros and
    as the end of each demonstration, and not described as features. The last row of `next_obs` repeats the last
    observation, because what came after it was not recorded.
    """

    format = "robomimic"
    single_file = True
    holds_attributes = True

    def __init__(
        self, path: Path, features: FeatureSpec, *args: Any, next_obs: bool = True, gzip: bool = True, **kwargs: Any
    ) -> None:
        """`next_obs` doubles the size of images; robomimic's default asks for it, its BC algorithms do not."""
        super().__init__(path, features, *args, **kwargs)
        self.next_obs, self.gzip = next_obs, gzip
        self._names = dataset_names(features)
        if ACTION not in features:
            raise DataError(f"{self.path}: robomimic needs the key {ACTION!r}, found {features.keys()}")
        taken = [*self._names.values(), "obs", "next_obs"]
        twice = sorted({name for name in taken if taken.count(name) > 1})
        if twice:
            raise DataError(f"{self.path}: two keys of {features.keys()} would share {twice[0]}")
        self._disk: Disk | None = None
        self._file: Any = None

    def _start(self) -> None:
        with self._writing():
            self._disk = Disk(self.folder / DATA_FILE)
            self._file = _create(self._disk)
            self._group("data")

    def _group(self, name: str) -> Any:
        """A group without the times of its making, so that the same data gives the same bytes."""
        import h5py

        properties = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        properties.set_obj_track_times(False)
        return h5py.Group(h5py.h5g.create(self._file.id, name.encode(), gcpl=properties))

    def _append(self, episode: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
        with self._writing():
            name = f"data/demo_{self.n_episodes}"
            demo = self._group(name)
            self._group(f"{name}/obs")
            if self.next_obs:
                self._group(f"{name}/next_obs")
            for key, values in episode.items():
                place, image = self._names[key], self.features[key].kind == "image"
                dataset = self._dataset(demo, place, values.shape, stored_dtype(self.features[key]), image)
                dataset[()] = values.astype(dataset.dtype, copy=False)
                if place.startswith("obs/") and self.next_obs:
                    later = self._dataset(demo, "next_" + place, values.shape, values.dtype.name, image)
                    later[:-1] = values[1:]
                    later[-1] = values[-1]
            length = len(episode[ACTION])
            ending = (np.arange(length) == length - 1).astype(np.int64)
            for place, values in ((FIXED["next.reward"], np.zeros(length, np.float32)), (FIXED["next.done"], ending)):
                if place not in demo:
                    self._dataset(demo, place, values.shape, values.dtype.name, False)[()] = values
            demo.attrs[SAVED] = length
            _write_attributes(demo, attributes)

    def _dataset(self, demo: Any, name: str, shape: tuple[int, ...], dtype: str, image: bool) -> Any:
        row = max(int(np.prod(shape[1:])) * np.dtype(dtype).itemsize, 1)
        rows = min(max(CHUNK_BYTES // row, 1), shape[0])
        options = {"compression": "gzip", "compression_opts": GZIP_LEVEL} if image and self.gzip else {}
        return demo.create_dataset(name, shape, dtype, chunks=(rows, *shape[1:]), fletcher32=True, **options)

    def _finish(self) -> None:
        metadata = dict(self.metadata)
        env_args = metadata.pop("env_args", UNKNOWN_ENV)
        masks = read_masks(self.path, metadata, self.n_episodes)
        metadata.pop(MASKS, None)
        described = extension(self.features, self.tasks, self.fingerprint, metadata) | {EPISODES: self.n_episodes}
        with self._writing():
            data = self._file["data"]
            data.attrs["total"] = self.n_steps
            data.attrs["env_args"] = json.dumps(env_args)
            data.attrs[EXTENSION] = json.dumps(described)
            if any(masks.values()):
                group = self._group("mask")
                for name, numbers in masks.items():
                    if not MASK_NAME.fullmatch(name):
                        raise DataError(f"{self.path}: mask {name!r} should be letters, digits, '.', '_' and '-'")
                    if numbers:
                        group.create_dataset(name, data=np.array([f"demo_{n}" for n in numbers], dtype="S"))
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._disk is not None:
            self._disk.close()

    def _abandon(self) -> None:
        with contextlib.suppress(Exception):
            self._close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises the error of the disk, of which HDF5 is not told."""
        try:
            yield
        except Exception as error:
            if self._disk is not None and self._disk.error is not None:
                raise self._disk.error from error
            raise
        if self._disk is not None and self._disk.error is not None:
            raise self._disk.error


def _create(disk: Disk) -> Any:
    """A new file in the format of HDF5 1.10: readable by every robomimic, and with checksums in its structure."""
    import h5py

    access, creation = h5py.h5p.create(h5py.h5p.FILE_ACCESS), h5py.h5p.create(h5py.h5p.FILE_CREATE)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, disk)
    creation.set_obj_track_times(False)
    return h5py.File(h5py.h5f.create(b"dataset", h5py.h5f.ACC_TRUNC, creation, access))


def _write_attributes(demo: Any, attributes: dict[str, Any]) -> None:
    """Numbers and texts as attributes of their own, as robomimic has them; the rest as JSON in one attribute."""
    other = {}
    for name, value in attributes.items():
        if _is_text(name) and name not in ("", SAVED, EXTENSION) and _is_native(value):
            demo.attrs[name] = value
        else:
            other[name] = value
    if other:
        demo.attrs[EXTENSION] = json.dumps(other)


def _is_native(value: Any) -> bool:
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return type(value) in (bool, float) or (type(value) is str and _is_text(value))


def _is_text(value: str) -> bool:
    """Whether HDF5 can hold it: UTF-8 that ends at the first zero byte."""
    return "\0" not in value and value.encode(errors="replace").decode() == value
