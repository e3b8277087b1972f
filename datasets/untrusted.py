"""Files that nobody vouches for: bounded in size and nesting before a parser sees them, one kind of error after it."""

import json
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robopolicy.errors import DataError, RobopolicyError

MAX_BYTES = 256 << 20
"""Of one text file; the list of episodes of the largest published datasets has tens of MB."""
MAX_DEPTH = 100
"""Nesting of YAML: its C parser overflows the stack where Python's would raise an error."""


@contextmanager
def damage(where: object) -> Iterator[None]:
    """Turns whatever reading a damaged file may raise into a DataError that begins with `where`."""
    try:
        yield
    except RobopolicyError:
        raise
    except Exception as error:  # Libraries raise OSError, KeyError, RuntimeError, ValueError, TypeError and more.
        text = getattr(error, "strerror", None) or (str(error.args[0]) if error.args else "")
        raise DataError(f"{where}: damaged ({type(error).__name__}: {text})") from error


def read_text(file: Path, limit: int = MAX_BYTES) -> str:
    """The text of a regular file; a DataError for anything else, such as a device, and for too much of it."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{file}: not a regular file")
        if status.st_size > limit:
            raise DataError(f"{file}: {status.st_size} bytes, at most {limit} are read")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{file}: missing") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: unreadable ({error})") from error


def read_json(file: Path) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: damaged ({type(error).__name__}: {error})") from error


def parse_yaml(text: str, where: object) -> Any:
    """What a YAML text holds, in plain types; `where` begins the message of an error."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise DataError(f"{where}: nested more than {MAX_DEPTH} deep")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: damaged YAML ({' '.join(str(error).split())[:200]})") from error


def file_crc(file: Path) -> str:
    """CRC-32 of all bytes of a file, 8 hexadecimal digits."""
    found = 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            found = zlib.crc32(block, found)
    return f"{found:08x}"
