"""The tokenizer report: errors in the action's units, codes counted per dimension, and the command on a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.cli import main
from robopolicy.configs import to_dict
from robopolicy.evaluation.tokenizer_report import measure
from robopolicy.nn.vq import TokenizerConfig
from robopolicy.policies.base import NormalizationConfig
from robopolicy.policies.carp import CarpConfig, CarpPolicy
from robopolicy.sim.pusht import PushTState
from robopolicy.training import checkpoint


def make() -> CarpPolicy:
    torch.manual_seed(0)
    config = CarpConfig(
        tokenizer=TokenizerConfig(codes=16), depth=2, width=16, normalization=NormalizationConfig("bounds", "bounds")
    )
    policy = checkpoint.build(to_dict(config), PushTState.features)
    for feature in PushTState.features:
        policy.normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "bounds", feature)
    assert isinstance(policy, CarpPolicy)
    return policy.eval()


def test_errors_are_in_pixels_and_codes_are_counted() -> None:
    policy = make()
    actions = 100 + 300 * torch.rand(64, 16, 2, generator=torch.Generator().manual_seed(1))
    report = measure(policy, {"action": actions}, "c")
    ids = policy.tokenizer.encode(policy.normalizer.normalize("action", actions))
    with torch.inference_mode():
        total = None
        for k, i in enumerate(ids):
            total = policy.tokenizer.accumulate(k, i, total)
            decoded = policy.normalizer.unnormalize("action", policy.tokenizer.decode(total))
            for d in range(2):
                error = float((decoded[..., d] - actions[..., d]).square().mean().sqrt())
                assert report.rmse[k, d] == pytest.approx(error, rel=1e-4)
                assert report.used[k, d] == len(set(i[..., d].flatten().tolist()))
    assert report.used[-1, 1] == len({n for i in ids for n in i[..., 1].flatten().tolist()})
    assert report.spread == pytest.approx(actions.std(dim=(0, 1)).numpy())
    assert report.names == ["target_x (px)", "target_y (px)"]
    assert report.picture().startswith(b"\x89PNG")
    assert len(report.table().splitlines()) == 4


def test_a_dimension_that_never_moves_is_no_division_by_zero() -> None:
    actions = torch.full((8, 16, 2), 256.0)
    report = measure(make(), {"action": actions}, "c")
    assert np.isfinite(report.rmse).all()
    assert report.picture().startswith(b"\x89PNG")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["data", "record", "--task", "pusht", "--expert", "scripted", "--output", "d", "--episodes", "2"]
    assert main(data) == 0
    observation = {f.key: torch.zeros(1, 2, *f.shape) for f in PushTState.features.inputs}
    checkpoint.save(tmp_path / "carp", make(), "pusht", observation, {})
    capsys.readouterr()
    assert main(["bench", "tokenizer", "carp", "--data", "d", "--output", "out"]) == 0
    assert "target_x (px)" in capsys.readouterr().out
    found = json.loads(Path("out/tokenizer.json").read_text())
    assert [d["name"] for d in found["dimensions"]] == ["target_x (px)", "target_y (px)"]
    assert all(len(d["rmse"]) == len(d["codes_used"]) == 4 for d in found["dimensions"])
    for wrong, message in (
        (["--output", "out"], "out: exists already"),
        (["--output", "o2", "--windows", "0"], "--windows 0: at least 1"),
        (["--output", "o2", "--data", "nowhere"], "--data nowhere: no such"),
    ):
        assert main(["bench", "tokenizer", "carp", "--data", "d", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert not Path("o2").exists()
