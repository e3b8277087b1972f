"""Values out of ROS messages, whoever made them: rosbags, rclpy, or anything with the same attributes.

ROS has quaternions as xyzw; every quaternion that leaves here is wxyz.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.errors import DataError, did_you_mean

_STEP = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(?:\[([^\[\]]*)\])?(?:\.|$)")
MAX_SIDE = 8192
"""Pixels; larger images are taken for damage before they are decoded."""
ENCODINGS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1, "8UC3": 3}
"""Bytes per pixel of the encodings of sensor_msgs/Image that are read; 8UC3 is taken for bgr8, as OpenCV writes it."""
_XYZ, _WXYZ = ("x", "y", "z"), ("w", "x", "y", "z")
_PAIRS = (("position", "orientation"), ("translation", "rotation"), ("linear", "angular"))


@dataclass(frozen=True)
class Step:
    """One attribute on the way to a value, and what is taken of it."""

    name: str
    indices: tuple[int, ...] = ()
    members: tuple[str, ...] = ()
    """Joint names, looked up in `name` or `joint_names` of the message."""


def parse_selector(text: str) -> tuple[Step, ...]:
    """`points[0].positions[a, b]` as steps; DataError when it is not of this form."""
    steps, at = [], 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None or match.end() == at:
            break
        inside = [part.strip() for part in match[2].split(",")] if match[2] is not None else []
        if any(not part for part in inside):
            break
        numbers = tuple(int(part) for part in inside) if all(re.fullmatch(r"\d{1,6}", p) for p in inside) else ()
        steps.append(Step(match[1], numbers, () if numbers else tuple(inside)))
        at = match.end()
    if at < len(text) or not steps or text.endswith("."):
        raise DataError(f"field {text!r}: expected a form like position[joint_a, joint_b] or pose.position.x")
    return tuple(steps)


def select(message: Any, steps: Sequence[Step]) -> Any:
    """What the steps lead to: a number, text, an array, or a nested message."""
    value = message
    for step in steps:
        parent, value = value, _attribute(value, step.name)
        if step.members:
            value = _members(value, joint_names(parent, message), step)
        elif step.indices:
            if max(step.indices) >= len(value):
                raise DataError(
                    f"field {step.name!r} has {len(value)} elements, index {max(step.indices)} is asked for"
                )
            one = value[step.indices[0]]
            nested = hasattr(one, "__slots__") or hasattr(one, "__dataclass_fields__")
            value = one if nested and len(step.indices) == 1 else np.asarray([value[i] for i in step.indices])
    return value


def joint_names(parent: Any, message: Any) -> list[str]:
    """The names that belong to the arrays of `parent`, a part of `message`; empty without."""
    for names in (getattr(parent, "name", None), getattr(message, "joint_names", None)):
        if names is not None and not isinstance(names, str):
            return [str(n) for n in names]
    return []


def _attribute(message: Any, name: str) -> Any:
    try:
        return getattr(message, name)
    except AttributeError:
        known = [n for n in dir(message) if not n.startswith("_") and not callable(getattr(message, n))]
        raise DataError(f"{type(message).__name__} has no field {name!r}.{did_you_mean(name, known)}") from None


def _members(values: Any, names: list[str], step: Step) -> np.ndarray:
    if len(names) != len(values):
        raise DataError(f"{len(values)} values of {step.name!r} for {len(names)} names")
    where = {name: i for i, name in enumerate(names)}
    for member in step.members:
        if member not in where:
            raise DataError(f"{step.name!r} has no element named {member!r}.{did_you_mean(member, names)}")
    return np.asarray([values[where[member]] for member in step.members])


@dataclass(frozen=True)
class Value:
    """A numeric value with the places of its quaternions."""

    array: np.ndarray
    quaternions: tuple[int, ...] = ()
    """Where in the flattened array a wxyz quaternion begins."""
    names: tuple[str, ...] = ()


def to_value(value: Any, label: str) -> Value:
    """Numbers of a field: scalars are [], arrays as they are, poses xyz + wxyz, twists linear + angular."""
    if all(hasattr(value, a) for a in _WXYZ):
        array = np.array([getattr(value, a) for a in _WXYZ], np.float64)
        return Value(array, (0,), tuple(f"{label}.{a}" for a in _WXYZ))
    if all(hasattr(value, a) for a in _XYZ):
        return Value(np.array([getattr(value, a) for a in _XYZ], np.float64), (), tuple(f"{label}.{a}" for a in _XYZ))
    for pair in _PAIRS:
        if all(hasattr(value, a) for a in pair):
            return join([to_value(getattr(value, a), f"{label}.{a}") for a in pair])
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DataError(f"field {label!r} is {type(value).__name__}, not numbers; name the fields that are wanted")
    return Value(array)


def join(parts: Sequence[Value]) -> Value:
    """Values one after the other, flat."""
    starts = np.cumsum([0, *(p.array.size for p in parts)])
    names = tuple(n for p in parts for n in p.names)
    array = np.concatenate([p.array.ravel() for p in parts])
    quaternions = tuple(int(s) + q for s, p in zip(starts, parts, strict=False) for q in p.quaternions)
    return Value(array, quaternions, names if len(names) == array.size else ())


def multi_array(message: Any) -> np.ndarray:
    """The data of a std_msgs/*MultiArray in the shape that its layout gives, flat without one."""
    data = np.asarray(message.data)
    shape = tuple(int(d.size) for d in message.layout.dim)
    data = data[int(message.layout.data_offset) :]
    if not shape:
        return data
    if int(np.prod(shape, dtype=object)) != data.size:
        raise DataError(f"layout {list(shape)} of an array of {data.size} values")
    return data.reshape(shape)


def is_image(message: Any) -> bool:
    """Whether this is a sensor_msgs/Image or CompressedImage."""
    return hasattr(message, "data") and (hasattr(message, "encoding") or hasattr(message, "format"))


def image(message: Any, channels: int | None = None) -> np.ndarray:
    """The picture of a sensor_msgs/Image or CompressedImage, [height, width, channels] uint8 in RGB.

    `channels` None gives 3, or 1 for monochrome; an alpha channel is kept when 4 are asked for.
    """
    array = _raw_image(message) if hasattr(message, "encoding") else _compressed_image(message)
    if channels is not None and array.shape[2] == 4 and channels == 4:
        return array
    return np.ascontiguousarray(array[:, :, :3])


def _raw_image(message: Any) -> np.ndarray:
    encoding, height, width, step = message.encoding, int(message.height), int(message.width), int(message.step)
    if encoding not in ENCODINGS:
        raise DataError(f"image encoding {encoding!r} is not read; read are {', '.join(ENCODINGS)}")
    row = width * ENCODINGS[encoding]
    _check_size(height, width)
    data = np.frombuffer(message.data, np.uint8)
    if step < row or data.size != step * height:
        raise DataError(f"image {width}x{height} {encoding} with step {step} has {data.size} bytes")
    pixels = data.reshape(height, step)[:, :row].reshape(height, width, ENCODINGS[encoding])
    if encoding in ("bgr8", "8UC3"):
        return pixels[:, :, ::-1]
    return pixels[:, :, [2, 1, 0, 3]] if encoding == "bgra8" else pixels


def _compressed_image(message: Any) -> np.ndarray:
    import cv2

    data = bytes(message.data)
    _check_size(*_declared_size(data))
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise DataError(f"compressed image of {len(data)} bytes: damaged ({error.err})") from error
    if decoded is None or decoded.dtype != np.uint8:
        raise DataError(f"compressed image of {len(data)} bytes and format {message.format!r}: damaged, or not 8 bit")
    if decoded.ndim == 2:
        return np.asarray(decoded[:, :, None])
    return np.asarray(decoded[:, :, [2, 1, 0, 3][: decoded.shape[2]]])


def _check_size(height: int, width: int) -> None:
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise DataError(f"image of {width}x{height} pixels; at most {MAX_SIDE} a side are read")


def _declared_size(data: bytes) -> tuple[int, int]:
    """(height, width) in the header of a PNG or JPEG, so that no decoder allocates what a damaged one claims."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # A fill byte.
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # Start of frame (ITU T.81, table B.1).
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise DataError(f"compressed image of {len(data)} bytes: neither PNG nor JPEG, or damaged")
