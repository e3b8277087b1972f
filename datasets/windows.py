"""Training windows: a few observation steps and a chunk of actions around every step of every episode."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from robopolicy.datasets.episodes import Episodes
from robopolicy.errors import DataError, RobopolicyError, did_you_mean
from robopolicy.features import ACTION

ACTION_IS_PAD = "action_is_pad"


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

    def __post_init__(self) -> None:
        if self.n_obs_steps < 1 or self.horizon < 1 or self.drop_last < 0:
            raise RobopolicyError(f"windows need n_obs_steps >= 1, horizon >= 1 and drop_last >= 0, found {self}")


class WindowSampler:
    """Random access to all windows of some episodes, a whole batch at a time.

    Low-dimensional keys are copied into memory once, as float32; images are read from the arrays of `episodes`,
    usually memory maps, when a batch asks for them. Windows are numbered by episode, then by current step; an
    episode shorter than `drop_last` keeps its first window. Batches may be asked for from several threads.
    """

    def __init__(
        self, episodes: Episodes, shape: WindowShape, keys: Sequence[str], episode_ids: Sequence[int] | None = None
    ) -> None:
        """`keys` are the observations to return; `episode_ids` limits the episodes (default: all)."""
        for key in (*keys, ACTION):
            if key not in episodes.arrays:
                raise DataError(f"{episodes.source}: no key {key!r} to sample.{did_you_mean(key, episodes.arrays)}")
        ids = np.arange(episodes.n_episodes) if episode_ids is None else np.asarray(episode_ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= episodes.n_episodes):
            raise DataError(
                f"{episodes.source}: episode numbers are 0..{episodes.n_episodes - 1}, found {ids.tolist()}"
            )
        self.shape = shape
        self._arrays = {
            key: np.asarray(episodes.arrays[key])
            if episodes.features[key].kind == "image"
            else np.array(episodes.arrays[key], dtype=np.float32, order="C", subok=False)
            for key in dict.fromkeys((*keys, ACTION))
        }
        lengths = episodes.lengths[ids]
        starts = episodes.episode_ends[ids] - lengths
        counts = np.maximum(lengths - shape.drop_last, 1)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self._start = np.repeat(starts, counts)
        self._last = np.repeat(starts + lengths - 1, counts)
        self._current = self._start + within
        self._observed = np.arange(1 - shape.n_obs_steps, 1)
        self._acted = np.arange(shape.first, shape.first + shape.horizon)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._current)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Windows `indices` [B]: observations [B, T_o, ...], "action" [B, H, D_a], "action_is_pad" [B, H] bool.

        `action_is_pad` marks action rows outside the episode. The arrays are new and contiguous, so that
        `torch.from_numpy` needs no copy.
        """
        start, last, current = (a[indices][:, None] for a in (self._start, self._last, self._current))
        observed = np.clip(current + self._observed, start, last)
        wanted = current + self._acted
        acted = np.clip(wanted, start, last)
        # take is several times faster than indexing with an array when rows are small, and than torch's gather.
        batch = {key: array.take(observed, axis=0) for key, array in self._arrays.items() if key != ACTION}
        batch[ACTION] = self._arrays[ACTION].take(acted, axis=0)
        batch[ACTION_IS_PAD] = wanted != acted
        return batch


def split_episodes(n: int, validation_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted, disjoint training and validation episode numbers of 0..n-1, a function of the arguments alone.

    A positive fraction holds out at least one episode and leaves at least one for training.
    """
    if not 0 <= validation_fraction < 1:
        raise RobopolicyError(f"validation_fraction should be at least 0 and below 1, found {validation_fraction}")
    held_out = min(max(round(n * validation_fraction), 1), n - 1) if validation_fraction > 0 else 0
    order = _permutation(n, seed, 0)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    # Sorting the raw words of a bit generator, because numpy keeps those the same in every release, unlike the
    # stream of Generator.permutation: a run resumed under another numpy sees the order it started with.
    words = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    order = np.argsort(words, kind="stable")
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


@dataclass(frozen=True)
class BatchOrder:
    """`batch_indices` of one training run: `order(step)` is the batch of that step, so resuming needs no state."""

    n_windows: int
    batch_size: int
    seed: int

    def __call__(self, step: int) -> np.ndarray:
        return batch_indices(self.n_windows, self.batch_size, step, self.seed)
