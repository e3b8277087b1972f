"""A look at the boxes of an mp4 file before a decoder sees them (ISO/IEC 14496-12, section 4.2 and 8.7).

A decoder allocates what the tables of a file claim. Here every box must lie in the file and in its parent, and no
table may claim more samples than the file has bytes.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from robopolicy.errors import DataError

CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
MAX_BOXES = 1_000_000


def check_mp4(file: Path) -> None:
    """Raises DataError unless `file` is an mp4 whose boxes and sample counts fit its size."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            found = set()
            for count, (name, start, end) in enumerate(_boxes(file, stream, 0, size)):
                if count > MAX_BOXES:
                    raise DataError(f"{file}: more than {MAX_BOXES} boxes")
                found.add(name)
                if name == b"stsz":
                    _check_samples(file, stream, start, end, size)
    except FileNotFoundError:
        raise DataError(f"{file}: missing") from None
    except OSError as error:
        raise DataError(f"{file}: unreadable ({error.strerror or error})") from error
    missing = [name.decode() for name in (b"ftyp", b"moov", b"mdat") if name not in found]
    if missing:
        raise DataError(f"{file}: truncated or not an mp4 file (no {missing[0]} box in {size} bytes)")


def _boxes(file: Path, stream: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, end) of the contents of every box between two places, those inside containers as well."""
    while start < end:
        stream.seek(start)
        header = stream.read(16)
        if len(header) < 8 or start + 8 > end:
            raise DataError(f"{file}: truncated at byte {start}")
        length, name = struct.unpack(">I4s", header[:8])
        body = start + 8
        if length == 1 and len(header) == 16:
            length, body = int.from_bytes(header[8:], "big"), start + 16
        elif length == 0:
            length = end - start
        if length < body - start or start + length > end:
            raise DataError(
                f"{file}: truncated or damaged: box {name!r} at byte {start} claims {length} bytes of {end - start}"
            )
        yield name, body, start + length
        if name in CONTAINERS:
            yield from _boxes(file, stream, body, start + length)
        start += length


def _check_samples(file: Path, stream: BinaryIO, start: int, end: int, size: int) -> None:
    """The sample size box: version and flags, one size for all samples or 0, number of samples, their sizes."""
    stream.seek(start)
    table = stream.read(12)
    if len(table) < 12:
        raise DataError(f"{file}: damaged (sample table of {len(table)} bytes)")
    each, count = struct.unpack(">II", table[4:])
    if count * (each or 4) > (size if each else end - start - 12):
        raise DataError(f"{file}: damaged (claims {count} samples in {size} bytes)")
