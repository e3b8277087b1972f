"""Messages between our own processes: a header and raw arrays, with a fixed meaning of every byte."""

import json

import numpy as np

Arrays = dict[str, np.ndarray]
_HEADER_SIZE = 4


def pack(kind: str, arrays: Arrays) -> bytes:
    """Message: 4 bytes little-endian header length, JSON header {kind, arrays: [[name, dtype, shape]]}, raw data."""
    ordered = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    described = [[k, v.dtype.str, list(np.shape(arrays[k]))] for k, v in ordered.items()]
    header = json.dumps({"kind": kind, "arrays": described}).encode()
    return b"".join([len(header).to_bytes(_HEADER_SIZE, "little"), header, *(v.tobytes() for v in ordered.values())])


def unpack(message: bytes) -> tuple[str, Arrays]:
    """The inverse of `pack`."""
    offset = _HEADER_SIZE + int.from_bytes(message[:_HEADER_SIZE], "little")
    header = json.loads(message[_HEADER_SIZE:offset])
    arrays = {}
    for name, dtype, shape in header["arrays"]:
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(message, kind, count, offset).reshape(shape).copy()
        offset += count * kind.itemsize
    return header["kind"], arrays


def text(value: str) -> np.ndarray:
    """A string as an array, to travel in a message."""
    return np.frombuffer(value.encode(), dtype=np.uint8)


def untext(array: np.ndarray) -> str:
    """The inverse of `text`."""
    return array.tobytes().decode()
