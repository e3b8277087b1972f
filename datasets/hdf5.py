"""HDF5 files written by others: nothing leads out of the file, and no array is larger than what is stored of it.

An HDF5 file may name other files (external links, external storage, virtual datasets), may declare arrays of which
nothing is stored (they read as fill values), and may ask for filters that are loaded as plugins. All of these are
refused here. The HDF5 library raises many kinds of errors, each of which becomes a DataError.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.untrusted import damage
from robopolicy.errors import DataError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 32000: "lzf"}
"""Filters that come with every h5py; any other one would be looked for as a plugin."""
MAX_CHUNK_BYTES = 2**30
"""Decoded size of one chunk, which HDF5 allocates at once."""
PLAIN_BYTES = 2**30
"""Arrays up to this size may be compressed as well as they like."""
MAX_RATIO = 100
"""Decoded to stored size of larger arrays; camera images reach about 10, deflate 1032 on zeros."""
MAX_ATTRIBUTE_VALUES = 65536


def is_hdf5(path: Path) -> bool:
    """Whether `path` is a file that begins like HDF5."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


def open_hdf5(path: Path) -> Any:
    """The file, opened for reading."""
    import h5py

    with damage(path):
        return h5py.File(path, "r")


def child(group: Any, name: str, kind: str) -> Any:
    """The member `name` of a group, in this place of this file: a "group", a "dataset" of numbers, or "names"."""
    import h5py

    where = f"{group.file.filename}: {group.name.rstrip('/')}/{name}"
    with damage(where):
        link = group.get(name, getlink=True)
        if link is None:
            raise DataError(f"{where}: missing")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{where}: is a link ({type(link).__name__}), which is not followed")
        found = group[name]
        if not isinstance(found, h5py.Group if kind == "group" else h5py.Dataset):
            raise DataError(f"{where}: should be a {'group' if kind == 'group' else 'dataset'}")
        if kind != "group":
            _check_dataset(where, found, "S" if kind == "names" else "biuf")
        return found


def members(group: Any) -> list[str]:
    """The names within a group."""
    where = f"{group.file.filename}: {group.name}"
    with damage(where):
        names = list(group)
    # h5py gives bytes for what is not UTF-8.
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: damaged (a name within it is not text)")
    return names


def is_group(group: Any, name: str) -> bool:
    """Whether `name` is a group within a group; links are neither followed nor refused."""
    import h5py

    with damage(f"{group.file.filename}: {group.name.rstrip('/')}/{name}"):
        is_link = not isinstance(group.get(name, getlink=True), h5py.HardLink)
        return not is_link and group.get(name, getclass=True) is h5py.Group


def _check_dataset(where: str, dataset: Any, kinds: str) -> None:
    import h5py

    dtype, shape = dataset.dtype, dataset.shape
    if dtype.kind not in kinds or (kinds != "S" and dtype.itemsize > 8):
        raise DataError(f"{where}: holds {dtype}; only plain {'names' if kinds == 'S' else 'numbers'} are read")
    if not shape or min(shape) < 1:
        raise DataError(f"{where}: has shape {shape}, expected at least one step")
    properties = dataset.id.get_create_plist()
    layout = properties.get_layout()
    if layout == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise DataError(f"{where}: its values are in other files, which are not read")
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    unknown = [f for f in filters if f not in FILTERS]
    if unknown or len(set(filters)) < len(filters):
        raise DataError(f"{where}: encoded by filters {filters}; known are {sorted(FILTERS)}, each once")
    size, stored = math.prod(shape) * dtype.itemsize, dataset.id.get_storage_size()
    if layout == h5py.h5d.CHUNKED:
        grid = math.prod(-(-n // c) for n, c in zip(shape, dataset.chunks, strict=True))
        if math.prod(dataset.chunks) * dtype.itemsize > MAX_CHUNK_BYTES:
            raise DataError(f"{where}: chunks of shape {dataset.chunks} are larger than {MAX_CHUNK_BYTES} bytes")
        found = dataset.id.get_num_chunks()
        if found != grid:
            raise DataError(f"{where}: {found} of its {grid} chunks are stored; the others would read as fill values")
    elif stored != size:
        raise DataError(f"{where}: {stored} of its {size} bytes are stored; the others would read as fill values")
    if stored > Path(dataset.file.filename).stat().st_size or size > max(PLAIN_BYTES, MAX_RATIO * stored):
        raise DataError(f"{where}: shape {shape} needs {size} bytes, but only {stored} are stored")


def attributes(item: Any, only: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The attributes of a group that are numbers, texts or lists of them, in plain JSON types; all, or `only` some."""
    import h5py

    found = {}
    with damage(f"{item.file.filename}: attributes of {item.name}"):
        for name in item.attrs:
            if only is not None and name not in only:
                continue
            described = item.attrs.get_id(name)
            text = h5py.check_string_dtype(described.dtype) is not None
            if not text and described.dtype.kind not in "biuf":
                continue
            if math.prod(described.shape or ()) > MAX_ATTRIBUTE_VALUES:
                raise DataError(f"{item.file.filename}: {item.name} has an attribute {name!r} of {described.shape}")
            found[str(name)] = _plain(item.attrs[name])
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def parse_json(where: str, text: Any) -> Any:
    """The value of a text attribute that holds JSON."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({type(error).__name__}: {error})") from error
