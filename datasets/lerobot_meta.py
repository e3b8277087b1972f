"""What a LeRobot dataset says about itself: info.json, episodes, instructions and the places of its files.

v3.0 (LeRobot documentation, "LeRobotDataset v3.0") keeps several episodes per file: meta/episodes/**.parquet has one
row per episode with the numbers of its data and video files, meta/tasks.parquet the instructions. v2.0 and v2.1 have
one data and one video file per episode, meta/episodes.jsonl and meta/tasks.jsonl.
"""

import json
import math
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.parquet import MAX_STEP_VALUES, join_tables, numbers, open_parquet, read_parquet, strings
from robopolicy.datasets.source import EXTENSION
from robopolicy.datasets.untrusted import read_json, read_text
from robopolicy.errors import DataError
from robopolicy.features import ACTION, TASK_INDEX, Feature, Kind

BOOKKEEPING = ("index", "episode_index", "frame_index", "timestamp")
"""Columns that the episode ends and the rate already say."""
NUMERIC = (
    "float16",
    "float32",
    "float64",
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)
CHECKSUMS = "checksums"
"""Name, beside our own metadata, of the SHA-256 of the video files."""
MAX_SIDE = 8192
"""Largest height and width of an image or a video."""
MAX_FPS = 1e5
VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class Stored:
    """One feature as info.json describes it."""

    feature: Feature
    """What is delivered when nothing more is known: images as [height, width, channels]."""
    dtype: str
    """video, image, or the numpy name."""
    shape: tuple[int, ...]


@dataclass
class VideoPlaces:
    """Where the frames of one key are; lists have one entry per episode."""

    files: list[Path]
    from_timestamps: list[float]
    """Seconds in the file at which the episode begins."""


@dataclass
class Meta:
    """The metadata of one dataset, cross-checked as far as that is possible without its data."""

    path: Path
    version: str
    fps: float
    n_episodes: int
    n_steps: int
    stored: dict[str, Stored]
    data_files: list[Path]
    """Without repetition, in the order of the episodes."""
    ends: np.ndarray
    """[E] what the metadata says about the ends of the episodes."""
    videos: dict[str, VideoPlaces]
    """Keys stored as video; one that is missing here has no place in the metadata."""
    tasks: dict[int, str]
    attributes: list[str] = field(default_factory=list)
    """JSON of each episode, when this package wrote the dataset."""
    extension: Any = None
    checksums: dict[str, str] = field(default_factory=dict)
    """SHA-256 by path in the dataset, when this package wrote it."""
    notes: list[str] = field(default_factory=list)


def read_meta(path: Path) -> Meta:
    """Everything under meta/. Raises DataError for what is missing, damaged or leads out of the dataset."""
    file = path / "meta" / "info.json"
    info = _read_info(file)
    meta = Meta(
        path,
        info["codebase_version"],
        info["fps"],
        info["total_episodes"],
        info["total_frames"],
        {},
        [],
        np.zeros(0, np.int64),
        {},
        {},
        extension=info.get(EXTENSION),
    )
    if isinstance(meta.extension, dict) and isinstance(meta.extension.get(CHECKSUMS), dict):
        meta.checksums = {str(k): str(v) for k, v in meta.extension[CHECKSUMS].items()}
    for key, entry in info["features"].items():
        if key not in BOOKKEEPING:
            stored = _stored(file, key, entry)
            if stored is None:
                meta.notes.append(f"{key!r} ({entry['dtype']}) is neither a number nor an image and is left out")
            else:
                meta.stored[key] = stored
    (_read_v3 if meta.version == "v3.0" else _read_v2)(meta, info)
    return meta


def _read_info(file: Path) -> dict[str, Any]:
    info = read_json(file)
    try:
        version = str(info["codebase_version"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({type(error).__name__}: {error})") from error
    if version not in VERSIONS:
        raise DataError(f"{file}: LeRobot dataset version {version}, this release reads {', '.join(VERSIONS)}")
    try:
        info["fps"] = float(info["fps"])
        for name in ("total_episodes", "total_frames"):
            info[name] = int(info[name])
        info["chunks_size"] = int(info.get("chunks_size", 1000))
        info["features"].items()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{file}: damaged ({type(error).__name__}: {error})") from error
    if not (math.isfinite(info["fps"]) and 0 < info["fps"] <= MAX_FPS):
        raise DataError(f"{file}: fps should be between 0 and {MAX_FPS:g}, found {info['fps']}")
    if info["chunks_size"] < 1:
        raise DataError(f"{file}: chunks_size should be positive, found {info['chunks_size']}")
    return info


def _read_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of every line of a .jsonl file."""
    for number, line in enumerate(read_text(file).splitlines()):
        where = f"{file}, line {number + 1}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: damaged ({type(error).__name__}: {error})") from error
        if not isinstance(found, dict):
            raise DataError(f"{where}: should be an object, found {type(found).__name__}")
        yield where, found


def _stored(file: Path, key: str, entry: Any) -> Stored | None:
    try:
        shape, dtype = tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
        if dtype in ("video", "image"):
            return Stored(Feature(key, _image_shape(shape, entry.get("names")), "uint8", "image"), dtype, shape)
        if dtype not in NUMERIC:
            return None
        if any(n < 1 for n in shape) or math.prod(shape) > MAX_STEP_VALUES:
            raise ValueError(f"shape {list(shape)}")
        if key == TASK_INDEX:
            return Stored(Feature(key, (), "int64", "language"), dtype, shape)
        delivered = "float32" if dtype.startswith("float") else dtype
        return Stored(Feature(key, shape, delivered, _kind(key), _names(entry.get("names"), shape)), dtype, shape)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{file}: feature {key!r} is damaged ({type(error).__name__}: {error})") from error


def _image_shape(shape: tuple[int, ...], names: Any) -> tuple[int, ...]:
    """(height, width, channels); older datasets say (channels, height, width), and their names tell."""
    if len(shape) != 3:
        raise ValueError(f"an image should have three dimensions, found {list(shape)}")
    first = str(names[0]).lower() if isinstance(names, list) and len(names) == 3 else ""
    if first in ("channel", "channels", "c") or (not first and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)):
        shape = (*shape[1:], shape[0])
    height, width, channels = shape
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and channels in (1, 3, 4)):
        raise ValueError(f"an image of {height}x{width} pixels and {channels} channels")
    return shape


def _kind(key: str) -> Kind:
    if key == ACTION:
        return "action"
    return "goal" if key == "observation.goal" else "state"


def _names(names: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Dimension names from a list or from `{"motors": [...]}`; empty when they do not fit the shape."""
    if isinstance(names, dict):
        lists = [v for v in names.values() if isinstance(v, list)]
        names = [name for values in lists for name in values]
    if not isinstance(names, list) or len(names) != math.prod(shape):
        return ()
    return tuple(str(name) for name in names)


def check_template(file: Path, name: str, template: Any, allowed: dict[str, type]) -> str:
    """`template` if it is text with no placeholders but those in `allowed`; numbers may be zero-padded."""
    if not isinstance(template, str):
        raise DataError(f"{file}: {name} should be text, found {type(template).__name__}")
    try:
        for _, placeholder, form, conversion in string.Formatter().parse(template):
            if placeholder is None:
                continue
            if placeholder not in allowed:
                raise ValueError(f"placeholder {placeholder!r}, known: {', '.join(sorted(allowed))}")
            digits = (form or "").removesuffix("d")
            number = allowed[placeholder] is int and (digits == "" or (digits.isdigit() and int(digits) <= 12))
            if conversion or (form and not number):
                raise ValueError(f"placeholder {placeholder!r} with format {form!r}")
    except ValueError as error:
        raise DataError(f"{file}: {name} {template!r} is not a path template ({error})") from error
    return template


def inside(path: Path, relative: str, where: Path) -> Path:
    """`path / relative`, which must lie in `path` also when links are followed."""
    candidate = Path(relative)
    try:
        outside = candidate.is_absolute() or ".." in candidate.parts
        if outside or not (path / candidate).resolve().is_relative_to(path.resolve()):
            raise DataError(f"{where}: {relative!r} leads out of the dataset")
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: {relative!r} is not a path ({error})") from error
    return path / candidate


def _video_template(meta: Meta, info: dict[str, Any], allowed: dict[str, type]) -> str | None:
    if not any(s.dtype == "video" for s in meta.stored.values()) or info.get("video_path") is None:
        return None
    return check_template(meta.path / "meta" / "info.json", "video_path", info["video_path"], allowed)


def _check_count(meta: Meta, found: int) -> None:
    if found != meta.n_episodes:
        raise DataError(
            f"{meta.path}: info.json says {meta.n_episodes} episodes of {meta.n_steps} steps, found {found} episodes"
        )


def _read_v2(meta: Meta, info: dict[str, Any]) -> None:
    file, folder = meta.path / "meta" / "info.json", meta.path / "meta"
    allowed: dict[str, type] = {"episode_chunk": int, "episode_index": int}
    data = check_template(file, "data_path", info.get("data_path"), allowed)
    video = _video_template(meta, info, allowed | {"video_key": str})
    for where, line in _read_lines(folder / "tasks.jsonl"):
        _add_task(meta, where, line.get("task_index"), line.get("task"))
    lengths: list[int] = []
    for where, line in _read_lines(folder / "episodes.jsonl"):
        number, length = line.get("episode_index"), line.get("length")
        if number != len(lengths) or isinstance(number, bool):
            raise DataError(f"{where}: episode_index should be {len(lengths)}, found {number!r}")
        if not isinstance(length, int) or not 1 <= length <= meta.n_steps:
            raise DataError(f"{where}: episode {number} has length {length!r}, the dataset {meta.n_steps} steps")
        lengths.append(length)
        meta.attributes.append(json.dumps(line[EXTENSION]) if EXTENSION in line else "")
    _check_count(meta, len(lengths))
    meta.ends = np.cumsum(lengths, dtype=np.int64)
    places = [{"episode_chunk": e // info["chunks_size"], "episode_index": e} for e in range(len(lengths))]
    meta.data_files = [inside(meta.path, data.format(**p), file) for p in places]
    if video is not None:
        for key in (k for k, s in meta.stored.items() if s.dtype == "video"):
            files = [inside(meta.path, video.format(video_key=key, **p), file) for p in places]
            meta.videos[key] = VideoPlaces(files, [0.0] * len(files))


def _add_task(meta: Meta, where: object, number: Any, text: Any) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(text, str) or number in meta.tasks:
        raise DataError(f"{where}: task {number!r}: {text!r} is not a new number and a text")
    meta.tasks[number] = text


def _read_v3(meta: Meta, info: dict[str, Any]) -> None:
    file, folder = meta.path / "meta" / "info.json", meta.path / "meta"
    allowed: dict[str, type] = {"chunk_index": int, "file_index": int}
    data = check_template(file, "data_path", info.get("data_path"), allowed)
    video = _video_template(meta, info, allowed | {"video_key": str})
    _read_v3_tasks(meta, folder / "tasks.parquet")
    columns = {"episode_index": "int64", "data/chunk_index": "int64", "data/file_index": "int64"}
    columns["dataset_to_index"] = "int64"
    video_keys = [k for k, s in meta.stored.items() if s.dtype == "video"] if video is not None else []
    optional = {f"videos/{k}/{n}": t for k in video_keys for n, t in _VIDEO_COLUMNS.items()}
    files = sorted((folder / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DataError(f"{folder / 'episodes'}: no chunk-*/file-*.parquet files")
    with open_parquet(files[0], []) as first:
        present = set(first.schema_arrow.names)
    columns |= {name: dtype for name, dtype in optional.items() if name in present}
    texts = [EXTENSION] if EXTENSION in present else []
    table = join_tables([read_parquet(f, [*columns, *texts]) for f in files], folder / "episodes")
    rows = {name: numbers(table, name, folder / "episodes", dtype) for name, dtype in columns.items()}
    order = np.argsort(rows["episode_index"], kind="stable")
    if not np.array_equal(rows["episode_index"][order], np.arange(len(order))):
        raise DataError(f"{folder / 'episodes'}: episode_index should count 0, 1, 2, ... without gaps")
    rows = {name: values[order] for name, values in rows.items()}
    meta.ends = rows["dataset_to_index"]
    if texts:
        found = strings(table, EXTENSION, folder / "episodes")
        meta.attributes = [found[i] for i in order]
    _check_count(meta, len(order))

    def places(template: str, chunks: np.ndarray, numbers: np.ndarray, **key: str) -> list[Path]:
        known: dict[tuple[int, int], Path] = {}
        pairs = list(zip(chunks.tolist(), numbers.tolist(), strict=True))
        for chunk, number in pairs:
            if chunk < 0 or number < 0:
                raise DataError(f"{folder / 'episodes'}: file number {chunk}/{number} is negative")
            if (chunk, number) not in known:
                relative = template.format(chunk_index=chunk, file_index=number, **key)
                known[chunk, number] = inside(meta.path, relative, file)
        return [known[pair] for pair in pairs]

    meta.data_files = list(dict.fromkeys(places(data, rows["data/chunk_index"], rows["data/file_index"])))
    for key in video_keys:
        names = [f"videos/{key}/{n}" for n in _VIDEO_COLUMNS]
        if set(names) <= set(rows):
            assert video is not None
            times = rows[names[2]]
            if not np.isfinite(times).all():
                raise DataError(f"{folder / 'episodes'}: from_timestamp of {key!r} is not finite")
            meta.videos[key] = VideoPlaces(
                places(video, rows[names[0]], rows[names[1]], video_key=key), times.tolist()
            )


_VIDEO_COLUMNS = {"chunk_index": "int64", "file_index": "int64", "from_timestamp": "float64"}


def _read_v3_tasks(meta: Meta, file: Path) -> None:
    with open_parquet(file, [TASK_INDEX]) as opened:
        names = [n for n in opened.schema_arrow.names if n in ("task", "__index_level_0__")]
    if not names:
        raise DataError(f"{file}: no column with the instructions")
    table = read_parquet(file, [TASK_INDEX, names[0]])
    indices = numbers(table, TASK_INDEX, file).tolist()
    for number, text in zip(indices, strings(table, names[0], file), strict=True):
        _add_task(meta, file, number, text)
