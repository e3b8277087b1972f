"""Datasets as rosbag2 recordings: one bag per episode, and the contract that reads them back.

1-D features with names become JointState, other numbers Float64MultiArray, Int64MultiArray and so on, images
sensor_msgs/Image, the instruction a std_msgs/String at the start and whenever it changes. Every message has the stamp
of its tick, so that values come back bit for bit; float32 passes through float64 unchanged.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from robopolicy.datasets.contract import CONTRACT_FILE, SECOND, Contract, Task, TopicFeature
from robopolicy.datasets.rosbag import latest_types, new_bag
from robopolicy.datasets.rosbag_source import ATTRIBUTES_DATA, CHECKSUMS_FILE, CONTRACT_DATA
from robopolicy.datasets.source import EXTENSION, extension
from robopolicy.datasets.untrusted import file_crc
from robopolicy.datasets.writer import DatasetWriter
from robopolicy.errors import DataError
from robopolicy.features import TASK_INDEX, Feature, FeatureSpec

EPOCH = 1_600_000_000 * SECOND
"""Stamp of the first step, so that the same data give the same bags whenever they are written."""
PAUSE = 10 * SECOND
"""Between two episodes."""
NOMINAL_RATE = 10.0
"""Hz, for data whose rate is unknown."""
_JOINT = re.compile(r"[A-Za-z_][A-Za-z0-9_./ -]*[A-Za-z0-9_]|[A-Za-z_]")
_ENCODINGS = {1: "mono8", 3: "rgb8", 4: "rgba8"}
_SCALARS = {"f": "Float64", "i": "Int64", "u": "UInt64", "b": "Bool"}
_ARRAYS = {"f": "Float64MultiArray", "i": "Int64MultiArray", "u": "UInt64MultiArray", "b": "Int64MultiArray"}
_DTYPES = {"f": np.float64, "i": np.int64, "u": np.uint64, "b": np.int64}

Make = Callable[[np.ndarray, int], Any]
"""(value of one step, stamp in ns) to a message."""


def topic_names(keys: list[str]) -> dict[str, str]:
    """A valid topic for every key: observation.state is /observation/state."""
    found: dict[str, str] = {}
    for key in keys:
        parts = [re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_]", "_", part)) for part in re.split(r"[./]", key)]
        name = "/" + "/".join(f"n{p}" if p[:1].isdigit() else p for p in parts if p)
        base, count = name if name != "/" else "/feature", 2
        name = base
        while name in found.values():
            name, count = f"{base}_{count}", count + 1
        found[key] = name
    return found


def contract_of(path: Path, features: FeatureSpec) -> Contract:
    """The contract by which recordings of these features are read."""
    described = [f for f in features if f.key != TASK_INDEX]
    topics = topic_names([TASK_INDEX if f.key == TASK_INDEX else f.key for f in features])
    table = {f.key: _describe(path, f, topics[f.key]) for f in described}
    task = Task(topic=topics[TASK_INDEX]) if TASK_INDEX in features else None
    if not table:
        raise DataError(f"{path}: there is nothing to write but the instruction")
    return Contract(features.rate_hz or NOMINAL_RATE, table, task)


def _describe(path: Path, feature: Feature, topic: str) -> TopicFeature:
    kind = np.dtype(feature.dtype).kind
    if feature.kind == "language" or kind not in _SCALARS:
        raise DataError(f"{path}: key {feature.key!r} ({feature.kind}, {feature.dtype}) has no place in a bag")
    if feature.kind == "image" and (
        feature.dtype != "uint8" or len(feature.shape) != 3 or feature.shape[2] not in _ENCODINGS
    ):
        raise DataError(
            f"{path}: key {feature.key!r} is {feature.dtype} {list(feature.shape)}; bags hold uint8 images of "
            "height, width and 1, 3 or 4 channels"
        )
    fields: tuple[str, ...] = () if feature.kind == "image" else ("data",)
    if _is_joints(feature):
        fields = (f"position[{', '.join(feature.names)}]",)
    return TopicFeature(
        topic,
        fields,
        _message_type(feature),
        feature.kind,
        feature.dtype,
        feature.shape,
        feature.names,
        feature.units,
        feature.low,
        feature.high,
        feature.control,
    )


def _is_joints(feature: Feature) -> bool:
    return (
        len(feature.shape) == 1
        and len(set(feature.names)) == feature.shape[0]
        and np.dtype(feature.dtype).kind == "f"
        and all(_JOINT.fullmatch(name) for name in feature.names)
    )


def _message_type(feature: Feature) -> str:
    if feature.kind == "image":
        return "sensor_msgs/msg/Image"
    if _is_joints(feature):
        return "sensor_msgs/msg/JointState"
    table = _ARRAYS if feature.shape else _SCALARS
    return f"std_msgs/msg/{table[np.dtype(feature.dtype).kind]}"


def _maker(feature: Feature) -> Make:
    types = latest_types().types
    header, time = types["std_msgs/msg/Header"], types["builtin_interfaces/msg/Time"]
    message = types[_message_type(feature)]
    kind = np.dtype(feature.dtype).kind

    def stamped(stamp: int) -> Any:
        return header(time(*divmod(stamp, SECOND)), feature.key)

    if feature.kind == "image":
        height, width, channels = feature.shape
        encoding = _ENCODINGS[channels]
        return lambda v, t: message(
            stamped(t), height, width, encoding, 0, width * channels, np.ascontiguousarray(v).reshape(-1)
        )
    if _is_joints(feature):
        names, none = list(feature.names), np.zeros(0)
        return lambda v, t: message(stamped(t), names, v.astype(np.float64), none, none)
    if not feature.shape:
        return lambda v, t: message(v.item())
    dimension = types["std_msgs/msg/MultiArrayDimension"]
    sizes = [int(np.prod(feature.shape[i:])) for i in range(len(feature.shape))]
    dims = [dimension("", n, stride) for n, stride in zip(feature.shape, sizes, strict=True)]
    layout = types["std_msgs/msg/MultiArrayLayout"](dims, 0)
    return lambda v, t: message(layout, v.astype(_DTYPES[kind]).reshape(-1))


class RosbagWriter(DatasetWriter):
    """Writes a folder of bags."""

    storage: ClassVar[str]
    """mcap or sqlite3."""
    holds_attributes = True

    def __init__(self, path: Path, features: FeatureSpec, *args: Any, **kwargs: Any) -> None:
        super().__init__(path, features, *args, **kwargs)
        self.contract = contract_of(self.path, features)
        self._clock = EPOCH
        self._makers = {f.key: _maker(f) for f in features if f.key != TASK_INDEX}
        described = extension(features, self.tasks, self.fingerprint, self.metadata)
        self._custom = {EXTENSION: json.dumps(described, sort_keys=True), CONTRACT_DATA: self.contract.to_yaml()}

    def _start(self) -> None:
        (self.folder / CONTRACT_FILE).write_text(self.contract.to_yaml())

    def _append(self, episode: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
        custom = self._custom | ({ATTRIBUTES_DATA: json.dumps(attributes, sort_keys=True)} if attributes else {})
        steps = len(next(iter(episode.values())))
        with new_bag(self.folder / f"episode_{self.n_episodes:06d}", self.storage, custom) as bag:
            self._write(bag, episode, steps)
        self._clock = self.contract.tick(self._clock, steps) + PAUSE

    def _write(self, bag: Any, episode: dict[str, np.ndarray], steps: int) -> None:
        store, contract = latest_types(), self.contract
        connections = {
            key: bag.add_connection(spec.topic, spec.type, typestore=store) for key, spec in contract.features.items()
        }
        text, said = store.types["std_msgs/msg/String"], None
        if contract.task is not None:
            spoken = bag.add_connection(contract.task.topic, text.__msgtype__, typestore=store)
        for step in range(steps):
            stamp = contract.tick(self._clock, step)
            if contract.task is not None and (index := int(episode[TASK_INDEX][step])) != said:
                bag.write(spoken, stamp, store.serialize_cdr(text(self.tasks[index]), text.__msgtype__))
                said = index
            for key, connection in connections.items():
                message = self._makers[key](episode[key][step], stamp)
                bag.write(connection, stamp, store.serialize_cdr(message, connection.msgtype))

    def _finish(self) -> None:
        """Every bag was closed when its episode ended; neither storage has checksums that readers compare.

        The contract has none: it may be edited, and is compared with what the bags carry.
        """
        files = sorted(p for p in self.folder.rglob("*") if p.is_file() and p.parent != self.folder)
        sums = {p.relative_to(self.folder).as_posix(): file_crc(p) for p in files}
        (self.folder / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=1))


class McapBagWriter(RosbagWriter):
    """Bags in MCAP files."""

    format = "rosbag2-mcap"
    storage = "mcap"


class Sqlite3BagWriter(RosbagWriter):
    """Bags in sqlite3 files."""

    format = "rosbag2-sqlite3"
    storage = "sqlite3"
