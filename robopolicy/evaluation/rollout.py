"""Rollouts: one batched policy over parallel environments, every episode a function of its seed alone."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robopolicy import registry
from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.environments import Environments, TaskSource, make_task, open_environments
from robopolicy.evaluation.result import Episode, EvalInfo, EvalResult, rounded
from robopolicy.evaluation.video import encode_mp4
from robopolicy.inference.runner import PolicyRunner, Strategy
from robopolicy.policies.base import Policy
from robopolicy.progress import progress_bar

REPLAY_TOLERANCE = 1e-6
"""Difference of rewards that summation in another order may cause, but a different motion soon exceeds."""


@dataclass
class _Rollout:
    """An episode under way."""

    seed: int
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    success: bool = False

    def episode(self, task: Any) -> Episode:
        score = task.score(np.array(self.rewards))
        return Episode(self.seed, score, self.success, len(self.rewards), rounded(self.rewards), self.metrics)


@dataclass
class _Timer:
    """Seconds spent, for the report; nothing depends on them."""

    calls: list[float] = field(default_factory=list)
    """Duration of each call of the policy."""
    chunks: list[int] = field(default_factory=list)
    """Chunks in each call."""
    policy: float = 0.0
    environments: float = 0.0

    def summary(self, total: float) -> dict[str, Any]:
        calls = np.array(self.calls) * 1e3
        per_chunk = calls / np.array(self.chunks)
        return {
            "total_s": round(total, 3),
            "policy_s": round(self.policy, 3),
            "environment_s": round(self.environments, 3),
            "policy_calls": len(calls),
            "mean_chunks_per_call": round(float(np.mean(self.chunks)), 2),
            "policy_ms_per_call": _percentiles(calls),
            "policy_ms_per_chunk": _percentiles(per_chunk),
        }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)}


def seed_purpose(seeds: Sequence[int]) -> str:
    """What the range of these seeds is reserved for: training, test, validation; mixed when they span two."""
    from robopolicy.sim.task import TEST_SEEDS, VALIDATION_SEEDS

    names = {"training" if s < TEST_SEEDS else "test" if s < VALIDATION_SEEDS else "validation" for s in seeds}
    return names.pop() if len(names) == 1 else "mixed"


@contextmanager
def _inference(policy: Policy) -> Iterator[None]:
    """Evaluation mode, and every module's own mode again afterwards."""
    modes = [(m, m.training) for m in policy.modules()]
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _usual_envs(source: TaskSource) -> int:
    """Environments beside each other when the caller does not say."""
    from robopolicy.sim.task import Task

    task = registry.task_class(source) if isinstance(source, str) else source
    return int(getattr(task, "usual_envs", Task.usual_envs))


def evaluate(
    policy: Policy,
    task: TaskSource,
    seeds: Sequence[int],
    *,
    n_envs: int | None = None,
    workers: int = 0,
    strategy: Strategy = "receding",
    n_action_steps: int | None = None,
    latency_steps: int = 0,
    latency_jitter_steps: int = 0,
    ensemble_decay: float = 0.01,
    record_video: int = 2,
    pictures: int = 24,
    checkpoint: str = "",
    provenance: dict[str, Any] | None = None,
    progress: bool = True,
) -> EvalResult:
    """Runs one episode per seed and returns scores with intervals, in the order of `seeds`.

    `task` is a registered name or a function that makes a `Task`. `n_envs` environments (by default the task's
    `usual_envs`) run beside each other, in this process or in `workers` spawned ones; an environment whose episode
    ended goes on with the next seed. Neither number changes what an episode does, up to the rounding of batched
    arithmetic. A worker that dies is replaced and its episodes run again, which `EvalInfo.notes` tells. Runner
    settings are those of `PolicyRunner`. An episode succeeds when any of its steps does.

    `record_video` episodes are kept as videos: the best, the worst, then the first ones. They are made afterwards
    by replaying the recorded actions, which must give the same rewards; `EvalInfo.notes` says so when they do not.
    `pictures` episodes keep their first and last state. `checkpoint` and `provenance` only travel into the report.

    Raises `FeatureMismatch` before anything moves if policy and task disagree.
    """
    wanted = [int(s) for s in seeds]
    if not wanted or len(set(wanted)) != len(wanted) or min(wanted) < 0:
        raise RobopolicyError(f"evaluation needs at least one seed, all distinct and none negative, got {wanted}")
    if workers < 0 or (n_envs is not None and n_envs < 1):
        raise RobopolicyError(f"n_envs must be at least 1 and workers at least 0, got {n_envs} and {workers}")
    begin, timer = time.perf_counter(), _Timer()
    count = min(n_envs or _usual_envs(task), len(wanted))
    runner = PolicyRunner(
        policy,
        count,
        strategy=strategy,
        n_action_steps=n_action_steps,
        latency_steps=latency_steps,
        latency_jitter_steps=latency_jitter_steps,
        ensemble_decay=ensemble_decay,
    )
    keys = [f.key for f in policy.features.inputs]
    hold = latency_steps + latency_jitter_steps > 0
    with ExitStack() as stack:

        def opened() -> Any:
            return stack.enter_context(open_environments(task, count, keys, hold, workers))

        # Workers make their environments while this process makes the one that it compares with.
        starting = opened() if workers else None
        reference = stack.enter_context(closing(make_task(task)))
        policy.features.require(reference.features, "checkpoint", f"task {reference.name!r}")
        environments = starting or opened()
        with _inference(policy):
            loop = _Loop(environments, reference, runner, timer, set(wanted[:pictures]))
            rollouts = loop.run(wanted, progress)
        info = EvalInfo(
            task=reference.name,
            score_name=reference.score_name,
            checkpoint=checkpoint,
            purpose=seed_purpose(wanted),
            episodes=[rollouts[s].episode(reference) for s in wanted],
            runner=runner.options,
            fingerprint=reference.fingerprint(),
            provenance={"features": policy.features.schema_hash(), "device": str(policy.device)} | (provenance or {}),
            notes=list(environments.notes),
        )
        if info.purpose in ("training", "mixed"):
            info.notes.append(f"{info.purpose} seeds: initial states that demonstrations may have been recorded from")
        chosen = list(dict.fromkeys([info.best.seed, info.worst.seed, *wanted]))[:record_video]
        videos = {s: video for s in chosen if (video := _replay(reference, rollouts[s], info.notes))}
    info.timing = timer.summary(time.perf_counter() - begin) | {"n_envs": count, "workers": min(workers, count)}
    return EvalResult(info, {s: loop.pictures[s] for s in wanted if s in loop.pictures}, videos)


class _Loop:
    """Keeps the slots busy with the next seeds until all episodes have ended."""

    def __init__(
        self, environments: Environments, reference: Any, runner: PolicyRunner, timer: _Timer, pictured: set[int]
    ) -> None:
        self.environments, self.reference, self.runner, self.timer = environments, reference, runner, timer
        self.pictures: dict[int, tuple[bytes, bytes]] = {}
        self._pictured = pictured
        self._active: dict[int, _Rollout] = {}
        self._finished: dict[int, _Rollout] = {}
        self._observation: dict[str, np.ndarray] = {}

    def run(self, seeds: Sequence[int], progress: bool) -> dict[int, _Rollout]:
        waiting, step, score_sum = deque(seeds), 0, 0.0
        limit = self.reference.max_steps
        with progress_bar(
            total=len(seeds) * limit, desc=f"evaluate {self.reference.name}", unit="step", disable=not progress
        ) as bar:
            while waiting or self._active:
                # New episodes start in phase with those under way: then all ask for chunks at the same steps, in
                # one call of the policy, at the price of a few idle steps.
                if not self._active:
                    step = 0
                if waiting and step % self.runner.n_action_steps == 0:
                    self._start(waiting)
                ended = self._step()
                step += 1
                bar.update(len(self._active) + len(ended))
                for rollout in ended:
                    score_sum += self.reference.score(np.array(rollout.rewards))
                    bar.update(limit - len(rollout.rewards))
                if ended:
                    done = len(self._finished)
                    bar.set_postfix_str(f"{done}/{len(seeds)} episodes, mean score {score_sum / done:.3f}", False)
        return self._finished

    def _call(self, request: str, slots: list[int], **arrays: np.ndarray) -> dict[str, np.ndarray]:
        begin = time.perf_counter()
        reply = self.environments(request, {"slot": np.array(slots, np.int64), **arrays})
        self.timer.environments += time.perf_counter() - begin
        for key, values in reply.items():
            if key.startswith("observation/") or key == "hold":
                if key not in self._observation:
                    self._observation[key] = np.zeros((self.runner.n_envs, *values.shape[1:]), values.dtype)
                self._observation[key][slots] = values
        return reply

    def _start(self, waiting: deque[int]) -> None:
        slots = [s for s in range(self.runner.n_envs) if s not in self._active][: len(waiting)]
        if not slots:
            return
        for slot in slots:
            self._active[slot] = _Rollout(waiting.popleft())
        seeds = [self._active[s].seed for s in slots]
        self._call("reset", slots, seed=np.array(seeds, np.int64))
        self.runner.reset(slots, seeds)
        self._view(slots)

    def _view(self, slots: list[int]) -> None:
        """First picture of an episode, or its last one."""
        shown = [s for s in slots if self._active[s].seed in self._pictured]
        for key, values in self._call("view", shown).items() if shown else ():
            seed, png = self._active[int(key.removeprefix("picture/"))].seed, values.tobytes()
            if png:
                self.pictures[seed] = (self.pictures[seed][0] if seed in self.pictures else png, png)

    def _step(self) -> list[_Rollout]:
        """One control step of all active slots; returns the episodes that ended with it."""
        slots = sorted(self._active)
        observation = {k.removeprefix("observation/"): v[slots] for k, v in self._observation.items() if k != "hold"}
        hold = self._observation["hold"][slots] if "hold" in self._observation else None
        begin = time.perf_counter()
        actions = self.runner.step(observation, slots, hold=hold)
        spent = time.perf_counter() - begin
        self.timer.policy += spent
        if self.runner.asked:
            self.timer.calls.append(spent)
            self.timer.chunks.append(self.runner.asked)
        reply = self._call("step", slots, action=actions)
        over = []
        for row, slot in enumerate(slots):
            rollout = self._active[slot]
            rollout.actions.append(actions[row])
            rollout.rewards.append(float(reply["reward"][row]))
            rollout.success |= bool(reply["success"][row])
            for name in self.reference.metrics:
                value = float(reply[f"metric/{name}"][row])
                rollout.metrics[name] = max(value, rollout.metrics.get(name, value))
            if reply["terminated"][row] or len(rollout.rewards) >= self.reference.max_steps:
                over.append(slot)
        self._view(over)
        ended = [self._active.pop(slot) for slot in over]
        self._finished |= {r.seed: r for r in ended}
        return ended


def _replay(task: Any, rollout: _Rollout, notes: list[str]) -> bytes:
    """Video of an episode from its recorded actions; empty when the task cannot render.

    A reward that differs from the rollout's is noted: then the task is no function of seed and actions.
    """
    task.reset(seed=rollout.seed)
    rewards: list[float] = []

    def frames() -> Iterator[np.ndarray]:
        yield np.asarray(task.render())
        for action in rollout.actions:
            rewards.append(float(task.step(action)[1]))
            yield np.asarray(task.render())

    try:
        video = encode_mp4(frames(), task.rate_hz)
    except NotImplementedError:
        return b""
    different = np.flatnonzero(np.abs(np.subtract(rewards, rollout.rewards)) > REPLAY_TOLERANCE)
    if len(different):
        step = int(different[0])
        notes.append(
            f"not reproducible: replaying the actions of seed {rollout.seed} gave reward {rewards[step]:g} at step "
            f"{step}, the rollout gave {rollout.rewards[step]:g}"
        )
    return video
