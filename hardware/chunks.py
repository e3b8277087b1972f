"""Executes time-stamped action chunks: which target holds at a moment, whatever came late, twice or not at all.

A chunk says what to do from the moment of its observation on: row k is for `stamp + times[k]`. The newest observation
wins; rows whose time has passed when a chunk arrives are skipped, which makes up for the latency of the policy. No
clock and no ROS here: every call names the time, in seconds of one steady clock.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from robopolicy.errors import RobopolicyError

Interpolation = Literal["hold", "hermite"]
MAX_ROWS = 1000
STAMP_TOLERANCE = 0.02
"""s: one stamp, carried over from another clock twice, comes out so differently at worst."""


@dataclass(frozen=True)
class Chunk:
    """Targets of n joints. RobopolicyError for what cannot be followed."""

    session: str
    """Which run of a policy it comes from."""
    number: int
    """Increases within a session."""
    stamp: float
    """Time of the observation it was computed from."""
    times: np.ndarray
    """When each row holds, seconds after `stamp`, increasing [K]."""
    rows: np.ndarray
    """[K, n]"""

    def __post_init__(self) -> None:
        k = len(self.times)
        if not 1 <= k <= MAX_ROWS or self.times.ndim != 1 or self.rows.ndim != 2 or len(self.rows) != k:
            shapes = f"times {list(self.times.shape)} and rows {list(self.rows.shape)}"
            raise RobopolicyError(f"a chunk has 1 to {MAX_ROWS} rows, each with its time; found {shapes}")
        if not np.isfinite(self.times).all() or self.times[0] < 0 or not (np.diff(self.times) > 0).all():
            raise RobopolicyError(f"times of a chunk start at 0 or later and increase; found {_few(self.times)}")
        if not np.isfinite(self.rows).all():
            row, joint = np.argwhere(~np.isfinite(self.rows))[0]
            raise RobopolicyError(f"row {row} of the chunk has {self.rows[row, joint]} for joint {joint}")
        if not np.isfinite(self.stamp):
            raise RobopolicyError(f"the chunk's stamp is {self.stamp}")

    def end(self, single: float) -> float:
        """When the last row ends: it lasts as long as the one before it, a single one `single` after the stamp."""
        if len(self.times) == 1:
            return self.stamp + max(float(self.times[0]), single)
        return self.stamp + float(2 * self.times[-1] - self.times[-2])

    def at(self, time: float, interpolation: Interpolation, smooth: np.ndarray) -> np.ndarray:
        """The target [n] at `time`, not before the first row; joints that are not `smooth` are held in any case."""
        t = time - self.stamp
        k = max(int(np.searchsorted(self.times, t, side="right")) - 1, 0)
        held = self.rows[k]
        if interpolation == "hold" or k == len(self.times) - 1:
            return held.copy()
        step = self.times[k + 1] - self.times[k]
        s = min(max((t - self.times[k]) / step, 0.0), 1.0)
        # Cubic Hermite: through the rows, with velocities that do not jump there.
        here, there = self._slope(k) * step, self._slope(k + 1) * step
        p0, p1 = self.rows[k], self.rows[k + 1]
        curve = (
            (1 + 2 * s) * (1 - s) ** 2 * p0
            + s * (1 - s) ** 2 * here
            + s**2 * (3 - 2 * s) * p1
            + s**2 * (s - 1) * there
        )
        return np.where(smooth, curve, held)

    def _slope(self, k: int) -> np.ndarray:
        """Velocity at row k by central differences, one-sided at both ends."""
        before, after = max(k - 1, 0), min(k + 1, len(self.times) - 1)
        slope: np.ndarray = (self.rows[after] - self.rows[before]) / (self.times[after] - self.times[before])
        return slope


@dataclass
class ChunkExecutor:
    """Takes chunks with `offer` as they arrive and gives the target of a moment with `target`."""

    smooth: np.ndarray
    """Joints that may be averaged and interpolated, bool [n]; the others (grippers) take values of rows only."""
    interpolation: Interpolation = "hermite"
    blend_s: float = 0.0
    """Linear cross-fade from the chunk before, starting when a chunk arrives; 0 replaces at once."""
    max_age_s: float = 0.5
    """Chunks of older observations are refused."""
    horizon_s: float = 2.0
    """A chunk is followed at most so long after its observation."""
    counts: Counter[str] = field(default_factory=Counter)
    """accepted; refused as stale, future, duplicate, reordered, older, foreign, late (no row left); of the accepted:
    blended, unused (replaced before one row was due), rows skipped; and how often all ran dry."""
    refusal: str = ""
    """Why the latest offer was refused, in words."""

    def __post_init__(self) -> None:
        if not (self.blend_s >= 0 and self.max_age_s > 0 and self.horizon_s > 0):
            raise RobopolicyError(
                f"chunks: blend_s {self.blend_s} should not be negative, max_age_s {self.max_age_s} and horizon_s "
                f"{self.horizon_s} should be above 0"
            )
        self.clear()

    def clear(self) -> None:
        """Forgets all chunks, and whom they came from."""
        self._now: Chunk | None = None
        self._before: Chunk | None = None
        self._since = self._heard = -np.inf
        self._used = self._dry = False
        self._session, self._number, self._stamp = "", -1, -np.inf

    @property
    def session(self) -> str:
        """The run of a policy that is followed; empty before the first chunk."""
        return self._session

    def offer(self, now: float, chunk: Chunk) -> bool:
        """Takes a chunk that arrived at `now`, or refuses it with a count and a `refusal`.

        A second policy is refused while the first one still speaks: `max_age_s` of silence ends a session.
        """
        if chunk.rows.shape[1] != len(self.smooth):
            raise RobopolicyError(f"a chunk of {chunk.rows.shape[1]} joints, expected {len(self.smooth)}")
        known = chunk.session == self._session
        if not known and now - self._heard <= self.max_age_s:
            return self._refuse("foreign", f"session {chunk.session!r} while {self._session!r} is followed")
        if known and chunk.number == self._number:
            return self._refuse("duplicate", f"number {chunk.number} again")
        if known and chunk.number < self._number:
            return self._refuse("reordered", f"number {chunk.number} after {self._number}")
        if chunk.stamp > now:
            return self._refuse("future", f"an observation of {chunk.stamp - now:.3f} s from now")
        if now - chunk.stamp > self.max_age_s:
            return self._refuse("stale", f"an observation of {now - chunk.stamp:.3f} s ago, at most {self.max_age_s}")
        if known and chunk.stamp < self._stamp - STAMP_TOLERANCE:
            return self._refuse("older", f"an observation {self._stamp - chunk.stamp:.3f} s before the last one")
        latest = max(self._stamp, chunk.stamp) if known else chunk.stamp
        self._session, self._number, self._stamp, self._heard = chunk.session, chunk.number, latest, now
        if self._end(chunk) <= now:
            return self._refuse("late", f"its last row was for {now - self._end(chunk):.3f} s ago")
        self._take(now, chunk)
        return True

    def _take(self, now: float, chunk: Chunk) -> None:
        self.counts["accepted"] += 1
        # Of the rows that are over, that is all before the one in force now.
        self.counts["rows skipped"] += max(int(np.searchsorted(chunk.times, now - chunk.stamp, side="right")) - 1, 0)
        old = self._now
        if old is not None and not self._used:
            self.counts["unused"] += 1
        self._before = old if old is not None and self._end(old) > now else None
        starts = chunk.stamp + float(chunk.times[0])
        if self._before is not None and self.blend_s > 0:
            self.counts["blended"] += 1
        self._now, self._since, self._used, self._dry, self.refusal = chunk, max(now, starts), False, False, ""

    def _refuse(self, reason: str, text: str) -> bool:
        self.counts[reason] += 1
        self.refusal = f"{reason}: {text}"
        return False

    def _end(self, chunk: Chunk) -> float:
        return min(chunk.end(self.max_age_s), chunk.stamp + self.horizon_s)

    def target(self, now: float) -> np.ndarray | None:
        """The target [n] at `now`; None where no chunk has a row for it."""
        chunk, before = self._now, self._before
        if chunk is None:
            return None
        if before is not None and now >= min(self._end(before), self._since + self.blend_s):
            before = self._before = None
        old = None if before is None else before.at(now, self.interpolation, self.smooth)
        if now < self._since:
            return old
        if now >= self._end(chunk):
            self.counts["dry"] += not self._dry
            self._dry = True
            return None
        self._used = True
        new = chunk.at(now, self.interpolation, self.smooth)
        if old is None:
            return new
        share = (now - self._since) / self.blend_s
        return np.where(self.smooth, old + share * (new - old), new)

    def remaining(self, now: float) -> float:
        """Seconds until the targets run dry, 0 when they have."""
        return 0.0 if self._now is None else max(0.0, self._end(self._now) - now)


def _few(values: np.ndarray) -> str:
    text = ", ".join(f"{v:.4g}" for v in values[:6])
    return f"[{text}{', ...' if len(values) > 6 else ''}]"
