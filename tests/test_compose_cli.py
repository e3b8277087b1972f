"""robopolicy compose as a person uses it: two tiny PushT checkpoints, composed, evaluated and searched over."""

import json
from pathlib import Path

import pytest
import torch

from robopolicy.cli import main
from robopolicy.training import checkpoint

TINY = ["--steps", "12", "--save-every", "12", "--validate-every", "12", "--log-every", "4", "--batch-size", "16"]
SMALL = ["--policy.network.width", "16", "--policy.network.blocks", "1", "--policy.sampler.steps", "2", *TINY]


def _run(*arguments: str) -> int:
    return main(list(arguments))


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Demonstrations, a diffusion run and a flow run with one action normaliser."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("compose")
    assert _run("data", "record", "--output", str(folder / "demos"), "--episodes", "4") == 0
    common = ["--data.path", str(folder / "demos"), "--data.validation-fraction", "0.25", "--threads", "1", *SMALL]
    assert _run("train", "pusht-small", *common, "--output", str(folder / "edm")) == 0
    scaled = ["--policy.normalization.action", "bounds"]
    assert _run("train", "pusht-small-flow", *common, *scaled, "--output", str(folder / "flow")) == 0
    assert _run("train", "pusht-bc", *common[:6], *TINY, "--output", str(folder / "bc")) == 0
    assert _run("train", "pusht-small-flow", *common, "--output", str(folder / "other")) == 0
    return folder / "demos", folder / "edm", folder / "flow"


def test_a_composition_is_a_checkpoint_like_any_other(
    parents: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, edm, flow = parents
    output = tmp_path / "both"
    assert _run("compose", str(edm), str(flow), "--weights", "0.25", "0.75", "--output", str(output)) == 0
    assert "robopolicy eval" in capsys.readouterr().out
    policy, about = checkpoint.load(output)
    assert about["task"] == "pusht"
    assert policy.config.weights == (0.25, 0.75)
    assert len(about["provenance"]["parents"]) == 2
    assert _run("eval", str(output), "--episodes", "2", "--videos", "0") == 0
    assert (output / "eval_test_00000000" / "report.html").is_file()
    assert _run("compare", str(output / "eval_test_00000000"), str(output / "eval_test_00000000")) == 0
    assert _run("bench", str(output), "--repeats", "1", "--steps", "2", "--batch-sizes", "1") == 0
    for operator in ("and", "or"):
        assert _run("compose", str(edm), str(flow), "--operator", operator, "--output", str(tmp_path / operator)) == 0
        assert checkpoint.load(tmp_path / operator)[0].config.sampler.name == "ddpm"


def test_all_weight_on_a_parent_scores_what_the_parent_scores(
    parents: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, edm, flow = parents
    assert _run("compose", str(edm), str(flow), "--weights", "1", "0", "--output", str(tmp_path / "one")) == 0
    scores = []
    for run in (edm, tmp_path / "one"):
        folder = tmp_path / f"eval_{run.name}"
        assert _run("eval", str(run), "--episodes", "2", "--videos", "0", "--output", str(folder)) == 0
        scores.append([e["rewards"] for e in json.loads((folder / "eval_info.json").read_text())["episodes"]])
    assert scores[0] == scores[1]


def test_state_and_image_parents_meet_on_a_task_with_both(parents: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from robopolicy.configs import to_dict
    from robopolicy.nn.vision import VisionConfig
    from robopolicy.policies.diffusion import DiffusionConfig, EDMConfig, MLPConfig, SamplerConfig
    from robopolicy.sim.pusht import PushTImage

    edm = parents[1]
    state, _ = checkpoint.load(edm)
    config = DiffusionConfig(
        network=MLPConfig(width=16, blocks=1),
        process=EDMConfig(),
        sampler=SamplerConfig("euler", 2),
        vision=VisionConfig(crop=76),
    )
    image = checkpoint.build(to_dict(config), PushTImage.features).eval()
    image.normalizer.load_state_dict(
        {k: v for k, v in state.normalizer.state_dict().items() if "environment" not in k}
    )
    observation = {f.key: torch.zeros(1, 2, *f.shape, dtype=getattr(torch, f.dtype)) for f in image.features.inputs}
    checkpoint.save(tmp_path / "image", image, "pusht-image", observation, {})
    output = tmp_path / "both"
    assert _run("compose", str(edm), str(tmp_path / "image"), "--output", str(output)) == 0
    policy, about = checkpoint.load(output)
    assert about["task"] == "pusht-state-image"
    assert policy.features.keys() == [
        "observation.state",
        "observation.environment_state",
        "observation.images.top",
        "action",
    ]
    assert _run("eval", str(output), "--episodes", "1", "--videos", "0") == 0


def test_search_writes_a_report_with_disjoint_seeds(
    parents: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demos, edm, flow = parents
    output = tmp_path / "searched"
    options = ["--grid", "0.3", "0.5", "--episodes", "3", "--search-episodes", "2", "--data", str(demos)]
    assert _run("compose", str(edm), str(flow), "--search", *options, "--output", str(output)) == 0
    printed = capsys.readouterr().out
    found = json.loads((output / "search.json").read_text())
    assert found["seeds"] == {"validation": [200_000, 200_001], "test": [100_000, 100_001, 100_002]}
    assert [p["weights"] for p in found["validation"]] == [[0.3, 0.7], [0.5, 0.5], [1, 0], [0, 1]]
    assert found["verdict"] in printed
    assert {e["seed"] for p in found["test"] for e in p["episodes"]} == {100_000, 100_001, 100_002}
    assert sum(found["closed_form"]["overall"]) == pytest.approx(1)
    assert found["closed_form"]["windows"] > 10
    page = (output / "report.html").read_text()
    assert "leaked best" in page
    assert "http" not in page.replace("http-equiv", "")
    policy, about = checkpoint.load(output)
    assert list(policy.config.weights) == found["chosen"]["weights"] == about["provenance"]["search"]["weights"]


@pytest.mark.parametrize(
    ("others", "arguments", "message"),
    [
        (["bc"], [], "R4: bc has no denoiser"),
        (["other"], [], "R2: different action normalisers: -1..1 means"),
        (["flow"], ["--weights", "0.7", "0.7"], "must sum to 1, their sum is 1.4"),
        (["flow"], ["--weights", "-0.5", "1.5"], "must not be negative"),
        (["flow"], ["--weights", "0.3", "0.7", "--operator", "and"], "takes equal weights"),
        (["flow"], ["--weights", "0.3", "0.7", "--search"], "exclude each other"),
        (["flow"], ["--search", "--grid", "1.5"], "--grid 1.5: expected weights in 0..1"),
        (["flow"], ["--search", "--data", "nowhere"], "--data nowhere: no such dataset"),
        (["flow"], ["--data", "nowhere"], "add --search"),
        (["flow"], ["--search", "--episodes", "0"], "--episodes 0"),
        (["flow"], ["--sampler.name", "eulr"], "Did you mean 'euler'"),
        (["flow"], ["--weights", "0.4", "0.6", "--sampler.schedule", "native"], "R4: the native schedule of parent 2"),
        (["flow"], ["--task", "pusht-image"], "task 'pusht-image' does not"),
        ([], [], "at least two checkpoints, got 1"),
        (["nowhere"], [], "no such checkpoint or run"),
    ],
)
def test_a_mistake_gets_one_line_and_writes_nothing(
    parents: tuple[Path, Path, Path],
    others: list[str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = parents[1].parent
    assert _run("compose", *[str(folder / n) for n in ("edm", *others)], *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("robopolicy: error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []
