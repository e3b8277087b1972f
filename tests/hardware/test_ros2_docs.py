"""docs/ros2.md: its examples are read by the code, and its tables name what exists."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml

from robopolicy.commands.deploy import DeployArgs
from robopolicy.datasets.contract import parse_contract
from robopolicy.hardware.drivers import DRIVERS
from robopolicy.hardware.profiles import Adapter, parse_profile, profile_names
from robopolicy.hardware.safety import Fault

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "ros2.md").read_text()
BLOCKS = [
    re.sub(r"^   ", "", block, flags=re.M) if block.startswith("   ") else block
    for block in re.findall(r"^ *```yaml\n(.*?)^ *```$", TEXT, flags=re.M | re.S)
]


def block(start: str) -> str:
    """The YAML example that begins so."""
    (found,) = [b for b in BLOCKS if b.startswith(start)]
    return found


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table after a heading, without its head."""
    after = TEXT.split(f"\n## {heading}\n")[1]
    table = re.findall(r"^\|(.*)\|$", after.split("\n## ")[0], flags=re.M)
    return [[cell.strip() for cell in row.split("|")] for row in table[2:]]


def test_the_profile_and_the_contract_of_the_page_are_read() -> None:
    profile = parse_profile(block("name: my_arm"), Path("my_arm.yaml"))
    contract = parse_contract(block("rate_hz: 10"), "contract.yaml")
    assert list(profile.names) == ["shoulder", "elbow"]
    assert contract.features["observation.state"].field == ("position[shoulder, elbow]",)
    assert contract.features["action"].topic == f"/{profile.command.topic}"


def test_every_fault_is_explained_and_no_other() -> None:
    named = [name for row in rows("Faults") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(get_args(Fault))


def test_every_robot_and_adapter_is_named() -> None:
    real = [name for row in rows("Real robots") for name in re.findall(r"`(\w+)`", row[0])]
    assert set(real) == {name for name in profile_names() if not name.startswith("sim_")}
    direct = {n for row in rows("Real robots") if row[2] for n in re.findall(r"`(\w+)`", row[0])}
    assert direct == set(DRIVERS)
    for name in (*profile_names(), *get_args(Adapter)):
        assert f"`{name}`" in TEXT, name


def test_options_and_parameters_of_the_page_exist() -> None:
    options = {f"--{f.name.replace('_', '-')}" for f in fields(DeployArgs)}
    for line in TEXT.splitlines():
        if line.startswith("robopolicy deploy"):
            assert set(re.findall(r"--[a-z-]+", line)) <= options, line
    for name in (
        "--dry-run",
        "--params",
        "--record",
        "--episodes",
        "--output",
        "--mode",
        "--time-scale",
        "--camera-hz",
    ):
        assert name in TEXT
        assert name in options
    pytest.importorskip("rclpy")
    from robopolicy.hardware.ros.gate_node import GateParameters
    from robopolicy.hardware.ros.sim_node import SimParameters

    table = yaml.safe_load(block("/**/gate_node:"))
    assert set(table["/**/gate_node"]["ros__parameters"]) <= {f.name for f in fields(GateParameters)}
    broken = re.search(r"break things on purpose: (.*?);", TEXT, flags=re.S)
    assert broken
    assert set(re.findall(r"`(\w+)`", broken[1])) <= {f.name for f in fields(SimParameters)}
