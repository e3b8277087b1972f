"""Reads the launch files without ROS 2: the classes that they use, as plain records, and what a launch would start.

The records keep what they were given. `started` goes through them as `ros2 launch` does: arguments in order of their
declaration, the first value stays, includes share them, conditions and substitutions are evaluated when they are met.
"""

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent.parent.parent / "launch" / "launch"
NAMES = {
    "launch": ["LaunchDescription"],
    "launch.actions": [
        "DeclareLaunchArgument",
        "IncludeLaunchDescription",
        "LogInfo",
        "RegisterEventHandler",
        "SetEnvironmentVariable",
    ],
    "launch.conditions": ["IfCondition"],
    "launch.event_handlers": ["OnProcessExit"],
    "launch.launch_description_sources": ["PythonLaunchDescriptionSource"],
    "launch.substitutions": [
        "EnvironmentVariable",
        "EqualsSubstitution",
        "LaunchConfiguration",
        "NotEqualsSubstitution",
    ],
    "launch_ros": [],
    "launch_ros.actions": ["Node"],
    "launch_ros.parameter_descriptions": ["ParameterFile", "ParameterValue"],
}
OPTIONS = {"package", "executable", "name", "namespace", "parameters", "ros_arguments", "output", "emulate_tty"}
OPTIONS |= {"sigterm_timeout", "sigkill_timeout", "additional_env", "condition"}


class Record:
    """An object of a launch file: its class and what it was made of."""

    def __init__(self, kind: str, *args: Any, **kwargs: Any) -> None:
        self.kind, self.args, self.kwargs = kind, args, kwargs


@contextmanager
def _modules() -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in NAMES}
    for name, classes in NAMES.items():
        module = ModuleType(name)
        for kind in classes:
            setattr(module, kind, lambda *a, _kind=kind, **k: Record(_kind, *a, **k))
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def description(path: Path) -> list[Record]:
    """The entities of a launch file."""
    with _modules():
        made = runpy.run_path(str(path))["generate_launch_description"]()
    entities: list[Record] = made.args[0]
    return entities


@dataclass(frozen=True)
class Started:
    """A node as a launch would start it."""

    package: str
    executable: str
    name: str
    namespace: str
    files: tuple[str, ...]
    parameters: dict[str, Any]
    options: dict[str, Any]


class LaunchError(Exception):
    """What `ros2 launch` would refuse."""


def started(path: Path, **arguments: str) -> tuple[list[Started], dict[str, str], list[Record]]:
    """Nodes, environment and the other entities of a launch with these arguments."""
    context: dict[str, str] = {}
    found: list[Started] = []
    environment: dict[str, str] = {}
    others: list[Record] = []

    def visit(file: Path, given: dict[str, str]) -> None:
        entities = description(file)
        for entity in entities:
            # An include has to be given what it requires, even what the including file was given itself.
            name = entity.args[0] if entity.kind == "DeclareLaunchArgument" else ""
            if name and entity.kwargs.get("default_value") is None and name not in given:
                raise LaunchError(f"{file.name}: argument {name!r} is required")
        context.update(given)
        for entity in entities:
            condition = entity.kwargs.get("condition")
            if condition is not None and value(condition.args[0], context) not in ("true", "1"):
                continue
            if entity.kind == "DeclareLaunchArgument":
                _declare(entity, context)
            elif entity.kind == "IncludeLaunchDescription":
                passed = {k: value(v, context) for k, v in entity.kwargs.get("launch_arguments", ())}
                visit(Path(value(entity.args[0].args[0], context)), passed)
            elif entity.kind == "SetEnvironmentVariable":
                environment[entity.args[0]] = value(entity.args[1], context)
            elif entity.kind == "Node":
                found.append(_node(entity, context))
            else:
                others.append(entity)

    visit(path, arguments)
    return found, environment, others


def value(what: Any, context: dict[str, str]) -> str:
    """A substitution, or a list of them, as text."""
    if isinstance(what, list | tuple):
        return "".join(value(one, context) for one in what)
    if isinstance(what, str):
        return what
    if what.kind == "LaunchConfiguration":
        if what.args[0] not in context:
            raise LaunchError(f"launch configuration {what.args[0]!r} does not exist")
        return context[what.args[0]]
    if what.kind == "EnvironmentVariable":
        return value(what.kwargs["default_value"], context)
    equal = value(what.args[0], context) == value(what.args[1], context)
    return str(equal == (what.kind == "EqualsSubstitution")).lower()


def _declare(entity: Record, context: dict[str, str]) -> None:
    name, default = entity.args[0], entity.kwargs.get("default_value")
    assert entity.kwargs.get("description"), f"argument {name} has no help text"
    if name not in context:
        context[name] = value(default, context)
    choices = entity.kwargs.get("choices")
    if choices and context[name] not in choices:
        raise LaunchError(f"{name}: {context[name]!r} is none of {choices}")


def _node(entity: Record, context: dict[str, str]) -> Started:
    assert set(entity.kwargs) <= OPTIONS, set(entity.kwargs) - OPTIONS
    files, parameters = [], {}
    for part in entity.kwargs["parameters"]:
        if isinstance(part, dict):
            parameters |= {name: _parameter(given, context) for name, given in part.items()}
        else:
            assert not parameters, "files come first: what follows wins"
            files.append(value(part.args[0], context))
    texts = {k: value(entity.kwargs[k], context) for k in ("package", "executable", "name", "namespace")}
    return Started(files=tuple(files), parameters=parameters, options=entity.kwargs, **texts)


def _parameter(given: Any, context: dict[str, str]) -> Any:
    if not isinstance(given, Record):
        return given
    text, kind = value(given.args[0], context), given.kwargs["value_type"]
    if kind is bool:
        if text not in ("true", "false"):
            raise LaunchError(f"{text!r} is no bool")
        return text == "true"
    return kind(text)
