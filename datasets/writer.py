"""What dataset writers share: checks before anything is written, and outputs that are complete or absent."""

import fcntl
import glob
import os
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from robopolicy.datasets.episodes import first_not_finite
from robopolicy.errors import DataError
from robopolicy.features import TASK_INDEX, FeatureSpec

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
DATA_FILE = "dataset"
"""Name of the output inside the temporary directory of a format that is one file."""


class DatasetWriter(ABC):
    """Streams episodes into a new dataset, one at a time; use it in a `with` statement.

    Everything goes to a hidden directory beside `path`, which takes the name `path` when the statement ends
    without an error and is removed otherwise: a dataset is either complete or absent. Directories left by writers
    that were killed are removed by the next writer of the same path.

    A format implements `_start`, `_append` and `_finish`, which write below `folder`, and names in `single_file`
    whether its output is one file (then `folder / DATA_FILE` becomes `path`).
    """

    format: ClassVar[str]
    """Name in `robopolicy.datasets.detect.FORMATS`."""
    single_file: ClassVar[bool] = False
    holds_attributes: ClassVar[bool] = False
    """Whether the attributes of episodes are kept."""

    def __init__(
        self,
        path: Path,
        features: FeatureSpec,
        fingerprint: dict[str, str] | None = None,
        *,
        tasks: Sequence[str] = (),
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """`tasks` are the instructions that `task_index` counts; `metadata` is anything JSON can hold.

        `self.metadata` may change until the end of the `with` statement: `_finish` writes it.
        """
        self.path = Path(path)
        self.features = features
        self.fingerprint = dict(fingerprint or {})
        self.tasks = tuple(tasks)
        self.metadata = dict(metadata or {})
        self.n_steps = 0
        self.ends: list[int] = []
        """End of every episode added so far."""
        self.folder = self.path.parent / f".{self.path.name}.{uuid.uuid4().hex[:12]}.tmp"
        """Hidden directory that the format writes into."""
        self._lock: int | None = None
        self._open = False
        if TASK_INDEX in features and not self.tasks:
            raise DataError(f"{self.path}: the data has {TASK_INDEX!r} but no table of instructions")

    @property
    def n_episodes(self) -> int:
        return len(self.ends)

    @abstractmethod
    def _start(self) -> None:
        """Opens files in `folder`, which exists and is empty."""

    @abstractmethod
    def _append(self, episode: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
        """Writes one checked episode of [T, *shape] arrays; `n_steps` and `ends` do not count it yet."""

    @abstractmethod
    def _finish(self) -> None:
        """Writes what comes last and closes all files."""

    def _abandon(self) -> None:  # noqa: B027
        """Closes open files when the output is given up; must not raise."""

    def __enter__(self) -> "DatasetWriter":
        if self.path.exists() or self.path.is_symlink():
            raise DataError(f"{self.path}: already exists; choose another name or remove it first")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(self.path)
            self.folder.mkdir()
            self._lock = _lock(self.folder)
            self._start()
        except BaseException as error:
            self._abort()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        self._open = True
        return self

    def add(self, episode: dict[str, np.ndarray], attributes: dict[str, Any] | None = None) -> None:
        """Appends one episode of [T, *shape] arrays, one per feature; `attributes` is what JSON can hold about it.

        Raises DataError before anything is written when keys, shapes, dtypes or lengths differ from the features
        or a value is not finite, and when the disk is full, after which the writer is of no more use.
        """
        if not self._open:
            raise DataError(f"{self.path}: the writer is closed")
        arrays = {key: np.asarray(value) for key, value in episode.items()}
        self.check(arrays)
        try:
            self._append(arrays, dict(attributes or {}))
        except BaseException as error:
            self._abort()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        self.n_steps += len(next(iter(arrays.values())))
        self.ends.append(self.n_steps)

    def check(self, arrays: dict[str, np.ndarray]) -> None:
        """Raises the DataError that `add` would raise for this episode."""
        where = f"{self.path}: episode {self.n_episodes}"
        if sorted(arrays) != sorted(self.features.keys()):
            raise DataError(f"{where} has keys {sorted(arrays)}, expected {sorted(self.features.keys())}")
        lengths = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
        if min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
            raise DataError(f"{where} needs equally many steps of every key, at least one, found {lengths}")
        for key, array in arrays.items():
            feature = self.features[key]
            if array.shape[1:] != feature.shape or array.dtype.name != feature.dtype:
                raise DataError(
                    f"{where}: key {key!r} should be {feature.dtype} {list(feature.shape)} per step, "
                    f"found {array.dtype.name} {list(array.shape[1:])}"
                )
            step = first_not_finite(array) if array.dtype.kind == "f" else None
            if step is not None:
                raise DataError(f"{where}, step {step}: key {key!r} is not finite")
        if TASK_INDEX in arrays:
            low, high = int(arrays[TASK_INDEX].min()), int(arrays[TASK_INDEX].max())
            if low < 0 or high >= len(self.tasks):
                raise DataError(f"{where}: task_index {low}..{high}, but there are {len(self.tasks)} instructions")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abort()
            return
        try:
            self._commit()
        except BaseException as failure:
            self._abort()
            if isinstance(failure, OSError):
                raise self._failure(failure) from failure
            raise
        self._release()

    def _commit(self) -> None:
        if not self._open:
            raise DataError(f"{self.path}: not written, an earlier episode failed")
        if not self.ends:
            raise DataError(f"{self.path}: not written, no episode was added")
        self._finish()
        sync_tree(self.folder)
        if self.single_file:
            (self.folder / DATA_FILE).rename(self.path)
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self.folder.rename(self.path)
        sync_directory(self.path.parent)

    def _abort(self) -> None:
        self._abandon()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._open = False

    def _failure(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: cannot be written ({error.strerror or error}); nothing was kept")


def is_unfinished(path: Path) -> bool:
    """Whether `path` is, or is directly in, the hidden directory of a writer that is at work or was killed."""
    place = path.absolute()
    return any(UNFINISHED.fullmatch(p.name) for p in (place, place.parent))


def _lock(directory: Path) -> int:
    """A descriptor holding an exclusive lock that the kernel drops when this process ends, however it ends."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_stale(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            descriptor = _lock(left)
        except OSError:
            continue  # Its writer is alive.
        shutil.rmtree(left, ignore_errors=True)
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Writes one new file beside a dataset, a report for instance; it is complete or absent."""
    if path.exists():
        raise DataError(f"{path}: already exists; choose another name or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        temporary.write_bytes(data)
        _sync(temporary, os.O_RDONLY)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Makes every file and name below `folder` durable."""
    for directory, _, files in os.walk(folder):
        for name in files:
            _sync(Path(directory) / name, os.O_RDONLY)
        sync_directory(Path(directory))


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
