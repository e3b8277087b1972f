"""Runs that start from a pretrained backbone: the file is needed once, its statistics never change."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from resnet_files import save_torchvision

from robopolicy.cli import main
from robopolicy.commands.train import resume, start
from robopolicy.datasets.store import EpisodeWriter
from robopolicy.nn.pretrained import read_resnet18
from robopolicy.nn.vision import ImageEncoder, VisionConfig
from robopolicy.policies.diffusion import DiffusionConfig, EDMConfig, MLPConfig, SamplerConfig
from robopolicy.sim.pusht import PushTImage
from robopolicy.training import checkpoint
from robopolicy.training.config import DataConfig, OptimConfig, TrainConfig

IMAGE = next(f.key for f in PushTImage.features.of_kind("image"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of 12 steps with pictures of noise."""
    path, rng = tmp_path_factory.mktemp("pictures") / "demos", np.random.default_rng(0)
    with EpisodeWriter(path, PushTImage.features) as writer:
        for _ in range(3):
            agent = rng.uniform(0, 512, (12, 2)).astype(np.float32)
            images = rng.integers(0, 256, (12, 96, 96, 3), dtype=np.uint8)
            writer.add({"observation.state": agent, IMAGE: images, "action": agent})
    return path


def _config(data: Path, weights: Path, cache: Path) -> TrainConfig:
    policy = DiffusionConfig(
        network=MLPConfig(width=16, blocks=1),
        process=EDMConfig(),
        sampler=SamplerConfig("euler", 2),
        vision=VisionConfig(crop=64, weights=weights),
    )
    return TrainConfig(
        policy,
        "pusht-image",
        DataConfig(path=data, validation_fraction=0.3, cache=cache),
        OptimConfig(lr=1e-3, warmup_steps=0),
        steps=4,
        batch_size=4,
        save_every=2,
        device="cpu",
        threads=1,
    )


def test_a_policy_is_whole_without_the_file_and_its_statistics_stay(pictures: Path, tmp_path: Path) -> None:
    weights = save_torchvision(tmp_path)
    published, digest = read_resnet18(weights), hashlib.sha256(weights.read_bytes()).hexdigest()
    run = tmp_path / "run"
    start(_config(pictures, weights, tmp_path / "cache"), run, "test")
    weights.unlink()

    policy, about = checkpoint.load(run)
    assert about["provenance"]["pretrained"] == {"file": weights.name, "sha256": digest}
    encoder = next(m for m in policy.modules() if isinstance(m, ImageEncoder))
    assert encoder.pretrained
    expected = ImageEncoder(VisionConfig(weights=weights))
    expected.load_backbone(published)
    buffers = dict(expected.backbone.named_buffers())
    assert len(buffers) == 4 * 20
    assert all(torch.equal(b, buffers[n]) for n, b in encoder.backbone.named_buffers())
    # Trained, but from the published weights.
    for name, parameter in encoder.backbone.named_parameters():
        change = (parameter - expected.backbone.get_parameter(name)).abs().max()
        assert 0 < change < 0.01, name

    # Saved again and loaded again, it acts the same.
    observation = checkpoint.stored_observation(run)
    checkpoint.save(tmp_path / "again", policy, "pusht-image", observation, {})
    again, _ = checkpoint.load(tmp_path / "again")
    chunks = [p.predict(observation, torch.Generator().manual_seed(1)) for p in (policy, again)]
    assert torch.equal(*chunks)

    # A run that goes on needs the file no more, and ends where it would have ended.
    shutil.rmtree(run / "checkpoints" / "00000004")
    assert resume(run).step == 4
    resumed, about = checkpoint.load(run)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in policy.state_dict().items())
    assert about["provenance"]["pretrained"]["sha256"] == digest


def test_a_missing_file_gets_one_line_and_writes_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, run = tmp_path / "gone.pth", tmp_path / "run"
    arguments = ["--data.path", str(pictures), "--data.cache", str(tmp_path / "cache"), "--output", str(run)]
    assert main(["train", "pusht-small-image", *arguments, "--policy.vision.weights", str(weights)]) == 2
    captured = capsys.readouterr().err
    assert captured == f"robopolicy: error: policy.vision.weights {weights}: no such file\n"
    assert not run.exists()
