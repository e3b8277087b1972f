"""Files from the network: resumed where they broke off, checked before they get their name, unpacked safely."""

import hashlib
import http.client
import json
import os
import shutil
import stat
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from robopolicy.datasets.writer import sync_directory
from robopolicy.errors import DataError
from robopolicy.progress import progress_bar

BLOCK = 2**20
TIMEOUT = 30.0
"""Seconds without a byte after which a connection is given up."""
ATTEMPTS = 5
"""Connections in a row that bring nothing new before a download is given up."""
PLAIN_BYTES = 2**30
"""An archive may unpack to this size whatever its own."""
MAX_RATIO = 100
"""Unpacked to packed size of larger archives; deflate reaches 1032 on zeros, datasets about 10."""
MAX_MEMBERS = 2**20


def download(url: str, path: Path, size: int | None, sha256: str | None, hint: str) -> None:
    """The bytes at `url` (http or https) as the file `path`, which appears only when it is whole and checked.

    What has come so far is kept in `path`.part and the next call goes on from there, if the server says that its
    file is still the same (ETag or Last-Modified) or a checksum will tell. `hint` ends the message of a failure.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url}: not an http or https address")
    part = path.with_name(path.name + ".part")
    idle = 0
    while True:
        had = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, size, can_resume=sha256 is not None)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416 and had:
                if error.headers.get("Content-Range") == f"bytes */{had}":
                    break  # Nothing was missing.
                part.unlink()  # The part is longer than the file, which therefore is another one.
            elif error.code < 500 or idle + 1 >= ATTEMPTS:
                raise DataError(f"{url}: the server answers {error.code} {error.reason}{hint}") from error
            idle += 1
        except (OSError, http.client.HTTPException) as error:
            now = part.stat().st_size if part.exists() else 0
            idle = 0 if now > had else idle + 1
            if idle >= ATTEMPTS or (now == 0 and isinstance(error, urllib.error.URLError)):
                reason = getattr(error, "reason", None) or error
                kept = f" after {now} bytes, which are kept: the same command goes on from there" if now else ""
                raise DataError(f"{url}: cannot be reached ({reason}){kept}{hint}") from error
    _described(part).unlink(missing_ok=True)
    check(part, size, sha256, url)
    part.rename(path)
    sync_directory(path.parent)


def _described(part: Path) -> Path:
    """The file beside a partial download that says what it is a part of."""
    return part.with_name(part.name + ".json")


def _transfer(url: str, part: Path, size: int | None, can_resume: bool) -> None:
    """One connection: appends to `part` what is missing, or begins anew."""
    known = _read_description(part, url)
    start = part.stat().st_size if part.exists() and (known or can_resume) else 0
    if size is not None and start == size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "robopolicy", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if known:
            request.add_header("If-Range", known)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if answer.status == 206 and not resumed:
            raise http.client.HTTPException(f"an answer to another range: {answer.headers.get('Content-Range')}")
        length = answer.headers.get("Content-Length")
        expected = (int(length) if length and length.isdigit() else None, start if resumed else 0)
        total = expected[0] + expected[1] if expected[0] is not None else size
        if size is not None and total is not None and total != size:
            raise DataError(f"{url}: {total} bytes on the server, the catalog says {size}")
        _check_space(part.parent, (total or 0) - expected[1], url)
        _describe(part, url, answer.headers)
        with (
            part.open("ab" if resumed else "wb") as out,
            progress_bar(
                total=total, initial=expected[1], desc=part.stem, unit="B", unit_scale=True, unit_divisor=1024, delay=1
            ) as bar,
        ):
            while block := answer.read(BLOCK):
                out.write(block)
                bar.update(len(block))
                if total is not None and out.tell() > total:
                    raise DataError(f"{url}: more than the {total} bytes that the server announced")
            out.flush()
            os.fsync(out.fileno())
            if total is not None and out.tell() < total:
                raise http.client.IncompleteRead(b"", total - out.tell())


def _describe(part: Path, url: str, headers: Any) -> None:
    """Remembers the validator for If-Range; weak ones do not promise equal bytes."""
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified")
    if validator:
        _described(part).write_text(json.dumps({"url": url, "validator": validator}))
    else:
        _described(part).unlink(missing_ok=True)


def _read_description(part: Path, url: str) -> str | None:
    try:
        found = json.loads(_described(part).read_text())
        return str(found["validator"]) if found["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{what}: needs {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free")


def check(file: Path, size: int | None, sha256: str | None, origin: str) -> None:
    """Raises DataError and removes `file` unless it has this size and checksum, as far as they are known."""
    found = file.stat().st_size
    if size is not None and found != size:
        file.unlink()
        raise DataError(f"{origin}: {found} bytes, the catalog says {size}")
    if sha256 is None:
        return
    digest = hashlib.sha256()
    with (
        file.open("rb") as stream,
        progress_bar(total=found, desc="checking", unit="B", unit_scale=True, unit_divisor=1024, delay=1) as bar,
    ):
        while block := stream.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != sha256:
        file.unlink()
        raise DataError(f"{origin}: sha256 is {digest.hexdigest()}, the catalog says {sha256}; the file was removed")


def unpack(archive: Path, folder: Path, members: str = "") -> None:
    """Unpacks a zip archive into `folder`, all of it or what begins with `members`.

    Refuses archives with a member that leads out of the folder, is a link, comes twice, or is encrypted, and those
    that unpack to much more than they weigh. Every member is checked against its CRC-32.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            chosen = _chosen(archive, opened, members)
            total = sum(item.file_size for item in chosen)
            _check_space(folder, total, str(archive))
            with progress_bar(
                total=total, desc="unpacking", unit="B", unit_scale=True, unit_divisor=1024, delay=1
            ) as bar:
                for item in chosen:
                    _extract(opened, item, folder, bar)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise DataError(f"{archive}: damaged zip archive ({error})") from error
    except zipfile.zlib.error as error:  # type: ignore[attr-defined]
        raise DataError(f"{archive}: damaged zip archive ({error})") from error


def _chosen(archive: Path, opened: zipfile.ZipFile, members: str) -> list[zipfile.ZipInfo]:
    """The members to unpack, all of them harmless."""
    listed = opened.infolist()
    if len(listed) > MAX_MEMBERS:
        raise DataError(f"{archive}: {len(listed)} members, at most {MAX_MEMBERS} are unpacked")
    seen: set[str] = set()
    for item in listed:
        name = item.filename
        parts = PurePosixPath(name).parts
        kind = stat.S_IFMT(item.external_attr >> 16)
        if not parts or "\\" in name or ":" in name or "\0" in name or name.startswith("/") or ".." in parts:
            raise DataError(f"{archive}: member {name!r} leads out of the folder; nothing was unpacked")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or item.flag_bits & 1:
            raise DataError(f"{archive}: member {name!r} is a link, a device or encrypted; nothing was unpacked")
        plain = "/".join(parts).casefold()
        if plain in seen:
            raise DataError(f"{archive}: member {name!r} comes twice; nothing was unpacked")
        seen.add(plain)
    chosen = [item for item in listed if item.filename.startswith(members) and not item.is_dir()]
    total, packed = sum(i.file_size for i in chosen), archive.stat().st_size
    if total > max(PLAIN_BYTES, MAX_RATIO * packed):
        raise DataError(f"{archive}: would unpack {packed} bytes to {total}; nothing was unpacked")
    if not chosen:
        raise DataError(f"{archive}: holds no {members or 'files'}")
    return chosen


def _extract(opened: zipfile.ZipFile, item: zipfile.ZipInfo, folder: Path, bar: Any) -> None:
    target = folder.joinpath(*PurePosixPath(item.filename).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    # zipfile stops at the declared size and compares the CRC-32 there.
    with opened.open(item) as source, target.open("xb") as out:
        while block := source.read(BLOCK):
            out.write(block)
            bar.update(len(block))
