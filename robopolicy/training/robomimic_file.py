"""What is in a robomimic checkpoint, read without robomimic and without running anything that the file holds."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robopolicy.errors import CheckpointError, one_line

NUMPY = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
"""By which name, before and since numpy 2, a single number of numpy is pickled."""


class Table:
    """A dictionary from a file, whose entries are checked when they are asked for."""

    def __init__(self, path: Path, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: {name.rstrip('.') or 'content'} is no dictionary: no robomimic checkpoint")
        self.path, self.name, self.values = path, name, values

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The entry at a dotted key; without a default it must be there."""
        found: Any = self.values
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        found = default if found is None else found
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise CheckpointError(
                f"{self.path}: {self.name}{key} should be {kind.__name__}, found {str(found)[:80]!r}: no robomimic "
                "checkpoint of a known version"
            )
        return found

    def table(self, key: str) -> "Table":
        """The dictionary called `key`, which may have dots of its own."""
        if not isinstance(self.values.get(key), dict):
            raise CheckpointError(
                f"{self.path}: {self.name}{key} should be dict, found {str(self.values.get(key))[:80]!r}: no "
                "robomimic checkpoint of a known version"
            )
        return Table(self.path, f"{self.name}{key}.", self.values[key])

    def numbers(self, key: str, size: int | None = None, positive: bool = False) -> list[float]:
        """`size` finite numbers, or any number of them; robomimic has them in one row of a nested list."""
        found = self.get(key, list)
        row = found[0] if len(found) == 1 and isinstance(found[0], list) else found
        # As float32 they must stay numbers, and divisors must not become 0.
        least = 1e-30 if positive else -1e30
        good = [float(v) for v in row if isinstance(v, int | float) and least <= v <= 1e30]
        if len(good) != len(row) or size not in (None, len(row)):
            count = "" if size is None else f"{size} "
            raise CheckpointError(
                f"{self.path}: {self.name}{key} should be {count}numbers{' above 0' if positive else ''}, found "
                f"{str(found)[:80]}"
            )
        return good


class _Ignored:
    """Takes the place of numpy's types."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _ignore(*_: Any) -> None:
    """Takes the place of numpy's numbers. robomimic 0.5 saves the best returns so far as such; nothing here needs
    them, and numpy's own constructors would take memory layouts from the file."""


def read_file(path: Path) -> Any:
    """The content of a file by torch's restricted loader: tensors and plain containers, numbers of numpy left out."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    ignored: list[Any] = [(_Ignored, "numpy.dtype"), *((_ignore, name) for name in NUMPY)]
    try:
        with torch.serialization.safe_globals(ignored):
            # Refuses every class but tensors and plain containers; nothing in the file is run.
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: no robomimic checkpoint, or one that holds more than plain data ({one_line(error)})"
        ) from error


def plain(path: Path, env: dict[str, Any]) -> dict[str, Any]:
    """The description of the simulator, which is kept with the policy as JSON."""
    try:
        kept = json.loads(json.dumps(env))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: env_metadata is not plain data ({one_line(error)})") from error
    return dict(kept)


def finite_weights(path: Path, weights: dict[str, Any]) -> dict[str, Tensor]:
    """`weights` as float32; CheckpointError unless all of them are finite tensors."""
    broken = [str(name) for name, value in weights.items() if not _finite(value)]
    if broken:
        raise CheckpointError(f"{path}: weights that are no finite tensors: {', '.join(broken[:5])}")
    return {str(name): value.float() for name, value in weights.items()}


def _finite(value: Any) -> bool:
    # A view of one number can claim to be a tensor of any size.
    if not isinstance(value, Tensor) or value.is_sparse or value.nbytes > value.untyped_storage().nbytes():
        return False
    return bool(torch.isfinite(value).all())
