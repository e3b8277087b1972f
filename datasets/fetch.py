"""The catalog of published datasets (datasets/catalog/*.yaml), and getting one of them onto this machine.

A fetched dataset is the folder <root>/<name>, which appears when everything in it was downloaded, checked and
unpacked. <root> is --output, $ROBOPOLICY_DATASETS, or ~/.cache/robopolicy/datasets; whoever has the files already
puts them there under the same names.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from robopolicy.datasets.cache import default_cache
from robopolicy.datasets.download import check, download, unpack
from robopolicy.datasets.writer import sync_directory, sync_tree
from robopolicy.errors import DataError, unknown

CATALOG = Path(__file__).parent / "catalog"
DOWNLOADS = ".downloads"
"""Folder below the root for what is not complete yet, and for archives that several entries share."""


@dataclass(frozen=True)
class Part:
    """One file to download."""

    name: str
    url: str
    size: int | None = None
    """Bytes; None where the publisher does not state it."""
    sha256: str | None = None
    unzip: bool = False
    members: str = ""
    """Of an archive that several entries share: how the members of this one begin."""


@dataclass(frozen=True)
class Entry:
    """One published dataset."""

    name: str
    about: str
    format: str
    """Name in `robopolicy.datasets.detect.FORMATS`."""
    task: str
    licence: str | None
    """As its publisher states it; None where it does not."""
    homepage: str
    dataset: str | None
    """Path of the dataset below its folder; "." when the folder holds several."""
    files: tuple[Part, ...]
    episodes: int | None = None
    """Checked after fetching, like `steps`."""
    steps: int | None = None
    generated: str = ""
    """Why there is nothing to download."""

    @property
    def size(self) -> int | None:
        """Bytes to download, when all are known."""
        sizes = [part.size for part in self.files]
        return sum(s for s in sizes if s is not None) if sizes and None not in sizes else None

    def path(self, root: Path) -> Path:
        """Where the dataset is once it was fetched."""
        return root / self.name / (self.dataset or ".")


def read_catalog(folder: Path = CATALOG) -> dict[str, Entry]:
    """All entries by name. Raises DataError naming the file and the entry for anything that does not fit."""
    import yaml

    entries: dict[str, Entry] = {}
    for file in sorted(folder.glob("*.yaml")):
        try:
            found = yaml.safe_load(file.read_text())
            for name, described in found.items():
                if name in entries:
                    raise ValueError(f"{name} is in the catalog twice")
                entries[name] = _entry(name, described)
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}: damaged catalog ({error})") from error
    return entries


def _entry(name: str, described: dict[str, Any]) -> Entry:
    known = {field.name for field in fields(Entry)}
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or set(described) - known:
        raise ValueError(f"{name}: unknown fields {sorted(set(described) - known)}, or a name that is no folder")
    parts = tuple(Part(**part) for part in described["files"])
    for part in parts:
        if Path(part.name).name != part.name or not re.fullmatch(r"[0-9a-f]{64}", part.sha256 or "0" * 64):
            raise ValueError(f"{name}: file {part.name!r} with sha256 {part.sha256!r}")
    return Entry(**(described | {"name": name, "files": parts}))


def find_entry(name: str) -> Entry:
    """The entry of this name; a RobopolicyError with a suggestion when there is none."""
    catalog = read_catalog()
    if name not in catalog:
        raise unknown("dataset", name, catalog)
    return catalog[name]


def default_root() -> Path:
    """$ROBOPOLICY_DATASETS, or the folder `datasets` of the cache."""
    return Path(os.environ.get("ROBOPOLICY_DATASETS") or default_cache() / "datasets").expanduser()


def local_path(name: str) -> Path | None:
    """Where the dataset of this catalog name is on this machine; None for other names and those not fetched."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        return None
    entry = read_catalog().get(name)
    path = entry.path(default_root()) if entry else None
    return path if path is not None and path.exists() else None


def fetch(name: str, root: Path | None = None, source: str | None = None) -> Path:
    """Gets the dataset `name` of the catalog and returns its path; nothing is done when it is there already.

    `source` is where its files come from instead of the catalog's address: a file or folder of this machine, the
    address of the file, or, ending in "/", the address of a folder that holds the files under their names.
    """
    entry = find_entry(name)
    root = (root or default_root()).expanduser()
    if entry.path(root).exists():
        return entry.path(root)
    if entry.generated:
        raise DataError(f"{name}: not for download: {entry.generated}")
    try:
        with _staging(root, name) as waiting:
            for part in entry.files:
                _get(name, part, _place(root, waiting, part), source)
            _assemble(entry, root, waiting)
    except OSError as error:
        raise DataError(f"{error.filename or root}: {error.strerror or error}") from error
    return entry.path(root)


@contextmanager
def _staging(root: Path, name: str) -> Iterator[Path]:
    """The folder of what was downloaded so far, for one process at a time."""
    waiting = root / DOWNLOADS / name
    waiting.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / DOWNLOADS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield waiting
    except BlockingIOError:
        raise DataError(f"{root}: another process is fetching into this folder") from None
    finally:
        os.close(descriptor)


def _place(root: Path, waiting: Path, part: Part) -> Path:
    """Where a file is kept until all are there; archives that entries share are kept beside."""
    return root / DOWNLOADS / part.name if part.members else waiting / part.name


def _get(name: str, part: Part, target: Path, source: str | None) -> None:
    if target.exists():
        return  # It was checked before it got this name.
    if source is not None and urlsplit(source).scheme not in ("http", "https"):
        given = Path(source).expanduser()
        found = given / part.name if given.is_dir() else given
        if not found.is_file():
            raise DataError(f"{found}: no such file; --from needs the file {part.name} or a folder that holds it")
        copy = target.with_name(target.name + ".copy")
        shutil.copyfile(found, copy)
        check(copy, part.size, part.sha256, str(found))
        copy.rename(target)
        return
    url = part.url if source is None else source + part.name if source.endswith("/") else source
    hint = f"; with a copy from elsewhere: robopolicy data fetch {name} --from PATH_OR_URL" if source is None else ""
    download(url, target, part.size, part.sha256, hint)


def _assemble(entry: Entry, root: Path, waiting: Path) -> None:
    """Unpacks beside the downloads, looks at the result, and moves it to its place."""
    folder = root / DOWNLOADS / f"{entry.name}.unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        for part in entry.files:
            found = _place(root, waiting, part)
            if part.unzip:
                try:
                    unpack(found, folder, part.members)
                except DataError as error:
                    raise DataError(f"{error}; remove it to download it again") from error
            else:
                os.link(found, folder / part.name)
        _look(entry, folder)
        sync_tree(folder)
        folder.rename(root / entry.name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sync_directory(root)
    shutil.rmtree(waiting, ignore_errors=True)


def _look(entry: Entry, folder: Path) -> None:
    """Raises DataError unless what came is a dataset of the format and size that the catalog says."""
    from robopolicy.datasets.detect import open_source

    if entry.dataset == ".":
        return
    path = folder / (entry.dataset or ".")
    if not path.exists():
        raise DataError(f"{entry.name}: {entry.dataset} is not in what was downloaded")
    with open_source(path) as source:
        found = source.format, source.n_episodes, source.n_steps
    wanted = entry.format, entry.episodes or found[1], entry.steps or found[2]
    if found != wanted:
        raise DataError(
            f"{entry.name}: {found[0]} of {found[1]} episodes and {found[2]} steps came, "
            f"the catalog says {wanted[0]} of {wanted[1]} and {wanted[2]}"
        )


def format_catalog(root: Path | None = None) -> str:
    """A table of all entries."""
    place = (root or default_root()).expanduser()
    rows = [("name", "format", "download", "licence", "here", "")]
    for entry in read_catalog().values():
        size = "generated" if entry.generated else "?" if entry.size is None else f"{entry.size / 1e6:,.0f} MB"
        here = "yes" if not entry.generated and entry.path(place).exists() else ""
        rows.append((entry.name, entry.format, size, entry.licence or "?", here, entry.about))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[5]]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
