"""What an installation holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

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
    assert any(n.endswith("data/share/robopolicy/package.xml") for n in names)
    assert any(n.endswith("data/share/ament_index/resource_index/packages/robopolicy") for n in names)
    assert not [n for n in names if n.startswith("tests") or "/tests/" in n]


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
