"""Decoded images, kept as memory-mapped uint8 arrays named by the content they came from."""

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from robopolicy.datasets.npy import NpyStream, map_npy
from robopolicy.errors import DataError
from robopolicy.progress import progress_bar


def default_cache() -> Path:
    """$ROBOPOLICY_CACHE, or ~/.cache/robopolicy."""
    return Path(os.environ.get("ROBOPOLICY_CACHE") or Path.home() / ".cache" / "robopolicy")


def cached_array(
    identity: str,
    shape: tuple[int, ...],
    decode: Callable[[], Iterable[np.ndarray]],
    description: str,
    cache_dir: Path | None = None,
) -> np.ndarray:
    """Memory map of a uint8 array [N, ...] of `shape`; `decode` yields its rows in order when it is not cached yet.

    A file appears under its name only when it is complete, so an interrupted decode leaves nothing behind that
    could be mistaken for the array.
    """
    cached = (cache_dir or default_cache()) / "images" / f"{identity}.npy"
    if not cached.exists():
        temporary = cached.with_name(f".{cached.name}.{uuid.uuid4().hex[:12]}.tmp")
        stream = None
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            stream = NpyStream(temporary, shape[1:], "uint8")
            with progress_bar(total=shape[0], desc=description, unit="frame", delay=1) as bar:
                for block in decode():
                    stream.append(block)
                    bar.update(len(block))
            stream.close()
            temporary.replace(cached)
        except OSError as error:
            raise DataError(f"{cached}: cannot write the image cache ({error.strerror or error})") from error
        finally:
            if stream is not None:
                stream.abandon()
            temporary.unlink(missing_ok=True)
    images = map_npy(cached)
    if images.shape != shape or images.dtype != np.uint8:
        raise DataError(f"{cached}: damaged image cache ({images.dtype} {images.shape}, not uint8 {shape}); delete it")
    return images


def file_digest(file: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_digest(file: Path) -> str:
    """`file_digest`, remembered beside the cached images until its size or time changes."""
    try:
        status = file.stat()
        name = f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
        note = default_cache() / "digests" / hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]
        with contextlib.suppress(OSError, ValueError):
            known = note.read_text()
            if re.fullmatch("[0-9a-f]{64}", known):
                return known
        digest = file_digest(file)
    except OSError as error:
        raise DataError(f"{file}: unreadable ({error.strerror or error})") from error
    # Without the note the next run only takes longer.
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f".{note.name}.{uuid.uuid4().hex[:12]}.tmp")
        temporary.write_text(digest)
        temporary.replace(note)
    return digest
