"""Policies trained in stages: each stage its own schedule and parameters, and exact resume in either."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robopolicy.commands.train import resume, start
from robopolicy.nn.vq import TokenizerConfig
from robopolicy.policies.carp import CarpConfig
from robopolicy.training import checkpoint
from robopolicy.training.config import TrainConfig
from robopolicy.training.trainer import Trainer

Make = Callable[..., TrainConfig]
SWITCH = 6


def _carp(config: Make, **changes: object) -> TrainConfig:
    made = config(save_every=2, log_every=1, **changes)
    made.policy = CarpConfig(tokenizer=TokenizerConfig(codes=16, steps=SWITCH, lr=1e-2), depth=2, width=16)
    return made


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.resolve(run)
    return load_file(path / "model.safetensors") | load_file(path / "training" / "state.safetensors")


def test_each_stage_trains_its_own_parameters_with_its_own_schedule(config: Make, demos: Path, tmp_path: Path) -> None:
    start(_carp(config, keep=100), tmp_path / "run", "carp")
    saved = {
        step: load_file(tmp_path / "run" / "checkpoints" / f"{step:08d}" / "training" / "state.safetensors")
        for step in (2, SWITCH, 12)
    }
    for name in saved[2]:
        if not name.startswith("model.") or "normalizer" in name:
            continue
        early, middle, late = (saved[s][name] for s in (2, SWITCH, 12))
        if name.startswith("model.tokenizer"):
            assert torch.equal(middle, late), f"{name} moved after its stage"
        else:
            assert torch.equal(early, middle), f"{name} moved before its stage"
    assert any(not torch.equal(saved[2][n], saved[6][n]) for n in saved[2] if n.startswith("model.tokenizer"))
    assert any(not torch.equal(saved[6][n], saved[12][n]) for n in saved[2] if n.startswith("model.network"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if "lr" in line}
    # Two warm-up steps from zero in each stage (the first step of a stage has rate 0), 1e-2 and then the run's 1e-3.
    assert rates[1] == rates[SWITCH + 1] == 0
    assert rates[3] == pytest.approx(1e-2)
    assert rates[SWITCH + 3] == pytest.approx(1e-3)


def test_the_average_takes_over_the_finished_tokenizer(config: Make, demos: Path, tmp_path: Path) -> None:
    start(_carp(config), tmp_path / "run", "carp")
    path = checkpoint.resolve(tmp_path / "run")
    average, raw = load_file(path / "model.safetensors"), load_file(path / "training" / "state.safetensors")
    for name, value in average.items():
        if name.startswith("tokenizer"):
            assert torch.equal(value, raw[f"model.{name}"]), name


@pytest.mark.parametrize("stopped", [4, SWITCH, 8])
def test_resume_in_either_stage_ends_with_the_same_bits(
    config: Make, demos: Path, tmp_path: Path, stopped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(_carp(config), tmp_path / "whole", "carp")

    def interrupted(self: Trainer, *args: object) -> None:
        periodic(self, *args)  # type: ignore[arg-type]
        if self.step == stopped:
            os.kill(os.getpid(), signal.SIGINT)

    periodic = Trainer._periodic
    monkeypatch.setattr(Trainer, "_periodic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(_carp(config), tmp_path / "parts", "carp")
    monkeypatch.setattr(Trainer, "_periodic", periodic)
    resume(tmp_path / "parts")
    whole, parts = _tensors(tmp_path / "whole"), _tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
