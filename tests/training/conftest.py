"""A small PushT dataset, and the smallest run that trains on it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.datasets.store import EpisodeWriter
from robopolicy.policies.diffusion import DiffusionConfig, EDMConfig, MLPConfig, SamplerConfig
from robopolicy.sim.pusht import PushTState
from robopolicy.training.config import DataConfig, EvalConfig, OptimConfig, TrainConfig

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short episodes of smooth motion in PushT's keys."""
    path = tmp_path_factory.mktemp("data") / "demos"
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, PushTState.features) as writer:
        for _ in range(12):
            steps = np.arange(30)[:, None] / 30
            agent = 100 + 300 * np.abs(np.sin(steps * 3 + rng.uniform(0, 3, (1, 2))))
            angle = rng.uniform(-3, 3) + 0 * steps
            block = np.concatenate([np.full((30, 2), 200.0), np.cos(angle), np.sin(angle)], axis=1)
            writer.add(
                {
                    "observation.state": agent.astype(np.float32),
                    "observation.environment_state": block.astype(np.float32),
                    "action": np.clip(agent + 10, 0, 512).astype(np.float32),
                }
            )
    return path


@pytest.fixture
def config(demos: Path) -> Callable[..., TrainConfig]:
    """A run of a few steps; keyword arguments override its fields."""

    def make(**changes: object) -> TrainConfig:
        policy = DiffusionConfig(
            network=MLPConfig(width=32, blocks=1), process=EDMConfig(), sampler=SamplerConfig("euler", 2)
        )
        values: dict[str, object] = {
            "data": DataConfig(path=demos, validation_fraction=0.2),
            "optim": OptimConfig(lr=1e-3, warmup_steps=2, clip_norm=1.0),
            "eval": EvalConfig(),
            "steps": 12,
            "batch_size": 16,
            "log_every": 2,
            "validate_every": 4,
            "save_every": 4,
            "device": "cpu",
            "threads": 1,
        }
        return TrainConfig(policy, **(values | changes))  # type: ignore[arg-type]

    return make
