"""The contract between ROS 2 topics and features: one YAML file for conversion, recording and deployment.

    rate_hz: 20
    features:
      observation.state:
        topic: /joint_states
        type: sensor_msgs/msg/JointState
        field: position[shoulder, elbow]
        resample: interpolate
        tolerance_s: 0.05
      observation.images.top: {topic: /camera/image_raw}
      action:
        topic: /command
        field: data
        control: {target: joint, mode: absolute}
    task: {text: push the block}
    episode:
      start: {topic: /event, field: data, equals: start}
      end: {topic: /event, field: data, equals: end}

Nothing here imports ROS: the messages may come from a bag or from a subscription.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from robopolicy.configs import from_dict
from robopolicy.datasets.messages import parse_selector
from robopolicy.datasets.untrusted import parse_yaml, read_text
from robopolicy.errors import DataError, RobopolicyError, unknown
from robopolicy.features import KINDS, TASK_INDEX, Control, Kind

CONTRACT_FILE = "contract.yaml"
MAX_BYTES = 1 << 20
DTYPES = ("bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)), "float16", "float32", "float64")
SECOND = 1_000_000_000
"""Nanoseconds; every stamp in this package is an integer number of them."""


@dataclass(frozen=True)
class TopicFeature:
    """How one feature is made from the messages of one topic."""

    topic: str = ""
    field: tuple[str, ...] = ()
    """Fields whose values are put one after the other: `position[joint_a, joint_b]`, `pose.position.x`,
    `pose.orientation` (a quaternion: ROS has xyzw, the feature has wxyz), `points[0].positions`, `data`.
    Without it: the image of an image message, `position` of a JointState, otherwise `data`."""
    type: str = ""
    """Message type, compared with that of the bag; empty accepts any."""
    kind: Kind = "state"
    """Without it: `action` and `observation.goal*` and `observation.images.*` are what their keys say."""
    dtype: str = ""
    """Without it: uint8 for images, otherwise float32, int64 or bool as the message has floats, integers or bools."""
    shape: tuple[int, ...] | None = None
    """Without it: that of the first message."""
    names: tuple[str, ...] = ()
    """Without them: the joint names or the names of the fields."""
    units: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    control: Control | None = None
    resample: Literal["hold", "interpolate", "nearest"] = "hold"
    """hold: the newest message that is not newer than the tick, all that a robot can see. interpolate: linear between
    the neighbours, spherical for quaternions. nearest: the nearest message before or after."""
    tolerance_s: float | None = None
    """Largest distance of a message that is used from the tick, .inf for topics that speak only on change;
    without it: two periods."""
    offset_s: float = 0.0
    """The value is taken this much after the tick; for a command that is published in answer to the observation."""
    absent: tuple[float, ...] = ()
    """What holds where no message is near enough, a velocity of zero for instance: silence is then no fault, and no
    frame is missing. It needs `type`."""


@dataclass(frozen=True)
class Assembly:
    """A feature of the checkpoint that no topic has: it is computed from features of the contract.

    See `robopolicy.hardware.assembly` for what a function needs.
    """

    feature: str = "observation.state"
    function: Literal["quadruped"] = "quadruped"
    robot: str = ""
    """Whose default posture and scales it takes."""


@dataclass(frozen=True)
class Task:
    """The instruction: a constant, or a topic that is held until it changes."""

    text: str = ""
    topic: str = ""
    field: str = "data"

    def __post_init__(self) -> None:
        if bool(self.text) == bool(self.topic):
            raise RobopolicyError("task needs either a text or a topic")


@dataclass(frozen=True)
class Marker:
    """A message that starts or ends an episode."""

    topic: str
    field: str = "data"
    equals: object = True


@dataclass(frozen=True)
class EpisodeRule:
    """What is an episode, and when it is too damaged to be used."""

    start: Marker | None = None
    """Without it a bag is an episode."""
    end: Marker | None = None
    max_gap_s: float = 0.5
    """Longest silence of a topic inside an episode; topics with an infinite tolerance may be silent."""
    max_drop: float = 0.1
    """Largest fraction of a topic's messages that may be missing, judged by its median period."""
    max_trim_s: float = 2.0
    """How much of a recording may be cut off where not all topics speak yet, or any more."""
    max_jump_s: float = 0.25
    """Change of a topic's stamps against the time of arrival, between two messages, that is a jump of a clock."""

    def __post_init__(self) -> None:
        if (self.start is None) != (self.end is None):
            raise RobopolicyError("episode needs both a start and an end message, or neither")


@dataclass(frozen=True)
class Contract:
    """Features, instruction and episodes of a set of topics, at one rate."""

    rate_hz: float
    features: dict[str, TopicFeature] = field(default_factory=dict)
    task: Task | None = None
    episode: EpisodeRule = EpisodeRule()
    latency_s: float = 0.1
    """The frame of a tick is decided this long after the tick; messages that arrive later cannot change it."""
    max_clock_offset_s: float = 5.0
    """A header stamp further than this from the time of arrival is not believed; the time of arrival is used."""
    assemble: Assembly | None = None

    def __post_init__(self) -> None:
        for name in ("rate_hz", "latency_s", "max_clock_offset_s"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (name == "rate_hz" and not 1e-3 <= value <= 1e5):
                raise RobopolicyError(f"{name}: {value} is out of range")
        for name in ("max_gap_s", "max_drop", "max_trim_s", "max_jump_s"):
            if not getattr(self.episode, name) >= 0:
                raise RobopolicyError(f"episode.{name}: {getattr(self.episode, name)} should not be negative")
        for key, feature in self.features.items():
            _check_feature(key, feature)
        if self.assemble is not None and self.assemble.feature in self.features:
            raise RobopolicyError(f"{self.assemble.feature} has a topic and is assembled; expected one of both")

    def tick(self, start: int, number: int) -> int:
        """Stamp of a tick in nanoseconds; exact for every number, however irrational the period."""
        return start + round(number * SECOND / self.rate_hz)

    def tolerance(self, feature: TopicFeature) -> float:
        """Nanoseconds, may be infinite."""
        return 2 * SECOND / self.rate_hz if feature.tolerance_s is None else feature.tolerance_s * SECOND

    def is_periodic(self, feature: TopicFeature) -> bool:
        """Whether silence of the feature's topic is a fault."""
        return math.isfinite(self.tolerance(feature)) and not feature.absent

    @property
    def delay(self) -> int:
        """Nanoseconds after a tick at which its frame is decided."""
        return round((self.latency_s + max([0.0, *(f.offset_s for f in self.features.values())])) * SECOND)

    def message_time(self, header: int, receive: int) -> int:
        """The stamp of a message, ns: that of its header when it is set and near the time of arrival."""
        believable = header > 0 and abs(receive - header) <= self.max_clock_offset_s * SECOND
        return header if believable else receive

    def topics(self) -> list[str]:
        """Every topic that frames are made from."""
        found = [f.topic for f in self.features.values()]
        return list(dict.fromkeys(found + ([self.task.topic] if self.task and self.task.topic else [])))

    def to_dict(self) -> dict[str, Any]:
        """What is not default, in plain types; the inverse of `contract_from_dict`."""
        found = _changed(self)
        found["features"] = {key: _changed(f, key) for key, f in self.features.items()}
        return found

    def to_yaml(self) -> str:
        import yaml

        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)
        return text

    def content_hash(self) -> str:
        """16 hexadecimal digits that change whenever any value changes, written out or default."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def default_kind(key: str) -> Kind:
    """What the key of a feature says about its kind."""
    if key == "action":
        return "action"
    if key.startswith("observation.images."):
        return "image"
    return "goal" if key.startswith("observation.goal") else "state"


def _changed(config: Any, key: str | None = None) -> dict[str, Any]:
    """The attributes of a dataclass that differ from their defaults."""
    found: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        default = default_kind(key) if key is not None and f.name == "kind" else f.default
        if value == default or f.name == "features":
            continue
        if hasattr(value, "__dataclass_fields__"):
            value = asdict(value) if isinstance(value, Control) else _changed(value)
        elif isinstance(value, tuple):
            value = value[0] if f.name == "field" and len(value) == 1 else list(value)
        found[f.name] = value
    return found


def _check_feature(key: str, feature: TopicFeature) -> None:
    if not feature.topic.startswith("/"):
        raise RobopolicyError(f"features.{key}: topic {feature.topic!r} should begin with '/'")
    if key == TASK_INDEX:
        raise RobopolicyError(f"features.{key}: the instruction is described under 'task'")
    for text in feature.field:
        try:
            parse_selector(text)
        except DataError as error:
            raise RobopolicyError(f"features.{key}: {error}") from error
    if feature.tolerance_s is not None and not feature.tolerance_s >= 0:
        raise RobopolicyError(f"features.{key}: tolerance_s {feature.tolerance_s} should not be negative")
    if not math.isfinite(feature.offset_s):
        raise RobopolicyError(f"features.{key}: offset_s {feature.offset_s} should be finite")
    if feature.kind not in KINDS or feature.kind == "language":
        raise unknown(f"kind in features.{key}:", feature.kind, [k for k in KINDS if k != "language"])
    if feature.dtype and feature.dtype not in DTYPES:
        raise unknown(f"dtype in features.{key}:", feature.dtype, DTYPES)
    if feature.resample == "interpolate" and (feature.kind == "image" or feature.dtype[:1] in ("i", "u", "b")):
        raise RobopolicyError(f"features.{key}: only floating-point values are interpolated; use hold or nearest")
    if feature.absent and (not feature.type or feature.kind in ("image", "action")):
        raise RobopolicyError(f"features.{key}: absent needs the type of the topic, and is neither image nor action")
    if feature.control is not None and feature.kind != "action":
        raise RobopolicyError(f"features.{key}: only actions have a control mode")


def contract_from_dict(data: Any, where: str) -> Contract:
    """The contract in plain types, strictly: an unknown or mistyped field is a DataError beginning with `where`."""
    try:
        if not isinstance(data, dict) or not isinstance(data.get("features"), dict) or not data["features"]:
            raise RobopolicyError(f"{where}: expected a table with rate_hz and features, each with its topic")
        rules = {k: v for k, v in data.items() if k != "features"}
        table = {str(key): _feature(str(key), entry, where) for key, entry in data["features"].items()}
        contract: Contract = from_dict(Contract, rules, where)
        return replace(contract, features=table)
    except RobopolicyError as error:
        text = str(error)
        raise DataError(text if where in text else f"{where}: {text}") from error


def _feature(key: str, entry: Any, where: str) -> TopicFeature:
    if not isinstance(entry, dict):
        raise RobopolicyError(f"{where}: features.{key}: expected a table with a topic, found {entry!r}")
    entry = dict(entry)
    kind = entry.pop("kind", default_kind(key))  # from_dict would take it for the variant of a configuration.
    if isinstance(entry.get("field"), str):
        entry["field"] = [entry["field"]]
    feature: TopicFeature = from_dict(TopicFeature, entry, f"{where}: features.{key}")
    return replace(feature, kind=kind)


def parse_contract(text: str, where: str) -> Contract:
    """A contract in YAML; `where` names its source in the DataErrors."""
    if len(text) > MAX_BYTES:
        raise DataError(f"{where}: longer than {MAX_BYTES} characters, that is no contract")
    return contract_from_dict(parse_yaml(text, where), where)


def read_contract(path: Path) -> Contract:
    """The contract in a YAML file."""
    return parse_contract(read_text(path, MAX_BYTES), str(path))
