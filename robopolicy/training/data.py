"""From a dataset on disk to batches of windows for one policy."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robopolicy.errors import DataError, FeatureMismatch, RobopolicyError
from robopolicy.features import ACTION, Feature, FeatureSpec
from robopolicy.policies.base import GoalConditioned, Policy
from robopolicy.training.config import TrainConfig


@dataclass
class TrainingData:
    """Adapted arrays of one dataset, split by episode."""

    episodes: Any
    """`robopolicy.datasets.episodes.Episodes` in the task's keys."""
    features: FeatureSpec
    """What the policy reads and writes."""
    train_ids: np.ndarray
    validation_ids: np.ndarray
    provenance: dict[str, Any]
    goals: Any = None
    """`robopolicy.datasets.windows.GoalRelabelling` of a goal-conditioned task."""

    def fit(self, policy: Policy) -> None:
        """Statistics over the steps of the training episodes; a goal is scaled like the observation it is of."""
        ends = self.episodes.episode_ends
        starts = np.concatenate([[0], ends[:-1]])
        steps = np.concatenate([np.arange(starts[i], ends[i]) for i in self.train_ids])
        modes = policy.config.normalization.modes()
        for feature in self.features:
            if feature.kind in ("image", "language"):
                continue
            source = self.episodes.features[self.goals.source if feature.kind == "goal" else feature.key]
            values = np.asarray(self.episodes.arrays[source.key])[steps]
            mode = modes["action" if feature.kind == "action" else "state"]
            policy.normalizer.fit(feature.key, values, mode, source)  # type: ignore[arg-type]
        policy.fit(np.asarray(self.episodes.arrays[ACTION])[steps])


def load_data(config: TrainConfig, path: Path) -> TrainingData:
    """Opens, checks and splits the dataset at `path` for the task and policy of `config`."""
    # The library never imports its sibling rooms at module level.
    from robopolicy.datasets.detect import open_dataset
    from robopolicy.datasets.episodes import validate
    from robopolicy.datasets.windows import split_episodes
    from robopolicy.registry import task_class

    task = task_class(config.task)
    wanted = task.features
    images = [f.key for f in wanted.of_kind("image")]
    episodes = open_dataset(path, images=bool(images), cache_dir=config.data.cache)
    for note in task.version_notes(episodes.fingerprint):
        logging.getLogger(__name__).warning("%s: %s", path, note)
    arrays, features = task.adapt(episodes.arrays, episodes.features)
    spec = FeatureSpec(tuple(wanted.features), wanted.rate_hz)
    goals = _goals(config, task)
    recorded = [f for f in spec if f.kind != "goal"]
    if goals and goals.source not in {f.key for f in recorded}:
        recorded.append(features[goals.source])
    stored = FeatureSpec(tuple(recorded), wanted.rate_hz)
    stored.require(features, "task", f"dataset {path}")
    episodes.arrays = {f.key: arrays[f.key] for f in stored}
    episodes.features = stored
    validate(episodes)
    if goals:
        _check_goal(spec[goals.key], stored[goals.source], goals)

    content_hash = episodes.content_hash()
    train_ids, validation_ids = split_episodes(episodes.n_episodes, config.data.validation_fraction, config.seed)
    if config.data.max_episodes:
        order = np.random.default_rng(config.seed).permutation(train_ids)
        train_ids = np.sort(order[: config.data.max_episodes])
    if config.data.mirror:
        count, steps = episodes.n_episodes, episodes.n_steps
        reflected = task.mirror(episodes.arrays)
        episodes.arrays = {k: np.concatenate([v, reflected[k]]) for k, v in episodes.arrays.items()}
        episodes.episode_ends = np.concatenate([episodes.episode_ends, steps + episodes.episode_ends])
        # Reflections of held-out episodes stay out of training as well.
        train_ids = np.concatenate([train_ids, count + train_ids])
    if len(train_ids) == 0:
        raise DataError(f"{path}: no training episodes left of {episodes.n_episodes} after the validation split")
    provenance = {
        "dataset": str(path),
        "dataset_hash": content_hash,
        "dataset_format": episodes.format,
        "train_episodes": len(train_ids),
        "validation_episodes": len(validation_ids),
        "dataset_fingerprint": episodes.fingerprint,
    }
    if goals:
        provenance["goals"] = asdict(goals)
    return TrainingData(episodes, spec, train_ids, validation_ids, provenance, goals)


def _goals(config: TrainConfig, task: Any) -> Any:
    """How goals of `task` are relabelled; None for a task without goals."""
    from robopolicy.datasets.windows import GoalRelabelling

    features = task.features.of_kind("goal")
    if not features:
        return None
    if len(features) > 1:
        raise RobopolicyError(f"task {config.task!r} has {len(features)} goals; one is supported")
    source = getattr(task, "goal_source", "observation.state")
    if isinstance(config.policy, GoalConditioned):
        # Kept with the policy, which must know them without the task.
        config.policy.goal_source = source
        config.policy.goal_dims = tuple(getattr(task, "goal_dims", None) or ())
    options = config.data.goals
    length = features[0].shape[0]
    return GoalRelabelling(
        features[0].key, source, length, options.choice, options.min_separation, options.keep_without
    )


def _check_goal(goal: Feature, source: Feature, goals: Any) -> None:
    if goal.shape != (goals.length, *source.shape):
        raise FeatureMismatch(
            f"the goal {goal.key!r} has shape {list(goal.shape)}; {goals.length} rows of {source.key!r} have "
            f"{[goals.length, *source.shape]}"
        )


class Batches:
    """Shuffled batches of windows; the batch of a step is a function of the step and the seed alone.

    The next batch is gathered by a thread while the present one trains. With `world` processes and `accumulate`
    micro-batches each, micro-batch m of process r is part m * world + r of the global batch.
    """

    def __init__(self, data: TrainingData, policy: Policy, config: TrainConfig, rank: int = 0, world: int = 1) -> None:
        from robopolicy.datasets.windows import BatchOrder

        self.sampler = _sampler(data, policy, data.train_ids)
        if len(self.sampler) == 0:
            raise DataError("the training episodes hold no window")
        parts = world * config.accumulate
        if config.batch_size % parts:
            raise DataError(f"batch_size {config.batch_size} does not divide into {parts} equal parts")
        self.order = BatchOrder(len(self.sampler), config.batch_size, config.seed)
        self.parts = [m * world + rank for m in range(config.accumulate)]
        self.part_size = config.batch_size // parts
        self.device = torch.device(config.device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[list[dict[str, Tensor]]]] | None = None

    def __call__(self, step: int) -> list[tuple[int, dict[str, Tensor]]]:
        """The (part number, batch) pairs of this process at `step`."""
        batches = self._next[1].result() if self._next is not None and self._next[0] == step else self._gather(step)
        self._next = (step + 1, self._pool.submit(self._gather, step + 1))
        moved = [{k: v.to(self.device, non_blocking=True) for k, v in b.items()} for b in batches]
        return list(zip(self.parts, moved, strict=True))

    def _gather(self, step: int) -> list[dict[str, Tensor]]:
        from robopolicy.datasets.windows import goal_draws

        order, size = self.order(step), self.part_size
        draws = goal_draws(len(order), step, self.order.seed)
        parts = [slice(p * size, (p + 1) * size) for p in self.parts]
        return [to_tensors(self.sampler.batch(order[rows], draws[rows])) for rows in parts]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _sampler(data: TrainingData, policy: Policy, ids: np.ndarray) -> Any:
    from robopolicy.datasets.windows import WindowSampler

    keys = [f.key for f in data.features.inputs if f.kind != "goal"]
    return WindowSampler(data.episodes, window_shape(policy), keys, ids.tolist(), data.goals)


def window_shape(policy: Policy) -> Any:
    """The windows that `policy` trains on: its chunk starts `first_action` rows before the newest observation."""
    from robopolicy.datasets.windows import WindowShape

    config = policy.config
    # The last windows would teach mostly padding; Diffusion Policy keeps those with at most T_a - 1 padded rows.
    drop = config.horizon - policy.first_action - config.n_action_steps
    skip = config.n_obs_steps - 1 if policy.whole_windows else 0
    return WindowShape(
        config.n_obs_steps, config.horizon, -policy.first_action, max(drop, 0), skip, policy.extra_windows
    )


def validation_batch(data: TrainingData, policy: Policy, size: int, seed: int) -> dict[str, Tensor] | None:
    """At most `size` windows of the validation episodes, always the same ones; None without such episodes."""
    from robopolicy.datasets.windows import goal_draws

    if len(data.validation_ids) == 0:
        return None
    sampler = _sampler(data, policy, data.validation_ids)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(sampler))[:size])
    batch = sampler.batch(chosen, goal_draws(len(chosen), 0, seed))
    return {k: v.to(policy.device) for k, v in to_tensors(batch).items()}


def to_tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in batch.items()}


def observation_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The observation part of a training batch."""
    return {k: v for k, v in batch.items() if k != ACTION and not k.endswith("_is_pad")}
