"""The frontier: which points dominate and meet the period, and the command on real checkpoints."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.cli import main
from robopolicy.evaluation.frontier import Frontier, Point, Setting
from robopolicy.evaluation.statistics import Interval
from robopolicy.sim.pusht import PushTState
from robopolicy.training import checkpoint

sys.path.insert(0, str(Path(__file__).parent.parent / "policies"))
from toys import MLP, make

from robopolicy.configs import to_dict
from robopolicy.policies.diffusion import DiffusionConfig, EDMConfig, SamplerConfig


def _point(steps: int, score: float, p50: float, p99: float) -> Point:
    interval = Interval(score, score - 0.1, score + 0.1)
    return Point(Setting("ddim", steps, "native"), interval, interval, p50, p99, p99)


def test_best_points_and_the_control_period_by_hand() -> None:
    fast, slow_and_worse = _point(1, 0.4, 2.0, 3.0), _point(3, 0.3, 6.0, 8.0)
    good, same_but_slower = _point(5, 0.9, 10.0, 150.0), _point(10, 0.9, 20.0, 30.0)
    points = [fast, slow_and_worse, good, same_but_slower]
    frontier = Frontier("c", "pusht", "score", "validation", 50, 100.0, {"device": "cpu", "threads": 1}, points)
    assert [frontier.best(p) for p in points] == [True, False, True, False]
    assert [frontier.meets(p) for p in points] == [True, True, False, True]
    lines = frontier.table().splitlines()
    assert [line.split()[1] for line in lines[3:]] == ["1", "3", "5", "10"]
    assert lines[3].endswith("*")
    assert "no " in lines[5]
    data = json.loads(frontier.to_json())
    assert [p["meets_period"] for p in data["points"]] == [True, True, False, True]
    assert frontier.picture().startswith(b"\x89PNG")
    frontier.period_ms = None
    assert frontier.meets(fast) is None


def test_families_name_what_differs() -> None:
    assert Setting("ddim", 3, "native").family == "ddim"
    assert (
        Setting("euler", 3, "karras", 2.0, "bfloat16", True).family == "euler, karras, guidance 2, bfloat16, compiled"
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained PushT policy."""
    torch.set_num_threads(1)
    config = DiffusionConfig(network=MLP, process=EDMConfig(), sampler=SamplerConfig("euler", 10))
    policy = checkpoint.build(to_dict(config), PushTState.features)
    for feature in PushTState.features:
        policy.normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "identity", feature)
    folder = tmp_path_factory.mktemp("frontier")
    observation = {f.key: torch.zeros(1, 2, *f.shape) for f in PushTState.features.inputs}
    checkpoint.save(folder / "c", policy.eval(), "pusht", observation, {})
    floor = make("bc", PushTState.features).eval()
    checkpoint.save(folder / "bc", floor, "pusht", observation, {})
    return folder


def test_the_command_writes_table_json_and_picture(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--samplers", "euler", "heun", "--steps", "1", "2", "--episodes", "2", "--repeats", "2"]
    both = ["--dtypes", "float32", "bfloat16"]
    assert main(["bench", "frontier", str(saved / "c"), *options, *both, "--output", str(tmp_path / "f")]) == 0
    printed = capsys.readouterr().out
    assert "control period 800 ms" in printed
    data = json.loads((tmp_path / "f" / "frontier.json").read_text())
    assert data["period_ms"] == 800
    assert data["purpose"] == "validation"
    found = [(p["setting"]["sampler"], p["setting"]["steps"], p["setting"]["dtype"]) for p in data["points"]]
    assert len(set(found)) == 8
    assert all(p["p50"] <= p["p95"] <= p["p99"] for p in data["points"])
    assert (tmp_path / "f" / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_policy_that_does_not_sample_is_one_point(saved: Path, tmp_path: Path) -> None:
    arguments = ["--episodes", "2", "--repeats", "1", "--output", str(tmp_path / "f")]
    assert main(["bench", "frontier", str(saved / "bc"), *arguments]) == 0
    assert len(json.loads((tmp_path / "f" / "frontier.json").read_text())["points"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samplers", "eulr"], "Did you mean 'euler'"),
        (["--schedules", "karas"], "Did you mean 'karras'"),
        (["--steps", "0"], "at least 1"),
        (["--guidance", "2"], "--guidance: this policy has none"),
        (["--episodes", "0"], "--episodes 0"),
    ],
)
def test_a_mistake_gets_one_line(
    saved: Path,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "frontier", str(saved / "c"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []
