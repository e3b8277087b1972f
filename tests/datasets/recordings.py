"""Recordings of a made-up arm whose action space is known, for tests of what is inferred from data."""

from pathlib import Path

import numpy as np

from robopolicy.datasets.detect import make_writer
from robopolicy.features import Control, Feature, FeatureSpec

RATE = 10.0
Episode = dict[str, np.ndarray]


def smooth(rng: np.random.Generator, n: int, dims: int) -> np.ndarray:
    """[n, dims] sums of slow sines between -1 and 1."""
    t = np.arange(n)[:, None, None] / RATE
    frequency, phase = rng.uniform(0.3, 1.5, (1, dims, 3)), rng.uniform(0, 6.28, (1, dims, 3))
    return np.sin(frequency * t + phase).mean(axis=2)


def quaternion(axis_angle: np.ndarray) -> np.ndarray:
    """Unit quaternions [n, 4] wxyz of rotation vectors [n, 3]."""
    angle = np.linalg.norm(axis_angle, axis=1, keepdims=True)
    return np.concatenate([np.cos(angle / 2), np.sin(angle / 2) * axis_angle / np.maximum(angle, 1e-12)], axis=1)


def arm_features(control: Control | None, action_names: tuple[str, ...] = ("x", "y")) -> FeatureSpec:
    action = Feature("action", (len(action_names),), kind="action", names=action_names, control=control)
    return FeatureSpec((Feature("observation.state", (2,)), action), RATE)


def planar_episode(mode: str, seed: int, n: int = 80) -> Episode:
    """A point that goes half of the way to its set-point in a step; the actions are set-points or displacements."""
    rng = np.random.default_rng(seed)
    state = smooth(rng, n, 2)
    after = np.concatenate([state[1:], state[-1:]])
    action = state + 2 * (after - state) if mode == "absolute" else 2 * (after - state)
    return {"observation.state": state.astype(np.float32), "action": action.astype(np.float32)}


def write(path: Path, features: FeatureSpec, episodes: list[Episode], **options: object) -> Path:
    """An episode store."""
    with make_writer("episodes", path, features, **options) as writer:
        for episode in episodes:
            writer.add(episode)
    return path
