"""Reward terms: pure functions of one step's signals, each scaled by a number of the configuration.

Weights and forms are those of the reference locomotion code, but for the last two. Every weight counts per second: a
step pays weight * dt * term. The sum is not clipped at zero, and falls are not fined; a fall costs what the rest of
the episode would have paid.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

TRACKING_WIDTH = 0.25
"""(m/s)^2 and (rad/s)^2: the squared error at which a tracking term falls to 1/e."""

SHORTEST_SWING, LONGEST_SWING = 0.1, 0.4
"""s: a foot that lands sooner is fined for trembling; staying up longer is not paid any more."""


@dataclass(slots=True)
class Signals:
    """What a step of N robots showed; the base frame is the trunk's."""

    command: np.ndarray
    """Commanded vx, vy in m/s and yaw rate in rad/s, [N, 3]."""
    velocity: np.ndarray
    """Of the trunk in the base frame, m/s, [N, 3]."""
    rate: np.ndarray
    """Angular velocity in the base frame, rad/s, [N, 3]."""
    gravity: np.ndarray
    """Unit vector of gravity in the base frame, [N, 3]."""
    height: np.ndarray
    """Of the trunk's centre over the ground, m, [N]."""
    target_height: float
    joint_velocity: np.ndarray
    """rad/s, [N, 12]."""
    joint_acceleration: np.ndarray
    """rad/s^2 over the control step, [N, 12]."""
    torque: np.ndarray
    """Nm, [N, 12]."""
    foot_height: np.ndarray
    """Of the feet from the trunk's centre along the base frame's z axis, m, [N, 4]."""
    foot_speed: np.ndarray
    """Horizontal in the base frame, relative to the trunk's velocity, m/s, [N, 4]."""
    nominal_foot_height: float
    """What a lifted foot should reach, along the base frame's z axis, m."""
    landed_after: np.ndarray
    """Seconds in the air of the feet that touched down in this step, 0 for the others, [N, 4]."""
    action: np.ndarray
    action_before: np.ndarray
    action_twice_before: np.ndarray
    """[N, 12] each."""


@dataclass(frozen=True)
class RewardScales:
    """Weight per second of every term."""

    linear_tracking: float = 1.0
    yaw_tracking: float = 0.5
    vertical_velocity: float = -2.0
    roll_pitch_rate: float = -0.05
    orientation: float = -0.2
    joint_acceleration: float = -2.5e-7
    joint_power: float = -2e-5
    base_height: float = -1.0
    foot_clearance: float = -0.01
    action_rate: float = -0.01
    smoothness: float = -0.01
    alive: float = 0.0
    """Not published. Without it the first, clumsy steps cost more than they earn, and a small batch learns to fall."""
    air_time: float = 0.0
    """Not in the table either, but usual: without it a small batch is slow to find that feet may leave the ground."""


def _squares(values: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", values, values)


def linear_tracking(s: Signals) -> np.ndarray:
    """exp(-|v_xy* - v_xy|^2 / 0.25)."""
    return np.exp(_squares(s.command[:, :2] - s.velocity[:, :2]) * (-1 / TRACKING_WIDTH))


def yaw_tracking(s: Signals) -> np.ndarray:
    """exp(-(w_z* - w_z)^2 / 0.25)."""
    return np.exp((s.command[:, 2] - s.rate[:, 2]) ** 2 * (-1 / TRACKING_WIDTH))


def vertical_velocity(s: Signals) -> np.ndarray:
    """v_z^2."""
    return s.velocity[:, 2] ** 2


def roll_pitch_rate(s: Signals) -> np.ndarray:
    """w_x^2 + w_y^2."""
    return _squares(s.rate[:, :2])


def orientation(s: Signals) -> np.ndarray:
    """g_x^2 + g_y^2."""
    return _squares(s.gravity[:, :2])


def joint_acceleration(s: Signals) -> np.ndarray:
    """Sum of squares."""
    return _squares(s.joint_acceleration)


def joint_power(s: Signals) -> np.ndarray:
    """Sum of |torque * velocity|."""
    return np.abs(s.torque * s.joint_velocity).sum(1)


def base_height(s: Signals) -> np.ndarray:
    """(h - h*)^2."""
    return (s.height - s.target_height) ** 2


def foot_clearance(s: Signals) -> np.ndarray:
    """Sum over the feet of (z - z*)^2 * horizontal speed."""
    return ((s.foot_height - s.nominal_foot_height) ** 2 * s.foot_speed).sum(1)


def action_rate(s: Signals) -> np.ndarray:
    """|a - a'|^2."""
    return _squares(s.action - s.action_before)


def smoothness(s: Signals) -> np.ndarray:
    """|a - 2 a' + a''|^2."""
    return _squares(s.action - 2 * s.action_before + s.action_twice_before)


def alive(s: Signals) -> np.ndarray:
    """1."""
    return np.ones(len(s.height))


def air_time(s: Signals) -> np.ndarray:
    """Sum over the feet that touch down of their seconds in the air less 0.1, at most 0.3, when asked to move."""
    steps = np.where(s.landed_after > 0, np.minimum(s.landed_after, LONGEST_SWING) - SHORTEST_SWING, 0).sum(axis=1)
    return steps * (np.abs(s.command[:, :2]).max(axis=1) > 0)


Term = Callable[[Signals], np.ndarray]
TERMS: dict[str, Term] = {f.name: globals()[f.name] for f in fields(RewardScales)}
TASK_TERMS = ("linear_tracking", "yaw_tracking")
"""The terms, each in [0, 1], that measure the task."""


def rewards(signals: Signals, scales: RewardScales, dt: float) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Reward [N], the task's part of it [N], and every weighted term [N] by name. Terms of weight 0 are left out."""
    parts = {
        name: term(signals) * (scale * dt) for name, term in TERMS.items() if (scale := getattr(scales, name)) != 0
    }
    n = len(signals.height)
    task = sum((parts[name] for name in TASK_TERMS if name in parts), np.zeros(n))
    total = sum((part for name, part in parts.items() if name not in TASK_TERMS), task)
    return total, task, parts


def task_maximum(scales: RewardScales, dt: float) -> float:
    """The largest task reward of a step."""
    return dt * sum(getattr(scales, name) for name in TASK_TERMS)
