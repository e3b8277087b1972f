"""The import arrows of the design, and the layout that keeps them honest."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "errors": set(),
    "features": {"errors"},
    "configs": {"errors"},
    "registry": {"errors"},
    "progress": set(),
    "wire": set(),
    "diffusion": {"errors"},
    "nn": {"errors", "features", "diffusion"},
    "policies": {"errors", "features", "configs", "diffusion", "nn", "registry"},
    "inference": {"errors", "features", "diffusion", "nn", "policies"},
    "evaluation": {
        "errors",
        "features",
        "configs",
        "registry",
        "diffusion",
        "nn",
        "policies",
        "inference",
        "progress",
        "wire",
    },
    "training": {"errors", "features", "configs", "registry", "diffusion", "nn", "policies", "inference", "progress"},
    "rl": {"errors", "features", "configs", "diffusion", "nn", "policies", "progress", "training"},
    "recipes": {"errors", "nn", "policies", "training", "recipes_robomimic"},
    "recipes_robomimic": {"nn", "policies", "training"},
    "recipes_locomotion": {"rl", "sim"},
    "sim": {"errors", "features", "rl"},  # of rl only the seam, rl.vec
    "datasets": {"errors", "features", "configs", "progress"},
    "hardware": {"errors", "features", "configs", "datasets", "inference", "wire"},
}
ONLY_IN = {
    "rclpy": "hardware/ros/",
    "robosuite": "sim/",
    "pybullet": "sim/",
    "gymnasium_robotics": "sim/",
    "rosbags": "datasets/",
}


def _module_level_imports(path: Path) -> set[str]:
    """Absolute module names imported when `path` is imported, not those inside functions or TYPE_CHECKING."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(a.name for a in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found.update(f"{node.module}.{a.name}" for a in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                visit(node.body + node.orelse)
            elif isinstance(node, ast.Try):
                visit(node.body + node.orelse + node.finalbody + [s for h in node.handlers for s in h.body])
            elif isinstance(node, ast.ClassDef | ast.With):
                visit(node.body)

    visit(ast.parse(path.read_text()).body)
    return found


def _room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "robopolicy" and len(parts) > 1 else None


def _sources(room: str) -> list[Path]:
    for base in (ROOT / room, ROOT / "robopolicy" / room):
        if base.is_dir():
            return sorted(base.rglob("*.py"))
    return [ROOT / "robopolicy" / f"{room}.py"]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_only_what_the_arrows_allow(room: str) -> None:
    for path in _sources(room):
        rooms = {r for m in _module_level_imports(path) if (r := _room_of(m))} - {room, "__version__"}
        assert rooms <= ROOMS[room], f"{path.relative_to(ROOT)} imports {sorted(rooms - ROOMS[room])}"


def test_the_arrow_check_sees_a_forbidden_import(tmp_path: Path) -> None:
    source = tmp_path / "bad.py"
    source.write_text("try:\n    from robopolicy.training.trainer import Trainer\nexcept ImportError:\n    pass\n")
    assert {_room_of(m) for m in _module_level_imports(source)} == {"training"}


def test_heavy_optional_packages_stay_in_their_rooms() -> None:
    for path in [
        *(ROOT / "robopolicy").rglob("*.py"),
        *(ROOT / "sim").rglob("*.py"),
        *(ROOT / "datasets").rglob("*.py"),
    ]:
        for module in {m.split(".")[0] for m in _module_level_imports(path)} & set(ONLY_IN):
            assert ONLY_IN[module] in str(path.resolve().relative_to(ROOT)), f"{path} imports {module}"


def test_help_imports_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys; from robopolicy.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'torchvision', 'diffusers', 'tyro') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert len(done.stdout.splitlines()) < 24, "the help fits a screen"


def test_no_pickle_and_no_eval_in_the_sources() -> None:
    for path in [*ROOT.glob("robopolicy/**/*.py"), *ROOT.glob("sim/**/*.py"), *ROOT.glob("datasets/**/*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {a.name.split(".")[0] for a in node.names} & {"pickle", "dill", "joblib"}, path
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec"), f"{path}:{node.lineno} calls {name}"
                if name == "torch.load":
                    # The restricted unpickler, which builds tensors and plain containers and runs nothing.
                    restricted = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                    assert restricted, f"{path}:{node.lineno} unpickles"
                assert not any(
                    k.arg in ("allow_pickle", "trust_remote_code") and ast.unparse(k.value) == "True"
                    for k in node.keywords
                ), path


def test_the_root_does_not_shadow_the_datasets_package() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()
    for room in ("sim", "datasets", "hardware"):
        link = ROOT / "robopolicy" / room
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{room}"
