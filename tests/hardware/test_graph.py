"""The whole graph as processes over DDS: a trained policy drives the simulated robot as in plain evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")

from ros_graph import free_domain

from robopolicy.cli import main
from robopolicy.datasets.detect import open_source
from robopolicy.datasets.rosbag import Bag
from robopolicy.inference.runner import PolicyRunner
from robopolicy.sim.pusht import STATE, PushTState
from robopolicy.training import checkpoint

SEED, STEPS = 100_002, 25
"""Episode, and the control steps whose motion is compared: later the smallest delay has grown into another motion."""


def plain_path(run: Path) -> np.ndarray:
    """Positions [2 STEPS, 2] of the agent in plain evaluation."""
    policy, _ = checkpoint.load(checkpoint.resolve(run), "cpu")
    task, runner = PushTState(), PolicyRunner(policy, seeds=[SEED])
    observation, _ = task.reset(seed=SEED)
    path = []
    for _ in range(2 * STEPS):
        path.append(observation[STATE])
        (action,) = runner.step({k: v[None] for k, v in observation.items()})
        observation, *_ = task.step(action)
    return np.array(path)


def off_path(points: np.ndarray, path: np.ndarray) -> float:
    """The largest distance of a point [K, 2] from the polygon through `path` [N, 2]."""
    start, along = path[:-1], np.diff(path, axis=0)
    share = ((points[:, None] - start) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)
    nearest = start + np.clip(share, 0, 1)[..., None] * along
    return float(np.linalg.norm(points[:, None] - nearest, axis=-1).min(axis=1).max())


def test_a_trained_policy_moves_the_robot_as_in_plain_evaluation_and_its_recording_trains_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    domain, lock = free_domain()
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    run, bags, data, results = (tmp_path / name for name in ("run", "bags", "data", "results.json"))
    small = ["--eval.every", "0", "--threads", "1", "--batch-size", "64"]
    assert main(["data", "record", "--output", str(tmp_path / "demos"), "--episodes", "8"]) == 0
    # Behaviour cloning draws no noise, so that one episode can be compared with one.
    train = ["train", "pusht-bc", *small, "--data.path"]
    assert main([*train, str(tmp_path / "demos"), "--steps", "300", "--output", str(run)]) == 0
    graph = [
        "deploy",
        str(run),
        "--robot",
        "sim_pusht",
        "--episodes",
        "1",
        "--first-seed",
        str(SEED),
        "--quiet",
        "True",
    ]
    # Slowly enough for a machine that has other things to do.
    assert main([*graph, "--time-scale", "1.5", "--record", str(bags), "--output", str(results)]) == 0
    lock.close()
    (outcome,) = json.loads(results.read_text())
    assert outcome["seed"] == SEED
    assert outcome["steps"] == 300 or outcome["success"]
    with Bag(bags / "episode_000000") as bag:
        assert {"/joint_states", "/block_state", "/command", "/action_chunk", "/setpoint"} <= set(bag.counts)
    capsys.readouterr()
    assert main(["data", "convert", str(bags), "--output", str(data)]) == 0
    assert "1 episodes" in capsys.readouterr().out
    with open_source(data) as source:
        recorded = source.read(0, [STATE])[STATE]
    path = plain_path(run)
    moved = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    assert moved > 100, "a robot that hardly moves would say nothing"
    assert off_path(recorded[:STEPS], path) < 25
    assert np.linalg.norm(np.diff(recorded[: 2 * STEPS], axis=0), axis=1).sum() > 0.5 * moved
    assert main([*train, str(data), "--steps", "5", "--output", str(tmp_path / "again")]) == 0
