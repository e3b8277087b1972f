"""The launch files against the nodes, the profiles and `robopolicy deploy`, read without ROS 2."""

import ast
import dataclasses
import os
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_reader import FOLDER, LaunchError, description, started

from robopolicy.hardware.drivers import DRIVERS
from robopolicy.hardware.graph import CONFIG, GraphSettings, nodes
from robopolicy.hardware.profiles import load_profile, profile_names
from robopolicy.hardware.supervisor import PARENT

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(FOLDER.rglob("*.launch.py"))
ALLOWED = {"launch", "launch_ros", "ament_index_python", "os", "pathlib"}


def launch_file(robot: str) -> Path:
    """The one that a user would take."""
    profile = load_profile(robot)
    kind = "sim" if profile.simulated else profile.kind
    return FOLDER / f"{kind}.launch.py"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_launch_files_import_nothing_but_launch(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {a.name.split(".")[0] for a in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] in ALLOWED


def test_every_robot_has_a_launch_file_and_is_among_its_choices() -> None:
    assert {p.name.removesuffix(".launch.py") for p in (FOLDER / "robots").iterdir()} == set(profile_names())
    for robot in profile_names():
        started(launch_file(robot), robot=robot, checkpoint="run")


def test_a_mistyped_robot_and_a_missing_checkpoint_are_refused() -> None:
    with pytest.raises(LaunchError, match="robot: 'ur5' is none of"):
        started(FOLDER / "manipulator.launch.py", robot="ur5", checkpoint="run")
    with pytest.raises(LaunchError, match="argument 'checkpoint' is required"):
        started(FOLDER / "sim.launch.py")


CASES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    **{robot: ({}, {}) for robot in profile_names()},
    **{f"{robot} direct": ({"driver": "direct", "robot_ip": "10.0.0.1"},) * 2 for robot in DRIVERS},
    "sim_pusht stepped": (
        {"mode": "stepped", "use_sim_time": "true", "time_scale": "4", "camera_hz": "10", "record": "bags"},
        {"mode": "stepped", "time_scale": 4.0, "camera_hz": 10.0, "record": "bags"},
    ),
    "ur5e recorded": (
        {"record": "bags", "dry_run": "true", "device": "cuda:1", "contract": "c.yaml", "namespace": "left"},
        {"record": "bags", "dry_run": True, "device": "cuda:1", "contract": "c.yaml", "namespace": "left"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_launch_starts_what_deploy_starts(case: str) -> None:
    robot, (arguments, settings) = case.split()[0], CASES[case]
    found, _, _ = started(launch_file(robot), robot=robot, checkpoint="20000", **arguments)
    wanted = nodes(GraphSettings(robot, "20000", **settings))
    assert {n.executable: n.parameters for n in found} == {n.executable: dict(n.parameters) for n in wanted}
    assert {n.namespace for n in found} == {settings.get("namespace", "")}


@pytest.mark.parametrize("case", CASES)
def test_nodes_are_executables_of_this_package_that_end_in_time(case: str) -> None:
    robot, (arguments, _) = case.split()[0], CASES[case]
    found, environment, others = started(launch_file(robot), robot=robot, checkpoint="run", **arguments)
    for node in found:
        assert node.package == "robopolicy"
        assert (ROOT / "launch" / "lib" / "robopolicy" / node.executable).is_file()
        assert node.name == node.executable, "parameter files name nodes by their executables"
        assert (node.options["sigterm_timeout"], node.options["sigkill_timeout"]) == ("5", "5")
        assert node.options["emulate_tty"]
        assert node.options["additional_env"] == {PARENT: str(os.getpid())}
        assert [Path(f) for f in node.files] == [ROOT / "launch" / "config" / "params.yaml"]
    assert Path(environment["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()
    assert sum(e.kind == "RegisterEventHandler" for e in others) == 1


def test_any_end_but_those_of_recorder_and_cameras_is_an_error_unless_everything_ends_anyway() -> None:
    entities = description(FOLDER / "graph.launch.py")
    (register,) = (e for e in entities if e.kind == "RegisterEventHandler")
    assert entities.index(register) < min(i for i, e in enumerate(entities) if e.kind == "Node")
    (handler,) = register.args
    assert handler.kind == "OnProcessExit"
    assert set(handler.kwargs) == {"on_exit"}, "of all processes, those of other files too"

    class Event:
        process_name, returncode = "gate_node-1", -9

    class Context:
        is_shutdown = True

    ended = handler.kwargs["on_exit"]
    assert ended(Event, Context) is None
    Context.is_shutdown = False
    with pytest.raises(RuntimeError, match="gate_node-1 ended with exit status -9"):
        ended(Event, Context)
    settings = GraphSettings("sim_pusht", "run", record="bags", camera_hz=10.0)
    for node in nodes(settings):
        Event.process_name = f"{node.executable}-3"
        if node.critical:
            with pytest.raises(RuntimeError):
                ended(Event, Context)
        else:
            assert ended(Event, Context) is None


def declared(executable: str) -> Any:
    """The class of a node's parameters."""
    pytest.importorskip("rclpy")
    module = import_module(f"robopolicy.hardware.ros.{executable}")
    from robopolicy.hardware.ros.node import RobotNode

    (node,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, RobotNode) and value.__module__ == module.__name__
    )
    return node.Parameters


@pytest.mark.parametrize("case", CASES)
def test_nodes_declare_the_parameters_that_they_are_given(case: str) -> None:
    robot, (arguments, _) = case.split()[0], CASES[case]
    found, _, _ = started(launch_file(robot), robot=robot, checkpoint="run", **arguments)
    for node in found:
        parameters = declared(node.executable)
        hints = typing.get_type_hints(parameters)
        for name, value in node.parameters.items():
            if name != "use_sim_time":
                assert type(value) is hints[name], f"{node.executable}: {name}"
        given = {k: v for k, v in node.parameters.items() if k != "use_sim_time"}
        assert dataclasses.is_dataclass(parameters(**given))


def test_the_parameter_file_reaches_nodes_in_every_namespace_with_names_that_they_know() -> None:
    table = yaml.safe_load((CONFIG / "params.yaml").read_text())
    executables = [p.name for p in (ROOT / "launch" / "lib" / "robopolicy").iterdir()]
    for key, entry in table.items():
        assert list(entry) == ["ros__parameters"]
        assert key == "/**" or key.removeprefix("/**/") in executables
        for executable in executables if key == "/**" else [key.removeprefix("/**/")]:
            known = {f.name for f in dataclasses.fields(declared(executable))}
            assert set(entry["ros__parameters"]) <= known, executable
