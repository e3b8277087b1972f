"""Datasets from one format to another, episode by episode, so that memory stays bounded whatever the size."""

import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.detect import make_writer, open_source
from robopolicy.datasets.episodes import select_keys
from robopolicy.datasets.masks import MASKS, join_masks, read_masks
from robopolicy.datasets.source import Source
from robopolicy.datasets.untrusted import damage
from robopolicy.errors import DataError
from robopolicy.features import TASK_INDEX
from robopolicy.progress import progress_bar


@dataclass
class Conversion:
    """What was written, and what did not make it."""

    path: Path
    n_episodes: int = 0
    n_steps: int = 0
    notes: list[str] = field(default_factory=list)
    """One line for each episode left out and each thing the format cannot hold."""


def convert(
    paths: Sequence[Path],
    output: Path,
    to: str,
    *,
    keys: Sequence[str] | None = None,
    episodes: Sequence[Iterable[int]] | None = None,
    skip_bad: bool = False,
    options: dict[str, Any] | None = None,
    progress: bool = True,
    contract: Path | None = None,
) -> Conversion:
    """Writes the episodes of the datasets at `paths`, one dataset after the other, as one dataset of format `to`.

    `keys` limits what is written; `episodes` gives the episode numbers per dataset (all by default). A damaged episode
    is an error that leaves no output, or with `skip_bad` is left out and named in the notes. Several datasets must
    agree in their features; their instructions are joined. `options` go to the writer of the format;
    `contract` is for ROS 2 recordings, see `open_source`.
    """
    with ExitStack() as stack:
        sources = [stack.enter_context(open_source(p, contract)) for p in paths]
        return write_sources(
            sources, output, to, keys=keys, episodes=episodes, skip_bad=skip_bad, options=options, progress=progress
        )


def write_sources(
    sources: Sequence[Source],
    output: Path,
    to: str,
    *,
    keys: Sequence[str] | None = None,
    episodes: Sequence[Iterable[int]] | None = None,
    skip_bad: bool = False,
    options: dict[str, Any] | None = None,
    progress: bool = True,
) -> Conversion:
    """`convert` for datasets that are open already."""
    if not sources:
        raise DataError(f"{output}: no dataset to convert")
    first = sources[0]
    chosen = first.features.keys() if keys is None else select_keys(first.path, keys, first.features.keys())
    features = first.features.select(chosen)
    _check_alike(sources, chosen)
    tasks = list(dict.fromkeys(task for source in sources for task in source.tasks)) if TASK_INDEX in chosen else []
    result = Conversion(Path(output), notes=[f"{s.path}: {note}" for s in sources for note in s.notes])
    fingerprint = _joined_fingerprint(sources, result.notes)
    numbers = [list(range(s.n_episodes)) for s in sources] if episodes is None else [list(e) for e in episodes]
    for source, wanted in zip(sources, numbers, strict=True):
        if wanted and not 0 <= min(wanted) <= max(wanted) < source.n_episodes:
            raise DataError(f"{source.path}: has episodes 0..{source.n_episodes - 1}, asked for {wanted}")
    total = sum(int(s.lengths[n].sum()) for s, n in zip(sources, numbers, strict=True))
    masks = [read_masks(s.path, s.metadata, s.n_episodes) for s in sources]
    metadata = {k: v for k, v in first.metadata.items() if k != MASKS}
    writer = make_writer(to, Path(output), features, fingerprint, tasks=tasks, metadata=metadata, **(options or {}))
    written: list[list[int]] = [[] for _ in sources]
    with writer, progress_bar(total=total, desc=f"writing {to}", unit="step", delay=1, disable=not progress) as bar:
        lost: set[str] = set()
        for source, wanted, done in zip(sources, numbers, written, strict=True):
            renumber = np.array([tasks.index(t) for t in source.tasks], np.int64) if tasks else None
            for number in wanted:
                try:
                    with damage(f"episode {number}"):
                        arrays = source.read(number, chosen)
                        if renumber is not None:
                            arrays = arrays | {TASK_INDEX: renumber[arrays[TASK_INDEX]]}
                        attributes = source.attributes(number)
                    writer.check(arrays)
                except DataError as error:
                    named = re.search(rf"\bepisode {number}\b", str(error))
                    text = str(error) if named else f"episode {number}: {error}"
                    text = text if str(source.path) in text else f"{source.path}: {text}"
                    if not skip_bad:
                        raise DataError(text) from error
                    result.notes.append(f"left out: {text}")
                    continue
                if not writer.holds_attributes:
                    lost |= set(attributes)
                writer.add(arrays, attributes)
                done.append(number)
                bar.update(int(source.lengths[number]))
        # Only now is it known which episodes there are; writers put metadata in their files last.
        joined = join_masks(list(zip(masks, written, strict=True)))
        if joined:
            writer.metadata[MASKS] = joined
        if lost:
            result.notes.append(f"format {to} has no place for the episode attributes {sorted(lost)}")
        result.n_episodes, result.n_steps = writer.n_episodes, writer.n_steps
    return result


def _check_alike(sources: Sequence[Source], keys: Sequence[str]) -> None:
    first = sources[0]
    expected = first.features.select(keys)
    for other in sources[1:]:
        select_keys(other.path, keys, other.features.keys())
        found = other.features.select(keys)
        if replace(expected, rate_hz=None) != replace(found, rate_hz=None) or expected.rate_hz != found.rate_hz:
            lines = expected.compare(found, str(first.path), str(other.path)) or ["features differ in their details"]
            raise DataError(f"{other.path} cannot be merged with {first.path}: {'; '.join(lines)}")


def _joined_fingerprint(sources: Sequence[Source], notes: list[str]) -> dict[str, str]:
    joined: dict[str, list[str]] = {}
    for source in sources:
        for name, version in source.fingerprint.items():
            if version not in joined.setdefault(name, []):
                joined[name].append(version)
    notes += [f"merged from different {name}: {', '.join(v)}" for name, v in joined.items() if len(v) > 1]
    return {name: ", ".join(versions) for name, versions in joined.items()}
