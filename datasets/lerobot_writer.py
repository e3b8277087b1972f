"""Writer of LeRobot datasets that the lerobot package opens: version 3.0 (lerobot 0.4) and version 2.1.

What the format has no place for (units, bounds, control mode, simulator versions, attributes of episodes) is kept
under the name "robopolicy" in info.json and in the table of episodes, where lerobot does not look.
"""

import contextlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from robopolicy.datasets.cache import file_digest
from robopolicy.datasets.lerobot_meta import BOOKKEEPING, CHECKSUMS, MAX_FPS, MAX_SIDE, NUMERIC
from robopolicy.datasets.lerobot_stats import QUANTILES, Stats, as_lists, image_stats, merge_stats, number_stats
from robopolicy.datasets.pictures import MODES, encode_png
from robopolicy.datasets.source import EXTENSION, extension
from robopolicy.datasets.video import CODECS, VideoWriter
from robopolicy.datasets.writer import DatasetWriter
from robopolicy.errors import DataError, unknown
from robopolicy.features import TASK_INDEX, Feature, FeatureSpec

FILES_PER_CHUNK = 1000
DATA_FILE_BYTES = 100 * 2**20
VIDEO_FILE_BYTES = 200 * 2**20
VIDEO_FILE_SECONDS = 1000.0
"""lerobot finds frames by float32 time stamps to 1e-4 s, which are not that fine in longer files."""
EPISODES_PER_WRITE = 500
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
OLD_FILE = "episode_{episode_index:06d}"


@dataclass
class _Stream:
    """The video files of one camera, one after the other."""

    writer: VideoWriter | None = None
    number: int = -1
    """Of the current file."""


class LeRobotWriter(DatasetWriter):
    """Writes LeRobot v3.0: numbers as parquet, images as mp4 or, with `video=False`, as lossless PNG.

    Images without exactly three channels are PNG in any case. `codec` is one of `robopolicy.datasets.video.CODECS`;
    `fps` is needed when the features do not say their rate.
    """

    format = "lerobot"
    holds_attributes = True
    version: ClassVar[str] = "v3.0"

    def __init__(
        self,
        path: Path,
        features: FeatureSpec,
        fingerprint: dict[str, str] | None = None,
        *,
        tasks: Sequence[str] = (),
        metadata: dict[str, Any] | None = None,
        video: bool = True,
        codec: str = "h264",
        fps: float | None = None,
    ) -> None:
        super().__init__(path, features, fingerprint, tasks=tasks, metadata=metadata)
        if codec not in CODECS:
            raise unknown("codec", codec, CODECS)
        self.codec = codec
        if features.rate_hz and fps and abs(fps - features.rate_hz) > 1e-3 * fps:
            raise DataError(f"{self.path}: fps {fps:g}, but the data was recorded at {features.rate_hz:g} Hz")
        rate = features.rate_hz or fps
        if rate is None:
            raise DataError(f"{self.path}: LeRobot needs the rate, which the data does not say; give fps")
        if not 0 < rate <= MAX_FPS:
            raise DataError(f"{self.path}: fps should be between 0 and {MAX_FPS:g}, found {rate}")
        self.fps = float(rate)
        for feature in features:
            _check(self.path, feature)
        self._videos = {f.key: _Stream() for f in features if f.kind == "image" and video and f.shape[2] == 3}
        self._data: Any = None
        self._data_file: Path | None = None
        self._data_number = -1
        self._episodes: Any = None
        self._rows: list[dict[str, Any]] = []
        self._stats: dict[str, Stats] = {}
        self._lines: dict[str, Any] = {}
        self._schema: Any = None

    @property
    def _old(self) -> bool:
        return self.version == "v2.1"

    def _start(self) -> None:
        self._schema = _schema(self.features, set(self._videos))
        (self.folder / "meta").mkdir()
        if self._old:
            for name in ("episodes", "episodes_stats"):
                self._lines[name] = (self.folder / "meta" / f"{name}.jsonl").open("w", encoding="utf-8")

    def _append(self, episode: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
        n = len(next(iter(episode.values())))
        numbered = {key: values for key, values in episode.items() if self.features[key].kind != "image"}
        numbered |= {
            "timestamp": (np.arange(n) / self.fps).astype(np.float32),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, self.n_episodes),
            "index": np.arange(self.n_steps, self.n_steps + n),
        }
        numbered.setdefault(TASK_INDEX, np.zeros(n, np.int64))
        place = self._append_data(numbered | episode)
        if self._videos:
            with ThreadPoolExecutor(len(self._videos)) as pool:
                for found in pool.map(lambda key: self._append_video(key, episode[key]), self._videos):
                    place |= found
        stats = {key: number_stats(values) for key, values in numbered.items()}
        stats |= {f.key: image_stats(episode[f.key]) for f in self.features if f.kind == "image"}
        for key, found in stats.items():
            self._stats[key] = merge_stats(self._stats[key], found) if key in self._stats else found
        order = dict.fromkeys(numbered[TASK_INDEX].tolist())
        self._append_row(n, [self._instructions[i] for i in order], place, stats, attributes)

    @property
    def _instructions(self) -> tuple[str, ...]:
        """LeRobot wants an instruction also where there is none."""
        return self.tasks if TASK_INDEX in self.features else ("",)

    def _append_data(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """Writes the steps as one row group; returns where."""
        import pyarrow
        import pyarrow.parquet

        columns = [_column(arrays[field.name], field.type) for field in self._schema]
        if self._old or self._data is None or (self._data_file or self.path).stat().st_size > DATA_FILE_BYTES:
            self._close_data()
            self._data_number += 1
            self._data_file = self.folder / "data" / f"{self._name(self._data_number)}.parquet"
            self._data_file.parent.mkdir(parents=True, exist_ok=True)
            self._data = pyarrow.parquet.ParquetWriter(self._data_file, self._schema, write_page_checksum=True)
        self._data.write_table(pyarrow.table(columns, schema=self._schema))
        chunk, file = divmod(self._data_number, FILES_PER_CHUNK)
        return {"data/chunk_index": chunk, "data/file_index": file}

    def _name(self, number: int) -> str:
        chunk, file = divmod(number, FILES_PER_CHUNK)
        if self._old:
            return f"chunk-{chunk:03d}/" + OLD_FILE.format(episode_index=number)
        return FILE.format(chunk_index=chunk, file_index=file)

    def _close_data(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data = None

    def _append_video(self, key: str, frames: np.ndarray) -> dict[str, Any]:
        """Encodes the frames of one camera; returns where."""
        stream, n = self._videos[key], len(frames)
        writer = stream.writer
        if (
            writer is None
            or self._old
            or writer.size() > VIDEO_FILE_BYTES
            or (writer.n_frames + n) / self.fps > VIDEO_FILE_SECONDS
        ):
            if writer is not None:
                writer.close()
            stream.number += 1
            name = self._name(stream.number)
            chunk, _, file = name.partition("/")
            relative = f"{chunk}/{key}/{file}" if self._old else f"{key}/{name}"
            path = self.folder / "videos" / f"{relative}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            stream.writer = writer = VideoWriter(path, self.features[key].shape, self.fps, self.codec)
        first = writer.n_frames
        writer.add(frames)
        numbers = divmod(stream.number, FILES_PER_CHUNK)
        return {
            f"videos/{key}/chunk_index": numbers[0],
            f"videos/{key}/file_index": numbers[1],
            f"videos/{key}/from_timestamp": first / self.fps,
            f"videos/{key}/to_timestamp": (first + n) / self.fps,
        }

    def _append_row(
        self, n: int, tasks: list[str], place: dict[str, Any], stats: dict[str, Stats], attributes: dict[str, Any]
    ) -> None:
        number = self.n_episodes
        row: dict[str, Any] = {"episode_index": number, "tasks": tasks, "length": n}
        if self._old:
            extra = {EXTENSION: attributes} if attributes else {}
            self._lines["episodes"].write(json.dumps(row | extra) + "\n")
            kept = {k: {m: v for m, v in s.items() if m not in QUANTILES} for k, s in stats.items()}
            line = {"episode_index": number, "stats": as_lists(kept)}
            self._lines["episodes_stats"].write(json.dumps(line) + "\n")
            return
        row |= place | {"dataset_from_index": self.n_steps, "dataset_to_index": self.n_steps + n}
        row |= {f"stats/{k}/{m}": v for k, s in as_lists(stats).items() for m, v in s.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._rows.append(row | {EXTENSION: json.dumps(attributes) if attributes else ""})
        if len(self._rows) == EPISODES_PER_WRITE:
            self._write_rows()

    def _write_rows(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._rows:
            return
        schema = self._episodes.schema if self._episodes is not None else None
        table = pyarrow.Table.from_pylist(self._rows, schema=schema)
        if self._episodes is None:
            file = self.folder / "meta" / "episodes" / f"{FILE.format(chunk_index=0, file_index=0)}.parquet"
            file.parent.mkdir(parents=True)
            self._episodes = pyarrow.parquet.ParquetWriter(file, table.schema, write_page_checksum=True)
        self._episodes.write_table(table)
        self._rows = []

    def _finish(self) -> None:
        self._close_data()
        for stream in self._videos.values():
            if stream.writer is not None:
                stream.writer.close()
        if self._old:
            for file in self._lines.values():
                file.close()
            lines = [{"task_index": i, "task": text} for i, text in enumerate(self._instructions)]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (self.folder / "meta" / "tasks.jsonl").write_text(text, encoding="utf-8")
        else:
            self._write_rows()
            self._episodes.close()
            _write_tasks(self.folder / "meta" / "tasks.parquet", self._instructions)
            (self.folder / "meta" / "stats.json").write_text(json.dumps(as_lists(self._stats), indent=4))
        (self.folder / "meta" / "info.json").write_text(json.dumps(self._info(), indent=4), encoding="utf-8")

    def _info(self) -> dict[str, Any]:
        fps = int(self.fps) if self.fps.is_integer() else self.fps
        chunks = 1 + (self.n_episodes - 1) // FILES_PER_CHUNK
        if self._old:
            chunk = "chunk-{episode_chunk:03d}"
            sizes: dict[str, Any] = {
                "total_videos": self.n_episodes * len(self._videos),
                "total_chunks": chunks,
                "chunks_size": FILES_PER_CHUNK,
            }
            data, video = f"data/{chunk}/{OLD_FILE}.parquet", f"videos/{chunk}/{{video_key}}/{OLD_FILE}.mp4"
        else:
            sizes = {
                "chunks_size": FILES_PER_CHUNK,
                "data_files_size_in_mb": DATA_FILE_BYTES // 2**20,
                "video_files_size_in_mb": VIDEO_FILE_BYTES // 2**20,
            }
            data, video = f"data/{FILE}.parquet", f"videos/{{video_key}}/{FILE}.mp4"
        described = {f.key: self._describe(f, fps) for f in self.features}
        for name, dtype in (("timestamp", "float32"), *((n, "int64") for n in (*BOOKKEEPING[:3], TASK_INDEX))):
            described[name] = {"dtype": dtype, "shape": [1], "names": None}
        tasks = self.tasks if TASK_INDEX in self.features else ()
        ours = extension(self.features, tasks, self.fingerprint, self.metadata)
        # Parquet pages have checksums of their own, video has none and mostly decodes in spite of wrong bits.
        files = sorted((self.folder / "videos").rglob("*.mp4"))
        ours[CHECKSUMS] = {f.relative_to(self.folder).as_posix(): file_digest(f) for f in files}
        return {
            "codebase_version": self.version,
            "robot_type": None,
            "total_episodes": self.n_episodes,
            "total_frames": self.n_steps,
            "total_tasks": len(self._instructions),
            **sizes,
            "fps": fps,
            "splits": {"train": f"0:{self.n_episodes}"},
            "data_path": data,
            "video_path": video if self._videos else None,
            "features": described,
            EXTENSION: ours,
        }

    def _describe(self, feature: Feature, fps: float) -> dict[str, Any]:
        shape = list(feature.shape) or [1]
        if feature.kind != "image":
            return {"dtype": feature.dtype, "shape": shape, "names": list(feature.names) or None}
        entry = {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
        stream = self._videos.get(feature.key)
        if stream is None or stream.writer is None:
            return entry
        return entry | {
            "dtype": "video",
            "info": {
                "video.height": shape[0],
                "video.width": shape[1],
                "video.codec": stream.writer.canonical_codec,
                "video.pix_fmt": stream.writer.codec.pixels,
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": shape[2],
                "has_audio": False,
            },
        }

    def _abandon(self) -> None:
        for stream in self._videos.values():
            if stream.writer is not None:
                stream.writer.abandon()
        for file in (self._data, self._episodes, *self._lines.values()):
            if file is not None:
                with contextlib.suppress(Exception):
                    file.close()


class LeRobotV21Writer(LeRobotWriter):
    """Writes LeRobot v2.1, with one data file and one video file per camera for each episode."""

    format = "lerobot-v2.1"
    version = "v2.1"


def _check(path: Path, feature: Feature) -> None:
    """Raises DataError for a feature that LeRobot cannot hold."""
    key, shape = feature.key, feature.shape
    if key in BOOKKEEPING or key.startswith(".") or any(c in key for c in "/\\\0"):
        raise DataError(f"{path}: LeRobot cannot have a key {key!r}")
    if feature.kind == "image":
        if len(shape) != 3 or shape[2] not in MODES or feature.dtype != "uint8" or max(shape) > MAX_SIDE:
            raise DataError(f"{path}: images of {key!r} should be uint8 [height, width, 1, 3 or 4], found {shape}")
    elif feature.dtype not in NUMERIC or len(shape) > 5 or 0 in shape:
        raise DataError(f"{path}: LeRobot cannot hold {key!r}: {feature.dtype} {list(shape)}")


def _schema(features: FeatureSpec, videos: set[str]) -> Any:
    """Columns of the data files, and their description for the `datasets` library, which lerobot reads with."""
    import pyarrow

    fields, described = [], {}
    for feature in features:
        if feature.key in videos or feature.key == TASK_INDEX:
            continue
        if feature.kind == "image":
            kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
            described[feature.key] = {"_type": "Image"}
        else:
            kind = pyarrow.from_numpy_dtype(np.dtype(feature.dtype))
            value: dict[str, Any] = {"dtype": feature.dtype, "_type": "Value"}
            shape = list(feature.shape)
            if len(shape) > 1:
                value = {"shape": shape, "dtype": feature.dtype, "_type": f"Array{len(shape)}D"}
                for _ in shape:
                    kind = pyarrow.list_(kind)
            elif shape not in ([], [1]):
                value = {"feature": value, "length": shape[0], "_type": "Sequence"}
                kind = pyarrow.list_(kind, shape[0])
            described[feature.key] = value
        fields.append((feature.key, kind))
    for name, dtype in (("timestamp", "float32"), *((n, "int64") for n in ("frame_index", "episode_index", "index"))):
        fields.append((name, pyarrow.from_numpy_dtype(np.dtype(dtype))))
        described[name] = {"dtype": dtype, "_type": "Value"}
    fields.append((TASK_INDEX, pyarrow.int64()))
    described[TASK_INDEX] = {"dtype": "int64", "_type": "Value"}
    return pyarrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def _column(values: np.ndarray, kind: Any) -> Any:
    """[T, *shape] as an arrow array of type `kind`; images become PNG."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        pictures = [{"bytes": encode_png(v), "path": f"frame-{k:06d}.png"} for k, v in enumerate(values)]
        return pyarrow.array(pictures, kind)
    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    if pyarrow.types.is_fixed_size_list(kind):
        return pyarrow.FixedSizeListArray.from_arrays(flat, kind.list_size)
    if pyarrow.types.is_list(kind):
        for axis in range(values.ndim - 1, 0, -1):
            offsets = np.arange(0, len(flat) + 1, values.shape[axis], dtype=np.int32)
            flat = pyarrow.ListArray.from_arrays(offsets, flat)
    return flat


def _write_tasks(file: Path, tasks: Sequence[str]) -> None:
    """The table that pandas makes of a frame with the instructions as its index."""
    import pyarrow
    import pyarrow.parquet

    index = "__index_level_0__"
    description = {
        "index_columns": [index],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {
                "name": TASK_INDEX,
                "field_name": TASK_INDEX,
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
        "pandas_version": "2.2.0",
    }
    schema = pyarrow.schema(
        [(TASK_INDEX, pyarrow.int64()), (index, pyarrow.string())], metadata={"pandas": json.dumps(description)}
    )
    table = pyarrow.table([np.arange(len(tasks)), pyarrow.array(list(tasks), pyarrow.string())], schema=schema)
    pyarrow.parquet.write_table(table, file, write_page_checksum=True)
