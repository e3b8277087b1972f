"""Reader of LeRobot v3.0 datasets: the low-dimensional features in data/**/*.parquet, read with pyarrow alone.

Layout (LeRobot documentation, "LeRobotDataset v3.0"): meta/info.json describes the features and totals,
meta/episodes/chunk-*/file-*.parquet has one row per episode, data/chunk-*/file-*.parquet one row per step.
Videos and images inside parquet files are listed, not loaded.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.episodes import locate
from robopolicy.datasets.source import Source
from robopolicy.errors import DataError
from robopolicy.features import ACTION, Feature, FeatureSpec, Kind

BOOKKEEPING = ("index", "episode_index", "frame_index", "timestamp")
"""Columns that the episode ends and the rate already say."""


def is_lerobot(path: Path) -> bool:
    return (path / "meta" / "info.json").is_file()


class LeRobotSource(Source):
    """A LeRobot v3.0 dataset."""

    format = "lerobot"

    def __init__(self, path: Path) -> None:
        info = _read_info(path)
        features = _features(path, info)
        index = _to_numpy(_read_steps(path, ["episode_index"]), path, Feature("episode_index", (), "int64"), None)
        ends = _episode_ends(path, info, index)
        super().__init__(path, FeatureSpec(tuple(features), float(info["fps"])), np.diff(ends, prepend=0))

    def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        encoded = [k for k in keys if not _is_numeric(self.features[k])]
        if encoded:
            raise DataError(f"{self.path}: {encoded[0]!r} is stored as video, images or text, which are not read")
        table = _read_steps(self.path, list(keys)) if keys else None
        return {k: _to_numpy(table, self.path, self.features[k], self.episode_ends) for k in keys}

    def read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        end = int(self.episode_ends[episode])
        return {k: v[end - int(self.lengths[episode]) : end] for k, v in self.columns(keys).items()}


def _read_info(path: Path) -> dict[str, Any]:
    file = path / "meta" / "info.json"
    try:
        info = json.loads(file.read_text())
        version = str(info["codebase_version"])
        if version.startswith("v3."):
            info["fps"], info["total_episodes"], info["total_frames"] = (
                float(info["fps"]),
                int(info["total_episodes"]),
                int(info["total_frames"]),
            )
            info["features"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: damaged ({type(error).__name__}: {error})") from error
    if not version.startswith("v3."):
        raise DataError(
            f"{file}: LeRobot dataset version {version}, this release reads v3.0; convert it with "
            "`python -m lerobot.datasets.v30.convert_dataset_v21_to_v30`"
        )
    return info


def _features(path: Path, info: dict[str, Any]) -> list[Feature]:
    found = []
    for key, entry in info["features"].items():
        if key in BOOKKEEPING:
            continue
        try:
            shape, dtype = tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
            if dtype in ("video", "image"):
                found.append(Feature(key, shape, "uint8", "image"))
                continue
            dtype = "float32" if dtype.startswith("float") else dtype
            found.append(Feature(key, shape, dtype, _kind(key, dtype), _names(entry.get("names"), shape)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path / 'meta' / 'info.json'}: feature {key!r} is damaged ({error})") from error
    return found


def _kind(key: str, dtype: str) -> Kind:
    if dtype == "string" or key == "task_index":
        return "language"
    if key == ACTION:
        return "action"
    return "goal" if key == "observation.goal" else "state"


def _names(names: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Dimension names from a list or from `{"motors": [...]}`; empty when they do not fit the shape."""
    if isinstance(names, dict):
        lists = [v for v in names.values() if isinstance(v, list)]
        names = [name for values in lists for name in values]
    if not isinstance(names, list) or len(names) != int(np.prod(shape)):
        return ()
    return tuple(str(name) for name in names)


def _is_numeric(feature: Feature) -> bool:
    return feature.kind != "image" and feature.dtype != "string"


def _read_parquet(file: Path, columns: list[str]) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
        missing = [c for c in columns if c not in schema.names]
        if missing:
            raise DataError(f"{file}: no column {missing[0]!r}, found {schema.names}")
        return pyarrow.parquet.read_table(file, columns=columns, partitioning=None).select(columns)
    except FileNotFoundError:
        raise DataError(f"{file}: missing") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: truncated or not a parquet file ({error})") from error


def _read_steps(path: Path, columns: list[str]) -> Any:
    import pyarrow

    files = sorted((path / "data").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DataError(f"{path / 'data'}: no chunk-*/file-*.parquet files")
    tables = [_read_parquet(file, columns) for file in files]
    try:
        return pyarrow.concat_tables([t.replace_schema_metadata(None) for t in tables])
    except pyarrow.ArrowException as error:
        raise DataError(f"{path / 'data'}: files differ in their columns ({error})") from error


def _episode_ends(path: Path, info: dict[str, Any], episode_index: np.ndarray) -> np.ndarray:
    """Ends [E] from the steps' episode numbers, after comparing them with meta/episodes and the totals."""
    files = sorted((path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DataError(f"{path / 'meta' / 'episodes'}: no chunk-*/file-*.parquet files")
    rows: dict[str, list[int]] = {}
    for file in files:
        names = ["episode_index", "data/chunk_index", "data/file_index", "dataset_to_index"]
        for name, column in _read_parquet(file, names).to_pydict().items():
            if None in column:
                raise DataError(f"{file}: column {name!r} has no value in row {column.index(None)}")
            rows.setdefault(name, []).extend(column)
    for chunk, number in sorted(set(zip(rows["data/chunk_index"], rows["data/file_index"], strict=True))):
        data_file = path / "data" / f"chunk-{chunk:03d}" / f"file-{number:03d}.parquet"
        if not data_file.is_file():
            raise DataError(f"{data_file}: missing; meta/episodes says it holds steps")
    order = np.argsort(rows["episode_index"], kind="stable")
    expected = np.asarray(rows["dataset_to_index"], dtype=np.int64)[order]
    if len(expected) != info["total_episodes"] or len(episode_index) != info["total_frames"]:
        raise DataError(
            f"{path}: info.json says {info['total_episodes']} episodes of {info['total_frames']} steps, "
            f"found {len(expected)} in meta/episodes and {len(episode_index)} steps in data"
        )
    ends = np.flatnonzero(np.diff(episode_index, append=-1)) + 1
    if not np.array_equal(episode_index[ends - 1], np.arange(len(ends))):
        raise DataError(f"{path / 'data'}: episode_index should count 0, 1, 2, ... without gaps")
    if not np.array_equal(ends, expected):
        n = min(len(ends), len(expected))
        e = int(np.argmin(np.append(ends[:n] == expected[:n], False)))
        raise DataError(
            f"{path}: meta/episodes and data disagree from episode {e} on (ends {expected[e : e + 1]} and "
            f"{ends[e : e + 1]})"
        )
    return ends


def _to_numpy(table: Any, path: Path, feature: Feature, ends: np.ndarray | None) -> np.ndarray:
    """Column `feature.key` as [N, *shape] of the feature's dtype."""
    import pyarrow
    import pyarrow.compute

    n_rows = table.num_rows
    column = table[feature.key].combine_chunks()
    if isinstance(column, pyarrow.ChunkedArray):
        column = pyarrow.concat_arrays(column.chunks) if column.num_chunks else pyarrow.array([], column.type)
    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    per_row = 1
    while True:
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) // per_row
            where = f"{locate(ends, row)} (row {row})" if ends is not None else f"row {row}"
            raise DataError(f"{path}: key {feature.key!r} has no value at {where}")
        if not pyarrow.types.is_nested(column.type):
            break
        lengths = pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)
        if len(lengths) and lengths.min() != lengths.max():
            raise DataError(f"{path}: key {feature.key!r} has between {lengths.min()} and {lengths.max()} values")
        per_row *= int(lengths[0]) if len(lengths) else 1
        column = column.flatten()
    values = column.to_numpy(zero_copy_only=False)
    if len(values) != n_rows * int(np.prod(feature.shape)):
        raise DataError(
            f"{path}: key {feature.key!r} should be {list(feature.shape)} per step, "
            f"found {len(values) // max(n_rows, 1)} values"
        )
    # A copy, because arrow's buffers are read-only.
    return np.array(values.reshape(n_rows, *feature.shape), dtype=feature.dtype)
