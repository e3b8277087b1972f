"""A batch of environments behind one interface, in this process or spread over worker processes."""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from robopolicy import registry
from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.workers import Arrays, Workers

if TYPE_CHECKING:
    from robopolicy.sim.task import Task

TaskSource = str | Callable[[], "Task"]
"""A registered task name, or a function that makes the environment."""
PICTURE_SIZE = 192
"""Longest side of the start and end pictures, pixels."""


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

    def __call__(self, request: str, arrays: Arrays) -> Arrays: ...

    def close(self) -> None: ...


class WorkerEnvironments:
    """The interface of `EnvironmentSlice` over worker processes: slot s lives in worker s mod `workers`."""

    def __init__(self, source: TaskSource, count: int, keys: Sequence[str], hold: bool, workers: int) -> None:
        self._workers = Workers(EnvironmentSlice, (source, -(-count // workers), tuple(keys), hold), workers)

    def close(self) -> None:
        self._workers.close()

    def __call__(self, request: str, arrays: Arrays) -> Arrays:
        count = len(self._workers)
        owner = arrays["slot"] % count
        parts = [(w, np.flatnonzero(owner == w)) for w in range(count)]
        parts = [(w, rows) for w, rows in parts if len(rows)]
        for w, rows in parts:
            sent = {k: v[rows] for k, v in arrays.items()}
            self._workers.send(w, request, sent | {"slot": sent["slot"] // count})
        reply: dict[str, Any] = {}
        for w, rows in parts:
            for key, values in self._workers.receive(w).items():
                if key.startswith("picture/"):
                    slot = int(key.removeprefix("picture/")) * count + w
                    reply[f"picture/{slot}"] = values
                    continue
                if key not in reply:
                    reply[key] = np.empty((len(owner), *values.shape[1:]), values.dtype)
                reply[key][rows] = values
        return reply


def open_environments(source: TaskSource, count: int, keys: Sequence[str], hold: bool, workers: int) -> Any:
    """A context manager of `Environments`: in this process when `workers` is 0."""
    if workers:
        return closing(WorkerEnvironments(source, count, keys, hold, min(workers, count)))
    return closing(EnvironmentSlice(source, count, keys, hold))
