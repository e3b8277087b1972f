"""Reader of LeRobot datasets, versions 2.0, 2.1 and 3.0: numbers in parquet files, images in mp4 or inside parquet.

The number of a frame is what counts: step k of an episode is the k-th frame from where the episode begins in its
video. Time stamps only say where that is, and when they contradict the frames they are reported and not followed.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.cache import content_digest
from robopolicy.datasets.episodes import locate
from robopolicy.datasets.lerobot_meta import BOOKKEEPING, CHECKSUMS, Meta, Stored, inside, read_meta
from robopolicy.datasets.parquet import join_tables, open_parquet, read_parquet, to_numpy
from robopolicy.datasets.pictures import decode_picture
from robopolicy.datasets.source import Source, read_extension
from robopolicy.datasets.untrusted import read_json
from robopolicy.datasets.video import VideoIndex, VideoReader, decode_runs, index_video
from robopolicy.errors import DataError
from robopolicy.features import TASK_INDEX, Feature, FeatureSpec

CACHE_VERSION = "1"
"""Enters the names of cached images; changes when they are decoded differently."""
STAMP_TOLERANCE = 1e-3
"""Seconds by which a time stamp may differ from its frame number before it is mentioned."""


def is_lerobot(path: Path) -> bool:
    """Anything with LeRobot's info.json that is not of version 2."""
    return (path / "meta" / "info.json").is_file() and not is_lerobot_v2(path)


def is_lerobot_v2(path: Path) -> bool:
    """LeRobot versions 2.0 and 2.1."""
    with contextlib.suppress(DataError):
        info = read_json(path / "meta" / "info.json")
        return isinstance(info, dict) and str(info.get("codebase_version")).startswith("v2.")
    return False


class LeRobotSource(Source):
    """A LeRobot dataset."""

    format = "lerobot"

    def __init__(self, path: Path) -> None:
        meta = read_meta(path)
        file = path / "meta" / "info.json"
        self._meta = meta
        self._rows = _Rows(meta)
        ends = _episode_ends(meta, self._rows)
        self._task_numbers = np.array(sorted(meta.tasks), np.int64)
        tasks = [meta.tasks[number] for number in sorted(meta.tasks)]
        features = FeatureSpec(tuple(s.feature for s in meta.stored.values()), meta.fps)
        fingerprint: dict[str, str] = {}
        metadata: dict[str, Any] = {}
        if meta.extension is not None:
            described, ours, fingerprint, metadata = read_extension(file, meta.extension)
            features = _agreed(file, meta, described)
            if TASK_INDEX in features and ours != tuple(tasks):
                raise DataError(f"{file}: instructions {list(ours)}, the table of tasks has {tasks}")
        if TASK_INDEX not in features:
            tasks = []
        super().__init__(
            path,
            features,
            np.diff(ends, prepend=0),
            tasks=tasks,
            fingerprint=fingerprint,
            metadata=metadata,
            notes=meta.notes,
        )
        self.notes += _counters(self._rows, ends, meta.fps)
        self.notes += _missing_videos(meta)
        self._columns: dict[str, np.ndarray] = {}
        self._stamps: np.ndarray | None = None
        self._indices: dict[Path, VideoIndex] = {}
        self._starts: dict[str, np.ndarray] = {}
        self._members: dict[str, dict[Path, list[int]]] = {}
        self._readers: dict[str, VideoReader] = {}

    def read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        count = int(self.lengths[episode])
        start = int(self.episode_ends[episode]) - count
        low = [k for k in keys if self.features[k].kind != "image"]
        found = {k: v[start : start + count] for k, v in self.columns(low).items()}
        images = [k for k in keys if self.features[k].kind == "image"]
        if len(images) > 1:
            # Decoders work outside the interpreter lock, each camera has its own.
            with ThreadPoolExecutor(len(images)) as pool:
                found |= zip(images, pool.map(lambda k: self._images(k, episode, 0, count), images), strict=True)
        else:
            found |= {k: self._images(k, episode, 0, count) for k in images}
        return {key: found[key] for key in keys}

    def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        new = [k for k in keys if k not in self._columns]
        if new:
            table = self._rows.table(new)
            for key in new:
                values = to_numpy(table, self.path, self.features[key], self.episode_ends)
                self._columns[key] = self._numbered(values) if key == TASK_INDEX else values
        return {k: self._columns[k] for k in keys}

    def stamps(self, episode: int) -> np.ndarray | None:
        if "timestamp" not in self._rows.present:
            return None
        if self._stamps is None:
            column = Feature("timestamp", (), "float64")
            self._stamps = to_numpy(self._rows.table(["timestamp"]), self.path, column, self.episode_ends)
        end = int(self.episode_ends[episode])
        return self._stamps[end - int(self.lengths[episode]) : end]

    def _numbered(self, values: np.ndarray) -> np.ndarray:
        """task_index as positions in `tasks`, which are the numbers themselves unless some are unused."""
        places = np.searchsorted(self._task_numbers, values).clip(max=max(len(self._task_numbers) - 1, 0))
        known = self._task_numbers[places] == values if len(self._task_numbers) else np.zeros(len(values), bool)
        if not known.all():
            row = int(np.argmin(known))
            raise DataError(f"{self.path}: {TASK_INDEX} {values[row]} at row {row} is in no table of tasks")
        return places

    def frames(self, key: str, rows: np.ndarray) -> np.ndarray:
        if self.features[key].kind != "image":
            return self.columns([key])[key][rows]
        episodes = np.searchsorted(self.episode_ends, rows, side="right")
        steps = rows - (self.episode_ends - self.lengths)[episodes]
        return np.concatenate([self._images(key, int(e), int(t), 1) for e, t in zip(episodes, steps, strict=True)])

    def attributes(self, episode: int) -> dict[str, Any]:
        text = self._meta.attributes[episode] if self._meta.attributes else ""
        if not text:
            return {}
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{self.path}: episode {episode}: damaged attributes ({error})") from error

    def _images(self, key: str, episode: int, first: int, count: int) -> np.ndarray:
        """`count` frames of one episode from step `first` on, [count, height, width, C]."""
        with self._naming(episode):
            if self._meta.stored[key].dtype == "image":
                start = int(self.episode_ends[episode] - self.lengths[episode]) + first
                return self._rows.pictures(self.features[key], start, count)
            file = self._file(key, episode)
            reader = self._readers.get(key)
            if reader is None or reader.file != file:
                if reader is not None:
                    reader.close()
                self._readers[key] = reader = VideoReader(file, self.features[key].shape, self._index(key, file))
            return reader.read(self._start(key, episode) + first, count)

    @contextlib.contextmanager
    def _naming(self, episode: int) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.path}: episode {episode}: {error}") from error

    def _place(self, key: str, episode: int) -> tuple[Path, int]:
        """The video file of an episode and the number of its first frame there."""
        with self._naming(episode):
            return self._file(key, episode), self._start(key, episode)

    def _file(self, key: str, episode: int) -> Path:
        if key not in self._meta.videos:
            raise DataError(f"{self.path}: nothing says where the video of {key!r} is; name other keys to go without")
        file = self._meta.videos[key].files[episode]
        if not file.is_file():
            raise DataError(f"{file}: missing; it should hold the frames of {key!r} (name other keys to go without)")
        return file

    def _index(self, key: str, file: Path) -> VideoIndex:
        if file not in self._indices:
            written = self._meta.checksums.get(file.relative_to(self.path).as_posix())
            if written is not None and content_digest(file) != written:
                raise DataError(
                    f"{file}: damaged or replaced: its checksum is not the one in info.json "
                    f"(remove {CHECKSUMS!r} there to read it all the same)"
                )
            self._indices[file] = index_video(file, self.features[key].shape)
        return self._indices[file]

    def _start(self, key: str, episode: int) -> int:
        """Number of the first frame of an episode in its file."""
        file = self._file(key, episode)
        if key not in self._starts:
            self._starts[key] = np.full(self.n_episodes, -1)
            self._members[key] = {}
            for number, other in enumerate(self._meta.videos[key].files):
                self._members[key].setdefault(other, []).append(number)
        starts = self._starts[key]
        if starts[episode] < 0:
            members = self._members[key][file]
            starts[members] = self._starts_in_file(key, file, members)
        return int(starts[episode])

    def _starts_in_file(self, key: str, file: Path, members: list[int]) -> np.ndarray:
        """First frames of the episodes `members` of one file, from time stamps if they fit, else by counting."""
        lengths, frames = self.lengths[members], len(self._index(key, file).stamps)
        stamps = self._meta.videos[key].from_timestamps
        times = np.array([stamps[e] for e in members]) * self._meta.fps
        counted = np.cumsum(lengths) - lengths
        if np.abs(times).max() < 2**53:
            starts = np.rint(times).astype(np.int64)
            if np.array_equal(starts, counted) and frames >= lengths.sum():
                return counted
            ends = starts + lengths
            apart = bool((starts[1:] >= ends[:-1]).all()) and starts[0] >= 0 and ends[-1] <= frames
            if apart and frames != lengths.sum():
                return starts
        if frames == lengths.sum():
            self.notes.append(f"{file}: time stamps do not fit the episodes; frames are counted instead")
            return counted
        raise DataError(
            f"{file}: has {frames} frames, episodes {members[0]} to {members[-1]} need {lengths.sum()} "
            "and their time stamps do not fit"
        )

    def image_blocks(self, key: str) -> Iterator[np.ndarray]:
        """All frames of a key in order; video is decoded on all cores."""
        if self._meta.stored[key].dtype == "image":
            yield from super().image_blocks(key)
            return
        runs: list[tuple[Path, int, int]] = []
        for episode, count in enumerate(self.lengths.tolist()):
            file, start = self._place(key, episode)
            if runs and runs[-1][0] == file and sum(runs[-1][1:]) == start:
                runs[-1] = (file, runs[-1][1], runs[-1][2] + count)
            else:
                runs.append((file, start, count))
        row = 0
        try:
            for block in decode_runs(runs, self.features[key].shape, lambda file: self._index(key, file)):
                yield block
                row += len(block)
        except DataError as error:
            raise DataError(f"{self.path}: {locate(self.episode_ends, row)} or later: {error}") from error

    def identity(self, key: str) -> str:
        """Covers every byte of the files that hold the key, and which of their frames belong to which episode."""
        stored = self._meta.stored[key]
        digest = hashlib.sha256(f"lerobot {CACHE_VERSION} {stored.dtype} {self.features[key].shape}".encode())
        digest.update(self.lengths.tobytes())
        if stored.dtype == "image":
            files = self._rows.files
            digest.update(key.encode())
        else:
            places = [self._place(key, e) for e in range(self.n_episodes)]
            files = list(dict.fromkeys(file for file, _ in places))
            numbers = {file: n for n, file in enumerate(files)}
            digest.update(np.array([(numbers[file], start) for file, start in places]).tobytes())
        for file in files:
            digest.update(content_digest(file).encode())
        return digest.hexdigest()[:32]

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers = {}


class LeRobotV2Source(LeRobotSource):
    """A LeRobot dataset of version 2.0 or 2.1."""

    format = "lerobot-v2.1"


class _Rows:
    """The steps of all data files, one file after the other."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.files = meta.data_files
        found = [file for file in self.files if file.is_file()]
        if not found:
            folder, _, rest = self.files[0].relative_to(meta.path).as_posix().partition("/")
            raise DataError(f"{meta.path / folder}: no {rest} and no other file that meta/ names")
        self.group_ends: list[np.ndarray] = []
        for file in self.files:
            if not file.is_file():
                raise DataError(f"{file}: missing; meta/episodes says it holds steps")
            with open_parquet(file, []) as opened:
                counts = [opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)]
            self.group_ends.append(np.cumsum(counts, dtype=np.int64))
        totals = [int(ends[-1]) if len(ends) else 0 for ends in self.group_ends]
        self.ends = np.cumsum(totals, dtype=np.int64)
        """Row numbers at which the files end."""
        self._kept: dict[str, tuple[tuple[int, int], Any]] = {}
        self.present = self._columns_of(self.files[0])

    @staticmethod
    def _columns_of(file: Path) -> list[str]:
        with open_parquet(file, []) as opened:
            return list(opened.schema_arrow.names)

    def table(self, columns: list[str]) -> Any:
        return join_tables([read_parquet(file, columns) for file in self.files], self.meta.path / "data")

    def pictures(self, feature: Feature, start: int, count: int) -> np.ndarray:
        """Rows `start` to `start + count` of a key whose images are inside the parquet files."""
        out = np.empty((count, *feature.shape), np.uint8)
        for k in range(count):
            file = int(np.searchsorted(self.ends, start + k, side="right"))
            row = start + k - (int(self.ends[file - 1]) if file else 0)
            group = int(np.searchsorted(self.group_ends[file], row, side="right"))
            first = int(self.group_ends[file][group - 1]) if group else 0
            cell = self._group(feature.key, file, group)[row - first].as_py()
            where = f"{self.files[file]}: key {feature.key!r}, row {row}"
            out[k] = decode_picture(self._bytes(cell, where), feature.shape, where)
        return out

    def _group(self, key: str, file: int, group: int) -> Any:
        """The encoded images of one row group, which is kept until another one of the key is needed."""
        if key not in self._kept or self._kept[key][0] != (file, group):
            column = read_parquet(self.files[file], [key], [group])[key].combine_chunks()
            self._kept[key] = ((file, group), column)
        return self._kept[key][1]

    def _bytes(self, cell: Any, where: str) -> bytes:
        if isinstance(cell, dict):
            if isinstance(cell.get("bytes"), bytes):
                return cell["bytes"]
            if isinstance(cell.get("path"), str):
                file = inside(self.meta.path, cell["path"], Path(where))
                try:
                    return file.read_bytes()
                except OSError as error:
                    raise DataError(f"{where}: {file}: {error.strerror or error}") from error
        elif isinstance(cell, bytes):
            return cell
        raise DataError(f"{where}: should be an encoded image, found {type(cell).__name__}")


def _agreed(file: Path, meta: Meta, described: FeatureSpec) -> FeatureSpec:
    """`described`, after comparing it with what is stored."""
    for feature in described:
        stored = meta.stored.get(feature.key)
        if stored is None or not _holds(stored, feature):
            found = "nothing" if stored is None else f"{stored.dtype} {list(stored.shape)}"
            raise DataError(
                f"{file}: {feature.key!r} is described as {feature.dtype} {list(feature.shape)}, stored is {found}"
            )
    extra = sorted(set(meta.stored) - set(described.keys()) - {TASK_INDEX})
    if extra:
        raise DataError(f"{file}: {extra[0]!r} is stored but not described")
    if described.rate_hz is not None and abs(described.rate_hz - meta.fps) > 1e-3 * meta.fps:
        raise DataError(f"{file}: described at {described.rate_hz} Hz, fps is {meta.fps}")
    return described


def _holds(stored: Stored, feature: Feature) -> bool:
    if (feature.kind == "image") != (stored.feature.kind == "image"):
        return False
    if feature.kind == "image":
        return feature.dtype == "uint8" and feature.shape == stored.feature.shape
    return feature.dtype == stored.dtype and (feature.shape or (1,)) == stored.shape


def _episode_ends(meta: Meta, rows: _Rows) -> np.ndarray:
    """Ends [E] from the steps' episode numbers, after comparing them with meta/ and the totals."""
    table = rows.table(["episode_index"])
    episode_index = to_numpy(table, meta.path, Feature("episode_index", (), "int64"), None)
    if len(episode_index) != meta.n_steps:
        raise DataError(
            f"{meta.path}: info.json says {meta.n_episodes} episodes of {meta.n_steps} steps, "
            f"found {len(meta.ends)} in meta/episodes and {len(episode_index)} steps in data"
        )
    if len(episode_index) == 0:
        raise DataError(f"{meta.path}: holds no episode")
    ends = np.flatnonzero(np.diff(episode_index, append=-1)) + 1
    if not np.array_equal(episode_index[ends - 1], np.arange(len(ends))):
        raise DataError(f"{meta.path / 'data'}: episode_index should count 0, 1, 2, ... without gaps")
    if not np.array_equal(ends, meta.ends):
        n = min(len(ends), len(meta.ends))
        e = int(np.argmin(np.append(ends[:n] == meta.ends[:n], False)))
        raise DataError(
            f"{meta.path}: meta/episodes and data disagree from episode {e} on (ends {meta.ends[e : e + 1]} and "
            f"{ends[e : e + 1]})"
        )
    return ends


def _counters(rows: _Rows, ends: np.ndarray, fps: float) -> list[str]:
    """Checks frame_index, which is an error when it does not count, and timestamp, which is worth a note."""
    names = [n for n in BOOKKEEPING[2:] if n in rows.present]
    if not names:
        return []
    table, path = rows.table(names), rows.meta.path
    starts = np.diff(ends, prepend=0)
    expected = np.arange(ends[-1]) - np.repeat(ends - starts, starts)
    if "frame_index" in names:
        good = to_numpy(table, path, Feature("frame_index", (), "int64"), None) == expected
        if not good.all():
            episode = int(np.searchsorted(ends, np.argmin(good), side="right"))
            raise DataError(f"{path}: episode {episode}: frame_index should count 0, 1, 2, ... without gaps")
    if "timestamp" in names:
        off = np.abs(to_numpy(table, path, Feature("timestamp", (), "float64"), None) - expected / fps)
        if not (off <= STAMP_TOLERANCE + 1e-6 * expected / fps).all():
            worst = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
            episode = int(np.searchsorted(ends, worst, side="right"))
            return [
                f"{path}: time stamps differ from frame number / fps by up to {off[worst]:.3g} s "
                f"(episode {episode}); frame numbers are used"
            ]
    return []


def _missing_videos(meta: Meta) -> list[str]:
    notes = []
    for key in (k for k, s in meta.stored.items() if s.dtype == "video"):
        files = set(meta.videos[key].files) if key in meta.videos else set()
        missing = sorted(f for f in files if not f.is_file())
        if missing or not files:
            what = f"{len(missing)} of {len(files)} video files are missing" if files else "no video is described"
            notes.append(f"{key!r} cannot be read completely: {what}")
    return notes
