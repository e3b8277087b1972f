"""Checkpoints: whole or absent, and loud about every kind of damage."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from robopolicy.commands.train import start
from robopolicy.errors import CheckpointError, RobopolicyError
from robopolicy.training import checkpoint
from robopolicy.training.config import TrainConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, demos: Path) -> Path:
    from robopolicy.policies.diffusion import DiffusionConfig, MLPConfig
    from robopolicy.training.config import DataConfig, OptimConfig

    config = TrainConfig(
        DiffusionConfig(network=MLPConfig(width=16, blocks=1)),
        data=DataConfig(path=demos),
        optim=OptimConfig(warmup_steps=0),
        steps=3,
        batch_size=8,
        device="cpu",
    )
    folder = tmp_path_factory.mktemp("run") / "run"
    start(config, folder, "test")
    return folder / "checkpoints" / "00000003"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def _reseal(path: Path) -> None:
    """Makes the stored hashes fit altered files, as someone would who edits on purpose."""
    provenance = json.loads((path / "provenance.json").read_text())
    provenance["sha256"] = {n: checkpoint._digest(path / n) for n in checkpoint.FILES}
    (path / "provenance.json").write_text(json.dumps(provenance))


def test_round_trip_gives_the_same_outputs(saved: Path) -> None:
    policy, about = checkpoint.load(saved)
    again, _ = checkpoint.load(saved.parent.parent)
    observation = {
        "observation.state": torch.full((1, 2, 2), 200.0),
        "observation.environment_state": torch.tensor([[[100.0, 200.0, 1.0, 0.0]] * 2]),
    }
    a, b = (p.predict(observation, torch.Generator().manual_seed(0)) for p in (policy, again))
    assert torch.equal(a, b)
    assert about["task"] == "pusht"
    assert about["provenance"]["train_episodes"] == 11
    assert not policy.training
    assert (saved.parent / "last").readlink() == Path("00000003")


def test_only_json_and_safetensors_are_written(saved: Path) -> None:
    assert {p.suffix for p in saved.rglob("*") if p.is_file()} == {".json", ".safetensors"}
    for path in saved.rglob("*.safetensors"):
        load_file(path)


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_any_altered_or_missing_file_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(copy)
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=name if name != "config.json" else "config.json is missing"):
        checkpoint.load(copy)


def test_truncated_weights_with_fitting_hashes(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    _reseal(copy)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or damaged"):
        checkpoint.load(copy)


def test_golden_output_catches_changed_weights_even_with_fitting_hashes(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["network.chunk_out.bias"] += 0.1
    save_file(state, copy / "model.safetensors")
    _reseal(copy)
    with pytest.raises(CheckpointError, match="golden output differs"):
        checkpoint.load(copy)


def test_missing_normaliser_statistics_are_an_error(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["normalizer.scale_action"] = torch.full_like(state["normalizer.scale_action"], float("nan"))
    save_file(state, copy / "model.safetensors")
    _reseal(copy)
    with pytest.raises(CheckpointError, match="statistics for 'action' are missing"):
        checkpoint.load(copy)


def _edit_config(path: Path, edit: Callable[[dict], None]) -> None:
    config = json.loads((path / "config.json").read_text())
    edit(config)
    (path / "config.json").write_text(json.dumps(config))
    _reseal(path)


def test_newer_formats_unknown_policies_and_unknown_fields_are_refused(copy: Path) -> None:
    _edit_config(copy, lambda c: c.update(format_version=99))
    with pytest.raises(CheckpointError, match=r"format version 99, this robopolicy .* reads up to 1"):
        checkpoint.load(copy)
    _edit_config(copy, lambda c: (c.update(format_version=1), c["policy"].update(kind="difusion")))
    with pytest.raises(RobopolicyError, match="Did you mean 'diffusion'"):
        checkpoint.load(copy)
    _edit_config(copy, lambda c: c["policy"].update(kind="diffusion", horizn=16))
    with pytest.raises(RobopolicyError, match=r"unknown field in .*config\.json: 'horizn'. Did you mean 'horizon'"):
        checkpoint.load(copy)


def test_features_that_do_not_match_their_hash_are_refused(copy: Path) -> None:
    features = json.loads((copy / "features.json").read_text())
    features["features"][0]["units"] = ["m", "m"]
    (copy / "features.json").write_text(json.dumps(features))
    _reseal(copy)
    with pytest.raises(CheckpointError, match="schema hash"):
        checkpoint.load(copy)


def test_no_such_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        checkpoint.load(tmp_path)


def _save_again(saved: Path, target: Path) -> None:
    policy, _ = checkpoint.load(saved)
    observation = {
        k.removeprefix("input."): v for k, v in load_file(saved / "golden.safetensors").items() if k != "output"
    }
    checkpoint.save(target, policy, "pusht", observation, {})


def test_full_disk_leaves_nothing_and_says_so(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match="disk full while saving"):
        _save_again(saved, tmp_path / "checkpoints" / "1")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_write_refused_by_the_system(saved: Path, tmp_path: Path) -> None:
    """A file-size limit makes the kernel itself refuse the write."""
    import subprocess
    import sys

    code = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoint import _save_again
from robopolicy.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    _save_again(Path({str(saved)!r}), Path({str(tmp_path / "c" / "1")!r}))
except CheckpointError as error:
    print('refused:', error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "refused:" in done.stdout, done.stderr
    assert list((tmp_path / "c").iterdir()) == []


def test_an_existing_checkpoint_is_never_overwritten(saved: Path, copy: Path) -> None:
    before = (copy / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        _save_again(saved, copy)
    assert (copy / "model.safetensors").read_bytes() == before
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        (tmp_path / f"{step:08d}").mkdir()
    checkpoint.prune(tmp_path, keep=2, best=2)
    assert checkpoint.steps_saved(tmp_path) == [2, 4, 5]
    (tmp_path / ".00000009.77.tmp").mkdir()
    checkpoint.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000004", "00000005"]
