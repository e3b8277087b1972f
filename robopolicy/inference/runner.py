"""The runner: turns a policy that maps observations to chunks into one action per control step.

Evaluation and the robot use this same class. It keeps everything a policy must not keep (history, queues,
generators) for a batch of independent environments, each with its own clock, and it reads no clock itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from robopolicy.errors import FeatureMismatch, RobopolicyError, did_you_mean, unknown
from robopolicy.features import Feature
from robopolicy.inference.chunking import STRATEGIES, Chunk, ensemble, newest, prefix_weights
from robopolicy.policies.base import Policy

Strategy = Literal["receding", "ensemble", "realtime"]
_NOT_AVERAGED = ("quat_wxyz", "axis_angle", "euler_xyz")


@dataclass
class _Clock:
    """What one environment has of its own, apart from its rows in the history arrays."""

    generator: torch.Generator
    jitter: np.random.Generator
    step: int = -1
    """Control step of the newest observation; -1 before the first."""
    start: float | None = None
    """Time of the first observation, s."""
    due: int = 0
    """Step at which the next chunk is asked for."""
    chunks: list[Chunk] = field(default_factory=list)
    held: np.ndarray | None = None
    """Action repeated while no chunk covers the present step."""
    executed: np.ndarray | None = None
    """The latest action."""


class PolicyRunner:
    """Observation history, chunk execution and latency for `n_envs` independent environments.

    Strategies:
    - `receding`: every T_a steps a chunk is asked for, and T_a of its rows are executed, the first of them row
      `policy.first_action` (Chi et al. 2023, section II).
    - `ensemble`: a chunk is asked for at every step, and all rows for the present step are averaged (Zhao et al.
      2023, section IV-B) with weights exp(-ensemble_decay * i), oldest first.
    - `realtime`: as `receding`, but a new chunk continues the one under way (real-time chunking, Black et al. 2025).
      The policy is given the actions that were executed before the present, those that will be before the new chunk
      arrives, and, less and less firmly, the rest of the chunk under way; see `Policy.inpaints`. With T_a = s executed
      steps and usable rows H' = H - first_action it needs d <= s <= H' - d.

    A chunk computed from the observation of step t is executed from step t + d on, d = `latency_steps` plus a
    whole number drawn uniformly from 0..`latency_jitter_steps`. Until then the previous chunk goes on, and rows
    whose time has passed are skipped: the first row executed is first_action + d. Chunks are asked for T_a steps
    apart, that is when d executed steps remain, so the queue never runs dry. With d > T_a several requests are
    under way at once. Before the first chunk arrives the hold action is executed.

    Environment i draws noise and jitter from generators seeded by its episode seed alone, so an episode does not
    depend on which others run beside it.
    """

    def __init__(
        self,
        policy: Policy,
        n_envs: int = 1,
        *,
        strategy: Strategy = "receding",
        n_action_steps: int | None = None,
        latency_steps: int = 0,
        latency_jitter_steps: int = 0,
        ensemble_decay: float = 0.01,
        seeds: Sequence[int] | None = None,
    ) -> None:
        """`n_action_steps` None takes the policy's T_a; `seeds` None takes 0..n_envs-1."""
        if strategy not in STRATEGIES:
            raise unknown("strategy", strategy, STRATEGIES)
        if n_envs < 1:
            raise RobopolicyError(f"n_envs must be at least 1, got {n_envs}")
        if latency_steps < 0 or latency_jitter_steps < 0:
            raise RobopolicyError(
                f"latency must not be negative: {latency_steps} steps, jitter {latency_jitter_steps}"
            )
        if strategy == "ensemble" and n_action_steps not in (None, 1):
            raise RobopolicyError(
                f"strategy 'ensemble' asks at every step; n_action_steps {n_action_steps} has no use"
            )
        self.policy = policy
        self.n_envs = n_envs
        self.strategy = strategy
        if n_action_steps is None:
            n_action_steps = 1 if strategy == "ensemble" else policy.config.n_action_steps
        self.n_action_steps = n_action_steps
        self._latency_steps = latency_steps
        self.latency_jitter_steps = latency_jitter_steps
        self.ensemble_decay = ensemble_decay
        self.asked = 0
        """Chunks asked for in the latest step, all in one call of the policy."""
        self._inputs = policy.features.inputs
        self._check_configuration()
        self._history: dict[str, np.ndarray] = {
            f.key: np.zeros((n_envs, policy.config.n_obs_steps, *f.shape), f.dtype) for f in self._inputs
        }
        self._past = np.zeros((n_envs, policy.config.n_obs_steps - 1, policy.action_dim), np.float32)
        self._seeds = list(range(n_envs))
        self._clocks: list[_Clock] = [self._clock(s) for s in self._seeds]
        self.reset(seeds=seeds)

    @property
    def latency_steps(self) -> int:
        """Control steps between an observation and the first use of its chunk, as injected, or as measured on a robot;
        it may change at any time and is refused where the strategy has no room for it."""
        return self._latency_steps

    @latency_steps.setter
    def latency_steps(self, steps: int) -> None:
        previous, self._latency_steps = self._latency_steps, steps
        try:
            self._check_configuration()
        except RobopolicyError:
            self._latency_steps = previous
            raise

    @property
    def usable_rows(self) -> int:
        """H': the rows of a chunk from the present on."""
        return self.policy.config.horizon - self.policy.first_action

    @property
    def max_latency_steps(self) -> int:
        """The largest latency, jitter included, that chunks and strategy leave room for."""
        spare = self.usable_rows - self.n_action_steps
        return min(spare, self.n_action_steps) if self.strategy == "realtime" else spare

    def _check_configuration(self) -> None:
        policy, control = self.policy, self.policy.features.action.control
        delay = self.latency_steps + self.latency_jitter_steps
        usable = self.usable_rows
        if self.strategy == "realtime":
            if not policy.inpaints:
                raise RobopolicyError(
                    f"strategy 'realtime' needs a diffusion or flow policy that continues a chunk under way; "
                    f"{type(policy).__name__} does not; use 'receding'"
                )
            if not delay <= self.n_action_steps <= usable - delay:
                raise RobopolicyError(
                    f"strategy 'realtime' needs latency d <= action steps s <= usable rows H' - d; d = {delay}, "
                    f"s = {self.n_action_steps}, H' = {usable} (horizon {policy.config.horizon} minus first_action "
                    f"{policy.first_action})"
                )
        if self.n_action_steps < 1 or usable < self.n_action_steps + delay:
            raise RobopolicyError(
                f"horizon {policy.config.horizon} minus first_action {policy.first_action} leaves {usable} rows of a "
                f"chunk; {self.n_action_steps} action steps plus {delay} latency steps need "
                f"{self.n_action_steps + delay}"
            )
        for feature in self._inputs:
            if np.dtype(feature.dtype).kind not in "fiub":
                raise FeatureMismatch(f"the runner needs numeric inputs, {feature.key!r} is {feature.dtype}")
        if (
            self.strategy == "ensemble"
            and control
            and control.mode == "absolute"
            and control.rotation in _NOT_AVERAGED
        ):
            raise RobopolicyError(
                f"strategy 'ensemble' averages actions, which absolute {control.rotation} rotations do not allow; "
                "use strategy 'receding' or a rot6d policy"
            )

    @property
    def options(self) -> dict[str, Any]:
        """The settings that change what is executed, for reports."""
        options: dict[str, Any] = {
            "strategy": self.strategy,
            "n_action_steps": self.n_action_steps,
            "latency_steps": self.latency_steps,
            "latency_jitter_steps": self.latency_jitter_steps,
        }
        return options | ({"ensemble_decay": self.ensemble_decay} if self.strategy == "ensemble" else {})

    @staticmethod
    def _clock(seed: int) -> _Clock:
        # On the CPU whatever the policy's device, so that an episode draws the same noise everywhere.
        return _Clock(torch.Generator().manual_seed(seed), np.random.default_rng([seed, 1]))

    def reset(self, env_ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Forgets history and chunks of these environments (all by default) and restarts their generators.

        `seeds` has one non-negative number per environment; None repeats each environment's previous seed.
        """
        ids = self._ids(env_ids)
        chosen = [self._seeds[i] for i in ids] if seeds is None else [int(s) for s in seeds]
        if len(chosen) != len(ids) or any(s < 0 for s in chosen):
            raise RobopolicyError(f"reset needs {len(ids)} seeds, none of them negative, got {chosen}")
        for i, seed in zip(ids, chosen, strict=True):
            self._seeds[i] = seed
            self._clocks[i] = self._clock(seed)
            self._past[i] = 0

    def step(
        self,
        observation: dict[str, np.ndarray],
        env_ids: Sequence[int] | None = None,
        time: float | Sequence[float] | np.ndarray | None = None,
        hold: np.ndarray | None = None,
        ask: bool = True,
    ) -> np.ndarray:
        """Actions [n, D_a] for the observations {key: [n, ...]} of these n environments (all by default).

        `time` [n] or one number is the time of the observations in s from any origin, on a monotonic clock; it is
        rounded to control steps at the policy's rate, so a missed tick skips the rows whose time has passed.
        None counts calls. `hold` [n, D_a] is the action that keeps each robot where it is; it is needed while no
        chunk covers the present step, and the first one given then is kept until a chunk does. `ask` False leaves
        chunks that are due to the next step: a robot that fell behind catches up with observations alone.
        """
        ids = self._ids(env_ids)
        arrays = self._checked(observation, len(ids))
        if hold is not None and np.shape(hold) != (len(ids), self.policy.action_dim):
            raise FeatureMismatch(
                f"hold actions must be [{len(ids)}, {self.policy.action_dim}], got {list(np.shape(hold))}"
            )
        times = None if time is None else np.broadcast_to(np.asarray(time, dtype=np.float64), (len(ids),))
        for row, i in enumerate(ids):
            self._observe(i, {k: v[row] for k, v in arrays.items()}, None if times is None else float(times[row]))
        due = [i for i in ids if self._clocks[i].step >= self._clocks[i].due] if ask else []
        if due:
            self._ask(due)
        self.asked = len(due)
        return np.stack([self._action(i, None if hold is None else hold[row]) for row, i in enumerate(ids)])

    def _ids(self, env_ids: Sequence[int] | None) -> list[int]:
        ids = list(range(self.n_envs)) if env_ids is None else [int(i) for i in env_ids]
        if not ids or len(set(ids)) != len(ids) or not all(0 <= i < self.n_envs for i in ids):
            raise RobopolicyError(f"env_ids must be distinct and within 0..{self.n_envs - 1}, got {ids}")
        return ids

    def _checked(self, observation: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
        arrays = {}
        for feature in self._inputs:
            if feature.key not in observation:
                hint = did_you_mean(feature.key, observation)
                raise FeatureMismatch(f"the policy needs {feature.key!r}, the observation has no such key.{hint}")
            arrays[feature.key] = _matching(np.asarray(observation[feature.key]), feature, n)
        return arrays

    def _observe(self, i: int, rows: dict[str, np.ndarray], time: float | None) -> None:
        """Advances the clock of environment i and appends one observation to its history."""
        clock = self._clocks[i]
        step = clock.step + 1
        if time is not None:
            rate = self.policy.features.rate_hz
            if rate is None:
                raise RobopolicyError("the policy's features name no rate_hz: step without `time`, which counts steps")
            if clock.start is None:
                clock.start = time
            step = round((time - clock.start) * rate)
        if step < clock.step:
            raise RobopolicyError(f"environment {i}: time went back from step {clock.step} to step {step}")
        for key, row in rows.items():
            history = self._history[key][i]
            if clock.step < 0:
                history[:] = row
                continue
            # A missed tick leaves a gap in the evenly spaced history: the last known observation fills it.
            gap = min(step - clock.step, len(history))
            if gap:
                last = history[-1].copy()
                history[:-gap] = history[gap:].copy()
                history[-gap:-1] = last
            history[-1] = row
        past = self._past[i]
        gap = min(step - clock.step, len(past))
        if clock.executed is not None and gap:
            # Through missed ticks the robot goes on with its latest action.
            past[:-gap] = past[gap:].copy()
            past[-gap:] = clock.executed
        clock.step = step

    def _ask(self, ids: list[int]) -> None:
        """One call of the policy for all environments that need a chunk now."""
        policy, device = self.policy, self.policy.device
        batch = {k: torch.from_numpy(v[ids]).to(device) for k, v in self._history.items()}
        if policy.uses_past_actions:
            made = [min(self._clocks[i].step + 1, policy.config.n_obs_steps) for i in ids]
            batch["past.action"] = torch.from_numpy(self._past[ids]).to(device)
            batch["past.length"] = torch.tensor(made, device=device)
        if policy.uses_step_count:
            batch["past.steps"] = torch.tensor([self._clocks[i].step for i in ids], device=device)
        if self.strategy == "realtime":
            batch |= {k: torch.from_numpy(v).to(device) for k, v in self._prefixes(ids).items()}
        # Continuing a chunk takes gradients with respect to it, which inference mode would rule out.
        with torch.no_grad() if "prefix.action" in batch else torch.inference_mode():
            chunks = policy.predict(batch, [self._clocks[i].generator for i in ids]).cpu().numpy()
        expected = (len(ids), policy.config.horizon, policy.action_dim)
        if chunks.shape != expected:
            raise FeatureMismatch(f"the policy returned a chunk of shape {chunks.shape}, expected {expected}")
        for i, actions in zip(ids, chunks, strict=True):
            clock = self._clocks[i]
            if not np.isfinite(actions).all():
                raise RobopolicyError(
                    f"environment {i}, step {clock.step}: the policy returned NaN or infinite actions"
                )
            delay = self.latency_steps
            if self.latency_jitter_steps:
                delay += int(clock.jitter.integers(0, self.latency_jitter_steps + 1))
            clock.chunks.append(Chunk(actions, clock.step - policy.first_action, clock.step + delay))
            clock.due = clock.step + self.n_action_steps

    def _prefixes(self, ids: list[int]) -> dict[str, np.ndarray]:
        """What is committed where new chunks of these environments will lie; empty while nothing is."""
        horizon, first = self.policy.config.horizon, self.policy.first_action
        prefix = np.zeros((len(ids), horizon, self.policy.action_dim), np.float32)
        weight = np.zeros((len(ids), horizon), np.float32)
        for row, i in enumerate(ids):
            clock = self._clocks[i]
            rows = [newest(clock.chunks, clock.step + k) for k in range(self.usable_rows)]
            covered = next((k for k, action in enumerate(rows) if action is None), len(rows))
            if not covered:
                continue
            delay = self.latency_steps + self.latency_jitter_steps
            prefix[row, first : first + covered] = rows[:covered]
            weight[row, first:] = prefix_weights(min(delay, covered), covered, len(rows))
            made = min(clock.step, first, len(self._past[i]))
            if made:
                prefix[row, first - made : first] = self._past[i][-made:]
                weight[row, first - made : first] = 1.0
        return {"prefix.action": prefix, "prefix.weight": weight} if weight.any() else {}

    def plan(self, env: int = 0) -> np.ndarray:
        """Actions [k, D_a] for the present and the following steps of an environment, whether their chunks have
        arrived or not: the rows left of the newest chunk, or under `ensemble` the mean of all chunks at each step."""
        clock = self._clocks[env]
        chunks = [replace(c, arrival=clock.step) for c in clock.chunks]
        steps = [clock.step + k for k in range(self.usable_rows)]
        if self.strategy == "ensemble":
            rows = [ensemble(chunks, step, self.ensemble_decay) for step in steps]
        else:
            rows = [newest(chunks[-1:], step) for step in steps]
        known = [row for row in rows if row is not None]
        return np.array(known, self.policy.features.action.dtype).reshape(-1, self.policy.action_dim)

    def _action(self, i: int, hold: np.ndarray | None) -> np.ndarray:
        """The action of environment i at its present step, remembered as executed."""
        clock = self._clocks[i]
        clock.executed = self._chosen(i, clock, hold)
        return clock.executed.copy()

    def _chosen(self, i: int, clock: _Clock, hold: np.ndarray | None) -> np.ndarray:
        dtype = self.policy.features.action.dtype
        clock.chunks = [c for c in clock.chunks if not c.expired(clock.step)]
        if self.strategy == "ensemble":
            action = ensemble(clock.chunks, clock.step, self.ensemble_decay)
        else:
            action = newest(clock.chunks, clock.step)
        if action is not None:
            clock.held = None
            return action.astype(dtype)
        # Latched: a hold action computed anew from every observation would follow a sagging arm down.
        if clock.held is None and hold is not None:
            clock.held = np.array(hold, dtype=dtype)
        if clock.held is None:
            raise RobopolicyError(
                f"environment {i}, step {clock.step}: no chunk has arrived (latency {self.latency_steps} steps) and "
                "no hold action was given; pass hold=task.hold_action(observation)"
            )
        return clock.held


def _matching(array: np.ndarray, feature: Feature, n: int) -> np.ndarray:
    if array.shape != (n, *feature.shape):
        raise FeatureMismatch(
            f"{feature.key!r} must have shape {[n, *feature.shape]} (environments first), got {list(array.shape)}"
        )
    if array.dtype != np.dtype(feature.dtype):
        raise FeatureMismatch(f"{feature.key!r} must be {feature.dtype}, got {array.dtype}")
    return array
