"""One dataset into several: by fractions, by ranges of episode numbers, or by the masks that it carries."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from robopolicy.datasets.convert import Conversion, write_sources
from robopolicy.datasets.detect import open_source, writable_formats
from robopolicy.datasets.masks import mask
from robopolicy.errors import DataError, RobopolicyError


def by_fractions(n_episodes: int, fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Disjoint sets of randomly drawn episodes, each in order; together all of them when the fractions add up to 1.

    Part k ends at the rounded sum of its fraction and those before it, so that no episode is lost to rounding.
    """
    if not fractions or not all(0 < f <= 1 for f in fractions) or math.fsum(fractions) > 1 + 1e-9:
        raise RobopolicyError(f"fractions {list(fractions)} should be above 0 and add up to 1 at most")
    order = np.random.default_rng(seed).permutation(n_episodes)
    stops = [round(math.fsum(fractions[: k + 1]) * n_episodes) for k in range(len(fractions))]
    starts = [0, *stops[:-1]]
    parts = [sorted(order[a:b].tolist()) for a, b in zip(starts, stops, strict=True)]
    empty = [f for f, part in zip(fractions, parts, strict=True) if not part]
    if empty:
        raise RobopolicyError(f"fraction {empty[0]:g} of {n_episodes} episodes is none")
    return parts


def by_range(n_episodes: int, text: str) -> list[int]:
    """Episode numbers of "0:50", "50:", "7" or several of these with commas, in the order given, each once."""
    numbers: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"([0-9]{1,12})?(?P<colon>:)?([0-9]{1,12})?", piece.strip())
        if not match or not (match[1] or match[3]):
            raise RobopolicyError(f"episodes {text!r}: {piece!r} is not a number or a range such as 0:50 or 50:")
        start = int(match[1] or 0)
        stop = (int(match[3]) if match[3] else n_episodes) if match["colon"] else start + 1
        if not start < stop <= n_episodes:
            raise RobopolicyError(f"episodes {text!r}: {piece!r} is not within the {n_episodes} episodes of the data")
        numbers += range(start, stop)
    return list(dict.fromkeys(numbers))


def split(
    path: Path,
    outputs: Sequence[Path],
    *,
    fractions: Sequence[float] = (),
    episodes: Sequence[str] = (),
    masks: Sequence[str] = (),
    seed: int = 0,
    to: str | None = None,
    progress: bool = True,
) -> list[Conversion]:
    """Writes one dataset per entry of exactly one of `fractions`, `episodes` and `masks`, in the format `to`.

    The default format is that of the dataset at `path`. Each output is complete or absent. Parts by ranges or masks
    may share episodes; parts by fractions do not.
    """
    ways = [name for name, given in (("fractions", fractions), ("episodes", episodes), ("masks", masks)) if given]
    if len(ways) != 1:
        raise RobopolicyError(f"a split needs one of fractions, episodes and masks, found {ways or 'none'}")
    count = len(fractions) + len(episodes) + len(masks)
    if count != len(outputs) or len({Path(o).absolute() for o in outputs}) < count:
        raise RobopolicyError(f"{count} parts need as many different outputs, found {[str(o) for o in outputs]}")
    for output in outputs:
        if Path(output).exists():
            raise DataError(f"{output}: already exists; choose another name or remove it first")
    with open_source(path) as source:
        if to is None and source.format not in writable_formats():
            raise RobopolicyError(f"{path}: format {source.format} is not written; choose one of {writable_formats()}")
        n = source.n_episodes
        if fractions:
            parts = by_fractions(n, fractions, seed)
        elif episodes:
            parts = [by_range(n, text) for text in episodes]
        else:
            parts = [mask(source.path, source.metadata, n, name) for name in masks]
        return [
            write_sources([source], output, to or source.format, episodes=[part], progress=progress)
            for output, part in zip(outputs, parts, strict=True)
        ]
