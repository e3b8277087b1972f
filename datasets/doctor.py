"""Looks for what makes a dataset train badly: damage, bad recordings, an action space that is not the declared one.

Episodes are read one at a time; kept are the low-dimensional columns, never images. Thresholds are the constants of
this module, `motion`, `cameras` and `action_space`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robopolicy.datasets import motion
from robopolicy.datasets.action_space import Guess, Signals, contradictions, guess_action_space
from robopolicy.datasets.cameras import camera_problems
from robopolicy.datasets.detect import open_source
from robopolicy.datasets.rotations import rotation_groups, sign_flips
from robopolicy.datasets.source import Source
from robopolicy.errors import DataError
from robopolicy.features import TASK_INDEX, Feature
from robopolicy.progress import progress_bar

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
SHORT_STEPS, SHORT_SHARE = 10, 0.1
"""An episode is very short below this many steps, or below this share of the median length."""
CONFIDENT = 0.6
"""Confidence from which on a guess about the action space that contradicts the declared one is an error."""
OUTSIDE = 0.01
"""Share of the declared range by which a value may lie outside it."""
NEAR = 0.01
"""Root-mean-square distance, in standard deviations, below which two episodes are near-duplicates."""
SKETCH = 16
"""Evenly spaced steps of an episode that near-duplicates are looked for with."""
SHOWN = 5
"""Findings of one check that the text lists; JSON has all."""
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing."""

    level: Level
    check: str
    message: str
    key: str | None = None
    episode: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        place = [f"episode {self.episode}"] if self.episode is not None else []
        place += [f"step {self.step}"] if self.step is not None else []
        place += [self.key] if self.key else []
        return f"{', '.join(place)}: {self.message}" if place else self.message


@dataclass
class Diagnosis:
    """All findings about one dataset."""

    path: str
    format: str
    n_episodes: int
    n_steps: int
    rate_hz: float | None
    guesses: list[Guess] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def count(self, level: Level) -> int:
        return sum(f.level == level for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self) | {"counts": {level: self.count(level) for level in LEVELS}}

    def add(
        self,
        level: Level,
        check: str,
        message: str,
        *,
        key: str | None = None,
        episode: int | None = None,
        step: int | None = None,
    ) -> None:
        """Appends one finding."""
        self.findings.append(Finding(level, check, message, key, episode, step))


def diagnose(path: Path, images: bool = True, progress: bool = True) -> Diagnosis:
    """Examines the dataset at `path`; `images` False skips the cameras.

    Damage inside an episode is a finding and the others are examined all the same. Raises DataError for a dataset that
    cannot even be opened.
    """
    with open_source(path) as source:
        found = Diagnosis(str(path), source.format, source.n_episodes, source.n_steps, source.features.rate_hz)
        for note in source.notes:
            found.add("info", "notes", note)
        episodes = _read_numbers(source, found, progress)
        _check_lengths(source, found)
        if episodes:
            columns = _Columns(source, episodes)
            _check_ranges(columns, found)
            _check_motion(columns, found)
            _check_duplicates(columns, found)
            _check_action_space(columns, found)
            if images:
                _check_cameras(source, columns, found, progress)
    order = {level: i for i, level in enumerate(LEVELS)}
    found.findings.sort(key=lambda f: (order[f.level], f.check, -1 if f.episode is None else f.episode))
    return found


def _numeric(feature: Feature) -> bool:
    return feature.kind != "image" and feature.dtype != "string"


def _read_numbers(source: Source, found: Diagnosis, progress: bool) -> dict[int, Arrays]:
    """Low-dimensional arrays of all readable episodes with finite values; the others are findings."""
    keys = [f.key for f in source.features if _numeric(f)]
    episodes = {}
    for number in _bar(range(source.n_episodes), "numbers", progress):
        try:
            arrays = source.read(number, keys)
            stamps = source.stamps(number)
        except DataError as error:
            found.add("error", "unreadable", str(error), episode=number)
            continue
        finite = True
        for key, array in arrays.items():
            step = motion.first_unusable(array)
            if step is not None:
                finite = False
                bad = array[motion.unusable(array)]
                text = f"{len(bad)} values that are no usable number, the first {bad[0]}"
                found.add("error", "not finite", text, key=key, episode=number, step=step)
        if TASK_INDEX in arrays and source.tasks:
            wrong = (arrays[TASK_INDEX] < 0) | (arrays[TASK_INDEX] >= len(source.tasks))
            if wrong.any():
                text = f"instruction {arrays[TASK_INDEX][wrong][0]}, but there are {len(source.tasks)}"
                found.add("error", "language", text, key=TASK_INDEX, episode=number, step=int(np.argmax(wrong)))
        if stamps is not None:
            for level, at, text in motion.stamp_problems(np.asarray(stamps, np.float64), source.features.rate_hz):
                found.add(level, "time stamps", text, episode=number, step=at)  # type: ignore[arg-type]
        if finite:
            episodes[number] = arrays
    return episodes


def _bar(items: range | list[int], what: str, progress: bool) -> Any:
    return progress_bar(iterable=items, desc=f"doctor: {what}", unit="episode", delay=1, disable=not progress)


def _check_lengths(source: Source, found: Diagnosis) -> None:
    least = max(SHORT_STEPS, SHORT_SHARE * float(np.median(source.lengths)))
    for number in np.flatnonzero(source.lengths < least):
        found.add("warning", "short", f"{source.lengths[number]} steps only", episode=int(number))


class _Columns:
    """The low-dimensional keys of the readable episodes as one table of float64 numbers per kind."""

    def __init__(self, source: Source, episodes: dict[int, Arrays]) -> None:
        self.source, self.numbers = source, list(episodes)
        """Numbers of the episodes in the tables."""
        self.ends = np.cumsum(source.lengths[self.numbers])
        numeric = [f for f in source.features if _numeric(f)]
        self.flat = {
            f.key: np.concatenate([a[f.key].reshape(len(a[f.key]), -1) for a in episodes.values()]) for f in numeric
        }
        """Key to [N, D] in the key's own dtype."""
        self.state_keys = [f.key for f in numeric if f.kind == "state" and f.key.startswith("observation.")]
        self.action_keys = [f.key for f in numeric if f.kind == "action"]
        self.states, self.state_names = self._table(self.state_keys)
        self.actions, self.action_names = self._table(self.action_keys)

    def _table(self, keys: list[str]) -> tuple[np.ndarray, list[str]]:
        floats = [k for k in keys if self.flat[k].dtype.kind in "fiu"]
        names = []
        for key in floats:
            said = self.source.features[key].names
            names += [f"{key}[{i}]" + (f" {said[i]}" if said else "") for i in range(self.flat[key].shape[1])]
        if not floats:
            return np.zeros((int(self.ends[-1]), 0)), []
        return np.concatenate([self.flat[k] for k in floats], axis=1, dtype=np.float64), names

    def slices(self) -> Iterator[tuple[int, slice]]:
        """(episode number, rows) of every episode."""
        start = 0
        for number, end in zip(self.numbers, self.ends, strict=True):
            yield number, slice(start, int(end))
            start = int(end)

    def place(self, row: int) -> dict[str, int]:
        """The episode and step of a row, as keyword arguments of `Diagnosis.add`."""
        i = int(np.searchsorted(self.ends, row, side="right"))
        return {"episode": self.numbers[i], "step": row - int(self.ends[i - 1] if i else 0)}


def _check_ranges(columns: _Columns, found: Diagnosis) -> None:
    features = columns.source.features
    for key, values in columns.flat.items():
        feature = features[key]
        constant = np.flatnonzero((values == values[0]).all(axis=0))
        if len(constant) and len(values) > 1 and values.dtype.kind == "f":
            all_of_it = len(constant) == values.shape[1]
            level: Level = "info" if feature.kind != "action" else "error" if all_of_it else "warning"
            which = "every dimension" if all_of_it else f"dimensions {', '.join(map(str, constant[:8]))}"
            found.add(level, "constant", f"{which} never changes" if all_of_it else f"{which} never change", key=key)
        if feature.low and feature.high:
            low, high = np.array(feature.low), np.array(feature.high)
            slack = OUTSIDE * (high - low)
            outside = (values < low - slack) | (values > high + slack)
            if outside.any():
                row = int(outside.any(axis=1).argmax())
                d = int(outside[row].argmax())
                found.add(
                    "error" if feature.kind == "action" else "warning",
                    "outside bounds",
                    f"{int(outside.any(axis=1).sum())} steps outside the declared bounds, the first with "
                    f"{values[row, d]:.4g} in dimension {d}, declared {low[d]:g} to {high[d]:g}",
                    key=key,
                    **columns.place(row),
                )
    for key in columns.action_keys:
        _check_saturation(columns, features[key], found)
    success = columns.flat.get("next.success")
    if success is not None and not success.any():
        found.add("info", "success", "no step of any episode is marked as a success", key="next.success")


def _check_saturation(columns: _Columns, feature: Feature, found: Diagnosis) -> None:
    values = columns.flat[feature.key].astype(np.float64)
    for d in range(values.shape[1]):
        column = values[:, d]
        if len(np.unique(column)) <= 3:
            continue
        bounds = (feature.low[d], feature.high[d]) if feature.low and feature.high else (None, None)
        for side, bound, at in motion.at_bounds(column, *bounds):
            if at.mean() > motion.SATURATED:
                shares = {number: float(at[rows].mean()) for number, rows in columns.slices()}
                worst = max(shares, key=lambda number: shares[number])
                found.add(
                    "warning",
                    "saturated",
                    f"dimension {d} is at its {side} bound {bound:.4g} in {100 * at.mean():.1f} % of all steps, most "
                    f"in episode {worst} ({100 * shares[worst]:.0f} %)",
                    key=feature.key,
                )


def _check_motion(columns: _Columns, found: Diagnosis) -> None:
    rate = columns.source.features.rate_hz
    both = np.concatenate([columns.states, columns.actions], axis=1)
    spans, state_spans = (motion.Spans.of(table, columns.ends) for table in (both, columns.states))
    names = columns.state_names + columns.action_names
    quaternions = [g for g in rotation_groups(columns.states) if g.stop - g.start == 4]
    for number, rows in columns.slices():
        # Without a state, a constant action may well be a motion.
        idle = motion.idle_segment(both[rows], spans, rate) if columns.states.shape[1] else None
        if idle:
            text = f"neither state nor action changes for {idle[1]} steps{_seconds(idle[1], rate)}"
            found.add("warning", "idle", text, episode=number, step=idle[0])
        jerky = motion.jerky_segment(both[rows], spans, rate) if both.shape[1] else None
        if jerky:
            text = f"{names[jerky[2]]} keeps reversing for {jerky[1]} steps{_seconds(jerky[1], rate)}"
            found.add("warning", "jerky", text, episode=number, step=jerky[0])
        flips = {g.start: sign_flips(columns.states[rows, g.start : g.stop]) for g in quaternions}
        flips = {start: steps for start, steps in flips.items() if len(steps)}
        for start, steps in flips.items():
            text = f"{columns.state_names[start]} and the next three change from q to -q in {len(steps)} steps"
            found.add("info", "quaternion sign", text, episode=number, step=int(steps[0]))
        for step, d, change in motion.jumps(columns.states[rows], state_spans):
            if any(start <= d < start + 4 for start in flips):
                continue
            wrap = motion.is_wrap(change, float(state_spans.full[d]))
            text = f"{columns.state_names[d]} jumps by {change:.4g} in one step" + (
                ", as an angle wraps" if wrap else ""
            )
            found.add("info" if wrap else "warning", "wrap" if wrap else "jump", text, episode=number, step=step)


def _seconds(steps: int, rate_hz: float | None) -> str:
    return f" ({steps / rate_hz:.1f} s)" if rate_hz else ""


def _check_duplicates(columns: _Columns, found: Diagnosis) -> None:
    """Equal bytes, and among the rest the nearest neighbour in evenly spaced standardised states and actions."""
    from scipy.spatial import cKDTree

    if not columns.flat:
        return
    first: dict[str, int] = {}
    sketches, unique, lengths = [], [], []
    both = np.concatenate([columns.states, columns.actions], axis=1)
    scale = both.std(axis=0)
    # Rounding leaves a constant column with a spread of its own.
    varying = scale > 1e-9 * (1 + np.abs(both).max(axis=0))
    for number, rows in columns.slices():
        digest = hashlib.sha256()
        for key, values in columns.flat.items():
            digest.update(f"{key} {values[rows].shape}".encode())
            digest.update(np.ascontiguousarray(values[rows]).data)
        original = first.setdefault(digest.hexdigest(), number)
        if original != number:
            found.add("warning", "duplicate", f"is the same as episode {original}", episode=number)
        else:
            at = rows.start + np.rint(np.linspace(0, rows.stop - rows.start - 1, SKETCH)).astype(int)
            sketches.append((both[at][:, varying] / scale[varying]).ravel())
            unique.append(number)
            lengths.append(rows.stop - rows.start)
    if len(unique) < 2 or not varying.any():
        return
    table = np.array(sketches) / np.sqrt(len(sketches[0]))
    distances, neighbours = cKDTree(table).query(table, k=2, distance_upper_bound=NEAR)
    for i in np.flatnonzero(np.isfinite(distances[:, 1])):
        # Among equal distances the tree may name the episode itself second.
        j = next((int(n) for n in neighbours[i] if n not in (i, len(unique))), None)
        if j is not None and unique[j] < unique[i] and abs(lengths[i] - lengths[j]) <= 0.05 * lengths[i]:
            text = f"is nearly the same as episode {unique[j]} (distance {distances[i, 1]:.2g} standard deviations)"
            found.add("warning", "near-duplicate", text, episode=unique[i])


def _check_action_space(columns: _Columns, found: Diagnosis) -> None:
    if len(columns.action_keys) != 1 or not columns.action_names:
        return
    moving_keys = [i for i, name in enumerate(columns.state_names) if not _is_scene(name)]
    signals = Signals(
        columns.actions,
        columns.states[:, moving_keys],
        columns.action_names,
        [columns.state_names[i] for i in moving_keys],
        columns.ends,
    )
    found.guesses = guess_action_space(signals)
    control = columns.source.features[columns.action_keys[0]].control
    key = columns.action_keys[0]
    if control is None:
        found.add("info", "action space", "the dataset does not declare what its actions mean", key=key)
        return
    for line in contradictions(found.guesses, control, CONFIDENT):
        found.add("error", "action space", line, key=key)


def _is_scene(name: str) -> bool:
    """Whether a state describes objects rather than the robot: what approaches an object correlates with its place."""
    return any(word in name for word in ("environment", "object", "goal", "keypoint"))


def _check_cameras(source: Source, columns: _Columns, found: Diagnosis, progress: bool) -> None:
    table = columns.states if columns.states.shape[1] else columns.actions
    spans = motion.Spans.of(table, columns.ends)
    slices = dict(columns.slices())
    for camera in source.features.of_kind("image"):
        for number in _bar(columns.numbers, camera.key, progress):
            try:
                frames = source.read(number, [camera.key])[camera.key]
            except DataError as error:
                found.add("error", "unreadable", str(error), key=camera.key, episode=number)
                continue
            for problem in camera_problems(frames, spans.scaled(table[slices[number]]), source.features.rate_hz):
                extent = "the whole episode" if problem.whole else f"{problem.steps} steps"
                text = f"{problem.kind} for {extent}" + (" while the robot moves" if problem.kind == "frozen" else "")
                level: Level = "error" if problem.whole else "warning"
                found.add(level, "camera", text, key=camera.key, episode=number, step=problem.start)


def format_diagnosis(found: Diagnosis) -> str:
    """The findings as text of about 100 columns, at most `SHOWN` per check."""
    rate = f", {found.rate_hz:g} Hz" if found.rate_hz else ", rate unknown"
    lines = [f"{found.path}: {found.n_episodes:,} episodes, {found.n_steps:,} steps{rate}"]
    if found.guesses:
        lines += ["", "action space, judged from the data (confidence)"]
        lines += [f"  {g.what:<9} {g.value} ({g.confidence:.2f}): {g.evidence}" for g in found.guesses]
    for level in LEVELS:
        of_level = [f for f in found.findings if f.level == level]
        if of_level:
            lines += ["", {"error": "errors", "warning": "warnings", "info": "notes"}[level]]
        for check in dict.fromkeys(f.check for f in of_level):
            same = [f for f in of_level if f.check == check]
            lines += [f"  {check}: {f}" for f in same[:SHOWN]]
            if len(same) > SHOWN:
                lines.append(f"  {check}: and {len(same) - SHOWN} more")
    counts = [f"{found.count(lv)} {lv}{'' if found.count(lv) == 1 else 's'}" for lv in ("error", "warning")]
    lines += ["", f"{', '.join(counts)}, {found.count('info')} notes"]
    return "\n".join(lines)
