"""A batch of environments behind one interface, in this process or spread over worker processes."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from robopolicy import registry
from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.workers import WorkerDied, Workers
from robopolicy.wire import Arrays

if TYPE_CHECKING:
    from robopolicy.sim.task import Task

TaskSource = str | Callable[[], "Task"]
"""A registered task name, or a function that makes the environment."""
PICTURE_SIZE = 192
"""Longest side of the start and end pictures, pixels."""
MAX_DEATHS = 3
"""Deaths of workers in one request after which its episodes are what kills them."""


def make_task(source: TaskSource) -> "Task":
    """A fresh environment."""
    return registry.task_class(source)() if isinstance(source, str) else source()


def picture(task: "Task") -> bytes:
    """The scene as PNG bytes, at most PICTURE_SIZE pixels a side; empty when the task cannot render."""
    try:
        frame = np.asarray(task.render())
    except NotImplementedError:
        return b""
    scale = PICTURE_SIZE / max(frame.shape[:2])
    if scale < 1:
        frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes()


class EnvironmentSlice:
    """`count` environments stepped one after the other; also the server inside a worker process.

    Requests and replies are arrays with one row per named slot. "reset" takes slot and seed and returns the
    observation (keys prefixed "observation/") and, if asked for at construction, hold; "step" takes slot and action
    and adds reward, terminated, success and "metric/<name>" of each; "view" takes slot and returns PNG bytes as
    "picture/<slot>".
    """

    notes: Sequence[str] = ()

    def __init__(self, source: TaskSource, count: int, keys: Sequence[str], hold: bool) -> None:
        self.tasks = [make_task(source) for _ in range(count)]
        self.keys, self.hold = tuple(keys), hold

    def close(self) -> None:
        for task in self.tasks:
            task.close()

    def __call__(self, request: str, arrays: Arrays) -> Arrays:
        slots = arrays["slot"]
        if request == "view":
            return {f"picture/{s}": np.frombuffer(picture(self.tasks[s]), np.uint8) for s in slots}
        if request == "reset":
            starts = zip(slots, arrays["seed"], strict=True)
            return self._observed(slots, [self.tasks[s].reset(seed=int(seed))[0] for s, seed in starts])
        return self._step(slots, arrays["action"])

    def _step(self, slots: np.ndarray, actions: np.ndarray) -> Arrays:
        observations, rewards, terminated, success = [], [], [], []
        metrics: dict[str, list[float]] = {name: [] for name in self.tasks[0].metrics}
        for slot, action in zip(slots, actions, strict=True):
            task = self.tasks[slot]
            observation, reward, done, truncated, info = task.step(action)
            if "success" not in info:
                raise RobopolicyError(f"task {task.name!r}: step must return info['success'], got {sorted(info)}")
            observations.append(observation)
            rewards.append(float(reward))
            terminated.append(bool(done or truncated))
            success.append(bool(info["success"]))
            found = info.get("metrics", {})
            if found.keys() != metrics.keys():
                raise RobopolicyError(
                    f"task {task.name!r}: info['metrics'] should hold {sorted(metrics)}, found {sorted(found)}"
                )
            for name, values in metrics.items():
                values.append(float(found[name]))
        reply = {"reward": rewards} | {f"metric/{name}": values for name, values in metrics.items()}
        return self._observed(slots, observations) | {
            **{key: np.array(values, np.float64) for key, values in reply.items()},
            "terminated": np.array(terminated),
            "success": np.array(success),
        }

    def _observed(self, slots: np.ndarray, observations: list[dict[str, np.ndarray]]) -> Arrays:
        reply = {f"observation/{k}": np.stack([o[k] for o in observations]) for k in self.keys}
        if self.hold:
            reply["hold"] = np.stack([self.tasks[s].hold_action(o) for s, o in zip(slots, observations, strict=True)])
        return reply


class Environments(Protocol):
    """Slots 0..n-1, each with one environment."""

    notes: Sequence[str]
    """What a report should say about the run."""

    def __call__(self, request: str, arrays: Arrays) -> Arrays: ...

    def close(self) -> None: ...


@dataclass
class _Episode:
    """What brings a new environment to where a lost one was."""

    seed: int
    actions: list[np.ndarray] = field(default_factory=list)


class WorkerEnvironments:
    """The interface of `EnvironmentSlice` over worker processes: slot s lives in worker s mod `workers`.

    When a worker dies, a new one runs the episodes of its slots again, from their seeds and with the same actions, up
    to where they were: an episode is a function of these alone, so that nothing changes but the time.
    """

    def __init__(self, source: TaskSource, count: int, keys: Sequence[str], hold: bool, workers: int) -> None:
        self._workers = Workers(EnvironmentSlice, (source, -(-count // workers), tuple(keys), hold), workers)
        self._episodes: dict[int, _Episode] = {}
        self.notes: list[str] = []

    def close(self) -> None:
        self._workers.close()

    def __call__(self, request: str, arrays: Arrays) -> Arrays:
        count = len(self._workers)
        owner = arrays["slot"] % count
        parts = [(w, np.flatnonzero(owner == w)) for w in range(count)]
        parts = [(w, rows) for w, rows in parts if len(rows)]
        for w, rows in parts:
            self._send(w, request, {k: v[rows] for k, v in arrays.items()})
        reply: dict[str, Any] = {}
        for w, rows in parts:
            sent = {k: v[rows] for k, v in arrays.items()}
            for key, values in self._receive(w, request, sent).items():
                if key.startswith("picture/"):
                    slot = int(key.removeprefix("picture/")) * count + w
                    reply[f"picture/{slot}"] = values
                    continue
                if key not in reply:
                    reply[key] = np.empty((len(owner), *values.shape[1:]), values.dtype)
                reply[key][rows] = values
            self._remember(request, sent)
        return reply

    def _send(self, worker: int, request: str, arrays: Arrays) -> None:
        self._workers.send(worker, request, arrays | {"slot": arrays["slot"] // len(self._workers)})

    def _receive(self, worker: int, request: str, arrays: Arrays) -> Arrays:
        """The reply to a request that was sent; a worker that died is replaced and asked again."""
        deaths: list[WorkerDied] = []
        while True:
            try:
                if deaths:
                    self._replace(worker, deaths[-1])
                    self._send(worker, request, arrays)
                return self._workers.receive(worker)
            except WorkerDied as death:
                deaths.append(death)
                if len(deaths) == MAX_DEATHS:
                    raise

    def _replace(self, worker: int, death: WorkerDied) -> None:
        lost = {s: e for s, e in sorted(self._episodes.items()) if s % len(self._workers) == worker}
        seeds = ", ".join(str(e.seed) for e in lost.values()) or "none"
        note = f"{death}; episodes under way there were run again from their seeds: {seeds}"
        logging.getLogger(__name__).warning(note)
        self.notes.append(note)
        self._workers.restart(worker)
        for slot, episode in lost.items():
            requests = [("reset", {"seed": np.array([episode.seed], np.int64)})]
            requests += [("step", {"action": action[None]}) for action in episode.actions]
            for request, arrays in requests:
                self._send(worker, request, arrays | {"slot": np.array([slot], np.int64)})
                self._workers.receive(worker)

    def _remember(self, request: str, arrays: Arrays) -> None:
        for row, slot in enumerate(arrays["slot"].tolist()):
            if request == "reset":
                self._episodes[slot] = _Episode(int(arrays["seed"][row]))
            elif request == "step":
                self._episodes[slot].actions.append(arrays["action"][row])


def open_environments(source: TaskSource, count: int, keys: Sequence[str], hold: bool, workers: int) -> Any:
    """A context manager of `Environments`: in this process when `workers` is 0."""
    if workers:
        return closing(WorkerEnvironments(source, count, keys, hold, min(workers, count)))
    return closing(EnvironmentSlice(source, count, keys, hold))
