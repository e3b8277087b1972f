"""Executes recorded actions again from the recorded first state, to see whether a simulator still does the same.

A dataset that does not replay was recorded with another simulator version, another action space or another timing than
the one it would be trained for, and no policy learned from it can do better than its replay.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robopolicy import registry
from robopolicy.errors import DataError, FeatureMismatch, RobopolicyError
from robopolicy.evaluation.statistics import Interval, wilson
from robopolicy.features import EXECUTED
from robopolicy.progress import progress_bar

if TYPE_CHECKING:
    from robopolicy.datasets.source import Source
    from robopolicy.features import FeatureSpec
    from robopolicy.sim.task import Task

SUCCESS = "next.success"


@dataclass(frozen=True)
class ReplayedEpisode:
    """What became of one recorded episode."""

    episode: int
    steps: int
    final: dict[str, float]
    """Errors at the last recorded observation, as the task's `state_error` names them."""
    largest: dict[str, float]
    """Largest of each error over the episode."""
    reproduced: bool
    """Whether no final error exceeds the task's tolerance."""
    left_at: int | None
    """First step at which an error exceeds its tolerance; None when none does."""
    success: bool
    """Whether any step of the replay succeeded."""
    recorded_success: bool | None
    """None when the dataset does not say."""


@dataclass(frozen=True)
class Replay:
    """The outcome of a replay, with what is needed to judge it."""

    path: str
    task: str
    guessed: bool
    """Whether the task was chosen by the features of the dataset."""
    tolerance: dict[str, float]
    reproduced: Interval
    """Share of episodes whose final state is within the tolerance, Wilson interval."""
    success: Interval
    recorded_success: Interval | None
    fingerprints: dict[str, tuple[str | None, str | None]]
    """Simulator part to its version in the dataset and now."""
    episodes: list[ReplayedEpisode] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)

    @property
    def differences(self) -> list[str]:
        """Parts of the simulator whose versions are known on both sides and differ, as text."""
        both = {name: (then, now) for name, (then, now) in self.fingerprints.items() if then and now}
        return [f"{name} {then}, now {now}" for name, (then, now) in both.items() if then != now]

    def summary(self) -> str:
        """The outcome as text of about 100 columns, with the episodes that were not reproduced."""
        n = len(self.episodes)
        limits = ", ".join(f"{name} <= {value:g}" for name, value in self.tolerance.items())
        lines = [
            f"{self.path}: {n} episodes replayed in task {self.task!r}"
            + (", which its features suggest (--task chooses another)" if self.guessed else ""),
            f"reproduced ({limits} at the last observation): {sum(e.reproduced for e in self.episodes)} of {n}, "
            f"{self.reproduced}",
            f"replay success: {sum(e.success for e in self.episodes)} of {n}, {self.success}"
            + ("" if self.recorded_success is None else f"; recorded success {self.recorded_success}"),
            "",
            f"{'error':<24} {'median':>10} {'95 %':>10} {'largest':>10}   at the last observation",
        ]
        for name in self.episodes[0].final:
            values = np.array([e.final[name] for e in self.episodes])
            shown = " ".join(f"{v:>10.4g}" for v in (np.median(values), np.quantile(values, 0.95), values.max()))
            lines.append(f"{name:<24} {shown}   (episode {self.episodes[int(values.argmax())].episode})")
        lines += ["", f"{'simulator':<24} {'dataset':<24} now"]
        for name, (then, now) in self.fingerprints.items():
            differs = "" if not then or then == now else "   differs"
            lines.append(f"{name:<24} {(then or 'unknown')[:24]:<24} {(now or 'not used')[:24]}{differs}")
        lost = [e for e in self.episodes if not e.reproduced]
        if lost and all(then == now for then, now in self.fingerprints.values()):
            lines.append(
                "the simulator is the one that recorded, so other actions were executed than are recorded, as when "
                "an expert's noise is left out of what it records"
            )
        for e in lost[:20]:
            errors = ", ".join(f"{k} {v:.4g}" for k, v in e.final.items())
            lines.append(f"not reproduced: episode {e.episode}, apart from step {e.left_at} of {e.steps} on; {errors}")
        if len(lost) > 20:
            lines.append(f"and {len(lost) - 20} more")
        return "\n".join(lines)


def replay(
    path: Path, task: str | None = None, episodes: Sequence[int | str] | None = None, progress: bool = True
) -> Replay:
    """Replays episodes of the dataset at `path` in the registered task of this name.

    `episodes` are numbers or ranges such as "0:50", all by default.
    Every episode starts from its first recorded state. Action t is executed and the observation that follows is
    compared with the recorded one of step t + 1; the last action only counts for success. Without `task`, it is chosen
    by the features.

    Raises `RobopolicyError` when no task fits or the task cannot restore states, DataError for damaged data.
    """
    from robopolicy.datasets.detect import open_source
    from robopolicy.datasets.split import by_range

    with open_source(path) as source:
        wanted = ["0:"] if episodes is None else [str(e) for e in episodes]
        numbers = list(dict.fromkeys(n for text in wanted for n in by_range(source.n_episodes, text)))
        if not numbers:
            raise RobopolicyError(f"{path}: no episodes to replay")
        name = task or guess_task(source)
        _check_task(name, registry.task_class(name))
        keys = [f.key for f in source.features if f.kind != "image"]
        with closing(registry.task_class(name).of_recording(source.metadata)) as simulation:
            results = []
            for number in progress_bar(
                iterable=numbers, desc=f"replay in {name}", unit="episode", delay=1, disable=not progress
            ):
                arrays = source.read(number, keys)
                _check_finite(path, number, arrays)
                attributes = source.attributes(number)
                results.append(_replay_one(simulation, number, arrays, source.features.select(keys), attributes))
            now = simulation.fingerprint()
        known = [e.recorded_success for e in results if e.recorded_success is not None]
        return Replay(
            str(path),
            name,
            task is None,
            dict(simulation.replay_tolerance),
            wilson(sum(e.reproduced for e in results), len(results)),
            wilson(sum(e.success for e in results), len(results)),
            wilson(sum(known), len(known)) if known else None,
            {k: (source.fingerprint.get(k), now.get(k)) for k in dict.fromkeys([*now, *source.fingerprint])},
            results,
        )


def guess_task(source: "Source") -> str:
    """The registered task whose features fit those of the dataset and that can restore its states."""
    keys = [f.key for f in source.features if f.kind != "image"]
    known = source.features.select(keys)
    first = {key: array[:1] for key, array in source.read(0, keys).items()}
    fitting = []
    for name in registry.task_names():
        cls = registry.task_class(name)
        try:
            _check_task(name, cls)
            if not cls.recorded(source.metadata):
                continue
            _, adapted = cls.adapt(first, known)
        except RobopolicyError:
            continue
        wanted = recorded_features(cls.features)
        if not wanted.compare(adapted):
            # A task whose own inputs were recorded goes before one for which they can be derived, and one without a
            # goal before one that also shows a goal.
            fitting.append((bool(wanted.compare(known)), len(wanted.features) < len(cls.features.features), name))
    if not fitting:
        raise RobopolicyError(
            f"{source.path}: its features fit no task that can restore recorded states; name one with --task, "
            f"of {', '.join(registry.task_names())}"
        )
    return min(fitting)[-1]


def recorded_features(features: "FeatureSpec") -> "FeatureSpec":
    """Without goals, which recordings do not hold."""
    return replace(features, features=tuple(f for f in features if f.kind != "goal"))


def _check_task(name: str, cls: type["Task"]) -> None:
    from robopolicy.sim.task import Task

    if cls.restore is Task.restore:
        raise RobopolicyError(f"task {name!r} cannot restore recorded states")
    if any(f.kind == "image" for f in cls.features):
        raise RobopolicyError(
            f"task {name!r} observes images, which do not say how far states are apart; replay in a variant of it "
            "that observes the state"
        )


def _check_finite(path: Path, episode: int, arrays: dict[str, np.ndarray]) -> None:
    from robopolicy.datasets.episodes import first_not_finite

    for key, array in arrays.items():
        step = first_not_finite(array) if array.dtype.kind == "f" else None
        if step is not None:
            raise DataError(f"{path}: episode {episode}, step {step}: key {key!r} is not finite")


def _replay_one(
    task: "Task",
    number: int,
    recorded: dict[str, np.ndarray],
    features: "FeatureSpec",
    attributes: dict[str, Any],
) -> ReplayedEpisode:
    arrays, spec = task.adapt(recorded, features)
    lines = recorded_features(task.features).compare(spec, f"task {task.name!r}", "the dataset")
    if lines:
        raise FeatureMismatch("; ".join(lines))
    inputs = [f.key for f in recorded_features(task.features).inputs]
    # Of two kinds of action a task may adapt either.
    executed = arrays.get(EXECUTED, recorded.get(EXECUTED, arrays[task.features.action.key]))
    actions = np.asarray(executed, dtype=task.features.action.dtype)
    observation = task.restore(arrays, attributes)
    errors: list[dict[str, float]] = []
    success = False
    for step, action in enumerate(actions):
        errors.append(task.state_error({k: arrays[k][step] for k in inputs}, observation))
        observation, _, _, _, info = task.step(action)
        success = success or bool(info["success"])
    beyond = [any(e[k] > limit for k, limit in task.replay_tolerance.items()) for e in errors]
    return ReplayedEpisode(
        number,
        len(actions),
        errors[-1],
        {name: max(e[name] for e in errors) for name in errors[0]},
        not beyond[-1],
        beyond.index(True) if any(beyond) else None,
        success,
        bool(recorded[SUCCESS].any()) if SUCCESS in recorded else None,
    )
