"""One small dataset with everything: two cameras, state, action, language that changes, a 1-step episode."""

from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.detect import make_writer
from robopolicy.features import TASK_INDEX, Control, Feature, FeatureSpec

TASKS = ("push the block", "go home, slowly")
LENGTHS = (7, 1, 12, 5)
CAMERAS = {"observation.images.top": (48, 64, 3), "observation.images.wrist": (32, 32, 3)}
FINGERPRINT = {"simulator": "test 1.2"}


def mixed_features() -> FeatureSpec:
    """Names, units, bounds and control mode are set where a format might lose them."""
    return FeatureSpec(
        (
            Feature("observation.state", (3,), names=("x", "y", "angle"), units=("m", "m", "rad")),
            Feature("observation.keypoints", (2, 2)),
            Feature("observation.images.top", CAMERAS["observation.images.top"], "uint8", "image"),
            Feature("observation.images.wrist", CAMERAS["observation.images.wrist"], "uint8", "image"),
            Feature(TASK_INDEX, (), "int64", "language"),
            Feature("next.reward", ()),
            Feature("next.success", (), "bool"),
            Feature(
                "action",
                (2,),
                kind="action",
                names=("vx", "vy"),
                units=("m/s", "m/s"),
                low=(-10.0, -10.0),
                high=(10.0, 10.0),
                control=Control("velocity", "absolute", "world"),
            ),
        ),
        rate_hz=20.0,
    )


def smooth_images(n: int, shape: tuple[int, ...], phase: float) -> np.ndarray:
    """[n, height, width, 3] uint8 of slowly moving gradients, which video keeps well."""
    height, width, _ = shape
    t = np.arange(n)[:, None, None] / 10 + phase
    y, x = np.arange(height)[None, :, None] / height, np.arange(width)[None, None, :] / width
    channels = [128 + 90 * np.sin(3 * x + 2 * y + t + k) for k in range(3)]
    return np.rint(np.stack(np.broadcast_arrays(*channels), axis=-1)).astype(np.uint8)


def mixed_episodes(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[dict[str, np.ndarray]]:
    """Episodes of `mixed_features`; the instruction changes in the middle of the third one."""
    rng = np.random.default_rng(seed)
    episodes = []
    for number, n in enumerate(lengths):
        task = np.full(n, number % 2, np.int64)
        if number == 2:
            task[n // 2 :] = 1 - task[0]
        episode: dict[str, np.ndarray] = {
            "observation.state": rng.normal(size=(n, 3)).astype(np.float32),
            "observation.keypoints": rng.normal(size=(n, 2, 2)).astype(np.float32),
            TASK_INDEX: task,
            "next.reward": rng.random(n, dtype=np.float32),
            "next.success": np.arange(n) == n - 1,
            "action": rng.normal(size=(n, 2)).astype(np.float32),
        }
        episode |= {key: smooth_images(n, shape, number + len(key)) for key, shape in CAMERAS.items()}
        episodes.append(episode)
    return episodes


def write_mixed(path: Path, to: str = "episodes", seed: int = 0, **options: Any) -> Path:
    """The mixed dataset in format `to`."""
    metadata = {"note": "made for tests"}
    with make_writer(to, path, mixed_features(), FINGERPRINT, tasks=TASKS, metadata=metadata, **options) as writer:
        for episode in mixed_episodes(seed):
            writer.add(episode)
    return path


def write_mixed_long(path: Path, copies: int = 40) -> Path:
    """The mixed dataset many times over, an episode store that takes a while to convert."""
    with make_writer("episodes", path, mixed_features(), FINGERPRINT, tasks=TASKS) as writer:
        for seed in range(copies):
            for episode in mixed_episodes(seed, (30, 1, 50)):
                writer.add(episode)
    return path
