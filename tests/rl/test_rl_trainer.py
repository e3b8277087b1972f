"""Runs of reinforcement learning: logs, checkpoints, exact resume, several processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import halves
import pytest
import torch
from safetensors.torch import load_file

from robopolicy.commands.train import resume
from robopolicy.commands.train_rl import parse, start
from robopolicy.configs import from_dict, to_dict
from robopolicy.errors import CheckpointError, RobopolicyError
from robopolicy.recipes_locomotion import LOCOMOTION
from robopolicy.rl.nets import NetConfig
from robopolicy.rl.trainer import RLConfig
from robopolicy.sim.plants import PointMass
from robopolicy.sim.quadruped.config import QuadrupedConfig
from robopolicy.training import checkpoint
from robopolicy.training.logs import read_metrics

torch.set_num_threads(1)


def tiny(**changes: object) -> RLConfig:
    """Six iterations of the point mass against a disturber."""
    config = LOCOMOTION["pointmass-hinf"].make()
    net = NetConfig(hidden=(8,))
    config.actor = config.critic = config.game.net = net
    config.n_envs, config.rollout_steps, config.iterations = 8, 16, 6
    config.save_every, config.log_every, config.game.curriculum = 2, 1, 0.3
    config.game.washout = 5.0
    # Adapting rates are part of what must be resumed.
    config.ppo.schedule = "adaptive"
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def stored(folder: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.resolve(folder)
    return load_file(path / "model.safetensors") | load_file(path / "training" / "state.safetensors")


def cut(folder: Path, step: int) -> None:
    """As after a kill: later checkpoints do not exist."""
    for path in (folder / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
    (folder / "checkpoints" / "last").unlink()


def test_resume_repeats_an_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    start(tiny(), tmp_path / "whole", "test")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    cut(tmp_path / "cut", 4)
    resume(tmp_path / "cut")
    ours, theirs = stored(tmp_path / "whole"), stored(tmp_path / "cut")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    for part in ("actor", "critic", "disturber", "optim.actor", "optim.disturber", "normaliser.critic", "process.env"):
        assert any(k.startswith(f"{part}.") for k in ours), part
    whole, again = (
        json.loads((checkpoint.resolve(tmp_path / n) / "training" / "state.json").read_text())
        for n in ("whole", "cut")
    )
    assert whole == again
    assert whole["lambda"] != 1.0
    assert whole["force_cap"] == 4.0
    assert whole["lr"]["actor"] != 3e-4
    entries = [
        [{k: v for k, v in e.items() if "time/" not in k and k != "samples_per_s"} for e in read_metrics(p)]
        for p in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "cut" / "metrics.jsonl")
    ]
    assert entries[0] == entries[1]


def test_the_checkpoint_is_a_policy_that_acts_like_the_actor(tmp_path: Path) -> None:
    result = start(tiny(), tmp_path / "run", "test")
    assert result.step == 6
    policy, about = checkpoint.load(tmp_path / "run")
    assert about["task"] == "pointmass"
    tensors = stored(tmp_path / "run")
    mean, var = tensors["normaliser.policy.mean"], tensors["normaliser.policy.var"]
    observation = torch.tensor([[0.2, -0.7]])
    x = ((observation.double() - mean) / var.sqrt()).float()
    hidden = torch.nn.functional.elu(x @ tensors["actor.network.0.weight"].T + tensors["actor.network.0.bias"])
    expected = hidden @ tensors["actor.network.2.weight"].T + tensors["actor.network.2.bias"]
    chunk = policy.predict({"observation.state": observation[:, None]}, torch.Generator())
    torch.testing.assert_close(chunk[:, 0], expected, atol=1e-5, rtol=1e-5)
    assert chunk.shape == (1, 1, 1)
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [e["step"] for e in entries] == [1, 2, 3, 4, 5, 6]
    wanted = {"reward", "cost", "force", "lambda", "slack", "kl", "clip_fraction", "explained_variance_1", "samples"}
    wanted |= {"samples_per_s", "time/physics_s", "time/learning_s", "disturber/kl", "force_cap"}
    assert wanted <= entries[-1].keys()
    assert entries[-1]["samples"] == 6 * 8 * 16
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert checkpoint.steps_saved(tmp_path / "run" / "checkpoints") == [2, 4, 6]


def test_another_environment_is_refused(tmp_path: Path) -> None:
    start(tiny(iterations=2), tmp_path / "run", "test")
    file = tmp_path / "run" / "train_config.json"
    saved = json.loads(file.read_text())
    saved["config"]["env"]["max_force"] = 5.0
    file.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="environment"):
        resume(tmp_path / "run")
    saved["config"]["env"]["kind"] = "pointmas"
    file.write_text(json.dumps(saved))
    with pytest.raises(RobopolicyError, match="Did you mean 'pointmass'"):
        resume(tmp_path / "run")


def test_bad_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RobopolicyError, match="expected above 0"):
        start(tiny(n_envs=0), tmp_path / "run", "test")
    with pytest.raises(RobopolicyError, match="rollout-steps"):
        start(tiny(rollout_steps=0), tmp_path / "run", "test")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", list(LOCOMOTION))
def test_recipes_are_what_their_names_say_and_survive_a_file(name: str) -> None:
    config = parse(name, ["--seed", "7"])
    assert config.seed == 7
    game = config.game
    method = {"ppo": ("none", False), "random": ("random", False), "adversary": ("learned", False)}
    found = next((v for k, v in method.items() if name.endswith(k)), ("learned", True))
    assert (game.disturbance, game.constrained) == found
    assert from_dict(RLConfig, json.loads(json.dumps(to_dict(config)))) == config
    twin = LOCOMOTION[name.rpartition("-")[0] + "-ppo"].make() if not name.endswith("paper") else None
    if twin is not None:
        same = ("n_envs", "rollout_steps", "iterations", "ppo", "env", "actor", "critic")
        assert all(getattr(twin, field) == getattr(config, field) for field in same), "equal samples and networks"


def two_processes(*arguments: str) -> None:
    """Runs python with `arguments` twice, as torchrun would, without its own process that watches them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["WORLD_SIZE"] = "2"
    running = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def test_two_processes_make_the_step_of_one_with_all_samples(tmp_path: Path) -> None:
    two_processes(halves.__file__, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, halves.updated(0, 1), atol=1e-6, rtol=1e-5)


def test_two_processes_train_and_resume(tmp_path: Path) -> None:
    flags = ["--n-envs", "8", "--rollout-steps", "8", "--save-every", "2", "--log-every", "1"]
    whole = tmp_path / "whole"
    two_processes("-m", "robopolicy", "train", "pointmass-hinf", *flags, "--iterations", "4", "--output", str(whole))
    tensors = stored(whole)
    assert tensors["process.env.values"].shape == (2, 8, 2)
    assert not torch.equal(*tensors["process.env.values"]), "every process has its own copies"
    assert read_metrics(whole / "metrics.jsonl")[-1]["samples"] == 2 * 4 * 8 * 8
    shutil.copytree(whole, tmp_path / "cut", symlinks=True)
    cut(tmp_path / "cut", 2)
    two_processes("-m", "robopolicy", "train", "--resume", str(tmp_path / "cut"))
    again = stored(tmp_path / "cut")
    assert all(torch.equal(v, again[k]) for k, v in tensors.items())
    cut(tmp_path / "cut", 2)
    with pytest.raises(CheckpointError, match="number of processes: trained with 2, this run has 1"):
        resume(tmp_path / "cut")


def test_ctrl_c_finishes_the_iteration_and_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tiny(), tmp_path / "whole", "test")
    step, steps = PointMass.step, []

    def interrupted(self: PointMass, *args: object) -> object:
        steps.append(0)
        if len(steps) == 2 * 16 + 8:  # In the middle of the third rollout.
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(PointMass, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(tiny(), tmp_path / "cut", "test")
    monkeypatch.setattr(PointMass, "step", step)
    assert checkpoint.resolve(tmp_path / "cut").name == "00000003"
    resume(tmp_path / "cut")
    whole, cut_short = stored(tmp_path / "whole"), stored(tmp_path / "cut")
    assert whole.keys() == cut_short.keys()
    assert all(torch.equal(whole[k], cut_short[k]) for k in whole)


def test_every_process_has_robots_of_its_own() -> None:
    config = QuadrupedConfig(robot="a1", threads=1)
    masses = [[model.body_mass.sum() for model in config.of_process(rank).make(4).batch.models] for rank in (0, 1, 2)]
    assert masses[0] == [model.body_mass.sum() for model in config.make(4).batch.models]
    assert len({m for part in masses for m in part}) == 12
