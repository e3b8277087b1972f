"""Training on a goal-conditioned task: goals come from the future of recorded episodes, whatever the policy."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.commands.train import resume, start
from robopolicy.datasets.store import EpisodeWriter
from robopolicy.errors import FeatureMismatch
from robopolicy.features import FeatureSpec
from robopolicy.policies.base import PolicyConfig
from robopolicy.policies.beso import BESOConfig, BESOPolicy, GPTConfig, GuidedSamplerConfig
from robopolicy.policies.diffusion import DiffusionConfig, EDMConfig, MLPConfig, SamplerConfig
from robopolicy.sim.blocks import Blocks
from robopolicy.training import checkpoint
from robopolicy.training.config import DataConfig, GoalConfig, OptimConfig, TrainConfig
from robopolicy.training.data import Batches, load_data, validation_batch
from robopolicy.training.trainer import Trainer, learning_rate

Make = Callable[..., TrainConfig]
BESO = BESOConfig(network=GPTConfig(width=16, layers=1, heads=2), sampler=GuidedSamplerConfig("ddim", 2))
DIFFUSION = DiffusionConfig(
    network=MLPConfig(width=32, blocks=1), process=EDMConfig(), sampler=SamplerConfig("euler", 2)
)


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten episodes in the keys of the blocks task, without its goal; the first dimension counts the steps."""
    path = tmp_path_factory.mktemp("data") / "play"
    random = np.random.default_rng(0)
    stored = FeatureSpec(tuple(f for f in Blocks.features if f.kind != "goal"), Blocks.features.rate_hz)
    with EpisodeWriter(path, stored) as writer:
        for _ in range(10):
            state = random.normal(0, 0.1, (20, 10)).astype(np.float32)
            state[:, 0] = np.arange(20)
            writer.add({"observation.state": state, "action": random.uniform(-0.03, 0.03, (20, 2)).astype(np.float32)})
    return path


@pytest.fixture
def run_of(play: Path) -> Make:
    def make(policy: PolicyConfig = BESO, **changes: object) -> TrainConfig:
        values: dict[str, object] = {
            "task": "blocks",
            "data": DataConfig(path=play, validation_fraction=0.2),
            "optim": OptimConfig(lr=1e-3, warmup_steps=2, decay="step"),
            "steps": 6,
            "batch_size": 16,
            "log_every": 2,
            "validate_every": 3,
            "save_every": 3,
            "device": "cpu",
            "threads": 1,
        }
        return TrainConfig(replace(policy), **(values | changes))  # type: ignore[arg-type]

    return make


def test_step_decay_by_hand() -> None:
    config = OptimConfig(lr=1e-4, decay="step", warmup_steps=0)
    assert [learning_rate(config, s, 60_000) for s in (0, 99)] == [1e-4, 1e-4]
    assert learning_rate(config, 100, 60_000) == pytest.approx(0.99e-4)
    assert learning_rate(config, 40_000, 60_000) == pytest.approx(1.8e-6, rel=0.01)
    assert learning_rate(config, 60_000, 60_000) == pytest.approx(2.4e-7, rel=0.01)
    warm = replace(config, warmup_steps=10)
    assert learning_rate(warm, 5, 60_000) == 5e-5
    schedule = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1e-4), 100, 0.99)
    for step in range(350):
        assert schedule.get_last_lr()[0] == pytest.approx(learning_rate(config, step, 350))
        schedule.optimizer.step()
        schedule.step()


def test_the_goal_need_not_be_recorded_and_is_scaled_like_its_source(run_of: Make, play: Path, tmp_path: Path) -> None:
    trainer = Trainer(run_of(), play, tmp_path)
    normalizer = trainer.policy.normalizer
    assert normalizer.offset_observation_goal.shape == (1, 10)
    assert torch.equal(normalizer.offset_observation_goal[0], normalizer.offset_observation_state)
    assert torch.equal(normalizer.scale_observation_goal[0], normalizer.scale_observation_state)
    assert isinstance(trainer.policy, BESOPolicy)
    assert trainer.policy.config.goal_dims == (0, 1, 3, 4)
    assert trainer.policy.goal_mask.tolist() == [1, 1, 0, 1, 1, 0, 0, 0, 0, 0]
    assert torch.isfinite(trainer.policy.action_bounds).all()
    assert trainer.data.provenance["goals"]["source"] == "observation.state"
    assert "observation.goal" not in trainer.data.episodes.arrays


def test_batches_hold_whole_windows_and_later_goals(run_of: Make, play: Path, tmp_path: Path) -> None:
    trainer = Trainer(run_of(batch_size=64), play, tmp_path)
    batches = Batches(trainer.data, trainer.policy, trainer.config)
    ((_, batch),) = batches(0)
    batches.close()
    steps = batch["observation.state"][:, :, 0]
    assert torch.equal(steps[:, 1:] - steps[:, :-1], torch.ones(64, 4)), "no window repeats an episode's ends"
    assert not batch["action_is_pad"].any()
    absent, goal = batch["goal_is_pad"], batch["observation.goal"][:, 0, 0, 0]
    # Windows that end at step 18 or 19 have no goal: it starts at 19 at the earliest and at 18 at the latest.
    assert torch.equal(absent, steps[:, -1] >= 18)
    assert (goal[~absent] > steps[~absent, -1]).all()
    assert goal[~absent].max() == 18
    assert batch["observation.goal"][absent].abs().max() == 0
    dropped = run_of(data=DataConfig(play, validation_fraction=0.2, goals=GoalConfig(keep_without=False)))
    without = Trainer(dropped, play, tmp_path)
    assert len(Batches(without.data, without.policy, dropped).sampler) == 8 * (16 - 2)


def test_goals_are_a_function_of_seed_and_step_however_a_batch_is_divided(run_of: Make, play: Path) -> None:
    config = run_of()
    data = load_data(config, play)
    policy = checkpoint.build({"kind": "beso"}, data.features)
    whole, parts = Batches(data, policy, config), Batches(data, policy, replace(config, accumulate=4))
    for step in (0, 1, 5):
        ((_, expected),) = whole(step)
        divided = [b for _, b in parts(step)]
        for key, value in expected.items():
            assert torch.equal(value, torch.cat([b[key] for b in divided])), key
    assert not torch.equal(whole(0)[0][1]["observation.goal"], whole(1)[0][1]["observation.goal"])
    first, again = (validation_batch(data, policy, 8, 1) for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first["observation.goal"], again["observation.goal"])
    for batches in (whole, parts):
        batches.close()


@pytest.mark.parametrize("policy", [BESO, DIFFUSION], ids=["beso", "diffusion"])
def test_runs_resume_bit_for_bit_and_checkpoints_load(policy: PolicyConfig, run_of: Make, tmp_path: Path) -> None:
    start(run_of(policy), tmp_path / "whole", "test")
    start(run_of(policy, steps=3), tmp_path / "cut", "test")
    saved = tmp_path / "cut" / "train_config.json"
    stored = json.loads(saved.read_text())
    stored["config"]["steps"] = 6
    saved.write_text(json.dumps(stored))
    resume(tmp_path / "cut")
    ours, theirs = (checkpoint.load(tmp_path / r)[0].state_dict() for r in ("whole", "cut"))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    loaded, about = checkpoint.load(tmp_path / "whole")
    assert about["provenance"]["goals"]["choice"] == "uniform"
    if isinstance(loaded, BESOPolicy):
        assert loaded.config.goal_dims == (0, 1, 3, 4)
        assert torch.isfinite(loaded.action_bounds).all()


def test_a_goal_of_another_size_than_its_source_is_refused(
    run_of: Make, play: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, goal, action = Blocks.features
    monkeypatch.setattr(Blocks, "features", FeatureSpec((state, replace(goal, shape=(2, 4)), action), 10.0))
    with pytest.raises(FeatureMismatch, match=r"has shape \[2, 4\]; 2 rows of 'observation\.state' have \[2, 10\]"):
        load_data(run_of(), play)
