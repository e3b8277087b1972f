"""How a legged policy walks and what it survives: tracking, cost of transport, pushes, terrains, a fresh adversary.

Every trial walks straight ahead at one commanded speed. The robots of a trial differ (friction, payload, gains) and
are the same in every trial, as are the directions and moments of the pushes: trials of different strength, and of
different policies, are paired. Seeds of evaluation draw other robots than those of training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robopolicy.errors import RobopolicyError, unknown
from robopolicy.evaluation.statistics import Interval, bootstrap_mean, wilson
from robopolicy.progress import progress_bar

if TYPE_CHECKING:
    from robopolicy.sim.quadruped.config import QuadrupedConfig
    from robopolicy.sim.quadruped.env import QuadrupedEnv

Actor = Callable[[Tensor], Tensor]
"""Actions [N, 12] as the environment's `step` takes them, for observations [N, 45]."""
Pusher = Callable[[int, Tensor], Tensor]
"""Forces [N, 3] in N, for the number of the control step and the group "disturber"."""
TEST_ROBOTS = 1_000_000
"""Added to the seed that draws the robots: no training has met these."""
SETTLE_S = 1.0
"""Seconds from the start that no average counts."""
PULSE_S = 0.2
PULSE_AT_S = (1.5, 2.0)
"""A sudden push begins somewhere in between, at any phase of the gait."""
SUDDEN_S = 5.0
CONTINUOUS_S = 6.0
HOLD_S = 0.4
"""A continuous push keeps its direction this long."""
TERRAIN_S = 8.0
GRAVITY = 9.81


@dataclass(frozen=True)
class Walk:
    """One trial of N robots; averages are over the steps after the first second and before a fall."""

    survived: np.ndarray
    """[N] bool"""
    forward_error: np.ndarray
    """|vx - command|, m/s, [N]; NaN for who fell within the first second."""
    work: np.ndarray
    """Sum of |torque * joint velocity| over the weight, m, [N]; NaN as above."""
    distance: np.ndarray
    """Between the places after the first second and at the end, m, [N]; NaN as above."""
    cost: np.ndarray
    """Share of the largest task reward that was lost, all of it after a fall, mean over all steps, [N]."""
    force: np.ndarray
    """Mean norm of the push until a fall, N, [N]."""
    failed_physics: int
    """Robots left out, in [N] counted as fallen, because their physics failed."""


@dataclass(frozen=True)
class Point:
    """Survival at one strength of push, or on one terrain."""

    name: str
    value: float
    """Strength in N, or level."""
    survived: tuple[bool, ...]
    forward_error: Interval

    @property
    def survival(self) -> Interval:
        return wilson(sum(self.survived), len(self.survived))


@dataclass
class Locomotion:
    """Everything `robopolicy eval-locomotion` measured."""

    robot: str
    speed: float
    episodes: int
    forward_error: Interval
    cost_of_transport: Interval
    """Work over weight times distance, of all robots together: one that stays where it is does not decide it."""
    survival: Interval
    """Without any push."""
    task_reward: Interval
    """Share of the largest task reward (following the command) that was earned without any push."""
    sudden: list[Point] = field(default_factory=list)
    continuous: list[Point] = field(default_factory=list)
    terrain: list[Point] = field(default_factory=list)
    adversary: dict[str, float | Interval] | None = None
    """Under a disturber trained against this policy: survival, cost, force, ratio, and eta where it was trained with
    one."""
    bullet: dict[str, list[Point]] | None = None
    """The nominal robot under sudden pushes in both simulators."""
    failed_physics: int = 0

    def area(self, points: list[Point]) -> Interval | None:
        """Mean survival over the strengths of push, as an area under the curve; resampled by robot."""
        if len(points) < 2:
            return None
        strengths = np.array([p.value for p in points])
        survived = np.array([p.survived for p in points], dtype=float)
        return bootstrap_mean(np.trapezoid(survived, strengths, axis=0) / np.ptp(strengths))


def trial_config(config: "QuadrupedConfig", speed: float, seconds: float, seed: int, terrain: str = "flat",
                level: int | None = None) -> "QuadrupedConfig":  # fmt: skip
    """The trained environment, for a walk straight ahead of `seconds` by robots of the test seeds."""
    from robopolicy.sim.quadruped.config import HEAVIEST_FORCE, CommandConfig
    from robopolicy.sim.quadruped.robots import robot

    straight = CommandConfig((speed, speed), (0.0, 0.0), (0.0, 0.0), dead_zone=0.0, every_s=seconds + 1)
    return replace(
        config,
        terrain=terrain,  # type: ignore[arg-type]
        level=level,
        episode_s=seconds + 1,
        commands=straight,
        randomisation=replace(config.randomisation, kick=0.0),
        max_force=HEAVIEST_FORCE * robot(config.robot).mass * GRAVITY,
        joint_spread=(1.0, 1.0),
        velocity_spread=0.0,
        staggered=False,
        seed=TEST_ROBOTS + seed,
    )


@torch.no_grad()
def walk(
    env: "QuadrupedEnv", actor: Actor, seconds: float, seed: int, push: Pusher | None = None, level: bool = True
) -> Walk:
    """Walks from a reset; who falls has finished, who reaches the edge of a terrain has arrived.

    Forces are in a frame that turns with the robot's heading and stays level, else in that of its trunk.
    """
    from robopolicy.sim.quadruped.kinematics import level_into_base, rotations
    from robopolicy.sim.quadruped.robots import CONTROL_DT, PHYSICS_DT, SUBSTEPS

    n, steps, settle = env.n_envs, round(seconds / CONTROL_DT), round(SETTLE_S / CONTROL_DT)
    observations = env.reset(seed)
    walking, survived = np.ones(n, bool), np.ones(n, bool)
    error, energy, counted, force, pushed = (np.zeros(n) for _ in range(5))
    cost = np.zeros(n)
    start, end = np.full((n, 2), np.nan), np.full((n, 2), np.nan)
    failed = 0
    for step in range(steps):
        wrench = None if push is None else push(step, observations["disturber"])
        if wrench is not None:
            force += walking * wrench.norm(dim=1).numpy()
        pushed += walking
        before = env.batch.present.copy()
        if wrench is not None and level:
            wrench = torch.from_numpy(level_into_base(rotations(before[:, 4:8]), wrench.double().numpy()))
        if step == settle:
            start[:] = end[:] = before[:, 1:3]
        result = env.step(actor(observations["policy"]), wrench)
        ended = (result.terminated | result.timeout).numpy()
        cost += np.where(walking, 1 - result.task_reward.numpy() / env.task_reward_max, ~survived)
        # The states of robots that were reset show their new episodes.
        going = walking & ~ended
        if step >= settle:
            state = env.batch.present
            error += going * np.abs(env.velocity()[:, 0] - env.command[:, 0])
            motion = np.concatenate([before[:, None], env.batch.states[:, :-1]], axis=1)[:, :, 26:38]
            power = np.abs(env.batch.sensors[:, :, 5:17] * motion).sum(axis=2).mean(axis=1)
            energy += going * power * PHYSICS_DT * SUBSTEPS
            counted += going
            end[going] = state[going, 1:3]
        lost = np.zeros(n, bool) if result.invalid is None else result.invalid.numpy()
        failed += int((lost & walking).sum())
        survived &= ~(walking & (result.terminated.numpy() | lost))
        walking &= ~ended
        observations = result.observations
    distance = np.hypot(*(end - start).T)
    weight = env.robot.mass * GRAVITY
    work = np.where(counted > 0, energy / weight, np.nan)
    with np.errstate(invalid="ignore"):
        return Walk(survived, error / counted, work, distance, cost / steps, force / pushed, failed)


def horizontal(angles: np.ndarray, strength: float) -> np.ndarray:
    """Forces [..., 3] of one strength in the horizontal directions `angles` [...] from the heading."""
    return strength * np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=-1)


def sudden(n: int, strength: float, seed: int) -> Pusher:
    """One push of 0.2 s in any horizontal direction, the same directions and moments for every strength."""
    from robopolicy.sim.quadruped.robots import CONTROL_DT

    rng = np.random.default_rng([seed, 1])
    force = torch.tensor(horizontal(rng.uniform(0, 2 * math.pi, n), strength), dtype=torch.float32)
    begin = torch.tensor(rng.uniform(*PULSE_AT_S, n) / CONTROL_DT).round()

    def push(step: int, observation: Tensor) -> Tensor:
        on = (step >= begin) & (step < begin + round(PULSE_S / CONTROL_DT))
        return force * on[:, None]

    return push


def continuous(n: int, strength: float, seed: int) -> Pusher:
    """A push from the first second on, whose horizontal direction changes every 0.4 s."""
    from robopolicy.sim.quadruped.robots import CONTROL_DT

    rng = np.random.default_rng([seed, 2])
    angles = rng.uniform(0, 2 * math.pi, (math.ceil(CONTINUOUS_S / HOLD_S), n))
    forces = torch.tensor(horizontal(angles, strength), dtype=torch.float32)
    hold, begin = round(HOLD_S / CONTROL_DT), round(SETTLE_S / CONTROL_DT)

    def push(step: int, observation: Tensor) -> Tensor:
        return forces[step // hold] * (step >= begin)

    return push


def ratio(above: np.ndarray, below: np.ndarray, seed: int = 0, n_resamples: int = 10_000) -> Interval:
    """Sum of `above` [N] over sum of `below` [N] with its percentile bootstrap interval."""
    rows = np.random.default_rng(seed).integers(0, len(above), (n_resamples, len(above)))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.quantile(above[rows].sum(axis=1) / below[rows].sum(axis=1), [0.025, 0.975])
        return Interval(float(above.sum() / below.sum()), float(low), float(high))


def finite_mean(values: np.ndarray) -> Interval:
    """Mean of what is finite, with its interval; all NaN when nothing is."""
    found = values[np.isfinite(values)]
    return bootstrap_mean(found) if len(found) else Interval(*(float("nan"),) * 3)


def transport(found: Walk) -> Interval:
    """Cost of transport: work over weight times distance; all NaN when nobody got beyond the first second."""
    there = np.isfinite(found.work) & np.isfinite(found.distance)
    return ratio(found.work[there], found.distance[there]) if there.any() else finite_mean(found.work)


def point(name: str, value: float, found: Walk) -> Point:
    return Point(name, value, tuple(bool(s) for s in found.survived), finite_mean(found.forward_error))


@dataclass
class Protocol:
    """What is measured."""

    episodes: int = 64
    speed: float = 0.5
    """m/s, commanded straight ahead."""
    sudden: tuple[float, ...] | None = None
    """N; by default six steps up to 1.2 times the weight."""
    continuous: tuple[float, ...] | None = None
    """N; by default six steps up to 0.6 times the weight."""
    terrains: tuple[str, ...] = ("slope", "rough", "stairs", "blocks")
    levels: tuple[int, ...] = (0, 4)
    seed: int = 0
    adversary_iterations: int = 50
    """Of the training of a fresh disturber; 0 leaves it out."""
    adversary_force: float = 0.0
    """N; 0 takes what the policy was trained for."""
    bullet_episodes: int = 0
    """Episodes in PyBullet and as many in MuJoCo, for each of four strengths; 0 leaves them out."""

    def check(self, weight: float) -> None:
        """Raises RobopolicyError for what cannot be measured."""
        from robopolicy.sim.quadruped.terrain import LEVELS, SHARES

        for terrain in self.terrains:
            if terrain not in SHARES:
                raise unknown("terrain", terrain, SHARES)
        for level in self.levels:
            if not 0 <= level < LEVELS:
                raise RobopolicyError(f"--levels {level}: terrain levels are 0 to {LEVELS - 1}")
        if self.episodes < 2:
            raise RobopolicyError(f"--episodes {self.episodes}: at least 2 are needed")
        if self.adversary_iterations < 0 or not 0 <= self.adversary_force <= 2 * weight:
            raise RobopolicyError(
                f"--adversary-iterations {self.adversary_iterations}, --adversary-force {self.adversary_force:g}: "
                f"expected 0 or more, and 0 to {2 * weight:.0f} N, twice the robot's weight"
            )
        if not 0 < self.speed <= 3:
            raise RobopolicyError(f"--speed {self.speed:g}: expected above 0 and at most 3 m/s")
        for name in ("sudden", "continuous"):
            strengths = getattr(self, name) or ()
            if len(set(strengths)) < len(strengths):
                raise RobopolicyError(f"--{name}: one strength is given twice")
            for strength in strengths:
                if not 0 <= strength <= 2 * weight:
                    raise RobopolicyError(
                        f"--{name} {strength:g}: expected 0 to {2 * weight:.0f} N, twice the robot's weight"
                    )


def measure(config: "QuadrupedConfig", actor: Actor, protocol: Protocol, eta: float | None = None) -> Locomotion:
    """Runs the whole protocol for `actor`, which was trained in `config`."""
    from robopolicy.sim.quadruped.robots import robot

    machine = robot(config.robot)
    weight, n, seed = machine.mass * GRAVITY, protocol.episodes, protocol.seed
    protocol.check(weight)
    default = np.linspace(0, 1.2, 7) * weight
    pushes: dict[str, tuple[Callable[[int, float, int], Pusher], list[float], float]] = {
        "sudden": (sudden, sorted(protocol.sudden or default.round().tolist()), SUDDEN_S),
        "continuous": (continuous, sorted(protocol.continuous or (default / 2).round().tolist()), CONTINUOUS_S),
    }
    trials = sum(len(strengths) for _, strengths, _ in pushes.values())
    trials += 1 + len(protocol.terrains) * len(protocol.levels) + bool(protocol.adversary_iterations)
    bar = progress_bar(total=trials, desc="trials", unit="trial")
    flat = trial_config(config, protocol.speed, max(SUDDEN_S, CONTINUOUS_S), seed).make(n)
    calm = walk(flat, actor, CONTINUOUS_S, seed)
    bar.update()
    failed = calm.failed_physics
    found = Locomotion(
        config.robot,
        protocol.speed,
        n,
        finite_mean(calm.forward_error),
        transport(calm),
        wilson(int(calm.survived.sum()), n),
        bootstrap_mean(1 - calm.cost),
    )
    for kind, (make, strengths, seconds) in pushes.items():
        for strength in strengths:
            trial = walk(flat, actor, seconds, seed, make(n, strength, seed))
            getattr(found, kind).append(point(kind, strength, trial))
            failed += trial.failed_physics
            bar.update()
    flat.close()
    for terrain in protocol.terrains:
        for level in protocol.levels:
            env = trial_config(config, protocol.speed, TERRAIN_S, seed, terrain, level).make(n)
            trial = walk(env, actor, TERRAIN_S, seed)
            env.close()
            found.terrain.append(point(terrain, level, trial))
            failed += trial.failed_physics
            bar.update()
    if protocol.adversary_iterations:
        found.adversary, lost = under_adversary(config, actor, protocol, eta)
        failed += lost
        bar.update()
    bar.close()
    if protocol.bullet_episodes:
        found.bullet = in_both_simulators(config, actor, protocol)
    found.failed_physics = failed
    return found


def under_adversary(
    config: "QuadrupedConfig", actor: Actor, protocol: Protocol, eta: float | None
) -> tuple[dict[str, float | Interval], int]:
    """Trains a disturber against the frozen policy and walks under it; how often physics failed besides."""
    from robopolicy.rl.adversary import AdversaryConfig, train_disturber
    from robopolicy.sim.quadruped.robots import robot

    strength = protocol.adversary_force or config.max_force or robot(config.robot).force_limit
    n, seed = protocol.episodes, protocol.seed
    # Trained on other robots than it is tried on.
    train = trial_config(config, protocol.speed, CONTINUOUS_S, seed + 1).make(max(n, 128))
    settings = AdversaryConfig(iterations=protocol.adversary_iterations)
    disturber = train_disturber(train, actor, settings, strength, seed, progress=False)
    train.close()
    env = trial_config(config, protocol.speed, CONTINUOUS_S, seed).make(n)
    trial = walk(env, actor, CONTINUOUS_S, seed, lambda step, observation: disturber(observation), level=False)
    env.close()
    found: dict[str, float | Interval] = {
        "max_force": strength,
        "survival": wilson(int(trial.survived.sum()), n),
        "cost": bootstrap_mean(trial.cost),
        "force": bootstrap_mean(trial.force),
        "cost_per_newton": ratio(trial.cost, trial.force),
    }
    return found | ({} if eta is None else {"eta": eta}), trial.failed_physics


def in_both_simulators(config: "QuadrupedConfig", actor: Actor, protocol: Protocol) -> dict[str, list[Point]]:
    """Survival of the nominal robot under equal sudden pushes in MuJoCo and in PyBullet (extra `pybullet`)."""
    from robopolicy.sim.quadruped.bullet import BulletQuadruped
    from robopolicy.sim.quadruped.config import NoiseConfig, RandomisationConfig
    from robopolicy.sim.quadruped.robots import CONTROL_DT

    n, seed = protocol.bullet_episodes, protocol.seed
    nominal = replace(
        trial_config(config, protocol.speed, SUDDEN_S, seed),
        randomisation=RandomisationConfig.none(),
        noise=NoiseConfig.none(),
        joint_spread=(0.9, 1.1),
    )
    env, bullet = nominal.make(n), BulletQuadruped(nominal)
    bullet.command[:] = protocol.speed, 0.0
    weight = env.robot.mass * GRAVITY
    found: dict[str, list[Point]] = {"mujoco": [], "pybullet": []}
    strengths = (np.array([0.0, 0.3, 0.6, 0.9]) * weight).round().tolist()
    bar = progress_bar(total=n * len(strengths), desc="PyBullet", unit="episode")
    steps, settle = round(SUDDEN_S / CONTROL_DT), round(SETTLE_S / CONTROL_DT)
    for strength in strengths:
        push = sudden(n, strength, seed)
        env.reset(seed)
        postures = env.batch.present[:, 8:20].copy()
        found["mujoco"].append(point("mujoco", strength, walk(env, actor, SUDDEN_S, seed, push)))
        survived, errors = np.ones(n, bool), np.full(n, np.nan)
        forces = np.stack([push(step, torch.empty(0)).numpy() for step in range(steps)])
        for i in range(n):
            seen, speeds = bullet.reset(postures[i]), []
            for step in range(steps):
                with torch.no_grad():
                    action = actor(torch.from_numpy(seen)[None])[0].numpy()
                seen = bullet.step(action, bullet.level_into_base(forces[step, i]))
                if bullet.fallen:
                    survived[i] = False
                    break
                if step >= settle:
                    speeds.append(abs(bullet.velocity()[0] - protocol.speed))
            errors[i] = np.mean(speeds) if speeds else np.nan
            bar.update()
        found["pybullet"].append(Point("pybullet", strength, tuple(bool(s) for s in survived), finite_mean(errors)))
    bar.close()
    env.close()
    bullet.close()
    return found
