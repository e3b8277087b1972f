"""Terrains as height fields: square tiles of one kind and level, easiest at level 0, the robot starts in the middle.

Sizes are those of the reference locomotion code: slope 0.4 l, roughness 0.01 + 0.07 l m, steps 0.05 + 0.18 l m of
0.30 m depth, blocks 0.05 + 0.1 l m, with l = level / 10.
"""

from typing import Literal

import numpy as np

from robopolicy.errors import RobopolicyError, unknown

Kind = Literal["slope", "rough", "stairs_up", "stairs_down", "blocks"]
KINDS: tuple[Kind, ...] = ("slope", "rough", "stairs_up", "stairs_down", "blocks")
SHARES: dict[str, tuple[tuple[Kind, ...], tuple[float, ...]]] = {
    "mixed": (KINDS, (0.1, 0.2, 0.3, 0.3, 0.1)),
    "slope": (("slope",), (1.0,)),
    "rough": (("rough",), (1.0,)),
    "stairs": (("stairs_up", "stairs_down"), (0.5, 0.5)),
    "blocks": (("blocks",), (1.0,)),
}
"""What a named terrain consists of, and in which shares of the robots."""
LEVELS = 10
SIDE = 8.0
"""Metres a side of what a robot may walk on; the tile goes on a little, for the legs at its edge."""
MARGIN = 0.6
CELL = 0.05
POINTS = round((SIDE + 2 * MARGIN) / CELL) + 1
FIELD = (POINTS - 1) * CELL
SPAN = 8.0
"""Range of heights that a tile may have, in metres, half of it below zero."""
PLATFORM = 1.0
"""Metres from the middle to where a slope or the first step begins."""
TREAD = 0.3


def tile(kind: Kind, level: int, rng: np.random.Generator) -> np.ndarray:
    """Heights [POINTS, POINTS] in metres (rows along y, columns along x) of one tile, 0 in the middle.

    Raises RobopolicyError for a level outside 0..9 and an unknown kind.
    """
    if kind not in KINDS:
        raise unknown("terrain", kind, KINDS)
    if not 0 <= level < LEVELS:
        raise RobopolicyError(f"terrain level {level} is outside 0..{LEVELS - 1}")
    steepness = level / LEVELS
    axis = np.linspace(-FIELD / 2, FIELD / 2, POINTS)
    distance = np.maximum(abs(axis)[:, None], abs(axis)[None, :])
    beyond = np.maximum(distance - PLATFORM, 0.0)
    sign = rng.choice((-1.0, 1.0))
    if kind == "slope":
        heights = sign * 0.4 * steepness * beyond
    elif kind == "rough":
        rough = rng.uniform(-1, 1, (POINTS, POINTS)) * (0.01 + 0.07 * steepness)
        heights = sign * 0.2 * steepness * beyond + rough
    elif kind == "blocks":
        heights = _blocks(0.05 + 0.1 * steepness, axis, rng)
    else:
        rise = (0.05 + 0.18 * steepness) * (1 if kind == "stairs_up" else -1)
        # Half a cell keeps rounding from deciding on which side of an edge a point lies.
        heights = rise * np.ceil((beyond - CELL / 2) / TREAD).clip(0)
    return np.asarray(heights - heights[POINTS // 2, POINTS // 2], np.float32)


def _blocks(height: float, axis: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    heights = np.zeros((POINTS, POINTS))
    for _ in range(60):
        centre, half = rng.uniform(-FIELD / 2, FIELD / 2, 2), rng.uniform(0.25, 1.0, 2)
        rows, columns = (abs(axis - c) <= h for c, h in zip(centre, half, strict=True))
        heights[np.ix_(rows, columns)] = rng.choice((-1.0, -0.5, 0.5, 1.0)) * height
    middle = abs(axis) <= PLATFORM / 2
    heights[np.ix_(middle, middle)] = 0
    return heights


def next_levels(
    levels: np.ndarray, travelled: np.ndarray, commanded: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The curriculum: levels [K] int of the next episodes.

    Up after half a tile `travelled` [K] (metres from the start), down after less than half of the distance that was
    `commanded` [K]; who passes the last level gets a random one.
    """
    up = travelled > SIDE / 2
    moved = levels + up - (~up & (travelled < 0.5 * commanded))
    return np.where(moved >= LEVELS, rng.integers(0, LEVELS, len(levels)), np.maximum(moved, 0))


class Ground:
    """The tiles under N robots: which kind and level each has, and heights below any point."""

    def __init__(self, name: str, n: int, seed: int, variants: int = 2) -> None:
        """Raises RobopolicyError for an unknown terrain."""
        if name not in SHARES:
            raise unknown("terrain", name, ["flat", *SHARES])
        kinds, shares = SHARES[name]
        rng = np.random.default_rng([seed, 0x7E44])
        self.tiles = np.stack(
            [[[tile(kind, level, rng) for _ in range(variants)] for level in range(LEVELS)] for kind in kinds]
        )
        edges = np.round(np.cumsum(shares) * n)
        self.kinds = np.searchsorted(edges, np.arange(n), side="right").clip(max=len(kinds) - 1)
        self.levels = np.zeros(n, np.int64)
        self.variants = np.arange(n) % variants
        self.heights = self.tiles[self.kinds, self.levels, self.variants]

    def lay(self, i: int) -> np.ndarray:
        """Heights [POINTS, POINTS] that robot i's kind and present level ask for; `under` uses them from now on."""
        self.heights[i] = self.tiles[self.kinds[i], self.levels[i], self.variants[i]]
        return self.heights[i]

    def under(self, rows: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Heights [K, P] at x, y [K, P] in metres from the middles of the tiles of robots `rows` [K]."""
        column = np.clip(np.rint((x + FIELD / 2) / CELL), 0, POINTS - 1).astype(np.int32)
        row = np.clip(np.rint((y + FIELD / 2) / CELL), 0, POINTS - 1).astype(np.int32)
        return self.heights[rows[:, None], row, column]
