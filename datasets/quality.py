"""Scores episodes by how well they agree with the others, in the sense of "Data Quality in Imitation Learning".

Belkhale, Cui and Sadigh (2023, arXiv 2306.02437) name two properties of demonstrations that decide how far a cloned
policy drifts: action divergence, how much actions differ between visits of like states (less is better), and
transition diversity, how differently the world goes on after like states and actions (more covers more, at equal
divergence). The estimators here are ours, by nearest neighbours, and need no trained policy:

- States are all floating-point observations of a step, each dimension divided by its standard deviation, and reduced
  to `PRINCIPAL` principal components where there are more. Angles that wrap are better given as cosine and sine.
- Action divergence of a step is half the mean squared difference between its action and those of its k nearest
  neighbours in state from other episodes, per dimension in units of variance: an estimate of Var(a | s) / Var(a),
  about 0 for a deterministic demonstrator and 1 for actions that have nothing to do with the state.
- Transition diversity of a step is the same number for the change of state, with neighbours in state and action.
- Novelty is the root-mean-square distance per dimension to the neighbours in state: where it is large, no other
  episode has been near and the two numbers above mean little.

The numbers of an episode are means over its steps.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from robopolicy.datasets.motion import first_unusable
from robopolicy.datasets.source import Source
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import ACTION
from robopolicy.progress import progress_bar

NEIGHBOURS = 10
"""k, neighbours per step."""
MAX_STEPS = 100_000
"""Steps that are compared; of larger datasets a random share of every episode, at least `LEAST_STEPS` of each."""
LEAST_STEPS = 10
PRINCIPAL = 10
"""Dimensions in which neighbours are looked for; more would take long and find nothing nearer."""
WIDEST = 4096
"""Neighbours looked at to find k of other episodes; a step with fewer takes those it has."""
_BLOCK = 4_000_000
"""Neighbours held at once."""
By = Literal["divergence", "diversity"]


@dataclass(frozen=True)
class EpisodeQuality:
    """Scores of one episode."""

    episode: int
    steps: int
    divergence: float
    """Mean action divergence; low is good."""
    diversity: float
    """Mean transition diversity; high is good. NaN for an episode of one step."""
    novelty: float
    """Mean distance to the neighbours in state."""


@dataclass(frozen=True)
class Quality:
    """Scores of a dataset."""

    path: str
    steps_used: int
    neighbours: int
    seed: int
    episodes: list[EpisodeQuality]

    def ranking(self, by: By = "divergence") -> list[EpisodeQuality]:
        """Episodes from the best to the worst; those without a number come last."""
        sign = -1 if by == "diversity" else 1
        return sorted(self.episodes, key=lambda e: (not np.isfinite(getattr(e, by)), sign * getattr(e, by), e.episode))

    def best(self, share: float, by: By = "divergence") -> list[int]:
        """Numbers of the best `share` of the episodes, rounded up, in ascending order."""
        if not 0 < share <= 1:
            raise RobopolicyError(f"--keep {share:g}: expected a share of the episodes above 0, at most 1")
        # 0.8 * 5 is a little more than 4 in binary.
        count = int(np.ceil(share * len(self.episodes) - 1e-9))
        return sorted(e.episode for e in self.ranking(by)[:count])

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, None for numbers that do not exist."""
        data = asdict(self)
        for episode in data["episodes"]:
            episode.update({k: None for k, v in episode.items() if isinstance(v, float) and not np.isfinite(v)})
        return data


def assess(source: Source, neighbours: int = NEIGHBOURS, seed: int = 0, progress: bool = True) -> Quality:
    """Scores every episode of a dataset.

    Raises DataError for data without states or actions, with a value that is not finite, or with a single episode.
    """
    states = [f for f in source.features if f.kind == "state" and f.key.startswith("observation.")]
    keys = [f.key for f in states if f.dtype.startswith("float")]
    if ACTION not in source.features or not keys:
        raise DataError(
            f"{source.path}: quality compares 'action' and observations of floats, found {source.features.keys()}"
        )
    if source.n_episodes < 2:
        raise DataError(f"{source.path}: quality compares episodes with each other, found one")
    if neighbours < 1:
        raise RobopolicyError(f"--neighbours {neighbours}: at least 1 is needed")
    parts = []
    share = min(1.0, MAX_STEPS / source.n_steps)
    for number in progress_bar(
        iterable=range(source.n_episodes), desc="quality: reading", unit="episode", delay=1, disable=not progress
    ):
        parts.append(_read(source, number, keys, share, seed))
    state, action, change, owner = (np.concatenate(column) for column in zip(*parts, strict=True))
    x, u = _standardised(state), _standardised(action)
    if not u.shape[1] or not x.shape[1]:
        raise DataError(f"{source.path}: the {'states' if u.shape[1] else 'actions'} never change")
    # The last step of an episode has no change; its neighbours cannot be compared with it either.
    inner = np.isfinite(change).all(axis=1)
    v = _standardised(change[inner])
    near, distance = foreign_neighbours(_reduced(x), owner, neighbours, "states", progress)
    divergence = half_squared_difference(u, near)
    joint = _reduced(np.concatenate([x[inner], u[inner]], axis=1))
    near, _ = foreign_neighbours(joint, owner[inner], neighbours, "transitions", progress)
    diversity = np.full(len(owner), np.nan)
    diversity[inner] = half_squared_difference(v, near) if v.shape[1] else 0.0
    scores = []
    for number in range(source.n_episodes):
        rows = owner == number
        means = [_mean(values[rows]) for values in (divergence, diversity, distance)]
        scores.append(EpisodeQuality(number, int(source.lengths[number]), *means))
    return Quality(str(source.path), len(owner), neighbours, seed, scores)


def _read(
    source: Source, number: int, keys: Sequence[str], share: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """States, actions, changes of state (NaN at the last step) and the episode number, of the chosen steps."""
    arrays = source.read(number, [*keys, ACTION])
    for key, array in arrays.items():
        step = first_unusable(array)
        if step is not None:
            raise DataError(f"{source.path}: episode {number}, step {step}: key {key!r} holds no usable number")
    n = len(arrays[ACTION])
    state = np.concatenate([arrays[k].reshape(n, -1) for k in keys], axis=1, dtype=np.float64)
    change = np.concatenate([np.diff(state, axis=0), np.full((1, state.shape[1]), np.nan)])
    count = min(n, max(LEAST_STEPS, round(share * n)))
    rows = (
        np.sort(np.random.default_rng([seed, number]).choice(n, count, replace=False)) if count < n else np.arange(n)
    )
    action = arrays[ACTION].reshape(n, -1).astype(np.float64)
    return state[rows], action[rows], change[rows], np.full(count, number)


def _standardised(table: np.ndarray) -> np.ndarray:
    """Columns [N, D] that vary, with mean 0 and variance 1."""
    if not len(table):
        return np.zeros((0, 0))
    mean, deviation = table.mean(axis=0), table.std(axis=0)
    # Rounding leaves a constant column of large numbers a spread of its own.
    varies = deviation > 1e-9 * (1 + np.abs(mean))
    return np.asarray((table[:, varies] - mean[varies]) / deviation[varies])


def _reduced(table: np.ndarray) -> np.ndarray:
    """At most `PRINCIPAL` columns that keep distances as well as so many can, per dimension of the table."""
    scaled = table / np.sqrt(max(table.shape[1], 1))
    if table.shape[1] <= PRINCIPAL:
        return scaled
    _, vectors = np.linalg.eigh(scaled.T @ scaled)
    return np.asarray(scaled @ vectors[:, -PRINCIPAL:])


def foreign_neighbours(
    table: np.ndarray, owner: np.ndarray, k: int, what: str = "", progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, k] of the nearest neighbours among rows of other owners, -1 where there are fewer, and their mean
    distance [N].

    A step's own episode is left out, because the steps before and after are near by construction.
    """
    from scipy.spatial import cKDTree

    n = len(table)
    near, mean = np.full((n, k), -1), np.full(n, np.nan)
    if not n or not table.shape[1]:
        return near, mean
    tree, open_rows = cKDTree(table), np.arange(n)
    # So many hold k of other episodes for certain; mostly far fewer do.
    certain = min(n, int(np.unique(owner, return_counts=True)[1].max()) + k, max(WIDEST, k))
    width = min(8 * k, certain)
    with progress_bar(total=n, desc=f"quality: {what}", unit="step", delay=1, disable=not progress) as bar:
        while len(open_rows):
            last = width == certain
            left = []
            for start in range(0, len(open_rows), max(1, _BLOCK // width)):
                rows = open_rows[start : start + max(1, _BLOCK // width)]
                distances, indices = (np.reshape(a, (len(rows), width)) for a in tree.query(table[rows], k=width))
                foreign = owner[indices] != owner[rows, None]
                order = np.argsort(~foreign, axis=1, kind="stable")[:, :k]
                found = np.take_along_axis(foreign, order, axis=1)
                done = (found.sum(axis=1) == k) | last
                some = done & found.any(axis=1)
                near[rows[done], : order.shape[1]] = np.where(found, np.take_along_axis(indices, order, 1), -1)[done]
                kept = np.where(found, np.take_along_axis(distances, order, 1), np.nan)
                mean[rows[some]] = np.nanmean(kept[some], axis=1)
                left.append(rows[~done])
                bar.update(int(done.sum()))
            open_rows, width = np.concatenate(left), certain
    return near, mean


def half_squared_difference(values: np.ndarray, near: np.ndarray) -> np.ndarray:
    """[N] half the mean squared difference of each row [N, D] from its neighbours, over dimensions and neighbours.

    For independent draws this has the variance as its mean. NaN without neighbours.
    """
    total, count = np.zeros(len(values)), np.zeros(len(values))
    for column in near.T:
        known = column >= 0
        total[known] += ((values[known] - values[column[known]]) ** 2).mean(axis=1) / 2
        count += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def format_quality(quality: Quality, by: By, kept: Sequence[int] | None, rows: int = 10) -> str:
    """A table of the worst and the best episodes; `kept` are the numbers that pass, None without a filter."""
    ranking = quality.ranking(by)
    lines = [
        f"{quality.path}: {len(ranking)} episodes, {quality.steps_used:,} steps compared with {quality.neighbours} "
        "neighbours each",
        f"mean action divergence {_mean(np.array([e.divergence for e in ranking])):.3f} (0 consistent, 1 random), "
        f"mean transition diversity {_mean(np.array([e.diversity for e in ranking])):.3f}",
        "",
        f"{'rank':>5} {'episode':>8} {'steps':>6} {'divergence':>11} {'diversity':>10} {'novelty':>8}",
    ]
    shown = (
        range(len(ranking)) if len(ranking) <= 2 * rows else [*range(rows), *range(len(ranking) - rows, len(ranking))]
    )
    for place in shown:
        e = ranking[place]
        drop = "" if kept is None or e.episode in kept else "  dropped"
        numbers = f"{e.divergence:>11.3f} {e.diversity:>10.3f} {e.novelty:>8.3f}"
        lines.append(f"{place + 1:>5} {e.episode:>8} {e.steps:>6} {numbers}{drop}")
        if len(ranking) > 2 * rows and place == rows - 1:
            lines.append(f"{'...':>5}")
    return "\n".join(lines)


def plot_png(quality: Quality, by: By, kept: Sequence[int] | None) -> bytes:
    """Scores from the best to the worst episode, and divergence against diversity, as a PNG."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ranking = quality.ranking(by)
    keep = np.array([kept is None or e.episode in kept for e in ranking])
    divergence, diversity = (np.array([getattr(e, name) for e in ranking]) for name in ("divergence", "diversity"))
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    places = np.arange(1, len(ranking) + 1)
    for part, colour, label in (
        (keep, "#1f6fb2", "kept" if kept is not None else "episode"),
        (~keep, "#c2571a", "dropped"),
    ):
        if part.any():
            left.scatter(places[part], (divergence if by == "divergence" else diversity)[part], s=14, c=colour)
            right.scatter(divergence[part], diversity[part], s=14, c=colour, label=label)
    left.set(
        xlabel=f"rank by {by}, best first", ylabel=f"mean {'action' if by == 'divergence' else 'transition'} {by}"
    )
    right.set(xlabel="mean action divergence", ylabel="mean transition diversity")
    for e in ranking[-3:]:
        right.annotate(
            f"episode {e.episode}", (e.divergence, e.diversity), fontsize=8, xytext=(4, 4), textcoords="offset points"
        )
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(True, color="#dde3ea", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(bottom=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
