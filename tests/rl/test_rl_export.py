"""Exported actors: numbers with units in and out, equal to the policy inside its environment."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.commands.export import describe
from robopolicy.configs import to_dict
from robopolicy.errors import RobopolicyError
from robopolicy.rl.actor import ActorPolicy, deployed
from robopolicy.rl.export import check, exported, onnx_file, torchscript
from robopolicy.rl.nets import GaussianActor, NetConfig
from robopolicy.rl.normalise import RunningNormaliser
from robopolicy.sim.quadruped.config import NoiseConfig, QuadrupedConfig, RandomisationConfig
from robopolicy.sim.quadruped.env import QuadrupedEnv
from robopolicy.sim.quadruped.observation import NAMES
from robopolicy.sim.quadruped.robots import JOINTS
from robopolicy.training import checkpoint

CONFIG = QuadrupedConfig(
    robot="a1", noise=NoiseConfig.none(), randomisation=RandomisationConfig.none(), staggered=False, threads=1
)


@pytest.fixture
def env() -> QuadrupedEnv:
    found = CONFIG.make(3)
    found.reset(0)
    return found


def actor(env: QuadrupedEnv) -> ActorPolicy:
    """Random weights, and a normaliser that has seen something."""
    torch.manual_seed(0)
    net = NetConfig(hidden=(16, 16))
    network = GaussianActor(45, 12, net).network
    torch.nn.init.normal_(network[-1].weight, std=0.3)
    normaliser = RunningNormaliser(45)
    normaliser.add(torch.randn(200, 45) * 0.7 + 0.2)
    normaliser.update()
    return deployed(env, net, network.state_dict(), normaliser)


def test_one_step_of_the_robot_in_units(env) -> None:
    """What a robot's own computer would do: sensors in SI units in, joint targets out, the last target fed back."""
    policy = actor(env)
    physical, about = describe(policy, to_dict(CONFIG))
    module = exported(policy, physical)
    target = np.tile(env.robot.posture, (3, 1))
    for _ in range(5):
        state, seen = env.batch.present, env.observe()["policy"].clone()
        gravity = seen[:, 6:9].numpy()
        x = np.concatenate([env.command, state[:, 23:26], gravity, state[:, 8:20], state[:, 26:38], target], axis=1)
        y = module(torch.tensor(x, dtype=torch.float32))
        expected = policy.predict({"observation.state": seen[:, None]}, torch.Generator())[:, 0]
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        env.step(policy.raw(seen).detach())
        np.testing.assert_allclose(env.batch.targets[:, -1], y.detach(), atol=1e-4)
        target = y.detach().numpy()
    assert np.abs(target - env.robot.posture).max() > 0.05
    assert about["inputs"]["names"][:33] == NAMES[:33]
    assert about["inputs"]["names"][33:] == tuple(f"previous_target_{j}" for j in JOINTS)
    assert len(about["inputs"]["units"]) == 45
    assert (about["kp_nm_per_rad"], about["rate_hz"]) == (40.0, 50.0)


def test_torchscript_is_the_policy(env) -> None:
    policy = actor(env)
    physical, about = describe(policy, to_dict(CONFIG))
    module = exported(policy, physical)
    data = torchscript(module, about)
    x = torch.randn(7, 45)
    assert check(data, "torchscript", x, module(x).detach()) < 1e-5
    extra = {"about.json": ""}
    torch.jit.load(io.BytesIO(data), _extra_files=extra)
    assert json.loads(extra["about.json"])["robot"] == "a1"


def test_onnx_is_the_policy(env) -> None:
    onnx = pytest.importorskip("onnx", reason="extra onnx")
    policy = actor(env)
    physical, about = describe(policy, to_dict(CONFIG))
    module = exported(policy, physical)
    data = onnx_file(module, about)
    x = torch.randn(7, 45)
    assert check(data, "onnx", x, module(x).detach()) < 1e-5
    (prop,) = onnx.load_from_string(data).metadata_props
    assert json.loads(prop.value)["robot"] == "a1"


def test_a_file_that_differs_is_refused(env) -> None:
    policy = actor(env)
    module = exported(policy, describe(policy, to_dict(CONFIG))[0])
    data = torchscript(module, {})
    x = torch.randn(7, 45)
    with pytest.raises(RobopolicyError, match="torchscript file differs from the policy by"):
        check(data, "torchscript", x, module(x).detach() + 0.01)


def test_command_writes_a_file_and_its_description(env, tmp_path: Path, capsys) -> None:
    from robopolicy.cli import main

    policy = actor(env)
    golden = {"observation.state": env.observe()["policy"][:1, None]}
    checkpoint.save(tmp_path / "c", policy, "quadruped", golden, {"environment": to_dict(CONFIG)})
    target = tmp_path / "walker.pt"
    arguments = ["export", str(tmp_path / "c"), "--format", "torchscript", "--output", str(target)]
    assert main(arguments) == 0
    assert "of the largest output" in capsys.readouterr().out
    about = json.loads(target.with_suffix(".json").read_text())
    assert about["outputs"]["names"] == list(JOINTS)
    assert {p.name for p in tmp_path.iterdir()} == {"c", "walker.pt", "walker.json"}
    assert main(arguments) == 2
    assert "walker.pt: exists already" in capsys.readouterr().err


def test_the_description_does_not_take_the_place_of_the_model(env, tmp_path: Path, capsys) -> None:
    from robopolicy.cli import main

    golden = {"observation.state": env.observe()["policy"][:1, None]}
    checkpoint.save(tmp_path / "c", actor(env), "quadruped", golden, {"environment": to_dict(CONFIG)})
    target = tmp_path / "walker.json"
    assert main(["export", str(tmp_path / "c"), "--format", "torchscript", "--output", str(target)]) == 2
    assert "walker.json: the description goes there" in capsys.readouterr().err
    assert not target.exists()
