"""`robopolicy deploy` as a person runs it: processes over DDS, Ctrl-C, and a node that dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from ros_graph import free_domain

from robopolicy.cli import main

PATIENCE = 240.0
"""Seconds until a wait fails: for a loaded machine, not an expectation."""
FEW_MESSAGES = """
/**/sim_node:
  ros__parameters: {state_hz: 25.0}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has learnt next to nothing; what it does is not judged here."""
    folder = tmp_path_factory.mktemp("deploy")
    assert main(["data", "record", "--output", str(folder / "demos"), "--episodes", "2"]) == 0
    options = ["--steps", "10", "--save-every", "10", "--validate-every", "10", "--batch-size", "16", "--threads", "1"]
    run = ["--data.path", str(folder / "demos"), "--output", str(folder / "run")]
    tiny = ["policy.network.width=32", "--policy.sampler.steps=2"]
    assert main(["train", "pusht-small", *run, *options, *tiny]) == 0
    return folder / "run"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    domain, lock = free_domain()
    yield os.environ | {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    lock.close()


class Deployment:
    """A `robopolicy deploy` process whose output is in a file."""

    def __init__(self, log: Path, environment: dict[str, str], *arguments: str) -> None:
        self.log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "robopolicy", "deploy", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                # A job that a shell started in the background ignores interrupts, and so would its children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def nodes(self) -> dict[str, int]:
        """Process numbers by executable."""
        found = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            match = re.search(r"robopolicy\.hardware\.ros\.(\w+)", Path(f"/proc/{pid}/cmdline").read_text())
            if match:
                found[match[1]] = int(pid)
        return found

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + PATIENCE
        while text not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.05)

    def end(self) -> int:
        return self.process.wait(PATIENCE)


def gone(pids: list[int]) -> bool:
    return not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_an_episode_of_a_simulated_robot_is_scored_and_recorded(
    checkpoint: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text(FEW_MESSAGES)
    options = ["--episodes", "1", "--first-seed", "100007", "--time-scale", "4", "--namespace", "left"]
    options += ["--params", str(tmp_path / "params.yaml")]
    files = ["--record", str(tmp_path / "bags"), "--output", str(tmp_path / "results.json")]
    deployment = Deployment(tmp_path / "log", environment, str(checkpoint), "--robot", "sim_pusht", *options, *files)
    assert deployment.end() == 0, deployment.said
    (outcome,) = json.loads((tmp_path / "results.json").read_text())
    assert outcome["seed"] == 100007
    assert 0 <= outcome["score"] <= 1
    assert outcome["steps"] == 300 or outcome["success"]
    assert "1 episodes, seeds 100007..100007" in deployment.said.splitlines()[-1]
    assert len(list((tmp_path / "bags").glob("episode_*"))) == 1


def test_an_interrupt_ends_every_process(checkpoint: Path, environment: dict[str, str], tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "log", environment, str(checkpoint), "--robot", "sim_pusht", "--episodes", "0")
    deployment.wait_for("active; Ctrl-C ends it")
    nodes = deployment.nodes()
    assert set(nodes) == {"sim_node", "gate_node", "policy_node"}
    deployment.process.send_signal(signal.SIGINT)
    assert deployment.end() == 130
    assert deployment.said.splitlines()[-1] == "robopolicy: interrupted"
    assert gone(list(nodes.values()))


def test_the_death_of_a_node_is_named_and_ends_the_others(
    checkpoint: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    deployment = Deployment(tmp_path / "log", environment, str(checkpoint), "--robot", "sim_pusht", "--episodes", "0")
    deployment.wait_for("active; Ctrl-C ends it")
    nodes = deployment.nodes()
    os.kill(nodes["gate_node"], signal.SIGKILL)
    assert deployment.end() == 2
    assert deployment.said.splitlines()[-1] == "robopolicy: error: gate_node was killed by SIGKILL"
    assert gone(list(nodes.values()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--robot", "sim_push"], "unknown robot 'sim_push'. Did you mean 'sim_pusht'"),
        (["--robot", "ur5e"], "unknown contract 'ur5e'"),
        (["--robot", "ur5e", "--contract", "nowhere.yaml"], "--contract nowhere.yaml: no such file"),
        (["--robot", "sim_pusht", "--episodes", "-1"], "--episodes -1"),
        (["--robot", "sim_pusht", "--params", "nowhere.yaml"], "--params nowhere.yaml: no such file"),
        (["--robot", "ur5e", "--contract", "sim_pusht", "--driver", "direct"], "--robot-ip"),
        (["--robot", "xarm7", "--contract", "sim_pusht", "--time-scale", "2"], "xarm7 is a real one"),
        (["--robot", "so101", "--contract", "sim_pusht", "--driver", "direct"], "so101 has no direct driver"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    arguments: list[str], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", str(checkpoint), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_without_rclpy_the_extra_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from robopolicy.commands import deploy

    monkeypatch.setattr(deploy, "find_spec", lambda name: None)
    assert main(["deploy", str(checkpoint), "--robot", "sim_pusht"]) == 2
    assert "rclpy is not installed: pip install" in capsys.readouterr().err


def test_a_checkpoint_of_another_robot_is_refused_by_the_policy(
    checkpoint: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    deployment = Deployment(
        tmp_path / "log", environment, str(checkpoint), "--robot", "ur5e", "--contract", "sim_pusht"
    )
    assert deployment.end() == 2
    last = deployment.said.splitlines()[-1]
    assert last.startswith("robopolicy: error: policy_node ended with exit status 1: ")
    assert "checkpoint has actions target_x, target_y; robot ur5e has joints shoulder_pan_joint" in last


def test_ros_env_is_a_line_for_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = tmp_path / "my robots"
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("site.getuserbase", lambda: str(tmp_path / "user"))
    assert main(["ros", "env"]) == 2
    assert "no ROS 2 package robopolicy under" in capsys.readouterr().err
    marker = prefix / "share" / "ament_index" / "resource_index" / "packages" / "robopolicy"
    marker.parent.mkdir(parents=True)
    marker.touch()
    assert main(["ros", "env"]) == 0
    line = capsys.readouterr().out
    shell = ["sh", "-c", f'{line} printf %s "$AMENT_PREFIX_PATH"']
    for before, after in ({}, str(prefix)), ({"AMENT_PREFIX_PATH": "/opt/ros"}, f"{prefix}:/opt/ros"):
        assert subprocess.run(shell, env=before, capture_output=True, text=True, check=True).stdout == after
