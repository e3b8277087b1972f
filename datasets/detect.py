"""Opening a dataset without saying its format."""

from collections.abc import Sequence
from pathlib import Path

from robopolicy.datasets.episodes import Episodes, is_store, read_store
from robopolicy.datasets.lerobot import is_lerobot, read_lerobot
from robopolicy.datasets.zarr_dp import is_replay_buffer, read_replay_buffer
from robopolicy.errors import DataError


def dataset_format(path: Path) -> str | None:
    """episodes, zarr or lerobot; None when `path` is none of them."""
    if is_store(path):
        return "episodes"
    if is_lerobot(path):
        return "lerobot"
    return "zarr" if is_replay_buffer(path) else None


def open_dataset(
    path: Path, keys: Sequence[str] | None = None, cache_dir: Path | None = None, images: bool = False
) -> Episodes:
    """Reads the dataset at `path` in whichever supported format it is.

    `keys=None` loads all low-dimensional keys; images come with it where they are memory maps already (our own
    store), otherwise when `images` is true or `keys` names them. What was left out is in `Episodes.unloaded`.
    `cache_dir` is for decoded images (default $ROBOPOLICY_CACHE or ~/.cache/robopolicy).

    The result is consistent in structure; call `episodes.validate` on what you go on with to refuse NaN and
    infinity. Raises DataError for anything missing, damaged or unknown.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    found = dataset_format(path)
    if found == "episodes":
        return read_store(path, keys)
    if found == "lerobot":
        return read_lerobot(path, keys, images)
    if found == "zarr":
        return read_replay_buffer(path, keys, images, Path(cache_dir) if cache_dir else None)
    inside = sorted(p.name for p in path.iterdir() if p.is_dir() and dataset_format(p)) if path.is_dir() else []
    hint = f"; inside it there is {', '.join(inside)}" if inside else ""
    raise DataError(
        f"{path}: not a dataset: looked for episodes.json (our store), meta/info.json (LeRobot v3.0) "
        f"and .zgroup (Diffusion Policy replay buffer){hint}"
    )
