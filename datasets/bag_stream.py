"""A recording under way: an MCAP bag that any reader can open whenever the writing process dies.

After every chunk the file is ended as an MCAP file without an index ends, and the next chunk overwrites that end. A
kill at any moment therefore loses at most the chunk under way; only one that hits the middle of the write itself
leaves a torn end, which `mend` cuts off. A bag that is closed in order has its index and metadata like any other.
"""

import os
import struct
from pathlib import Path
from typing import Any

from robopolicy.datasets.rosbag import SUFFIXES, latest_types, new_bag
from robopolicy.errors import DataError, did_you_mean

MAGIC = b"\x89MCAP0\r\n"
CHUNK, DATA_END, FOOTER = 0x06, 0x0F, 0x02
END = struct.pack("<BQI", DATA_END, 4, 0) + struct.pack("<BQQQI", FOOTER, 20, 0, 0, 0) + MAGIC
"""Records that end an MCAP file which has no index."""


class BagStream:
    """Writes serialised messages to a new bag folder. Every method may raise OSError when the disk is full or gone."""

    def __init__(self, path: Path, custom: dict[str, str]) -> None:
        """`custom` is the free metadata of the bag, stored when it is closed. DataError for a path that exists."""
        if path.exists():
            raise DataError(f"{path}: exists already; recordings are not overwritten")
        self.path = path
        self.messages = 0
        self._writer = new_bag(path, "mcap", custom)
        self._writer.open()
        self._connections: dict[str, Any] = {}
        self._last = 0
        self._end()

    def add(self, topic: str, msgtype: str) -> None:
        """Announces a topic. DataError for a message type whose definition is not known."""
        if msgtype not in latest_types().fielddefs:
            hint = did_you_mean(msgtype, latest_types().fielddefs)
            raise DataError(f"{topic}: the definition of message type {msgtype!r} is not known.{hint}")
        self._connections[topic] = self._writer.add_connection(topic, msgtype, typestore=latest_types())

    def __contains__(self, topic: str) -> bool:
        return topic in self._connections

    def write(self, topic: str, receive: int, data: bytes) -> None:
        """One message that arrived at `receive` ns; readers without an index want times that do not decrease."""
        self._last = max(self._last, receive)
        chunks = len(self._writer.storage.chunks)
        self._writer.write(self._connections[topic], self._last, data)
        self.messages += 1
        if len(self._writer.storage.chunks) > chunks:
            self._end()

    def flush(self) -> None:
        """Closes the chunk under way, so that nothing written until now can be lost to a kill."""
        if self._writer.storage.chunk.msgs:
            self._writer.storage.close_chunk()
            self._end()

    def close(self) -> None:
        """Ends the bag with its index and metadata, on the disk."""
        file = self._writer.storage.path
        self._writer.close()
        for path in (file, self.path / "metadata.yaml", self.path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _end(self) -> None:
        stream = self._writer.storage.bio
        stream.write(END)
        stream.flush()
        stream.seek(-len(END), os.SEEK_CUR)


def mend(bag: Path) -> int:
    """Cuts the torn end off a recording that was killed while it wrote; returns the bytes cut, 0 for a whole file.

    Raises DataError for what was never the beginning of an MCAP file.
    """
    cut = 0
    for file in sorted(p for p in bag.iterdir() if SUFFIXES.get(p.suffix) == "mcap"):
        with file.open("r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            if stream.read(len(MAGIC)) != MAGIC:
                raise DataError(f"{file}: does not begin as an MCAP file does")
            good, kind = stream.tell(), 0
            while len(head := stream.read(9)) == 9:
                kind, length = struct.unpack("<BQ", head)
                start = stream.tell()
                if kind in (DATA_END, FOOTER, 0) or start + length > size:
                    break
                if kind == CHUNK and not _is_whole(stream.read(min(length, 256)), length):
                    break
                good = stream.seek(start + length)
            stream.seek(max(size - len(MAGIC), 0))
            if kind == DATA_END and stream.read() == MAGIC:
                continue
            cut += size - good
            stream.seek(good)
            stream.write(END)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
    return cut


def _is_whole(chunk: bytes, length: int) -> bool:
    """Whether the sizes in the first bytes of a chunk add up to its length."""
    if len(chunk) < 40:
        return False
    (name,) = struct.unpack_from("<I", chunk, 28)
    if 40 + name > len(chunk):
        return False
    (data,) = struct.unpack_from("<Q", chunk, 32 + name)
    return bool(40 + name + data == length)
