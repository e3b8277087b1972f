"""Play data of a point that passes an obstacle on either side and goes to either of two targets, and its rollouts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from toys import train

from robopolicy.configs import to_dict
from robopolicy.datasets.episodes import Episodes
from robopolicy.datasets.windows import BatchOrder, GoalRelabelling, WindowSampler, WindowShape, goal_draws
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.inference.runner import PolicyRunner
from robopolicy.policies.base import NormalizationConfig, Policy, PolicyConfig
from robopolicy.policies.beso import BESOConfig, BESOProcessConfig, GPTConfig, GuidedSamplerConfig
from robopolicy.training.checkpoint import build

STATE = Feature("observation.state", (2,))
GOAL = Feature("observation.goal", (1, 2), kind="goal")
ACTION = Feature("action", (2,), kind="action", control=Control("end_effector_pose", "delta"))
SPEC = FeatureSpec((STATE, GOAL, ACTION), rate_hz=10)
TARGETS = np.array([[-0.4, 0.8], [0.4, 0.8]])
RADIUS, SPEED, STEPS, WINDOW = 0.35, 0.1, 45, 4

NETWORK = GPTConfig(width=64, layers=2, heads=4, attention_dropout=0.0, residual_dropout=0.0)
CONFIG = BESOConfig(
    n_obs_steps=WINDOW,
    horizon=WINDOW,
    normalization=NormalizationConfig("mean_std", "min_max"),
    network=NETWORK,
    process=BESOProcessConfig(sigma_min=0.02),
    sampler=GuidedSamplerConfig("ddim", 3, "exponential"),
    goal_dropout=0.2,
)


def starts(n: int, random: np.random.Generator) -> np.ndarray:
    return np.array([0.0, -0.75]) + random.uniform(-0.05, 0.05, (n, 2))


def play(episodes: int, seed: int) -> Episodes:
    """Side of the obstacle and target are drawn independently; actions are disturbed, their intentions recorded."""
    random = np.random.default_rng(seed)
    place = starts(episodes, random)
    side = random.choice([-1.0, 1.0], episodes)
    target = TARGETS[random.integers(2, size=episodes)]
    places, actions = [], []
    for _ in range(28):
        gate = np.stack([0.75 * side, np.full(episodes, 0.05)], axis=1)
        way = np.where((place[:, 1] < 0)[:, None], gate, target) - place
        action = way * np.minimum(1, SPEED / np.linalg.norm(way, axis=1, keepdims=True).clip(1e-9))
        places.append(place)
        actions.append(action)
        place = place + action + random.normal(0, 0.015, place.shape)
    arrays = {
        "observation.state": np.stack(places, axis=1).reshape(-1, 2).astype(np.float32),
        "action": np.stack(actions, axis=1).reshape(-1, 2).astype(np.float32),
    }
    ends = np.arange(1, episodes + 1) * len(places)
    return Episodes(arrays, ends, FeatureSpec((STATE, ACTION), 10), Path("play"), "memory")


@lru_cache
def trained(steps: int = 1200) -> Policy:
    """The policy of `CONFIG`, trained on relabelled play."""
    return fitted(CONFIG, steps)


def fitted(config: PolicyConfig, steps: int) -> Policy:
    episodes = play(300, seed=0)
    torch.manual_seed(0)
    policy = build(to_dict(config), SPEC)
    for feature in (STATE, ACTION):
        mode = "min_max" if feature is ACTION else "mean_std"
        policy.normalizer.fit(feature.key, episodes.arrays[feature.key], mode, feature)
    policy.normalizer.fit(GOAL.key, episodes.arrays[STATE.key], "mean_std", STATE)
    policy.fit(episodes.arrays["action"])
    shape = WindowShape(WINDOW, config.horizon, 1 - WINDOW, 0, WINDOW - 1)
    sampler = WindowSampler(episodes, shape, [STATE.key], goals=GoalRelabelling(GOAL.key, STATE.key))
    order = BatchOrder(len(sampler), 128, seed=0)

    def batch(step: int) -> dict[str, torch.Tensor]:
        arrays = sampler.batch(order(step), goal_draws(128, step, 0))
        return {k: torch.from_numpy(v) for k, v in arrays.items()}

    train(policy, batch, steps, lr=2e-3)
    return policy


@dataclass
class Outcome:
    """Shares of episodes."""

    reward: float
    """Reached a target."""
    result: float
    """Reached the target that the goal asks for, and no other before."""
    crashed: float
    """Ran into the obstacle."""
    left: float
    """Passed the obstacle on the left, of those that passed it."""


def rollouts(
    policy: Policy, episodes: int = 200, seed: int = 1, shown: Callable[[np.ndarray], np.ndarray] = lambda asked: asked
) -> Outcome:
    """Half of the episodes ask for each target; `shown` maps the numbers of targets to those the policy sees."""
    random = np.random.default_rng(seed)
    place, asked = starts(episodes, random), np.arange(episodes) % 2
    goal = TARGETS[shown(asked)][:, None].astype(np.float32)
    runner = PolicyRunner(policy, episodes, seeds=range(episodes))
    crashed, reached, side = np.zeros(episodes, bool), np.full(episodes, -1), np.zeros(episodes)
    for _ in range(STEPS):
        action = runner.step({"observation.state": place.astype(np.float32), "observation.goal": goal})
        over = crashed | (reached >= 0)
        if over.all():
            break
        place = np.where(over[:, None], place, place + np.clip(action, -SPEED, SPEED))
        crashed |= np.linalg.norm(place, axis=1) < RADIUS
        side = np.where((side == 0) & (place[:, 1] > 0), np.sign(place[:, 0]), side)
        near = np.linalg.norm(place[:, None] - TARGETS, axis=-1) < 0.15
        reached = np.where((reached < 0) & near.any(1) & ~crashed, near.argmax(1), reached)
    passed = side[~crashed & (side != 0)]
    left = float((passed < 0).mean()) if len(passed) else 0.0
    return Outcome(float((reached >= 0).mean()), float((reached == asked).mean()), float(crashed.mean()), left)
