"""What an installation holds."""

import os
import runpy
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import robopolicy

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_the_linked_rooms_and_the_ros_manifest(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "robopolicy/cli.py",
        "robopolicy/sim/pusht.py",
        "robopolicy/datasets/windows.py",
        "robopolicy/datasets/catalog/pusht.yaml",
        "robopolicy/hardware/__init__.py",
        "robopolicy/hardware/profiles/ur5e.yaml",
    ):
        assert name in names
    assert "robopolicy/datasets/__init__.py" not in names
    assert _shared(wheel) == _colcon_files()
    assert "share/robopolicy/launch/robots/ur5e.launch.py" in _colcon_files()
    assert "share/ament_index/resource_index/packages/robopolicy" in _colcon_files()
    assert not [n for n in names if n.startswith("tests") or "/tests/" in n]


def _shared(wheel: Path) -> dict[str, bool]:
    """What a wheel places under the prefix, and whether it can be executed."""
    found = {}
    for info in zipfile.ZipFile(wheel).infolist():
        _, data, place = info.filename.partition(".data/data/")
        if data:
            found[place] = bool(info.external_attr >> 16 & stat.S_IXUSR)
    return found


def _colcon_files() -> dict[str, bool]:
    """What launch/setup.py installs under the prefix, and whether it can be executed."""
    setup = runpy.run_path(str(ROOT / "launch" / "setup.py"))
    return {
        f"{place}/{Path(file).name}": os.access(ROOT / "launch" / file, os.X_OK)
        for place, files in setup["data_files"]()
        for file in files
    }


def test_executables_are_those_of_the_node_modules() -> None:
    files = _colcon_files()
    stubs = {Path(place).name for place in files if place.startswith("lib/robopolicy/")}
    assert stubs == {p.stem for p in (ROOT / "hardware" / "ros").glob("*_node.py")}
    assert all(can_run == place.startswith("lib/") for place, can_run in files.items())


def test_a_stub_runs_the_python_of_its_prefix_and_else_that_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "lib" / "robopolicy").mkdir(parents=True)
    stub = tmp_path / "lib" / "robopolicy" / "gate_node"
    shutil.copy(ROOT / "launch" / "lib" / "robopolicy" / "gate_node", stub)
    for folder in ("bin", "other"):
        (tmp_path / folder).mkdir()
        fake = tmp_path / folder / "python3"
        fake.write_text(f'#!/bin/sh\necho {folder} "$@" ${{_ROS_WHEELS_BOOTSTRAP_COMPLETE-unset}}\n')
        fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'other'}:{os.environ['PATH']}", "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"}

    def said() -> str:
        return subprocess.run([stub, "-p", "a b"], env=environment, capture_output=True, text=True, check=True).stdout

    assert said() == "bin -m robopolicy.hardware.ros.gate_node -p a b unset\n"
    (tmp_path / "bin" / "python3").unlink()
    assert said() == "other -m robopolicy.hardware.ros.gate_node -p a b unset\n"


def test_colcon_takes_the_folder_for_an_ament_python_package_and_only_that() -> None:
    pytest.importorskip("colcon_ros")
    from catkin_pkg.package import parse_package

    command = [sys.executable, "-m", "colcon", "--log-base", "/dev/null", "list", "--base-paths"]

    def listed(folder: str) -> str:
        return subprocess.run([*command, folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert listed("launch") == "robopolicy\tlaunch\t(ros.ament_python)\n"
    assert listed(".") == "", "COLCON_IGNORE keeps colcon from taking the library for a package"
    package = parse_package(str(ROOT / "launch" / "package.xml"))
    package.validate()
    assert package.package_format == 3
    assert package.version == robopolicy.__version__


def test_the_constraints_pin_every_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [d for ds in project["optional-dependencies"].values() for d in ds]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}

    def name(requirement: str) -> str:
        for stop in "<>=![ ":
            requirement = requirement.split(stop)[0]
        return requirement.lower()

    missing = {name(r) for r in wanted} - pinned - {"robopolicy"}
    assert not missing
