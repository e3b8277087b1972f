"""Dataclass configurations to and from plain JSON, strictly: an unknown or mistyped field is an error.

A configuration that has variants (networks, processes, policies) stores which one it is under "kind".
"""

import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from robopolicy.errors import RobopolicyError, unknown


def to_dict(config: Any) -> Any:
    """Nested dictionaries, lists, numbers and strings; the inverse of `from_dict`."""
    if is_dataclass(config):
        kind = {"kind": config.kind} if hasattr(config, "kind") else {}
        return kind | {f.name: to_dict(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(v) for v in config]
    return str(config) if isinstance(config, Path) else config


def _variants(cls: Any) -> dict[str, Any]:
    """All configurations of the family of `cls` by their kind."""
    found = {cls.kind: cls} if hasattr(cls, "kind") else {}
    for child in cls.__subclasses__():
        found |= _variants(child)
    return found


def from_dict(cls: Any, data: dict[str, Any], where: str = "config") -> Any:
    """An instance of dataclass `cls`, or of the variant that "kind" names; `where` names the source in errors."""
    data = dict(data)
    kind = data.pop("kind", None)
    if kind is not None:
        variants = _variants(cls)
        if kind not in variants:
            raise unknown(f"kind in {where}:", str(kind), variants)
        cls = variants[kind]
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    for name in data:
        if name not in known:
            raise unknown(f"field in {where}:", name, known)
    try:
        return cls(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in data.items()})
    except TypeError as error:
        raise RobopolicyError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value`, checked against and converted to the annotated type."""
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        return _value(next(a for a in get_args(hint) if a is not type(None)), value, where)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise RobopolicyError(f"{where}: expected a table, found {value!r}")
        return from_dict(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RobopolicyError(f"{where}: expected a list, found {value!r}")
        return tuple(_value(get_args(hint)[0], v, where) for v in value)
    if origin is typing.Literal:
        if value not in get_args(hint):
            raise unknown(f"value for {where}:", str(value), [str(a) for a in get_args(hint)])
        return value
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RobopolicyError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value
