"""Action chunks with time stamps: which row belongs to which control step, and how overlapping chunks are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STRATEGIES: tuple[str, ...] = ("receding", "ensemble", "realtime")
"""Ways to follow chunks; see `PolicyRunner`."""


@dataclass(frozen=True)
class Chunk:
    """Actions [H, D_a] placed on the step clock of one environment."""

    actions: np.ndarray
    origin: int
    """Step that row 0 belongs to."""
    arrival: int
    """First step at which the chunk may be executed: the step of its observation plus the latency."""

    def covers(self, step: int) -> bool:
        return self.arrival <= step and 0 <= step - self.origin < len(self.actions)

    def at(self, step: int) -> np.ndarray:
        """The row [D_a] of this step."""
        return self.actions[step - self.origin]

    def expired(self, step: int) -> bool:
        """True once no row is left for `step` or any later one."""
        return step - self.origin >= len(self.actions)


def prefix_weights(delay: int, covered: int, rows: int) -> np.ndarray:
    """How firmly each of `rows` actions from the present on is committed, [rows] in 0..1 (Black et al. 2025, eq. 5).

    The first `delay` rows will be executed before a chunk asked for now can arrive: 1. The others that the chunk
    under way covers, up to `covered`, decay with c (e^c - 1) / (e - 1), where c falls linearly to 0 behind them.
    """
    place = np.arange(rows)
    c = np.clip((covered - place) / (covered - delay + 1), 0.0, 1.0) if covered >= delay else np.zeros(rows)
    soft = c * np.expm1(c) / np.expm1(1.0)
    return np.where(place < min(delay, covered), 1.0, np.where(place < covered, soft, 0.0))


def newest(chunks: Sequence[Chunk], step: int) -> np.ndarray | None:
    """Receding horizon: the row of the most recently requested chunk that has arrived; None when there is none.

    `chunks` is in the order of the requests.
    """
    for chunk in reversed(chunks):
        if chunk.covers(step):
            return chunk.at(step)
    return None


def ensemble(chunks: Sequence[Chunk], step: int, decay: float) -> np.ndarray | None:
    """Temporal ensemble of ACT (Zhao et al. 2023, section IV-B): the weighted mean of all rows for this step.

    Weights are exp(-decay * i), i = 0 for the oldest chunk: a larger `decay` gives newer chunks less say.
    """
    rows = [c.at(step) for c in chunks if c.covers(step)]
    if not rows:
        return None
    weights = np.exp(-decay * np.arange(len(rows)))
    return np.average(np.stack(rows), axis=0, weights=weights)
