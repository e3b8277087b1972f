"""Ways in which a dataset on disk goes bad, by accident or on purpose; each is a function of the files and a seed.

`mutate(dataset, seed)` changes a dataset in place and says what it did. The same seed does the same on equal bytes.
The folder `outside` beside the dataset is what hostile paths and links lead to.
"""

import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import yaml

Rng = np.random.Generator
TEXTS = (".json", ".jsonl", ".yaml", ".zattrs", ".zarray", ".zgroup")
HOSTILE_VALUES: tuple[Any, ...] = (
    -1,
    0,
    2**40,
    1e308,
    float("nan"),
    True,
    None,
    "",
    "/etc/passwd",
    "../../outside/secret.npy",
    "../outside",
    "a" * 100_000,
    [],
    {},
    [1e9, -3],
    ["x"] * 5,
)


def files_of(dataset: Path) -> list[Path]:
    """All files of a dataset that is a folder or one file, in a fixed order."""
    return [dataset] if dataset.is_file() else sorted(p for p in dataset.rglob("*") if p.is_file())


def _pick(rng: Rng, items: list[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def _any_file(dataset: Path, rng: Rng) -> Path:
    """Every kind of file equally often, whatever their number."""
    files = files_of(dataset)
    kind = _pick(rng, sorted({p.suffix or p.name[:1] for p in files}))
    return _pick(rng, [p for p in files if (p.suffix or p.name[:1]) == kind])


def truncate(dataset: Path, rng: Rng) -> str:
    file = _any_file(dataset, rng)
    size = file.stat().st_size
    keep = int(_pick(rng, [0, 1, size // 3, size // 2, size - 1, int(rng.integers(max(size, 1)))]))
    os.truncate(file, min(max(keep, 0), size))
    return f"truncated {file.name} to {keep} of {size} bytes"


def flip(dataset: Path, rng: Rng) -> str:
    file = _any_file(dataset, rng)
    data = bytearray(file.read_bytes())
    at, bit = int(rng.integers(max(len(data), 1))), int(rng.integers(8))
    if data:
        data[at] ^= 1 << bit
    file.write_bytes(data)
    return f"flipped bit {bit} of byte {at} of {len(data)} in {file.name}"


def flip_header(dataset: Path, rng: Rng) -> str:
    file = _any_file(dataset, rng)
    data = bytearray(file.read_bytes())
    at, bit = int(rng.integers(max(min(len(data), 200), 1))), int(rng.integers(8))
    if data:
        data[at] ^= 1 << bit
    file.write_bytes(data)
    return f"flipped bit {bit} of byte {at} in {file.name}"


def scramble(dataset: Path, rng: Rng) -> str:
    file = _any_file(dataset, rng)
    data = bytearray(file.read_bytes())
    at, n = int(rng.integers(max(len(data), 1))), int(rng.integers(4, 64))
    data[at : at + n] = rng.bytes(len(data[at : at + n]))
    file.write_bytes(data)
    return f"scrambled {n} bytes at {at} in {file.name}"


def append(dataset: Path, rng: Rng) -> str:
    file = _any_file(dataset, rng)
    with file.open("ab") as stream:
        stream.write(rng.bytes(int(rng.integers(1, 5000))))
    return f"appended bytes to {file.name}"


def remove(dataset: Path, rng: Rng) -> str:
    file = _any_file(dataset, rng)
    if file == dataset:
        return truncate(dataset, rng)
    file.unlink()
    return f"removed {file.name}"


def swap(dataset: Path, rng: Rng) -> str:
    files = files_of(dataset)
    if len(files) < 2:
        return scramble(dataset, rng)
    a, b = (files[int(i)] for i in rng.choice(len(files), 2, replace=False))
    a.rename(a.with_name("swapped"))
    b.rename(a)
    a.with_name("swapped").rename(b)
    return f"swapped {a.name} and {b.name}"


def link_outside(dataset: Path, rng: Rng) -> str:
    file = _any_file(dataset, rng)
    file.unlink()
    target = _pick(rng, ["/etc/passwd", "/dev/zero", str(dataset.parent / "outside" / "secret.npy"), "nowhere"])
    file.symlink_to(target)
    return f"{file.name} became a link to {target}"


def folder_for_file(dataset: Path, rng: Rng) -> str:
    file = _any_file(dataset, rng)
    file.unlink()
    file.mkdir()
    return f"{file.name} became a folder"


def metadata(dataset: Path, rng: Rng) -> str:
    """One value anywhere in a JSON or YAML file is removed or replaced by something hostile."""
    texts = [p for p in files_of(dataset) if p.suffix in TEXTS or p.name in TEXTS]
    if not texts:
        return scramble(dataset, rng)
    file = _pick(rng, texts)
    if file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        at = int(rng.integers(len(lines)))
        data, said = _changed(json.loads(lines[at]), rng)
        lines[at] = json.dumps(data)
        change = int(rng.integers(6))
        lines = lines[:-1] if change == 0 else [*lines, lines[at]] if change == 1 else lines
        file.write_text("\n".join(lines) + "\n")
        return f"{file.name}: line {at}: {said}"
    is_yaml = file.suffix == ".yaml"
    data, said = _changed(yaml.safe_load(file.read_text()) if is_yaml else json.loads(file.read_text()), rng)
    file.write_text(yaml.safe_dump(data) if is_yaml else json.dumps(data))
    return f"{file.name}: {said}"


def unsealed_metadata(dataset: Path, rng: Rng) -> str:
    """Like `metadata`, by somebody who removes our checksum as well."""
    for file in files_of(dataset):
        if file.suffix == ".json" or file.name == ".zattrs":
            data = json.loads(file.read_text())
            for described in (data, data.get("robopolicy", {}) if isinstance(data, dict) else {}):
                if isinstance(described, dict):
                    described.pop("crc32", None)
                    described.pop("sealed", None)
            file.write_text(json.dumps(data))
    return "unsealed; " + metadata(dataset, rng)


def nested(dataset: Path, rng: Rng) -> str:
    texts = [p for p in files_of(dataset) if p.suffix in TEXTS or p.name in TEXTS]
    if not texts:
        return truncate(dataset, rng)
    file = _pick(rng, texts)
    file.write_text("[" * 100_000)
    return f"{file.name} became 100,000 brackets"


def _changed(data: Any, rng: Rng) -> tuple[Any, str]:
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(data)
    if not places:
        return HOSTILE_VALUES[int(rng.integers(len(HOSTILE_VALUES)))], "replaced"
    node, key = _pick(rng, places)
    if rng.random() < 0.2:
        del node[key]
        return data, f"{key!r} removed"
    node[key] = _pick(rng, list(HOSTILE_VALUES))
    return data, f"{key!r} became {str(node[key])[:30]!r}"


def not_a_number(dataset: Path, rng: Rng) -> str:
    """NaN or infinity in a .npy file."""
    arrays = [p for p in files_of(dataset) if p.suffix == ".npy" and np.load(p, mmap_mode="r").dtype.kind == "f"]
    if not arrays:
        return scramble(dataset, rng)
    file = _pick(rng, arrays)
    values = np.load(file, mmap_mode="r+")
    values.reshape(-1)[int(rng.integers(values.size))] = _pick(rng, [np.nan, np.inf])
    values.flush()
    return f"NaN or infinity in {file.name}"


def huge_npy(dataset: Path, rng: Rng) -> str:
    """A .npy file whose header claims far more than it holds."""
    arrays = [p for p in files_of(dataset) if p.suffix == ".npy"]
    if not arrays:
        return append(dataset, rng)
    file = _pick(rng, arrays)
    values = np.load(file, mmap_mode="r")
    with file.open("wb") as stream:
        shape = (_pick(rng, [2**45, -5, 0]), *values.shape[1:])
        header = {"descr": values.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(1000))
    return f"{file.name} claims {shape}"


def parquet(dataset: Path, rng: Rng) -> str:
    """A parquet file with valid bytes and wrong contents."""
    files = [p for p in files_of(dataset) if p.suffix == ".parquet"]
    if not files:
        return scramble(dataset, rng)
    file = _pick(rng, files)
    table = pyarrow.parquet.read_table(file)
    column = _pick(rng, table.column_names)
    at, kind = table.column_names.index(column), table.schema.field(column).type
    what = _pick(rng, ["drop", "rows", "twice", "text", "null", "number", "empty", "bomb"])
    if what == "drop":
        table = table.drop_columns([column])
    elif what == "rows":
        table = table.slice(0, table.num_rows - 1)
    elif what == "twice":
        table = pyarrow.concat_tables([table, table])
    elif what == "empty":
        table = table.slice(0, 0)
    elif what == "bomb":
        table = pyarrow.table({n: pyarrow.array(np.zeros(5_000_000, np.int64)) for n in table.column_names[:3]})
    else:
        values = table[column].to_pylist()
        hostile = _pick(rng, [-1, 2**62, 5])
        changed = {"text": "x", "null": None, "number": hostile}[what]
        if what == "number" and pyarrow.types.is_floating(kind):
            changed = _pick(rng, [float("nan"), 1e300, -1.0])
        values = ["x"] * len(values) if what == "text" else [*values[:-1], changed]
        try:
            replaced = pyarrow.array(values, None if what == "text" else kind)
        except (pyarrow.ArrowException, TypeError, OverflowError):
            replaced = pyarrow.array(["y"] * len(values))
        table = table.set_column(at, column, replaced)
    pyarrow.parquet.write_table(table, file)
    return f"{file.name}: {what} in column {column!r}"


def video(dataset: Path, rng: Rng) -> str:
    """A valid video with other contents: fewer frames, another size, or far more than it weighs."""
    import av

    files = [p for p in files_of(dataset) if p.suffix == ".mp4"]
    if not files:
        return scramble(dataset, rng)
    file = _pick(rng, files)
    frames, height, width = _pick(rng, [(3, 48, 64), (5, 50, 66), (20_000, 48, 64), (40, 4096, 4096), (2, 16384, 16)])
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        image = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8)).reformat(format="yuv420p")
        for k in range(frames):
            image.pts = k
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return f"{file.name}: {frames} frames of {height}x{width}"


HDF5_DAMAGE = (
    *("samples", "total", "attrs", "mask", "gone", "length", "width", "text", "nan"),
    *("bomb", "hole", "external", "soft", "virtual", "loop", "group"),
)


def hdf5(dataset: Path, rng: Rng) -> str:
    """A valid HDF5 file with wrong or hostile contents."""
    if not dataset.is_file():
        return scramble(dataset, rng)
    what = _pick(rng, list(HDF5_DAMAGE))
    with h5py.File(dataset, "r+") as file:
        name = _pick(rng, sorted(file["data"]))
        demo = file["data"][name]
        place = _pick(rng, ["actions", "obs/" + _pick(rng, sorted(demo["obs"]))])
        values = demo[place][()]
        if what == "samples":
            demo.attrs["num_samples"] = _pick(rng, [-1, 0, 10**12, 2.5, "x"])
        elif what == "total":
            file["data"].attrs["total"] = -7
        elif what == "attrs":
            file["data"].attrs[_pick(rng, ["env_args", "robopolicy"])] = _pick(rng, ["{", "[]", "[" * 50_000, "null"])
        elif what == "mask":
            file.require_group("mask")["evil"] = np.array(["demo_99", "../x"], dtype="S")
        else:
            _replace(dataset, demo, place, values, what)
    return f"{name}/{place}: {what}" if what not in ("total", "attrs", "mask") else what


def _replace(dataset: Path, demo: Any, place: str, values: np.ndarray, what: str) -> None:
    """Another thing in the place of one array."""
    del demo[place]
    outside = dataset.parent / "outside" / "other.h5"
    if what == "length":
        demo[place] = np.concatenate([values, values])
    elif what == "width":
        demo[place] = values[..., :1] if values.shape[-1] > 1 else np.repeat(values, 3, axis=-1)
    elif what == "text":
        demo.create_dataset(place, data=["x"] * len(values), dtype=h5py.string_dtype())
    elif what == "nan":
        demo[place] = np.full(values.shape, np.nan) if values.dtype.kind == "f" else values.astype(np.float64) - 300
    elif what == "bomb":
        demo.create_dataset(place, (10**8, 100), "f4", chunks=(10**5, 100), compression="gzip")[:10] = 0
    elif what == "hole":
        demo.create_dataset(place, values.shape, values.dtype, chunks=(1, *values.shape[1:]))
    elif what == "external":
        demo[place] = h5py.ExternalLink(str(outside), "x")
    elif what == "soft":
        demo[place] = h5py.SoftLink("/data/demo_0/obs")
    elif what == "virtual":
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(str(outside), "x", values.shape)
        demo.create_virtual_dataset(place, layout)
    elif what == "loop":
        demo[place] = demo
    elif what == "group":
        demo.create_group(place)


def bag(dataset: Path, rng: Rng) -> str:
    """A sqlite3 recording with valid pages and wrong contents."""
    files = [p for p in files_of(dataset) if p.suffix == ".db3"]
    if not files:
        return scramble(dataset, rng)
    file = _pick(rng, files)
    statement = _pick(
        rng,
        [
            "DELETE FROM messages WHERE id % 2",
            "DELETE FROM messages WHERE topic_id = 1",
            "UPDATE messages SET timestamp = -timestamp",
            "UPDATE messages SET timestamp = 5",
            "UPDATE messages SET data = zeroblob(300000000) WHERE id = 3",
            "UPDATE messages SET data = x'00' WHERE id = 4",
            "UPDATE messages SET data = 'text' WHERE id = 2",
            "UPDATE messages SET topic_id = 99",
            "UPDATE topics SET type = 'std_msgs/msg/Evil'",
            "UPDATE topics SET name = '../../x'",
            "DROP TABLE topics",
            "DROP TABLE messages",
            "INSERT INTO messages SELECT id + 1000, topic_id, timestamp, data FROM messages",
        ],
    )
    with sqlite3.connect(file) as database:
        database.execute(statement)
    database.close()
    return f"{file.parent.name}: {statement}"


def bomb(dataset: Path, rng: Rng) -> str:
    """A file that unpacks to gigabytes in the place of another, or holds nothing but zeros."""
    file = _any_file(dataset, rng)
    packed = zlib.compressobj(9)
    data = b"".join(packed.compress(bytes(2**20)) for _ in range(64)) + packed.flush()
    file.write_bytes(_pick(rng, [data, bytes(10_000_000), b"\x89HDF\r\n\x1a\n" + bytes(5000)]))
    return f"{file.name} became a bomb or zeros"


GENERAL: tuple[Callable[[Path, Rng], str], ...] = (
    truncate,
    flip,
    flip,
    flip_header,
    scramble,
    append,
    remove,
    swap,
    link_outside,
    folder_for_file,
    bomb,
)
TEXTUAL = (metadata, metadata, unsealed_metadata, nested)
SPECIFIC: dict[str, tuple[Callable[[Path, Rng], str], ...]] = {
    ".npy": (not_a_number, huge_npy),
    ".parquet": (parquet, parquet, parquet),
    ".mp4": (video, video),
    ".hdf5": (hdf5,) * 12,
    ".db3": (bag,) * 4,
}


def mutate(dataset: Path, seed: int) -> tuple[str, str]:
    """Changes the dataset in place by one mutation; returns the name of its function and what was done."""
    rng = np.random.default_rng(seed)
    kinds = {p.suffix or p.name for p in files_of(dataset)}
    choices = list(GENERAL)
    choices += [f for f in TEXTUAL if kinds & set(TEXTS)]
    choices += [f for suffix, found in SPECIFIC.items() if suffix in kinds for f in found]
    chosen = _pick(rng, choices)
    return chosen.__name__, chosen(dataset, rng)


def prepare_outside(folder: Path) -> None:
    """What hostile links and paths lead to; nothing may change it and nothing of it may be read."""
    shutil.rmtree(folder / "outside", ignore_errors=True)
    (folder / "outside").mkdir(parents=True)
    np.save(folder / "outside" / "secret.npy", np.arange(50, dtype=np.float32).reshape(25, 2))
    with h5py.File(folder / "outside" / "other.h5", "w", track_order=False) as file:
        file["x"] = np.zeros((7, 2), np.float32)
