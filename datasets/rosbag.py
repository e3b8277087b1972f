"""rosbag2 recordings, sqlite3 and MCAP: topics, raw messages, decoding, and writing. All that touches `rosbags`.

A bag is untrusted: its metadata names files only inside its folder, compressed chunks may not grow beyond what they
declare, and message definitions are checked before rosbags compiles them.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from robopolicy.datasets.untrusted import parse_yaml, read_text
from robopolicy.errors import DataError

METADATA = "metadata.yaml"
SUFFIXES = {".mcap": "mcap", ".db3": "sqlite3"}
"""File name endings and their storage identifiers."""
MAX_METADATA = 16 << 20
MAX_CHUNK = 512 << 20
"""Bytes of one decompressed chunk or message."""
MAX_PADDING = 64
"""Bytes after a message; rmw_fastrtps aligns even the elements of empty sequences when it computes a size."""
MAX_DEFINITION = 256 << 10
MAX_ARRAY = 1 << 16
"""Elements of a fixed-size array in a message definition; rosbags generates code for each of nested ones."""
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*){1,2}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_BASE_TYPES = {"bool", "byte", "char", "float32", "float64", "string"} | _INTEGERS


def storage_files(path: Path) -> list[Path]:
    """The .mcap and .db3 files of a bag folder, or the file itself; empty when this is no bag."""
    if path.is_file():
        return [path] if path.suffix in SUFFIXES else []
    if not path.is_dir():
        return []
    return sorted((p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file()), key=natural_order)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """bag_2 before bag_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def is_bag(path: Path) -> bool:
    """Whether `path` is one recording: a folder with metadata.yaml or with storage files, or a storage file."""
    if path.is_dir() and (path / METADATA).is_file():
        return bool(storage_files(path)) or _mentions_rosbag(path / METADATA)
    return bool(storage_files(path))


def _mentions_rosbag(file: Path) -> bool:
    with file.open("rb") as stream:
        return b"rosbag2_bagfile_information" in stream.read(4096)


class Bag:
    """One recording, open for reading. Any damage is a DataError naming the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self.custom: dict[str, str] = {}
        """The free metadata of the recording."""
        self._declared: dict[str, int] = {}
        self._message_compression = False
        self._readers: list[Any] = []
        self._stores: dict[str, Any] = {}
        files = self._read_metadata() if path.is_dir() and (path / METADATA).exists() else storage_files(path)
        if path.is_dir() and not (path / METADATA).exists():
            self.notes.append(f"{METADATA} is missing, an unfinished recording? Its storage files are read")
        self.storage = SUFFIXES[files[0].suffix] if files else ""
        if not files or {SUFFIXES[f.suffix] for f in files} != {self.storage}:
            raise DataError(f"{path}: a bag has .mcap or .db3 files of one kind, found {[f.name for f in files]}")
        try:
            for file in files:
                self._readers.append(_open(file))
        except BaseException:
            self.close()
            raise
        self.topics: dict[str, str] = {}
        """Message type of each topic."""
        self.counts: dict[str, int] = {}
        for file, reader in zip(files, self._readers, strict=True):
            for connection in reader.connections:
                known = self.topics.setdefault(connection.topic, connection.msgtype)
                if known != connection.msgtype:
                    raise DataError(f"{file}: topic {connection.topic} has types {known} and {connection.msgtype}")
                self.counts[connection.topic] = self.counts.get(connection.topic, 0) + connection.msgcount
        for topic, count in self._declared.items():
            if self.counts.get(topic, 0) != count:
                raise DataError(
                    f"{path / METADATA}: {count} messages of {topic}, the storage has {self.counts.get(topic, 0)}"
                )

    def _read_metadata(self) -> list[Path]:
        file = self.path / METADATA
        try:
            information = parse_yaml(read_text(file, MAX_METADATA), file)
            data = information["rosbag2_bagfile_information"]
            names = [str(name) for name in data["relative_file_paths"]]
            version, mode = int(data["version"]), str(data.get("compression_mode") or "none").lower()
            custom = data.get("custom_data") or {}
            self.custom = {str(k): str(v) for k, v in custom.items()}
            for entry in data["topics_with_message_count"] or []:
                topic = str(entry["topic_metadata"]["name"])
                self._declared[topic] = self._declared.get(topic, 0) + int(entry["message_count"])
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"{file}: damaged ({text[:200]})") from error
        if version > 9:
            raise DataError(f"{file}: rosbag2 version {version}, this release reads up to 9")
        if mode == "file" or any(name.endswith(".zstd") for name in names):
            raise DataError(f"{self.path}: compressed by file; decompress it first: zstd -d, or ros2 bag convert")
        if mode not in ("none", "message"):
            raise DataError(f"{file}: compression mode {mode!r} is unknown")
        self._message_compression = mode == "message"
        found = []
        for name in names:
            # Old versions wrote "bag/bag_0.db3", relative to the parent of the folder.
            parts = Path(name).parts
            if Path(name).is_absolute() or ".." in parts or len(parts) > 2 or len(parts) == 0:
                raise DataError(f"{file}: the file {name!r} is not inside the bag")
            inside = self.path / parts[-1]
            if not inside.is_file() or inside.suffix not in SUFFIXES:
                raise DataError(f"{inside}: missing, or not .mcap or .db3; {METADATA} names it")
            found.append(inside)
        return found

    def messages(
        self, topics: Sequence[str], start: int = 0, stop: int = 2**63 - 1
    ) -> Iterator[tuple[int, str, bytes]]:
        """(time of arrival in ns, topic, serialised message) in the order of arrival, within [start, stop)."""
        for reader in self._readers:
            wanted = [c for c in reader.connections if c.topic in topics]
            if not wanted:
                continue
            # rosbags skips chunks of MCAP whose index lists no wanted topic, and an index may be damaged.
            stream = reader.messages(reader.connections if self.storage == "mcap" else wanted, start, stop)
            while True:
                try:
                    connection, receive, data = next(stream)
                    if connection.topic not in topics:
                        continue
                    if not isinstance(data, bytes | memoryview) or not isinstance(receive, int) or receive < 0:
                        raise DataError("a message is not made of a time and bytes")
                    if self._message_compression:
                        data = _unzstd(bytes(data), MAX_CHUNK)
                except StopIteration:
                    break
                except Exception as error:  # rosbags, apsw and the codecs raise many kinds of their own.
                    raise DataError(f"{reader.path}: damaged ({_text(error)})") from error
                yield receive, connection.topic, bytes(data)

    def first(self, topic: str) -> Any:
        """The first message of a topic, decoded."""
        for _, _, data in self.messages([topic]):
            return self.decode(topic, data)
        raise DataError(f"{self.path}: {self.counts.get(topic, 0)} messages of {topic} are announced, none is found")

    def header_stamp(self, topic: str, data: bytes) -> int:
        """Nanoseconds in the header of a serialised message; 0 when its type has none, or it is not set."""
        if not self._has_header(topic) or len(data) < 12:
            return 0
        sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
        return int(sec) * 1_000_000_000 + int(nanosec) if sec >= 0 and nanosec < 1_000_000_000 else 0

    def _has_header(self, topic: str) -> bool:
        fields = self._typestore(topic).fielddefs[self.topics[topic]][1]
        return bool(fields) and fields[0][1][1] == "std_msgs/msg/Header"

    def decode(self, topic: str, data: bytes) -> Any:
        """The message object."""
        store = self._typestore(topic)
        try:
            if data[:2] not in (b"\0\0", b"\0\1"):
                raise DataError("it does not begin as CDR does")
            # Not store.deserialize_cdr: that refuses the padding with which ROS rounds the size of a message up.
            known = store.get_msgdef(self.topics[topic])
            read = known.deserialize_cdr_le if data[1] else known.deserialize_cdr_be
            message, end = read(memoryview(data)[4:], 0, known.cls, store)
            if not 0 <= len(data) - 4 - end <= MAX_PADDING:
                raise DataError(f"it has {len(data)} bytes, {end + 4} are read")
            return message
        except Exception as error:  # Generated code on damaged bytes raises many kinds.
            raise DataError(f"{self.path}: a {self.topics[topic]} of {topic} is damaged ({_text(error)})") from error

    def _typestore(self, topic: str) -> Any:
        if topic not in self._stores:
            try:
                self._stores[topic] = self._find_types(self.topics[topic])
            except DataError as error:
                raise DataError(f"{self.path}: topic {topic}: {error}") from error
        return self._stores[topic]

    def _find_types(self, msgtype: str) -> Any:
        for reader in self._readers:
            for connection in reader.connections:
                if connection.msgtype == msgtype and connection.msgdef.data:
                    return _defined_types(msgtype, connection.msgdef.format.name, connection.msgdef.data)
        if msgtype not in latest_types().fielddefs:
            raise DataError(f"the bag has no definition of {msgtype}, and it is not a standard type")
        return latest_types()

    def close(self) -> None:
        for reader in self._readers:
            if reader.is_open:
                reader.close()
        self._readers = []

    def __enter__(self) -> "Bag":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _text(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _open(file: Path) -> Any:
    from rosbags.rosbag2 import Reader, storage_mcap

    # rosbags decompresses a chunk before it compares the size with the declared one.
    storage_mcap.DECOMPRESSORS.update({"zstd": _unzstd, "lz4": _unlz4})
    journal = file.with_name(file.name + "-wal")
    if journal.exists() and journal.stat().st_size:
        raise DataError(f"{journal}: the recording was not closed; run ros2 bag reindex, or open it once with sqlite3")
    reader = Reader(file)
    try:
        reader.open()
        if file.suffix == ".mcap":
            _check_chunks(reader.storage, file.stat().st_size)
        else:
            _check_pages(file)
    except Exception as error:
        if reader.is_open:
            reader.close()
        hint = "; mcap recover may rescue an unfinished recording" if file.suffix == ".mcap" else ""
        raise DataError(f"{file}: cannot be opened ({_text(error)}){hint}") from error
    return reader


def _check_chunks(storage: Any, size: int) -> None:
    """An index that names a chunk twice, or one outside the file, would be read into memory as often."""
    last = 0
    for chunk in sorted(storage.chunks, key=lambda c: c.chunk_start_offset):
        storage.bio.seek(chunk.chunk_start_offset)
        head = storage.bio.read(33)
        inside = chunk.chunk_start_offset >= last and chunk.chunk_start_offset + chunk.chunk_length <= size
        # Times and sizes are in the index and in the chunk; messages outside the times of the index are never found.
        declared = (
            6,
            chunk.chunk_length - 9,
            chunk.message_start_time,
            chunk.message_end_time,
            chunk.uncompressed_size,
        )
        if not inside or len(head) < 33 or struct.unpack("<BQQQQ", head) != declared:
            raise DataError("the chunk index does not fit the file")
        if chunk.uncompressed_size > MAX_CHUNK or chunk.compressed_size > chunk.chunk_length:
            raise DataError(f"a chunk declares {chunk.uncompressed_size} bytes, at most {MAX_CHUNK} are read")
        last = chunk.chunk_start_offset + chunk.chunk_length


def _check_pages(file: Path) -> None:
    """sqlite3 does not miss pages at the end of a file until it needs them (file format, 1.3)."""
    with file.open("rb") as stream:
        header = stream.read(100)
    page, pages = struct.unpack(">H", header[16:18])[0], struct.unpack(">I", header[28:32])[0]
    if file.stat().st_size < (65536 if page == 1 else page) * pages:
        raise DataError(f"cut off: it should have {pages} pages of {page} bytes")


def _unzstd(data: bytes, size: int) -> bytes:
    """At most `size` bytes, and no more memory than that whatever the data claim."""
    from rosbags.rosbag2.storage_mcap import zstd  # That of the standard library, or its backport.

    if size > MAX_CHUNK:
        raise DataError(f"a chunk declares {size} bytes, at most {MAX_CHUNK} are read")
    found, rest = [], data
    left = size
    while rest:
        decompressor = zstd.ZstdDecompressor()
        found.append(decompressor.decompress(rest, max_length=left + 1))
        left -= len(found[-1])
        if left < 0 or not decompressor.eof:
            raise DataError(f"compressed data are cut off, or larger than {size} bytes")
        rest = decompressor.unused_data
    return b"".join(found)


def _unlz4(data: bytes, size: int) -> bytes:
    from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]

    if size > MAX_CHUNK:
        raise DataError(f"a chunk declares {size} bytes, at most {MAX_CHUNK} are read")
    decompressor = LZ4FrameDecompressor()
    found: bytes = decompressor.decompress(data, max_length=size + 1)
    if len(found) > size or not decompressor.eof:
        raise DataError(f"compressed data are cut off, or larger than {size} bytes")
    return found


@lru_cache(maxsize=1)
def latest_types() -> Any:
    """The standard messages of the newest long-term ROS 2 release that rosbags knows."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.LATEST)


@lru_cache(maxsize=64)
def _defined_types(msgtype: str, form: str, text: str) -> Any:
    """A type store of what the bag says about `msgtype` and what that refers to.

    rosbags turns definitions into Python code, so that names and sizes are checked first, and constants left out.
    """
    from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

    if len(text) > MAX_DEFINITION:
        raise DataError(f"the definition of {msgtype} has {len(text)} characters")
    if not _TYPE.fullmatch(msgtype):
        raise DataError(f"{msgtype!r} is not the name of a message type")
    try:
        if form == "MSG":
            parsed = dict(get_types_from_msg(text, msgtype))
        else:
            parsed = {}
            for part in text.split("=" * 80 + "\n") if text.startswith("=" * 80) else [text]:
                body = part.split("\n", 1)[1] if part.startswith("IDL: ") else part
                parsed |= get_types_from_idl(body) if body.strip() else {}
        wanted: dict[str, Any] = {}
        _collect(msgtype, parsed, wanted, ())
        store = get_typestore(Stores.EMPTY)
        store.register(wanted)
        store.get_msgdef(msgtype)
    except Exception as error:  # The parser and the generated code raise many kinds.
        raise DataError(f"the definition of {msgtype} is damaged ({_text(error)})") from error
    return store


def _collect(name: str, parsed: dict[str, Any], wanted: dict[str, Any], above: tuple[str, ...]) -> None:
    """Adds a type and those of its fields to `wanted`, checked."""
    if name in above or len(above) > 16:
        raise DataError(f"type {name} contains itself, or is nested too deeply")
    if name in wanted:
        return
    known = parsed.get(name) or latest_types().fielddefs.get(name)
    if known is None or not _TYPE.fullmatch(name):
        raise DataError(f"type {name!r} is not defined")
    for field, description in known[1]:
        kind, detail = description
        if not _NAME.fullmatch(field):
            raise DataError(f"type {name}: {field!r} is not the name of a field")
        inner, size = detail if int(kind) in (3, 4) else (description, 0)
        if not 0 <= int(size) <= (MAX_ARRAY if int(kind) == 3 else 2**32 - 1):
            raise DataError(f"type {name}: field {field} has {size} elements")
        if int(inner[0]) == 2:
            _collect(inner[1], parsed, wanted, (*above, name))
        elif inner[1][0] not in _BASE_TYPES:
            raise DataError(f"type {name}: field {field} has unknown type {inner[1][0]!r}")
        if int(kind) == 3 and size > 1024 and (int(inner[0]) == 2 or inner[1][0] == "string"):
            raise DataError(f"type {name}: field {field} has {size} elements")
    wanted[name] = ([], list(known[1]))


def new_bag(path: Path, storage: str, custom: dict[str, str]) -> Any:
    """A rosbags writer for a new bag folder, version 8 of the metadata: the newest that Humble and Jazzy both play."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    writer = Writer(path, version=8, storage_plugin=StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3)
    for key, value in custom.items():
        writer.set_custom_data(key, value)
    return writer
