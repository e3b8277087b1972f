"""Checks of one episode's numbers: idle and jerky segments, jumps, saturated actions, time stamps."""

from dataclasses import dataclass

import numpy as np

IDLE_SECONDS, IDLE_STEPS = 2.0, 20
"""An idle segment is at least this long; steps count where the rate is unknown."""
IDLE_FRACTION = 0.002
"""Change per step, as a share of a dimension's span, below which nothing moves."""
JERK_SECONDS, JERK_STEPS = 1.0, 10
"""A jerky segment is at least this long."""
JERK_FRACTION = 0.05
"""Change per step, as a share of a dimension's span, from which on a reversal counts."""
JERK_REVERSALS = 0.5
"""Share of steps that reverse; independent random numbers reverse in two thirds of all steps, motion hardly ever."""
JUMP_FRACTION, JUMP_RATIO = 0.25, 10.0
"""A jump moves a state by this share of its range, and by this many times its 95th percentile of changes."""
SATURATED = 0.05
"""Share of steps at one bound of an action dimension from which on it is reported."""
STAMP_GAP, STAMP_JITTER, STAMP_RATE = 1.5, 0.1, 0.02
"""Longest period, standard deviation of the period, and deviation of the mean rate, as shares of the period."""


LARGEST = 1e100
"""Numbers beyond this are damage, and their squares leave the range of float64."""


def first_unusable(array: np.ndarray) -> int | None:
    """First row [N, ...] with a NaN, an infinity or a number beyond `LARGEST`; None when there is none."""
    bad = unusable(array).reshape(len(array), -1).any(axis=1)
    return int(np.argmax(bad)) if bad.any() else None


def unusable(array: np.ndarray) -> np.ndarray:
    """Which numbers are a NaN, an infinity or beyond `LARGEST`."""
    # Narrower types cannot hold such a number, and the comparison would overflow.
    return ~(np.abs(array) <= LARGEST) if array.dtype == np.float64 else ~np.isfinite(array)


@dataclass(frozen=True)
class Spans:
    """What is usual for each column of a dataset [N, D]."""

    span: np.ndarray
    """[D] from the 1st to the 99th percentile; the whole range where that is nothing."""
    full: np.ndarray
    """[D] largest minus smallest."""
    usual_change: np.ndarray
    """[D] 95th percentile of the size of the changes within episodes."""
    binary: np.ndarray
    """[D] bool: at most three different values."""

    def scaled(self, columns: np.ndarray) -> np.ndarray:
        """Columns [T, D] in spans; constant ones as 0."""
        return np.where(self.full > 0, columns / np.where(self.full > 0, self.span, 1), 0)

    @classmethod
    def of(cls, columns: np.ndarray, ends: np.ndarray) -> "Spans":
        low, high = np.quantile(columns, [0.01, 0.99], axis=0)
        full = np.ptp(columns, axis=0)
        changes = np.delete(np.abs(np.diff(columns, axis=0)), ends[:-1] - 1, axis=0)
        usual = np.quantile(changes, 0.95, axis=0) if len(changes) else np.zeros(columns.shape[1])
        binary = np.array([len(np.unique(column)) <= 3 for column in columns.T], dtype=bool)
        return cls(np.where(high > low, high - low, full), full, usual, binary)


def longest_run(flags: np.ndarray) -> tuple[int, int]:
    """(first index, length) of the longest run of True in flags [T]; length 0 when there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    if not len(edges):
        return 0, 0
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(starts[longest]), int(lengths[longest])


def steps_of(seconds: float, steps: int, rate_hz: float | None) -> int:
    """A duration in steps, `steps` where the rate is unknown and never fewer than 5."""
    return max(5, round(seconds * rate_hz)) if rate_hz else steps


def moving(scaled: np.ndarray) -> np.ndarray:
    """[T - 1] bool: whether anything changes from step t to t + 1 of columns [T, D] in spans."""
    return np.asarray((np.abs(np.diff(scaled, axis=0)) > IDLE_FRACTION).any(axis=1))


def idle_segment(columns: np.ndarray, spans: Spans, rate_hz: float | None) -> tuple[int, int] | None:
    """(first step, steps) of the longest time in which neither state nor action [T, D] changes, if it is long."""
    start, length = longest_run(~moving(spans.scaled(columns)))
    return (start, length + 1) if length + 1 >= steps_of(IDLE_SECONDS, IDLE_STEPS, rate_hz) else None


def jerky_segment(columns: np.ndarray, spans: Spans, rate_hz: float | None) -> tuple[int, int, int] | None:
    """(first step, steps, column) of the longest time in which a column [T, D] keeps reversing, if it is long."""
    window = steps_of(JERK_SECONDS, JERK_STEPS, rate_hz)
    if len(columns) < window + 2:
        return None
    change = np.diff(columns, axis=0)
    large = (np.abs(change) > JERK_FRACTION * spans.span) & ~spans.binary
    reversed_ = (change[1:] * change[:-1] < 0) & large[1:] & large[:-1]
    counts = np.cumsum(np.concatenate([np.zeros((1, columns.shape[1]), int), reversed_]), axis=0)
    restless = counts[window:] - counts[:-window] >= JERK_REVERSALS * window
    worst = max(((*longest_run(flags), d) for d, flags in enumerate(restless.T)), key=lambda run: run[1])
    # A window of reversals that begins at t is about the steps t to t + window + 1.
    return (worst[0], worst[1] + window + 1, worst[2]) if worst[1] else None


def jumps(columns: np.ndarray, spans: Spans) -> list[tuple[int, int, float]]:
    """(step, column, change) of the largest jump of every column [T, D] that has one."""
    if len(columns) < 2:
        return []
    change = np.diff(columns, axis=0)
    limit = np.maximum(JUMP_FRACTION * spans.full, JUMP_RATIO * spans.usual_change)
    found = (np.abs(change) > limit) & ~spans.binary
    steps = np.abs(np.where(found, change, 0)).argmax(axis=0)
    return [(int(steps[d]) + 1, int(d), float(change[steps[d], d])) for d in np.flatnonzero(found.any(axis=0))]


def is_wrap(change: float, full: float) -> bool:
    """Whether a jump is that of an angle in radians which goes on at the other end of its circle."""
    return abs(abs(change) - 2 * np.pi) < 0.5 and full < 2 * np.pi + 0.3


def at_bounds(
    column: np.ndarray, low: float | None, high: float | None
) -> tuple[tuple[str, float, np.ndarray], tuple[str, float, np.ndarray]]:
    """For the lower and the upper bound of an action dimension [N]: name, value, and which steps [N] are at it.

    Without declared bounds, the smallest and the largest value are taken: a controller that clips makes many steps
    equal to them.
    """
    bottom, top = (float(column.min()) if low is None else low), (float(column.max()) if high is None else high)
    slack = 1e-6 * max(top - bottom, 1e-12)
    return ("lower", bottom, column <= bottom + slack), ("upper", top, column >= top - slack)


def stamp_problems(stamps: np.ndarray, rate_hz: float | None) -> list[tuple[str, int | None, str]]:
    """(level, step, text) for time stamps [T] in s of one episode."""
    periods = np.diff(stamps)
    if not len(periods):
        return []
    if not np.isfinite(stamps).all():
        return [("error", int(np.argmin(np.isfinite(stamps))), "time stamp is not finite")]
    if (periods <= 0).any():
        step = int(np.argmax(periods <= 0)) + 1
        return [("error", step, f"time does not advance: {stamps[step - 1]:.6g} s, then {stamps[step]:.6g} s")]
    period = 1 / rate_hz if rate_hz else float(np.median(periods))
    found: list[tuple[str, int | None, str]] = []
    longest = int(periods.argmax())
    if periods[longest] > STAMP_GAP * period:
        gaps = int((periods > STAMP_GAP * period).sum())
        found.append(
            ("warning", longest + 1, f"{gaps} gaps, the longest {periods[longest]:.4g} s (period {period:.4g} s)")
        )
    jitter = float(periods.std()) / period
    if jitter > STAMP_JITTER:
        found.append(("warning", None, f"periods vary by {100 * jitter:.0f} % of {period:.4g} s"))
    off = abs(float(periods.mean()) / period - 1)
    if rate_hz and len(periods) >= 10 and off > STAMP_RATE:
        found.append(("warning", None, f"mean rate {1 / periods.mean():.4g} Hz, declared {rate_hz:g} Hz"))
    return found
