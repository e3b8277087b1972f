"""The command line as a person uses it: a whole tiny chain, and one clear line for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robopolicy.cli import main

TINY = ["--steps", "20", "--save-every", "10", "--validate-every", "10", "--log-every", "5", "--batch-size", "16"]


def _run(*arguments: str) -> int:
    return main(list(arguments))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data record, train and eval with the real PushT, very small."""
    folder = tmp_path_factory.mktemp("chain")
    assert _run("data", "record", "--output", str(folder / "demos"), "--episodes", "3") == 0
    arguments = ["train", "pusht-small", "--data.path", str(folder / "demos"), "--output", str(folder / "run"), *TINY]
    assert _run(*arguments, "policy.network.width=32", "--policy.sampler.steps=2", "--threads", "1") == 0
    assert _run("eval", str(folder / "run"), "--episodes", "2") == 0
    return folder


def test_the_chain_leaves_everything_a_reader_needs(chain: Path) -> None:
    config = json.loads((chain / "run" / "train_config.json").read_text())
    assert config["recipe"] == "pusht-small"
    assert config["config"]["policy"]["network"]["width"] == 32
    evaluation = chain / "run" / "eval_test_00000020"
    info = json.loads((evaluation / "eval_info.json").read_text())
    assert info["seeds"] == {"first": 100_000, "last": 100_001, "count": 2}
    assert info["purpose"] == "test"
    assert 0 <= info["score"]["low"] <= info["score"]["mean"] <= info["score"]["high"] <= 1
    assert len(list((evaluation / "videos").glob("*.mp4"))) == 2
    assert "<html" in (evaluation / "report.html").read_text()


def test_evaluating_again_gives_the_same_scores(chain: Path, tmp_path: Path) -> None:
    output = tmp_path / "again"
    assert (
        _run("eval", str(chain / "run"), "--episodes", "2", "--output", str(output), "--workers", "2", "--videos", "0")
        == 0
    )
    first, again = (
        json.loads((p / "eval_info.json").read_text())["episodes"]
        for p in (chain / "run" / "eval_test_00000020", output)
    )
    assert [e["score"] for e in first] == pytest.approx([e["score"] for e in again], abs=1e-6)


def test_compare_and_bench_and_info_print(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = str(chain / "run" / "eval_test_00000020")
    assert _run("compare", evaluation, evaluation) == 0
    assert "2" in capsys.readouterr().out
    assert _run("compare", evaluation, evaluation, "--json", "True") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["difference"]["value"]) == (2, 0.0)
    assert _run("bench", str(chain / "run"), "--repeats", "2", "--steps", "1", "3", "--batch-sizes", "1") == 0
    assert "p99" in capsys.readouterr().out
    assert _run("data", "info", str(chain / "demos"), "--json", "True") == 0
    assert json.loads(capsys.readouterr().out)["n_episodes"] == 3
    assert _run("recipes") == 0
    assert "pusht-small" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown verb 'trian'. Did you mean 'train'"),
        (["train", "pusht-smal"], "unknown recipe 'pusht-smal'. Did you mean 'pusht-small'"),
        (["train", "pusht-small", "--data.path", "nowhere"], "--data.path nowhere: no such dataset"),
        (["train", "pusht-goal-beso"], "--data.path is needed: task 'pusht-goal' has no scripted expert"),
        (["train", "--resume", "nowhere"], "nowhere: no run to resume"),
        (["eval", "nowhere"], "nowhere: no such checkpoint or run"),
        (["bench", "nowhere"], "nowhere: no such checkpoint or run"),
        (["data", "info", "nowhere"], "nowhere"),
        (["data", "inf"], "Did you mean 'info'"),
        (["data", "record", "--output", "x", "--task", "pushd"], "Did you mean 'pusht'"),
        (["data", "record", "--output", "x", "--expert", "script"], "Did you mean 'scripted'"),
        (["data", "record", "--output", "x", "--episodes", "0"], "--episodes 0"),
        (["compare", "nowhere", "nowhere"], "nowhere"),
        (["train", "pusht-small", "--policy.sampler.name", "eulr"], "Did you mean 'euler'"),
    ],
)
def test_a_mistake_gets_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    chain: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "eulr" in arguments:
        arguments = [*arguments, "--data.path", str(chain / "demos")]
    assert _run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("robopolicy: error: ")
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_existing_outputs_are_never_overwritten(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data.path", str(chain / "demos")]
    assert _run("train", "pusht-small", *data, "--output", str(chain / "run")) == 2
    assert "exists already" in capsys.readouterr().err
    assert _run("eval", str(chain / "run"), "--episodes", "2") == 2
    assert "exists already" in capsys.readouterr().err
    assert _run("data", "record", "--output", str(chain / "demos"), "--episodes", "1") == 2
    assert "exists" in capsys.readouterr().err


def test_a_checkpoint_of_another_task_is_refused_by_name(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("eval", str(chain / "run"), "--episodes", "1", "--task", "pusht-image", "--output", "x") == 2
    error = capsys.readouterr().err
    assert "checkpoint has 'observation.environment_state'" in error
    assert not Path("x").exists()


def test_data_of_another_shape_is_refused_by_name(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from robopolicy.datasets.store import EpisodeWriter
    from robopolicy.features import Feature, FeatureSpec

    spec = FeatureSpec((Feature("observation.state", (3,)), Feature("action", (7,), kind="action")), 10)
    with EpisodeWriter(tmp_path / "arm", spec) as writer:
        writer.add({"observation.state": np.zeros((5, 3), np.float32), "action": np.zeros((5, 7), np.float32)})
    assert _run("train", "pusht-small", "--data.path", str(tmp_path / "arm"), "--output", str(tmp_path / "run")) == 2
    assert "observation.state" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sampler_overrides_are_checked(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = ["eval", str(chain / "run"), "--episodes", "1", "--output", str(tmp_path / "e")]
    assert _run(*evaluate, "--sampler.name", "hune") == 2
    assert "Did you mean 'heun'" in capsys.readouterr().err
    assert _run(*evaluate, "--sampler.schedule", "karas") == 2
    assert "Did you mean 'karras'" in capsys.readouterr().err
    assert _run(*evaluate, "--sampler.name", "heun", "--sampler.schedule", "karras", "--sampler.steps", "3") == 0


def test_a_folder_that_cannot_be_written_gets_one_line(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert _run("eval", str(chain / "run"), "--episodes", "1", "--output", str(tmp_path / "file" / "e")) == 2
    assert f"robopolicy: error: {tmp_path / 'file'}" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "file").read_text() == ""


def test_demo_runs_the_whole_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "demo"), "--demonstrations", "2", "--steps", "8", "--episodes", "2"]
    assert _run("demo", *arguments) == 0
    out = capsys.readouterr().out
    assert "report: " in out
    assert (tmp_path / "demo" / "eval_test_00000008" / "report.html").is_file()


def test_interrupt_saves_and_says_how_to_go_on(chain: Path, tmp_path: Path) -> None:
    import signal
    import time

    arguments = ["train", "pusht-small", "--data.path", str(chain / "demos"), "--output", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "robopolicy", *arguments, "--log-every", "1", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job that a shell started in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "run" / "metrics.jsonl").is_file() or not (tmp_path / "run" / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 130
    assert f"robopolicy train --resume {tmp_path / 'run'}" in out
    assert len(list((tmp_path / "run" / "checkpoints").glob("0*"))) == 1
