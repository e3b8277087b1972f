"""The training loop: schedules by hand, learning, exact resume, processes equal to micro-batches."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from robopolicy.commands.train import resume, start
from robopolicy.configs import from_dict, to_dict
from robopolicy.errors import CheckpointError, DataError, RobopolicyError
from robopolicy.training import checkpoint
from robopolicy.training.config import OptimConfig, TrainConfig
from robopolicy.training.ema import EMAConfig, ema_decay, ema_update
from robopolicy.training.interrupt import StepInterrupt, whole_steps
from robopolicy.training.logs import MetricsLog, read_metrics
from robopolicy.training.trainer import learning_rate, mix

Make = Callable[..., TrainConfig]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.resolve(folder)
    return load_file(path / "model.safetensors") | load_file(path / "training" / "state.safetensors")


def _equal(a: Path, b: Path) -> bool:
    ours, theirs = _weights(a), _weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_learning_rate_by_hand_and_against_diffusers() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=4)
    assert [learning_rate(config, s, 12) for s in (0, 2, 4)] == [0.0, 1.0, 2.0]
    assert math.isclose(learning_rate(config, 8, 12), 1.0)
    assert learning_rate(config, 12, 12) == 0.0

    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=4, num_training_steps=12)
    for step in range(12):
        assert math.isclose(scheduler.get_last_lr()[0], learning_rate(config, step, 12), abs_tol=1e-9)
        optimizer.step()
        scheduler.step()


def test_ema_decay_of_both_papers() -> None:
    ratio = EMAConfig(max_decay=0.999, warmup="ratio")
    assert math.isclose(ema_decay(ratio, 1), 2 / 11)
    assert ema_decay(ratio, 8990) == pytest.approx(0.999, abs=1e-6)
    power = EMAConfig()
    assert ema_decay(power, 1) == 0.0, "the first update copies the weights"
    assert math.isclose(ema_decay(power, 16), 1 - 16**-0.75)
    assert ema_decay(power, 10**7) == 0.9999

    from diffusers.training_utils import EMAModel

    model = EMAModel([nn.Parameter(torch.zeros(1))], decay=0.9999, use_ema_warmup=True, power=0.75)
    for update in (2, 3, 100, 5000):
        assert math.isclose(model.get_decay(update), ema_decay(power, update), abs_tol=1e-9)


def test_ema_update_by_hand() -> None:
    average, model = nn.Linear(1, 1), nn.Linear(1, 1)
    for module, value in ((average, 1.0), (model, 3.0)):
        for parameter in module.parameters():
            nn.init.constant_(parameter, value)
    ema_update(average, model, 0.75)
    assert [p.item() for p in average.parameters()] == [1.5, 1.5]
    assert [p.item() for p in model.parameters()] == [3.0, 3.0]


def test_mixed_seeds_do_not_collide() -> None:
    seeds = {mix(seed, step, part) for seed in range(3) for step in range(200) for part in range(4)}
    assert len(seeds) == 2400
    assert mix(1, 2) != mix(2, 1)


def test_a_run_learns_logs_and_writes_checkpoints(config: Make, tmp_path: Path) -> None:
    result = start(config(steps=200, save_every=100, log_every=5, keep=1), tmp_path / "run", "test")
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [e["loss"] for e in entries if "loss" in e]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert {"val_loss", "val_action_mse"} <= {k for e in entries for k in e}
    assert all({"lr", "grad_norm", "samples_per_s", "data_share"} <= e.keys() for e in entries if "loss" in e)
    assert checkpoint.steps_saved(tmp_path / "run" / "checkpoints") == [200]
    assert result.checkpoint.name == "00000200"
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_evaluation_chooses_the_best_checkpoint_and_it_is_kept(config: Make, tmp_path: Path) -> None:
    from robopolicy.training.config import EvalConfig
    from robopolicy.training.trainer import Trainer

    scores = {3: 0.1, 6: 0.9, 9: 0.2, 12: 0.3}
    run = config(eval=EvalConfig(every=3), save_every=4, keep=1)
    trainer = Trainer(run, run.data.path, tmp_path / "run", lambda _, step: {"eval/score": scores[step]})
    (tmp_path / "run").mkdir()
    trainer.run()
    assert trainer.best == {"step": 6, "score": 0.9}
    assert checkpoint.steps_saved(tmp_path / "run" / "checkpoints") == [6, 12]


def test_resume_repeats_an_uninterrupted_run_bit_for_bit(config: Make, tmp_path: Path) -> None:
    start(config(), tmp_path / "whole", "test")
    start(config(), tmp_path / "cut", "test")
    # As after a kill between steps 4 and 8: later checkpoints do not exist.
    for step in (8, 12):
        path = tmp_path / "cut" / "checkpoints" / f"{step:08d}"
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        path.rmdir()
    assert resume(tmp_path / "cut").step == 12
    assert _equal(tmp_path / "whole", tmp_path / "cut")
    entries = [read_metrics(tmp_path / r / "metrics.jsonl") for r in ("whole", "cut")]
    speed = ("samples_per_s", "data_share")
    assert [[(k, v) for k, v in e.items() if k not in speed] for e in entries[0]] == [
        [(k, v) for k, v in e.items() if k not in speed] for e in entries[1]
    ]


def test_the_bitwise_check_sees_a_different_seed(config: Make, tmp_path: Path) -> None:
    start(config(), tmp_path / "a", "test")
    start(config(seed=43), tmp_path / "b", "test")
    assert not _equal(tmp_path / "a", tmp_path / "b")


def _command(config: TrainConfig, folder: Path, launcher: list[str]) -> list[str]:
    code = (
        "import sys, json; from pathlib import Path; import robopolicy.recipes; "
        "from robopolicy.configs import from_dict; from robopolicy.training.config import TrainConfig; "
        "from robopolicy.commands.train import start; "
        f"start(from_dict(TrainConfig, json.loads({json.dumps(json.dumps(to_dict(config)))})), "
        f"Path({str(folder)!r}), 'test'); "
        # As the command line does, see robopolicy.cli.
        "import os; os._exit(0)"
    )
    script = folder.parent / f"{folder.name}.py"
    script.write_text(code)
    return [sys.executable, *launcher, str(script)]


def test_killed_runs_resume_to_the_same_weights(config: Make, tmp_path: Path) -> None:
    run = config(steps=300, save_every=5, keep=2, log_every=50, validate_every=100)
    start(run, tmp_path / "whole", "test")
    process = subprocess.Popen(_command(run, tmp_path / "cut", []), stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "cut" / "checkpoints"
    while len(checkpoint.steps_saved(checkpoints)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for step in checkpoint.steps_saved(checkpoints):
        checkpoint.load(checkpoints / f"{step:08d}")
    resume(tmp_path / "cut")
    assert _equal(tmp_path / "whole", tmp_path / "cut")
    assert not [p for p in checkpoints.iterdir() if p.name.startswith(".")]


def test_two_processes_equal_two_micro_batches(config: Make, tmp_path: Path) -> None:
    start(config(accumulate=2), tmp_path / "one", "test")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29541"]
    done = subprocess.run(
        _command(config(), tmp_path / "two", launcher),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    curves = [
        [(e["step"], e["loss"]) for e in read_metrics(tmp_path / r / "metrics.jsonl") if "loss" in e]
        for r in ("one", "two")
    ]
    assert len(curves[0]) == 6
    for (step, ours), (other, theirs) in zip(*curves, strict=True):
        assert step == other
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = (load_file(checkpoint.resolve(tmp_path / r) / "model.safetensors") for r in ("one", "two"))
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-5) for k in ours)


def test_resume_refuses_other_data_and_a_folder_without_a_run(config: Make, tmp_path: Path, demos: Path) -> None:
    start(config(), tmp_path / "run", "test")
    saved = tmp_path / "run" / "checkpoints" / "00000012" / "training" / "state.json"
    saved.write_text(saved.read_text().replace('"dataset_hash": "', '"dataset_hash": "other'))
    with pytest.raises(CheckpointError, match="trained on data other"):
        resume(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no run to resume"):
        resume(tmp_path)


def test_an_existing_output_folder_is_refused_before_anything_is_written(config: Make, tmp_path: Path) -> None:
    with pytest.raises(RobopolicyError, match="exists already"):
        start(config(), tmp_path, "test")
    assert list(tmp_path.iterdir()) == []


def test_bad_sizes_are_refused(config: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not divide into 3"):
        start(config(accumulate=3), tmp_path / "run", "test")


def test_a_diverging_loss_stops_the_run(config: Make, tmp_path: Path) -> None:
    with pytest.raises(RobopolicyError, match=r"the loss became .* lower optim\.lr"):
        start(config(optim=OptimConfig(lr=1e25, warmup_steps=0)), tmp_path / "run", "test")


def test_configurations_survive_json(config: Make) -> None:
    first = config()
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(first)))) == first
    for change, message in (
        ({"stepz": 3}, "Did you mean 'steps'"),
        ({"steps": "many"}, r"config\.steps: expected int, found 'many'"),
        ({"precision": "fp8"}, "unknown value for config.precision"),
    ):
        with pytest.raises(RobopolicyError, match=message):
            from_dict(TrainConfig, to_dict(first) | change)


def test_metrics_after_the_resumed_step_and_a_torn_line_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n{"step": 5, "a": 2}\n{"step": 6, "a')
    log = MetricsLog(tmp_path, resume_step=3)
    log.write(4, {"a": 3.0})
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 1}, {"step": 4, "a": 3.0}]


def test_ctrl_c_finishes_the_step_and_a_resumed_run_is_the_uninterrupted_one(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robopolicy.training import trainer

    start(config(), tmp_path / "whole", "test")
    average, calls = trainer.ema_update, []

    def interrupted(*args: object) -> None:
        calls.append(0)
        if len(calls) == 6:  # The weights of this step have moved, their average has not.
            os.kill(os.getpid(), signal.SIGINT)
        average(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "ema_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(config(), tmp_path / "cut", "test")
    monkeypatch.setattr(trainer, "ema_update", average)
    assert checkpoint.steps_saved(tmp_path / "cut" / "checkpoints")[-1] == 6
    resume(tmp_path / "cut")
    assert _equal(tmp_path / "whole", tmp_path / "cut")


def test_a_second_ctrl_c_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupted(times: int) -> None:
        with whole_steps() as step_over:
            step_over()
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
            step_over()

    with pytest.raises(StepInterrupt):
        interrupted(1)
    with pytest.raises(KeyboardInterrupt) as second:
        interrupted(2)
    assert second.type is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is before
