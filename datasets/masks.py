"""Named subsets of episodes, such as "train" and "valid": `metadata["masks"]`, name to episode numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robopolicy.errors import DataError, did_you_mean

MASKS = "masks"


def read_masks(where: Path, metadata: dict[str, Any], n_episodes: int) -> dict[str, list[int]]:
    """The masks in `metadata`, checked; empty when there are none."""
    found = metadata.get(MASKS, {})
    if not isinstance(found, dict):
        raise DataError(f"{where}: masks should map names to episode numbers, found {type(found).__name__}")
    for name, numbers in found.items():
        good = isinstance(numbers, list) and all(type(n) is int and 0 <= n < n_episodes for n in numbers)
        if not good or len(set(numbers)) < len(numbers):
            raise DataError(f"{where}: mask {name!r} should list numbers from 0 to {n_episodes - 1}, each once")
    return found


def mask(where: Path, metadata: dict[str, Any], n_episodes: int, name: str) -> list[int]:
    """The episodes of one mask, in order; a DataError with a suggestion when there is no such mask."""
    masks = read_masks(where, metadata, n_episodes)
    if name not in masks:
        raise DataError(f"{where}: has no mask {name!r}.{did_you_mean(name, masks)}")
    return sorted(masks[name])


def join_masks(parts: Sequence[tuple[dict[str, list[int]], Sequence[int]]]) -> dict[str, list[int]]:
    """Masks of a dataset made of parts: for each part its masks and the numbers of its episodes, as they follow."""
    joined: dict[str, list[int]] = {}
    first = 0
    for masks, written in parts:
        place = {number: first + i for i, number in enumerate(written)}
        for name, numbers in masks.items():
            joined.setdefault(name, []).extend(sorted(place[n] for n in numbers if n in place))
        first += len(written)
    return {name: numbers for name, numbers in joined.items() if numbers}
