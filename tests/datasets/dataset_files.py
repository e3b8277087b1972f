"""Small datasets in every format, written by the libraries that write them in practice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import pyarrow
import pyarrow.parquet
import zarr

from robopolicy.features import Feature, FeatureSpec

LENGTHS = [5, 1, 8]
"""One episode is shorter than any observation history or chunk."""

FEATURES = FeatureSpec(
    (
        Feature("observation.state", (3,), names=("x", "y", "angle"), units=("m", "m", "rad")),
        Feature("observation.images.top", (4, 6, 3), "uint8", "image"),
        Feature("action", (2,), kind="action"),
    ),
    rate_hz=20.0,
)


def make_arrays(lengths: list[int] = LENGTHS, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng, n = np.random.default_rng(seed), sum(lengths)
    arrays: dict[str, np.ndarray] = {
        "observation.state": rng.normal(size=(n, 3)).astype(np.float32),
        "observation.images.top": rng.integers(0, 256, (n, 4, 6, 3), dtype=np.uint8),
        "action": rng.normal(size=(n, 2)).astype(np.float32),
    }
    return arrays, np.cumsum(lengths)


def write_replay_buffer(path: Path, arrays: dict[str, np.ndarray], ends: np.ndarray, chunk: int = 4) -> Path:
    """As Diffusion Policy's ReplayBuffer does: zarr v2, blosc with bit shuffle, empty chunks written."""
    codec = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    with zarr.config.set({"array.write_empty_chunks": True}):
        for group, items in (("data", arrays), ("meta", {"episode_ends": ends})):
            folder = root.create_group(group)
            for name, value in items.items():
                shape = (chunk, *value.shape[1:]) if group == "data" else value.shape
                array = folder.create_array(
                    name, shape=value.shape, chunks=shape, dtype=value.dtype, compressors=codec
                )
                array[:] = value
    return path


def without_checksums(path: Path) -> Path:
    """An episode store whose files may be changed, as one that other software wrote."""
    manifest = json.loads((path / "episodes.json").read_text())
    for name in ("checksums", "crc32", "sealed"):
        del manifest[name]
    (path / "episodes.json").write_text(json.dumps(manifest))
    return path


def pusht_arrays(n: int = sum(LENGTHS)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "action": rng.uniform(12, 511, (n, 2)).astype(np.float32),
        "state": rng.uniform(0, 511, (n, 5)).astype(np.float32),
        "keypoint": rng.uniform(0, 511, (n, 9, 2)).astype(np.float32),
        "n_contacts": rng.integers(0, 3, (n, 1)).astype(np.float32),
        "img": rng.integers(0, 256, (n, 6, 6, 3)).astype(np.float32),
    }


def write_lerobot(
    path: Path,
    lengths: list[int] = LENGTHS,
    video: bool = True,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, np.ndarray]:
    """LeRobot v3.0 with one data file per episode, the second chunk starting at episode 2; returns the arrays.

    `change` may alter info.json before it is written.
    """
    rng, n = np.random.default_rng(2), sum(lengths)
    arrays: dict[str, np.ndarray] = {
        "observation.state": rng.normal(size=(n, 2)).astype(np.float32),
        "action": rng.normal(size=(n, 2)).astype(np.float32),
        "next.reward": rng.random((n, 1), dtype=np.float32),
        "next.done": np.zeros((n, 1), dtype=bool),
        "task_index": np.zeros(n, dtype=np.int64),
    }
    ends = np.cumsum(lengths)
    places = [(0 if e < 2 else 1, e if e < 2 else e - 2) for e in range(len(lengths))]
    for e, (chunk, number) in enumerate(places):
        rows = slice(ends[e] - lengths[e], ends[e])
        columns: dict[str, Any] = {
            key: pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(arrays[key][rows].ravel()), 2)
            for key in ("observation.state", "action")
        }
        columns |= {
            "episode_index": np.full(lengths[e], e),
            "frame_index": np.arange(lengths[e]),
            "timestamp": np.arange(lengths[e], dtype=np.float32) / 10,
            "next.reward": arrays["next.reward"][rows, 0],
            "next.done": arrays["next.done"][rows, 0],
            "index": np.arange(rows.start, rows.stop),
            "task_index": arrays["task_index"][rows],
        }
        file = path / "data" / f"chunk-{chunk:03d}" / f"file-{number:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    episodes = {
        "episode_index": np.arange(len(lengths)),
        "data/chunk_index": [p[0] for p in places],
        "data/file_index": [p[1] for p in places],
        "dataset_from_index": ends - lengths,
        "dataset_to_index": ends,
        "tasks": [["push"]] * len(lengths),
        "length": lengths,
    }
    folder = path / "meta" / "episodes" / "chunk-000"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(episodes), folder / "file-000.parquet")
    tasks = pyarrow.table({"task_index": [0], "__index_level_0__": ["push"]})
    pyarrow.parquet.write_table(tasks, path / "meta" / "tasks.parquet")

    def entry(dtype: str, shape: list[int], names: Any = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "names": names, "fps": 10.0}

    features = {
        "observation.state": entry("float32", [2], {"motors": ["motor_0", "motor_1"]}),
        "action": entry("float32", [2], ["x", "y"]),
        "episode_index": entry("int64", [1]),
        "frame_index": entry("int64", [1]),
        "timestamp": entry("float32", [1]),
        "next.reward": entry("float32", [1]),
        "next.done": entry("bool", [1]),
        "index": entry("int64", [1]),
        "task_index": entry("int64", [1]),
    }
    if video:
        features["observation.images.top"] = entry("video", [96, 96, 3], ["height", "width", "channel"])
    info = {
        "codebase_version": "v3.0",
        "robot_type": "unknown",
        "total_episodes": len(lengths),
        "total_frames": n,
        "total_tasks": 1,
        "chunks_size": 1000,
        "fps": 10,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": features,
    }
    if change:
        change(info)
    (path / "meta" / "info.json").write_text(json.dumps(info))
    return arrays
