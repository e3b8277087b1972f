"""Typed descriptions of every input and output: what is compared before anything trains or moves.

A `FeatureSpec` comes from a dataset or a task, is stored in the checkpoint, and is compared with the task's
or the robot's. Equal shapes are not enough: an absolute pixel target and a delta joint angle may both be [2].
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from robopolicy.errors import FeatureMismatch, RobopolicyError, did_you_mean, unknown

Kind = Literal["state", "image", "goal", "language", "action"]
KINDS: tuple[str, ...] = ("state", "image", "goal", "language", "action")
DTYPES = ("bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)), "float16", "float32", "float64")
MAX_SIZE = 2**31
"""Numbers in one time step of a feature that a file describes."""
MAX_KEY = 200
"""Characters of a key: formats make it the name of a file, and those end at 255 bytes."""
ACTION = "action"
EXECUTED = "action.executed"
"""Key of the action that a recording really executed, where "action" is what its expert meant."""
TASK_INDEX = "task_index"
"""Key of the number of the instruction that holds at a step; the instructions are listed beside the data."""


@dataclass(frozen=True)
class Control:
    """What the numbers of an action mean to the controller that executes them."""

    target: Literal["joint", "end_effector_pose", "velocity", "pixel_target"]
    """The commanded quantity."""
    mode: Literal["absolute", "delta"]
    """A set-point, or a change from the present value."""
    frame: str = "none"
    """Reference frame: world, base, tool, image, none."""
    rotation: str = "none"
    """Rotation representation: rot6d, quat_wxyz, axis_angle, euler_xyz, none."""
    gripper: str = "none"
    """Sign of the gripper command: positive_closes, positive_opens, none."""

    def __post_init__(self) -> None:
        for name in ("target", "mode"):
            choices = get_args(get_type_hints(Control)[name])
            if getattr(self, name) not in choices:
                raise unknown(f"{name} of a control mode:", str(getattr(self, name))[:40], choices)


@dataclass(frozen=True)
class Feature:
    """One named array of an observation or an action, without its batch and time axes."""

    key: str
    """LeRobot-style key, such as observation.state or observation.images.top."""
    shape: tuple[int, ...]
    """Shape of one time step; images are (height, width, channels)."""
    dtype: str = "float32"
    """numpy dtype name; images are uint8 outside the policy."""
    kind: Kind = "state"
    names: tuple[str, ...] = ()
    """One name per dimension, or empty when the source does not say."""
    units: tuple[str, ...] = ()
    """One unit per dimension, or empty when the source does not say."""
    low: tuple[float, ...] = ()
    """Lowest physical value per dimension, or empty when unbounded or unknown."""
    high: tuple[float, ...] = ()
    """Highest physical value per dimension, or empty when unbounded or unknown."""
    control: Control | None = None
    """Only for actions."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown(f"kind for feature {self.key!r}:", self.kind, KINDS)
        size = 1
        for n in self.shape:
            size *= n
        for attribute in ("names", "units", "low", "high"):
            values = getattr(self, attribute)
            if values and len(values) != size:
                raise RobopolicyError(f"feature {self.key!r}: {len(values)} {attribute} for shape {self.shape}")
        if self.control is not None and self.kind != "action":
            raise RobopolicyError(f"feature {self.key!r}: only actions have a control mode, this is a {self.kind}")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Feature":
        """The inverse of `dataclasses.asdict` after a trip through JSON, which may have changed on its way.

        Raises TypeError, ValueError or RobopolicyError for what no feature can be.
        """
        known = dict(data)
        for name in ("shape", "names", "units", "low", "high"):
            if not isinstance(known.get(name, ()), list | tuple):
                raise TypeError(f"{name!r} is no list")
            known[name] = tuple(known.get(name, ()))
        if known.get("control") is not None:
            known["control"] = Control(**known["control"])
        feature = cls(**known)
        sizes = all(type(n) is int and n >= 0 for n in feature.shape) and math.prod(feature.shape) <= MAX_SIZE
        texts = all(type(t) is str for t in (feature.key, *feature.names, *feature.units))
        numbers = all(type(n) in (int, float) for n in (*feature.low, *feature.high))
        says = feature.control is None or all(type(v) is str for v in asdict(feature.control).values())
        if not (sizes and texts and numbers and says and feature.key and feature.dtype in DTYPES):
            raise ValueError(f"no feature: {str(known)[:200]}")
        if len(feature.key.encode()) > MAX_KEY:
            raise ValueError(f"key {feature.key[:40]!r}... has more than {MAX_KEY} bytes")
        return feature


def _differences(ours: Feature, theirs: Feature) -> list[str]:
    """Names of the attributes in which two features of one key disagree; unknown on a side is no disagreement."""
    found = [a for a in ("shape", "dtype", "kind") if getattr(ours, a) != getattr(theirs, a)]
    found += [
        a
        for a in ("names", "units")
        if getattr(ours, a) and getattr(theirs, a) and getattr(ours, a) != getattr(theirs, a)
    ]
    if ours.control is not None and theirs.control is not None and ours.control != theirs.control:
        found.append("control")
    return found


@dataclass(frozen=True)
class FeatureSpec:
    """All inputs and outputs of a dataset, a task, a policy or a robot."""

    features: tuple[Feature, ...]
    rate_hz: float | None = None
    """Control rate the data was recorded at, in Hz; None when unknown."""

    def __post_init__(self) -> None:
        keys = [f.key for f in self.features]
        for key in keys:
            if keys.count(key) > 1:
                raise RobopolicyError(f"feature {key!r} appears {keys.count(key)} times")

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    def __contains__(self, key: object) -> bool:
        return any(f.key == key for f in self.features)

    def __getitem__(self, key: str) -> Feature:
        for feature in self.features:
            if feature.key == key:
                return feature
        raise unknown("feature", key, self.keys())

    def keys(self) -> list[str]:
        return [f.key for f in self.features]

    @property
    def action(self) -> Feature:
        """The action feature; an error when there is none."""
        return self[ACTION]

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """Everything but the action, in order."""
        return tuple(f for f in self.features if f.kind != "action")

    def of_kind(self, kind: Kind) -> tuple[Feature, ...]:
        return tuple(f for f in self.features if f.kind == kind)

    def select(self, keys: Iterable[str]) -> "FeatureSpec":
        """The same spec with these keys only, in the order given."""
        return replace(self, features=tuple(self[k] for k in keys))

    def compare(self, other: "FeatureSpec", ours: str = "checkpoint", theirs: str = "task") -> list[str]:
        """One line per way in which `other` cannot serve where `self` is expected; empty when it can.

        `other` may have more inputs than `self` needs; it may not lack one, and what both describe must agree
        in shape, dtype, kind, and, where both sides say it, names, units and the action's control mode.
        """
        lines = []
        for feature in self.features:
            if feature.key not in other:
                hint = did_you_mean(feature.key, other.keys())
                lines.append(f"{ours} has {feature.key!r} {list(feature.shape)}, {theirs} does not.{hint}")
                continue
            match = other[feature.key]
            for name in _differences(feature, match):
                a, b = getattr(feature, name), getattr(match, name)
                lines.append(f"{feature.key!r} {name}: {ours} has {_show(a)}, {theirs} has {_show(b)}")
        if self.rate_hz and other.rate_hz and abs(self.rate_hz - other.rate_hz) > 1e-3 * self.rate_hz:
            lines.append(f"rate: {ours} has {self.rate_hz:g} Hz, {theirs} has {other.rate_hz:g} Hz")
        return lines

    def require(self, other: "FeatureSpec", ours: str = "checkpoint", theirs: str = "task") -> None:
        """Raises `FeatureMismatch` with every line of `compare`, joined."""
        lines = self.compare(other, ours, theirs)
        if lines:
            raise FeatureMismatch("; ".join(lines))

    def to_dict(self) -> dict[str, Any]:
        return {"features": [asdict(f) for f in self.features], "rate_hz": self.rate_hz}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "FeatureSpec":
        """The inverse of `to_dict` after a trip through JSON; errors as in `Feature.from_dict`."""
        rate = data.get("rate_hz")
        if rate is not None and not (type(rate) in (int, float) and 0 < rate < math.inf):
            raise ValueError(f"rate_hz is {str(rate)[:40]!r}, expected a number above 0 or null")
        return cls(tuple(Feature.from_dict(f) for f in data["features"]), rate)

    def schema_hash(self) -> str:
        """16 hexadecimal digits that change whenever any described property changes."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _show(value: object) -> str:
    if isinstance(value, Control):
        return f"{value.mode} {value.target} (frame {value.frame}, rotation {value.rotation}, gripper {value.gripper})"
    if isinstance(value, tuple):
        return str(list(value))
    return str(value)
