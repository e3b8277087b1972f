"""The formats, and opening a dataset without saying its format."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from robopolicy.datasets.episodes import Episodes
from robopolicy.datasets.source import Source, load
from robopolicy.datasets.untrusted import damage
from robopolicy.datasets.writer import DatasetWriter, is_unfinished
from robopolicy.errors import DataError, unknown


@dataclass(frozen=True)
class Format:
    """One format; its module is imported when it is first needed."""

    title: str
    """For people."""
    recognised_by: str
    """What is looked for at the path."""
    check: str
    """module:function of (path) -> bool, cheap, for an existing path."""
    source: str
    """module:class, a `Source` made from a path."""
    writer: str = ""
    """module:class, a `DatasetWriter`."""
    options: tuple[tuple[str, Any], ...] = ()
    """Keyword arguments that this name gives to the writer."""


_DATASETS = "robopolicy.datasets"
FORMATS: dict[str, Format] = {
    "episodes": Format(
        "robopolicy episode store",
        "episodes.json",
        f"{_DATASETS}.store:is_store",
        f"{_DATASETS}.store:StoreSource",
        f"{_DATASETS}.store:EpisodeWriter",
    ),
    "lerobot": Format(
        "LeRobot v3.0",
        "meta/info.json",
        f"{_DATASETS}.lerobot:is_lerobot",
        f"{_DATASETS}.lerobot:LeRobotSource",
        f"{_DATASETS}.lerobot_writer:LeRobotWriter",
    ),
    "lerobot-v2.1": Format(
        "LeRobot v2.1",
        "meta/info.json",
        f"{_DATASETS}.lerobot:is_lerobot_v2",
        f"{_DATASETS}.lerobot:LeRobotV2Source",
        f"{_DATASETS}.lerobot_writer:LeRobotV21Writer",
    ),
    "zarr": Format(
        "Diffusion Policy replay buffer (zarr v2)",
        ".zgroup",
        f"{_DATASETS}.zarr_dp:is_replay_buffer",
        f"{_DATASETS}.zarr_dp:ReplayBufferSource",
        f"{_DATASETS}.zarr_writer:ReplayBufferWriter",
    ),
    "robomimic": Format(
        "robomimic HDF5",
        "an HDF5 file",
        f"{_DATASETS}.robomimic_hdf5:is_robomimic",
        f"{_DATASETS}.robomimic_hdf5:RobomimicSource",
        f"{_DATASETS}.robomimic_writer:RobomimicWriter",
    ),
    "relay": Format(
        "relay kitchen arrays (play-to-policy)",
        "existence_mask.npy",
        f"{_DATASETS}.relay:is_relay",
        f"{_DATASETS}.relay:RelaySource",
    ),
    "rosbag2-mcap": Format(
        "ROS 2 recordings (MCAP)",
        "a folder of bags",
        f"{_DATASETS}.rosbag_source:is_mcap",
        f"{_DATASETS}.rosbag_source:McapSource",
        f"{_DATASETS}.rosbag_writer:McapBagWriter",
    ),
    "rosbag2-sqlite3": Format(
        "ROS 2 recordings (sqlite3)",
        "a folder of bags",
        f"{_DATASETS}.rosbag_source:is_sqlite3",
        f"{_DATASETS}.rosbag_source:Sqlite3Source",
        f"{_DATASETS}.rosbag_writer:Sqlite3BagWriter",
    ),
}


def _load(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(import_module(module), attribute)


def dataset_format(path: Path) -> str | None:
    """The name in `FORMATS` of the dataset at `path`; None when it is none of them, or one that was not finished."""
    if is_unfinished(path):
        return None
    return next((name for name, f in FORMATS.items() if _load(f.check)(path)), None)


def open_source(path: Path, contract: Path | None = None) -> Source:
    """The dataset at `path`, in whichever supported format it is, ready to be read episode by episode.

    `contract` is for ROS 2 recordings that have none of their own, or should be read by another one. A path that
    does not exist may be the name of a fetched dataset of the catalog. Raises DataError for anything missing, damaged
    or unknown.
    """
    path = find_dataset(Path(path).expanduser())
    found = dataset_format(path)
    if found is not None:
        if contract is not None and not found.startswith("rosbag2"):
            raise DataError(f"{path}: only ROS 2 recordings are read by a contract, this is a {FORMATS[found].title}")
        with damage(path):
            return _load(FORMATS[found].source)(path, *([contract] if contract is not None else []))
    inside = sorted(p.name for p in path.iterdir() if p.is_dir() and dataset_format(p)) if path.is_dir() else []
    hint = f"; inside it there is {', '.join(inside)}" if inside else ""
    if is_unfinished(path):
        raise DataError(f"{path}: was left by a writer that did not finish; run it again, which removes this")
    looked = ", ".join(f"{f.recognised_by} ({f.title})" for f in FORMATS.values())
    raise DataError(f"{path}: not a dataset: looked for {looked}{hint}")


def find_dataset(path: Path) -> Path:
    """`path` if it exists, otherwise the fetched dataset of the catalog whose name it is; DataError for neither."""
    from robopolicy.datasets.fetch import local_path, read_catalog

    if path.exists():
        return path
    found = local_path(str(path))
    if found is not None:
        return found
    hint = f"; it is in the catalog: robopolicy data fetch {path}" if str(path) in read_catalog() else ""
    raise DataError(f"{path}: no such dataset{hint}")


def open_dataset(
    path: Path, keys: Sequence[str] | None = None, cache_dir: Path | None = None, images: bool = False
) -> Episodes:
    """All of the dataset at `path`, for training.

    `keys=None` loads all low-dimensional keys; images come with it where they are memory maps already (our own
    store), otherwise when `images` is true or `keys` names them. What was left out is in `Episodes.unloaded`.
    `cache_dir` is for decoded images (default $ROBOPOLICY_CACHE or ~/.cache/robopolicy).

    The result is consistent in structure; call `episodes.validate` on what you go on with to refuse NaN and
    infinity. Raises DataError for anything missing, damaged or unknown.
    """
    with open_source(path) as source:
        return load(source, keys, images, cache_dir)


def writable_formats() -> list[str]:
    return [name for name, f in FORMATS.items() if f.writer]


def make_writer(name: str, path: Path, *args: Any, **kwargs: Any) -> DatasetWriter:
    """A writer of format `name`; the other arguments are those of `DatasetWriter`, then the format's own."""
    if name not in FORMATS or not FORMATS[name].writer:
        raise unknown("format", name, writable_formats())
    writer, options = _load(FORMATS[name].writer), dict(FORMATS[name].options) | kwargs
    known = {p for c in writer.__mro__[:-1] for p in inspect.signature(c.__init__).parameters}
    for option in options:
        if option not in known:
            raise DataError(f"{path}: format {name} has no option {option!r}")
    return writer(path, *args, **options)
