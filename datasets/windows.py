"""Training windows: a few observation steps and a chunk of actions around every step of every episode."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from robopolicy.datasets.episodes import Episodes
from robopolicy.errors import DataError, RobopolicyError, did_you_mean, unknown
from robopolicy.features import ACTION

ACTION_IS_PAD = "action_is_pad"
GOAL_IS_PAD = "goal_is_pad"
GOAL_CHOICES = ("uniform", "tail", "next")


@dataclass(frozen=True)
class WindowShape:
    """Which rows belong to the window of a current step t of an episode of length L.

    Observations are rows t - n_obs_steps + 1 .. t, actions rows t + first .. t + first + horizon - 1. Rows outside
    the episode repeat its first or last row.
    """

    n_obs_steps: int
    """T_o."""
    horizon: int
    """H: rows of the action chunk."""
    first: int = 0
    """Row of the first action relative to t: 1 - n_obs_steps in Diffusion Policy (Chi et al. 2023), else 0."""
    drop_last: int = 0
    """Current steps left out at the end of every episode, because their chunks are mostly padding.

    Diffusion Policy leaves out horizon - n_action_steps - n_obs_steps + 1; LeRobot says drop_n_last_frames.
    """
    drop_first: int = 0
    """Current steps left out at the start of every episode, because their histories repeat the first observation."""
    extra_last: int = 0
    """Current steps added after the end of every episode, whose windows repeat its last row (robomimic)."""

    def __post_init__(self) -> None:
        if self.n_obs_steps < 1 or self.horizon < 1 or min(self.drop_last, self.drop_first, self.extra_last) < 0:
            raise RobopolicyError(
                f"windows need n_obs_steps >= 1, horizon >= 1, and what is dropped or added at least 0, found {self}"
            )


@dataclass(frozen=True)
class GoalRelabelling:
    """Goals that are later observations of the same episode (hindsight; BESO, Reuss et al. 2023).

    For current step t of an episode of length L, the goal is `length` consecutive rows of `source`:
    - `uniform`: the first of them uniform on the integers in [t + 1 + min_separation, L - length), as published:
      the upper end is exclusive, so the very last row is in no goal;
    - `tail`: the last rows of the episode, always;
    - `next`: the rows right after t.
    Where no such rows are left, the goal is zero and marked in "goal_is_pad".
    """

    key: str
    """Name of the goal in the batch."""
    source: str
    """Observation that goals are future values of, [N, S]."""
    length: int = 1
    """G: consecutive rows in a goal."""
    choice: Literal["uniform", "tail", "next"] = "uniform"
    min_separation: int = 0
    """Rows between the window and the earliest goal."""
    keep_without: bool = True
    """Keep windows that have no goal left; without them, they are not sampled."""

    def __post_init__(self) -> None:
        if self.choice not in GOAL_CHOICES:
            raise unknown("choice of goals", self.choice, GOAL_CHOICES)
        if self.length < 1 or self.min_separation < 0:
            raise RobopolicyError(f"goals need length >= 1 and min_separation >= 0, found {self}")

    def starts(self, current: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest first row of a goal and the number of choices (0: none), for windows at `current` [B].

        `first` and `last` are the rows of the episodes' ends; all are row numbers of the whole dataset.
        """
        end = last + 1
        if self.choice == "tail":
            low = end - self.length
            return low, (low >= first).astype(np.int64)
        low = current + 1 + self.min_separation
        if self.choice == "next":
            return low, (low + self.length <= end).astype(np.int64)
        return low, np.maximum(end - self.length - low, 0)


class WindowSampler:
    """Random access to all windows of some episodes, a whole batch at a time.

    Low-dimensional keys are copied into memory once, as float32; images are read from the arrays of `episodes`,
    usually memory maps, when a batch asks for them. Windows are numbered by episode, then by current step; an
    episode shorter than what is dropped keeps one window. Batches may be asked for from several threads.
    """

    def __init__(
        self,
        episodes: Episodes,
        shape: WindowShape,
        keys: Sequence[str],
        episode_ids: Sequence[int] | None = None,
        goals: GoalRelabelling | None = None,
    ) -> None:
        """`keys` are the observations to return, `goals` adds goals; `episode_ids` limits the episodes."""
        source = [goals.source] if goals else []
        for key in (*keys, *source, ACTION):
            if key not in episodes.arrays:
                raise DataError(f"{episodes.source}: no key {key!r} to sample.{did_you_mean(key, episodes.arrays)}")
        ids = np.arange(episodes.n_episodes) if episode_ids is None else np.asarray(episode_ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= episodes.n_episodes):
            raise DataError(
                f"{episodes.source}: episode numbers are 0..{episodes.n_episodes - 1}, found {ids.tolist()}"
            )
        self.shape = shape
        self.goals = goals
        self._keys = tuple(keys)
        self._arrays = {
            key: np.asarray(episodes.arrays[key])
            if episodes.features[key].kind == "image"
            else np.array(episodes.arrays[key], dtype=np.float32, order="C", subok=False)
            for key in dict.fromkeys((*keys, *source, ACTION))
        }
        lengths = episodes.lengths[ids]
        starts = episodes.episode_ends[ids] - lengths
        steps = lengths + shape.extra_last
        skipped = np.clip(shape.drop_first, 0, steps - 1)
        counts = np.maximum(steps - skipped - shape.drop_last, 1)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - skipped, counts)
        self._start = np.repeat(starts, counts)
        self._last = np.repeat(starts + lengths - 1, counts)
        self._current = self._start + within
        if goals is not None and not goals.keep_without:
            kept = goals.starts(self._current, self._start, self._last)[1] > 0
            self._start, self._last, self._current = self._start[kept], self._last[kept], self._current[kept]
        self._observed = np.arange(1 - shape.n_obs_steps, 1)
        self._acted = np.arange(shape.first, shape.first + shape.horizon)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._current)

    def batch(self, indices: np.ndarray, goal_draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Windows `indices` [B]: observations [B, T_o, ...], "action" [B, H, D_a], "action_is_pad" [B, H] bool.

        `action_is_pad` marks action rows outside the episode. The arrays are new and contiguous, so that
        `torch.from_numpy` needs no copy.

        With relabelled goals, `goal_draws` [B] in [0, 1) choose them; the goal [B, T_o, G, S] is the same at every
        observation step, and "goal_is_pad" [B] bool marks the windows that have none.
        """
        start, last, current = (a[indices][:, None] for a in (self._start, self._last, self._current))
        observed = np.clip(current + self._observed, start, last)
        wanted = current + self._acted
        acted = np.clip(wanted, start, last)
        # take is several times faster than indexing with an array when rows are small, and than torch's gather.
        batch = {key: self._arrays[key].take(observed, axis=0) for key in self._keys if key != ACTION}
        batch[ACTION] = self._arrays[ACTION].take(acted, axis=0)
        batch[ACTION_IS_PAD] = wanted != acted
        if self.goals is not None:
            if goal_draws is None or len(goal_draws) != len(current):
                raise RobopolicyError(f"relabelled goals need one number in [0, 1) per window, {len(current)} in all")
            goal, absent = self._goal(self.goals, start[:, 0], last[:, 0], current[:, 0], goal_draws)
            batch[self.goals.key] = np.repeat(goal[:, None], self.shape.n_obs_steps, axis=1)
            batch[GOAL_IS_PAD] = absent
        return batch

    def _goal(
        self, goals: GoalRelabelling, first: np.ndarray, last: np.ndarray, current: np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Goals [B, G, S], and [B] bool where there is none."""
        low, choices = goals.starts(current, first, last)
        absent = choices == 0
        begin = np.where(absent, first, low + (draws * choices).astype(np.int64))
        rows = np.minimum(begin[:, None] + np.arange(goals.length), last[:, None])
        goal = self._arrays[goals.source].take(rows, axis=0)
        goal[absent] = 0
        return goal, absent


def split_episodes(n: int, validation_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted, disjoint training and validation episode numbers of 0..n-1, a function of the arguments alone.

    A positive fraction holds out at least one episode and leaves at least one for training.
    """
    if not 0 <= validation_fraction < 1:
        raise RobopolicyError(f"validation_fraction should be at least 0 and below 1, found {validation_fraction}")
    held_out = min(max(round(n * validation_fraction), 1), n - 1) if validation_fraction > 0 else 0
    order = _permutation(n, seed, 0)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _words(n: int, *seeds: int) -> np.ndarray:
    """n random 64-bit words. numpy keeps these the same in every release, unlike the streams of its Generators: a
    run resumed under another numpy sees the batches it would have seen.
    """
    return np.random.PCG64(np.random.SeedSequence(seeds)).random_raw(n)


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    order = np.argsort(_words(n, seed, epoch), kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(n_windows: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Window numbers [batch_size] int64 of global step `step` (from 0): a function of the arguments alone.

    Every epoch of n_windows // batch_size steps is a fresh permutation cut into batches, without the ragged tail,
    so no window comes twice in an epoch. With fewer windows than the batch size, a batch is as many fresh
    permutations as it takes, cut to size.
    """
    if n_windows < 1 or batch_size < 1 or step < 0 or seed < 0:
        raise RobopolicyError(
            "batches need n_windows >= 1, batch_size >= 1, step >= 0 and seed >= 0, "
            f"found {n_windows}, {batch_size}, {step}, {seed}"
        )
    if batch_size <= n_windows:
        epoch, within = divmod(step, n_windows // batch_size)
        return _permutation(n_windows, seed, epoch)[within * batch_size : (within + 1) * batch_size].copy()
    repeats = -(-batch_size // n_windows)
    epochs = range(step * repeats, (step + 1) * repeats)
    return np.concatenate([_permutation(n_windows, seed, e) for e in epochs])[:batch_size]


def goal_draws(n: int, step: int, seed: int) -> np.ndarray:
    """Numbers [n] float64 in [0, 1) that choose the goals of global step `step`: a function of the arguments alone."""
    return (_words(n, seed, step, 1) >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class BatchOrder:
    """`batch_indices` of one training run: `order(step)` is the batch of that step, so resuming needs no state."""

    n_windows: int
    batch_size: int
    seed: int

    def __call__(self, step: int) -> np.ndarray:
        return batch_indices(self.n_windows, self.batch_size, step, self.seed)
