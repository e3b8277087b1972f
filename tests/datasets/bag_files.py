"""Recordings as a robot would leave them, written by rosbags."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from robopolicy.datasets.contract import SECOND

STORE = get_typestore(Stores.ROS2_HUMBLE)
START = 1_700_000_000 * SECOND
MS = SECOND // 1000
CONTRACT = """
rate_hz: 10
features:
  observation.state: {topic: /joint_states, field: position, resample: interpolate, tolerance_s: 0.1}
  observation.images.top: {topic: /camera, tolerance_s: 0.15}
  action: {topic: /command, field: data, tolerance_s: 0.1}
task: {text: push}
episode: {max_trim_s: 0.2}
"""

Messages = Iterable[tuple[int, str, Any]]
"""(time of arrival in ns, topic, message)."""


def make(name: str, *values: Any) -> Any:
    return STORE.types[name](*values)


def header(stamp: int) -> Any:
    return make("std_msgs/msg/Header", make("builtin_interfaces/msg/Time", *divmod(stamp, SECOND)), "base")


def joint_state(stamp: int, names: list[str], values: list[float]) -> Any:
    none = np.zeros(0)
    return make("sensor_msgs/msg/JointState", header(stamp), names, np.array(values, float), none, none)


def image(stamp: int, pixels: np.ndarray, encoding: str = "rgb8", padding: int = 0) -> Any:
    height, width, channels = pixels.shape
    rows = np.pad(pixels.reshape(height, width * channels), ((0, 0), (0, padding)))
    return make(
        "sensor_msgs/msg/Image", header(stamp), height, width, encoding, 0, rows.shape[1], rows.reshape(-1).copy()
    )


def numbers(values: Any, shape: tuple[int, ...] = ()) -> Any:
    dims = [make("std_msgs/msg/MultiArrayDimension", "", n, 0) for n in shape]
    layout = make("std_msgs/msg/MultiArrayLayout", dims, 0)
    return make("std_msgs/msg/Float64MultiArray", layout, np.asarray(values, float).reshape(-1))


def text(value: str) -> Any:
    return make("std_msgs/msg/String", value)


def pixels(value: int) -> np.ndarray:
    return np.full((4, 6, 3), (value, value + 1, value + 2), np.uint8)


def recording(seconds: float = 1.0, start: int = START) -> list[tuple[int, str, Any]]:
    """Joints at 50 Hz with positions (t, -2 t) in alternating order, a camera at 20 Hz, commands at 10 Hz."""
    found: list[tuple[int, str, Any]] = []
    for k in range(int(50 * seconds) + 1):
        t = k * 20 * MS
        order = (["a", "b"], [t / SECOND, -2 * t / SECOND])
        names, values = order if k % 2 == 0 else (order[0][::-1], order[1][::-1])
        found.append((start + t + 3 * MS, "/joint_states", joint_state(start + t, names, values)))
    for k in range(int(20 * seconds) + 1):
        found.append((start + k * 50 * MS + 30 * MS, "/camera", image(start + k * 50 * MS, pixels(k))))
    for k in range(int(10 * seconds) + 1):
        found.append((start + k * 100 * MS, "/command", numbers([k, k + 0.5, -k])))
    return found


def write_bag(
    path: Path,
    messages: Messages,
    storage: str = "mcap",
    store: Any = STORE,
    compression: CompressionMode | None = None,
) -> Path:
    """One recording; messages are stored in the order of arrival."""
    plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
    writer = Writer(path, version=9, storage_plugin=plugin)
    if compression is not None:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writer:
        connections: dict[str, Any] = {}
        for receive, topic, message in sorted(messages, key=lambda m: m[0]):
            name = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, name, typestore=store)
            writer.write(connections[topic], receive, store.serialize_cdr(message, name))
    return path


def write_folder(path: Path, *recordings: Messages, contract: str = CONTRACT, storage: str = "mcap") -> Path:
    """A folder of bags bag_0, bag_1, ... with their contract."""
    for number, messages in enumerate(recordings):
        write_bag(path / f"bag_{number}", messages, storage)
    (path / "contract.yaml").write_text(contract)
    return path
