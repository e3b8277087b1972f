"""Records demonstrations of a scripted expert as a dataset."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robopolicy import registry
from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.environments import TaskSource, make_task
from robopolicy.evaluation.statistics import wilson
from robopolicy.evaluation.workers import Workers
from robopolicy.features import EXECUTED, Feature, FeatureSpec
from robopolicy.progress import progress_bar
from robopolicy.wire import Arrays, text, untext

if TYPE_CHECKING:
    from robopolicy.sim.task import Task

ExpertSource = str | Callable[..., Any]
"""The name of a registered expert of the task, or a function of keyword `seed` that makes one."""
DWELL_STEPS = 8
"""Steps for which a successful episode is held where it ended: without them the last moves, which matter most, would
be left out of training windows, because those need a chunk of actions after them."""
REWARD = Feature("next.reward", ())
SUCCESS = Feature("next.success", (), "bool")
STATE = "simulator.state"
ATTRIBUTES = "attributes"
"""Array of an episode in which JSON about all of it travels: no feature."""
HDF5_NAMES = (".hdf5", ".h5")


@dataclass(frozen=True)
class RecordSummary:
    """What `record` wrote."""

    path: Path
    episodes: int
    """Episodes in the dataset."""
    steps: int
    attempts: int
    """Seeds that were tried, in order from the first."""
    successes: int

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.episodes} episodes, {self.steps} steps; the expert succeeded in {self.successes} of "
            f"{self.attempts} attempts, {wilson(self.successes, self.attempts)}"
        )


class Recorder:
    """Rolls the expert out from one seed; also the server inside a worker process."""

    def __init__(self, task: TaskSource, expert: ExpertSource, options: dict[str, Any], keys: Sequence[str]) -> None:
        self.task, self.keys, self.options = make_task(task), tuple(keys), options
        self._make_expert: Callable[..., Any] = (
            registry.expert_class(self.task.name, expert) if isinstance(expert, str) else expert
        )

    def close(self) -> None:
        self.task.close()

    def __call__(self, request: str, arrays: Arrays) -> Arrays:
        return self.episode(int(arrays["seed"][0]))

    def episode(self, seed: int) -> Arrays:
        """Arrays [T, ...]: each row is the observation before the action, the action, and what it led to.

        Also `ATTRIBUTES`, when there is something to say about the whole episode.
        """
        task, features = self.task, self.task.features
        # A new expert for every episode: what it remembers or draws depends on this seed alone.
        expert = self._make_expert(seed=seed, **self.options)
        expert.reset()
        columns: dict[str, list[Any]] = {k: [] for k in (*self.keys, REWARD.key, SUCCESS.key)}
        observation, _ = task.reset(seed=seed)
        model = task.model_xml()
        left, ended = task.max_steps, False
        while left:
            held = ended and not getattr(expert, "acts_after_success", False)
            executed = task.hold_action(observation) if held else expert.act(task)
            # An expert that perturbs its actions says what it meant; that is what should be learned.
            action = executed if held else getattr(expert, "intended", executed)
            known = observation | task.unobserved()
            for key in self.keys:
                if key == EXECUTED:
                    columns[key].append(np.asarray(executed))
                elif key == STATE:
                    columns[key].append(task.simulator_state())
                else:
                    columns[key].append(np.asarray(action) if key == features.action.key else known[key])
            observation, reward, terminated, truncated, info = task.step(
                np.asarray(executed, dtype=features.action.dtype)
            )
            columns[REWARD.key].append(reward)
            columns[SUCCESS.key].append(info["success"])
            left -= 1
            if (terminated or truncated) and not ended:
                ended, left = True, DWELL_STEPS if info["success"] else 0
        dtypes = {f.key: f.dtype for f in stored_features(task, images=True)}
        arrays = {k: np.asarray(v, dtype=dtypes[k]) for k, v in columns.items()}
        return arrays if model is None else arrays | {ATTRIBUTES: text(json.dumps({"model_file": model}))}


def record(
    task: TaskSource,
    expert: ExpertSource,
    out_path: str | Path,
    episodes: int = 100,
    seed: int = 0,
    keep_failures: bool = False,
    images: bool = True,
    expert_options: dict[str, Any] | None = None,
    workers: int = 0,
    progress: bool = True,
    format: str | None = None,
) -> RecordSummary:
    """Writes `episodes` demonstrations from the initial states of seeds seed, seed + 1, ... and returns a summary.

    Episodes without a successful step are left out unless `keep_failures`, and the next seed is tried instead.
    Rows follow LeRobot: the observation is the one before the action, next.reward and next.success are what the
    action led to. An expert that perturbs its actions is recorded with what it meant as "action", which is what
    should be learned, and with what it did as "action.executed", which a replay needs. `images` False leaves image
    keys out. The expert of each episode is made with `seed` (the episode's) and `expert_options`, for example
    {"noise": 4.0}. `workers` spawned processes do not change the content. `format` is a name of
    `datasets.detect.FORMATS`: by default robomimic when `out_path` ends in .hdf5, else our own store. Tasks whose
    observations do not hold the simulator's state are recorded with it.

    Raises `RobopolicyError` when the expert fails so often that 10 attempts per wanted episode do not suffice, when
    the seeds would reach those reserved for tests, or when `out_path` exists.
    """
    from robopolicy.datasets.detect import make_writer
    from robopolicy.sim.task import TEST_SEEDS

    if episodes < 1 or seed < 0:
        raise RobopolicyError(f"recording needs at least one episode and a seed from 0 on, got {episodes} and {seed}")
    most = episodes if keep_failures else 10 * episodes
    if seed + episodes > TEST_SEEDS:
        raise RobopolicyError(f"seeds {seed}..{seed + episodes - 1} reach the test seeds, which begin at {TEST_SEEDS}")
    with closing(make_task(task)) as reference:
        features, fingerprint, name = stored_features(reference, images), reference.fingerprint(), reference.name
        env_args = reference.env_args()
    if isinstance(expert, str):
        registry.expert_class(name, expert)  # an unknown name fails before anything is opened
    keys = [f.key for f in features if f.key not in (REWARD.key, SUCCESS.key)]
    attempts = successes = 0
    format = format or ("robomimic" if Path(out_path).suffix in HDF5_NAMES else "episodes")
    metadata = None if env_args is None else {"env_args": env_args}
    with (
        make_writer(format, Path(out_path), features, fingerprint, metadata=metadata) as writer,
        progress_bar(total=episodes, desc=f"record {name}", unit="episode", disable=not progress) as bar,
    ):
        seeds = iter(range(seed, min(seed + most, TEST_SEEDS)))
        for arrays in _rollouts((task, expert, expert_options or {}, keys), seeds, workers):
            attempts += 1
            attributes = json.loads(untext(arrays.pop(ATTRIBUTES))) if ATTRIBUTES in arrays else None
            success = bool(arrays[SUCCESS.key].any())
            successes += success
            if success or keep_failures:
                writer.add(arrays, attributes)
                bar.update()
            bar.set_postfix_str(f"success {successes}/{attempts}", refresh=False)
            if writer.n_episodes == episodes:
                break
        if writer.n_episodes < episodes:
            raise RobopolicyError(
                f"the expert succeeded in {successes} of {attempts} attempts at task {name!r}, {episodes} are wanted; "
                "keep_failures records failures too"
            )
    summary = RecordSummary(Path(out_path), writer.n_episodes, writer.n_steps, attempts, successes)
    if progress:
        print(summary)
    return summary


def stored_features(task: "Task", images: bool) -> FeatureSpec:
    """The task's features, with or without images, what it does not observe, the simulator's state, the executed
    action, what it led to.

    Goals are left out: training takes them from the future of an episode, whatever its expert was shown.
    """
    kept = tuple(f for f in task.features if (images or f.kind != "image") and f.kind != "goal")
    executed = replace(task.features.action, key=EXECUTED)
    state = task.simulator_state()
    states = () if state is None else (Feature(STATE, state.shape, "float64"),)
    return replace(task.features, features=(*kept, *task.unobserved_features, *states, executed, REWARD, SUCCESS))


def _rollouts(
    made_of: tuple[TaskSource, ExpertSource, dict[str, Any], Sequence[str]], seeds: Iterator[int], workers: int
) -> Iterator[Arrays]:
    """Episodes in the order of their seeds, whoever makes them."""
    if not workers:
        with closing(Recorder(*made_of)) as recorder:
            for seed in seeds:
                yield recorder.episode(seed)
        return
    with Workers(Recorder, made_of, workers) as pool:
        busy = []
        for worker, seed in enumerate(islice(seeds, workers)):
            pool.send(worker, "episode", {"seed": np.array([seed])})
            busy.append(worker)
        while busy:
            worker = busy.pop(0)
            arrays = pool.receive(worker)
            following = next(seeds, None)
            if following is not None:
                pool.send(worker, "episode", {"seed": np.array([following])})
                busy.append(worker)
            yield arrays
