"""rosbag2 recordings as a dataset: a folder of bags, or one bag, read by a contract.

Opening goes once through every recording to learn when its topics spoke; images are decoded when an episode is read.
An episode whose topics are silent, jump or drop more than the contract tolerates is left out and named in the notes.
"""

import hashlib
import heapq
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets import bag_timing
from robopolicy.datasets.bag_timing import Arrivals, EpisodeReport
from robopolicy.datasets.contract import CONTRACT_FILE, SECOND, Contract, Marker, parse_contract, read_contract
from robopolicy.datasets.messages import parse_selector, select
from robopolicy.datasets.resample import FeatureReader, FrameSampler, Missing, instruction, replay
from robopolicy.datasets.rosbag import SUFFIXES, Bag, is_bag, natural_order, storage_files
from robopolicy.datasets.source import EXTENSION, Source, read_extension
from robopolicy.datasets.untrusted import file_crc, read_json
from robopolicy.errors import DataError
from robopolicy.features import TASK_INDEX, Feature, FeatureSpec
from robopolicy.progress import progress_bar

CONTRACT_DATA = f"{EXTENSION}.contract"
ATTRIBUTES_DATA = f"{EXTENSION}.attributes"
CHECKSUMS_FILE = "checksums.json"
"""Names of what our own bags carry in their free metadata, beside the extension."""
MAX_STEPS = 10_000_000
SAMPLED_BYTES = 4096


def bags_in(path: Path) -> list[Path]:
    """The recordings at `path`: itself when it is one, otherwise those directly inside, in natural order."""
    if is_bag(path) and not (path.is_dir() and _is_folder_of_files(path)):
        return [path]
    return sorted((p for p in path.iterdir() if is_bag(p)), key=natural_order) if path.is_dir() else []


def _is_folder_of_files(path: Path) -> bool:
    """A folder with a contract and storage files but no metadata: every file is a recording."""
    return not (path / "metadata.yaml").exists() and (path / CONTRACT_FILE).exists()


def _storage(path: Path) -> str:
    try:
        bags = bags_in(path)
        files = storage_files(bags[0]) if bags else []
    except OSError:
        return ""
    return SUFFIXES[files[0].suffix] if files else "mcap" if bags else ""


def is_mcap(path: Path) -> bool:
    return _storage(path) == "mcap"


def is_sqlite3(path: Path) -> bool:
    return _storage(path) == "sqlite3"


def _read_checksums(path: Path) -> dict[str, dict[Path, str]]:
    """Per recording the checksums of its files, where our writer left them; removing the file removes the check."""
    file = path / CHECKSUMS_FILE
    if not path.is_dir() or not file.exists():
        return {}
    listed = read_json(file)
    found: dict[str, dict[Path, str]] = {}
    for name, checksum in listed.items() if isinstance(listed, dict) else [("", "")]:
        parts = Path(name).parts
        if len(parts) < 2 or Path(name).is_absolute() or ".." in parts or not isinstance(checksum, str):
            raise DataError(f"{file}: damaged (it should map files of recordings to checksums, found {name!r})")
        if not (path / parts[0]).exists():
            raise DataError(f"{path / parts[0]}: missing; {CHECKSUMS_FILE} names it")
        found.setdefault(parts[0], {})[path / name] = checksum
    return found


@dataclass
class _Episode:
    bag: int
    report: EpisodeReport
    since: dict[str, int]
    """Per topic the time of arrival of the first message that may be needed."""
    texts: list[str]
    """Instructions that hold at some time during the episode."""


class RosbagSource(Source):
    """Recordings as episodes; of either storage."""

    def __init__(self, path: Path, contract: Path | Contract | None = None) -> None:
        """`contract` is by default the file contract.yaml in the folder or beside the bag, or what our bags carry."""
        self._bags = bags_in(path)
        if not self._bags:
            raise DataError(f"{path}: holds no rosbag2 recording")
        self._checksums = _read_checksums(path)
        self._open: tuple[int, Bag] | None = None
        self.contract = self._find_contract(path, contract)
        self._readers: dict[str, FeatureReader] = {}
        self._custom: list[dict[str, str]] = []
        self.reports: list[EpisodeReport] = []
        """One per candidate, used or not."""
        notes: list[str] = []
        found: list[_Episode] = []
        try:
            with progress_bar(total=len(self._bags), desc="reading bags", unit="bag", delay=2) as bar:
                for number in range(len(self._bags)):
                    found += self._scan(number, notes)
                    bar.update(1)
        finally:
            self.close()
        self._episodes = [e for e in found if not e.report.problems]
        self.reports = [e.report for e in found]
        notes += bag_timing.summary(self.reports, 1 / self.contract.rate_hz)
        if not self._episodes:
            raise DataError(f"{path}: no episode can be used; {'; '.join(notes[:3]) or 'none was found'}")
        features, tasks, fingerprint, metadata = self._describe(path)
        super().__init__(
            path,
            features,
            np.array([e.report.steps for e in self._episodes]),
            tasks=tasks,
            fingerprint=fingerprint,
            metadata=metadata,
            notes=notes,
        )

    def _find_contract(self, path: Path, given: Path | Contract | None) -> Contract:
        if isinstance(given, Contract):
            return given
        places = [given] if given is not None else [path / CONTRACT_FILE, path.parent / CONTRACT_FILE]
        for place in places:
            if given is not None or place.is_file():
                return read_contract(place)
        bag = self._bag(0)
        if CONTRACT_DATA in bag.custom:
            return parse_contract(bag.custom[CONTRACT_DATA], f"{bag.path} ({CONTRACT_DATA})")
        raise DataError(
            f"{path}: a recording needs a {CONTRACT_FILE} beside it that says which topics become which features at "
            f"what rate; 'robopolicy data contract {path}' prints a draft from its {len(bag.topics)} topics"
        )

    def _bag(self, number: int) -> Bag:
        if self._open is None or self._open[0] != number:
            self.close()
            self._open = number, Bag(self._bags[number])
        return self._open[1]

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _scan(self, number: int, notes: list[str]) -> list[_Episode]:
        """The episodes of one recording, used and not."""
        name = self._bags[number].name
        for file, checksum in self._checksums.get(name, {}).items():
            if not file.is_file() or file_crc(file) != checksum:
                raise DataError(f"{file}: missing or changed (its checksum is not the one in {CHECKSUMS_FILE})")
        bag = self._bag(number)
        self._custom.append(bag.custom)
        notes += [f"{name}: {note}" for note in bag.notes]
        wanted = self.contract.topics()
        for spec in self.contract.features.values():
            if spec.type and bag.topics.get(spec.topic, spec.type) != spec.type:
                raise DataError(f"{bag.path}: {spec.topic} is {bag.topics[spec.topic]}, the contract says {spec.type}")
        silent = [topic for topic in wanted if not bag.counts.get(topic)]
        if silent:
            known = ", ".join(f"{t} ({n})" for t, n in sorted(bag.counts.items())) or "nothing"
            report = EpisodeReport(name, 0, 0, 0, (0.0, 0.0))
            report.problems.append(f"no messages of {', '.join(silent)}; it has {known}")
            return [_Episode(number, report, {}, [])]
        arrivals, events, texts = self._arrivals(bag)
        for key in self.contract.features:
            if key not in self._readers:
                self._readers[key] = self._reader(bag, key)
        found = []
        for index, window in enumerate(self._windows(name, arrivals, events, notes)):
            found.append(self._episode(number, EpisodeReport(name, index, 0, 0, (0.0, 0.0)), arrivals, window, texts))
        return found

    def _arrivals(self, bag: Bag) -> tuple[dict[str, Arrivals], list[tuple[int, bool]], list[tuple[int, str]]]:
        """When each topic spoke, the (stamp, is start) of markers and the (stamp, text) of instructions."""
        rule, task = self.contract.episode, self.contract.task
        markers = [(m, s) for m, s in ((rule.start, True), (rule.end, False)) if m is not None]
        topics = self.contract.topics()
        times = {topic: (array("q"), array("q")) for topic in topics}
        counts: dict[str, int] = {}
        events, texts = [], []
        everything = list(dict.fromkeys(topics + [m.topic for m, _ in markers]))
        for receive, topic, data in bag.messages(everything):
            counts[topic] = counts.get(topic, 0) + 1
            header = bag.header_stamp(topic, data)
            stamp = self.contract.message_time(header, receive)
            if topic in times:
                times[topic][0].append(receive)
                times[topic][1].append(header)
            if task is not None and topic == task.topic:
                texts.append((stamp, instruction(bag.decode(topic, data), task.field)))
            for marker, is_start in markers:
                if topic == marker.topic and _equals(bag.decode(topic, data), marker):
                    events.append((stamp, is_start))
        for topic in everything:
            if counts.get(topic, 0) != bag.counts.get(topic, 0):
                raise DataError(
                    f"{bag.path}: {bag.counts.get(topic, 0)} messages of {topic} are announced, "
                    f"{counts.get(topic, 0)} found"
                )
        arrivals = {}
        for topic, (receives, headers) in times.items():
            r, h = np.array(receives, np.int64), np.array(headers, np.int64)
            believable = (h > 0) & (np.abs(r - h) <= self.contract.max_clock_offset_s * SECOND)
            arrivals[topic] = Arrivals(r, h, np.where(believable, h, r))
        return arrivals, events, texts

    def _reader(self, bag: Bag, key: str) -> FeatureReader:
        spec = self.contract.features[key]
        try:
            return FeatureReader(key, spec, bag.first(spec.topic))
        except DataError as error:
            raise DataError(f"{bag.path}: feature {key!r} of {spec.topic}: {error}") from error

    def _windows(
        self, name: str, arrivals: dict[str, Arrivals], events: list[tuple[int, bool]], notes: list[str]
    ) -> Iterator[tuple[int, int]]:
        """(first, last) stamp of each episode in a recording."""
        if self.contract.episode.start is None:
            yield (
                min(int(a.stamp.min()) for a in arrivals.values()),
                max(int(a.stamp.max()) for a in arrivals.values()),
            )
            return
        begun: int | None = None
        for stamp, is_start in events:
            if is_start and begun is not None:
                notes.append(f"{name}: the episode that starts at {begun / SECOND:.3f} s has no end message, skipped")
            if not is_start and begun is None:
                notes.append(f"{name}: an end message at {stamp / SECOND:.3f} s without a start message")
            if not is_start and begun is not None:
                yield begun, stamp
            begun = stamp if is_start else None
        if begun is not None:
            notes.append(f"{name}: the episode that starts at {begun / SECOND:.3f} s has no end message, skipped")
        if not events:
            notes.append(f"{name}: no start or end message, nothing used")

    def _episode(
        self,
        number: int,
        report: EpisodeReport,
        arrivals: dict[str, Arrivals],
        window: tuple[int, int],
        texts: list[tuple[int, str]],
    ) -> _Episode:
        contract = self.contract
        report.start, end, report.trimmed_s = bag_timing.span(contract, arrivals, window)
        if end < report.start:
            report.problems.append("its topics never speak at the same time")
            return _Episode(number, report, {}, [])
        report.steps = math.floor((end - report.start) * contract.rate_hz / SECOND + 1e-6) + 1
        while contract.tick(report.start, report.steps - 1) > end:  # The estimate is in floating point.
            report.steps -= 1
        if report.steps > MAX_STEPS:
            report.problems.append(f"{report.steps} steps; its clock must be wrong")
            return _Episode(number, report, {}, [])
        bag_timing.judge(contract, report, arrivals, end, window)
        since = {topic: self._since(topic, a, report.start) for topic, a in arrivals.items()}
        if not report.problems:
            self._rehearse(report, arrivals, since)
        before = max((stamp for stamp, _ in texts if stamp <= report.start), default=report.start)
        return _Episode(number, report, since, [text for stamp, text in texts if before <= stamp <= end])

    def _since(self, topic: str, arrivals: Arrivals, start: int) -> int:
        """Arrival of the earliest message that a tick at or after `start` may need."""
        specs = [s for s in self.contract.features.values() if s.topic == topic]
        reach = max((self.contract.tolerance(s) - s.offset_s * SECOND for s in specs), default=math.inf)
        past = arrivals.stamp[(arrivals.stamp <= start) & (arrivals.receive <= start + self.contract.delay)]
        newest = int(past.max()) if len(past) else int(arrivals.stamp.min())
        first = newest if math.isinf(reach) else min(newest, start - round(reach))
        return int(arrivals.receive[arrivals.stamp >= first].min())

    def _ticks(self, report: EpisodeReport) -> list[int]:
        return [self.contract.tick(report.start, k) for k in range(report.steps)]

    def _rehearse(self, report: EpisodeReport, arrivals: dict[str, Arrivals], since: dict[str, int]) -> None:
        """Finds the first tick without a frame, by the sampler that will make the frames."""
        sampler = FrameSampler(self.contract, {})
        topics = list(arrivals)
        kept = {t: arrivals[t].receive >= since[t] for t in topics}
        receive = np.concatenate([arrivals[t].receive[kept[t]] for t in topics])
        stamp = np.concatenate([arrivals[t].stamp[kept[t]] for t in topics])
        which = np.concatenate([np.full(int(kept[t].sum()), i) for i, t in enumerate(topics)])
        order = np.argsort(receive, kind="stable")
        stream = (
            (r, topics[w], s, None)
            for r, w, s in zip(receive[order].tolist(), which[order].tolist(), stamp[order].tolist(), strict=True)
        )
        ticks = self._ticks(report)
        for k in replay(sampler, stream, ticks):
            reason = sampler.missing(ticks[k])
            if reason is not None:
                late = {t: n for t, n in sampler.late.items() if n}
                hint = f"; messages arrived too late, see latency_s: {late}" if late else ""
                seconds = (ticks[k] - report.start) / SECOND
                report.problems.append(f"nothing for step {k} ({seconds:.2f} s): {reason}{hint}")
                return

    def _describe(self, path: Path) -> tuple[FeatureSpec, tuple[str, ...], dict[str, str], dict[str, Any]]:
        """Features, instructions, fingerprint and metadata of the whole dataset."""
        found = [r.feature for r in (self._readers[k] for k in self.contract.features)]
        used: tuple[str, ...] = ()
        if self.contract.task is not None:
            found.append(Feature(TASK_INDEX, (), "int64", "language"))
            used = tuple(dict.fromkeys(t for e in self._episodes for t in e.texts))
            used = (self.contract.task.text,) if self.contract.task.text else used
        features = FeatureSpec(tuple(found), self.contract.rate_hz)
        texts = {custom[EXTENSION] for custom in self._custom if EXTENSION in custom}
        if not texts:
            metadata = {"contract": self.contract.to_yaml(), "contract_hash": self.contract.content_hash()}
            return features, used, {}, metadata
        if len(texts) > 1:
            raise DataError(f"{path}: its bags carry different {EXTENSION!r} metadata; they are not one dataset")
        try:
            data = json.loads(texts.pop())
        except ValueError as error:
            raise DataError(f"{path}: the {EXTENSION!r} metadata of its bags are not JSON ({error})") from error
        carried, tasks, fingerprint, metadata = read_extension(path, data)
        differing = [k for k in {*carried.keys(), *features.keys()} if k not in carried or k not in features]
        differing += [f.key for f in carried if f.key in features and f != features[f.key]]
        if differing or carried.rate_hz not in (None, features.rate_hz):
            lines = carried.select([k for k in differing if k in carried]).compare(
                features, "the bags", "the contract"
            )
            text = "; ".join(lines) or f"{sorted(differing)} are not described alike"
            raise DataError(f"{path}: the bags carry features other than those of the contract: {text}")
        if not set(used) <= set(tasks):
            raise DataError(f"{path}: instructions {sorted(set(used) - set(tasks))} are not in the table of its bags")
        return carried, tasks, fingerprint, metadata

    def read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        found = self._episodes[episode]
        bag, report = self._bag(found.bag), found.report
        where = f"{bag.path}: episode {episode}"
        sampler = FrameSampler(self.contract, self._readers, bag.decode, keys)
        out = {k: np.empty((report.steps, *self.features[k].shape), self.features[k].dtype) for k in keys}
        constant = self.contract.task is not None and bool(self.contract.task.text)
        ticks = self._ticks(report)
        try:
            for step in replay(sampler, self._stream(bag, found, sampler.topics), ticks):
                frame = sampler.at(ticks[step])
                if isinstance(frame, Missing):
                    raise DataError(f"step {step}: {frame.reason}")
                if TASK_INDEX in keys:
                    frame[TASK_INDEX] = 0 if constant else self.tasks.index(frame[TASK_INDEX])
                for key in keys:
                    out[key][step] = frame[key]
        except (DataError, ValueError) as error:
            raise DataError(f"{where}: {error}") from error
        return out

    def _stream(self, bag: Bag, episode: _Episode, topics: Sequence[str]) -> Iterator[tuple[int, str, int, bytes]]:
        """The messages an episode needs, in the order of arrival."""
        groups: dict[int, list[str]] = {}
        periodic = {s.topic for s in self.contract.features.values() if self.contract.is_periodic(s)}
        for topic in topics:
            both = [t for t in topics if t in periodic] if topic in periodic else [topic]
            groups.setdefault(min(episode.since[t] for t in both), []).append(topic)
        streams = [bag.messages(members, start) for start, members in groups.items()]
        for receive, topic, data in heapq.merge(*streams, key=lambda m: m[0]):
            if receive >= episode.since[topic]:
                yield receive, topic, self.contract.message_time(bag.header_stamp(topic, data), receive), data

    def attributes(self, episode: int) -> dict[str, Any]:
        found = self._episodes[episode]
        custom = self._custom[found.bag]
        if EXTENSION not in custom:
            return {"bag": self._bags[found.bag].name, "start_ns": found.report.start}
        try:
            return dict(json.loads(custom.get(ATTRIBUTES_DATA, "{}")))
        except (ValueError, TypeError) as error:
            raise DataError(f"{self._bags[found.bag]}: damaged {ATTRIBUTES_DATA} ({error})") from error

    def identity(self, key: str) -> str:
        digest = hashlib.sha256(f"{key} {json.dumps(self.contract.to_dict())}".encode())
        for bag in self._bags:
            for file in storage_files(bag):
                with file.open("rb") as stream:
                    status = file.stat()
                    digest.update(f"{file} {status.st_size} {status.st_mtime_ns}".encode())
                    digest.update(stream.read(SAMPLED_BYTES))
                    stream.seek(max(status.st_size - SAMPLED_BYTES, 0))
                    digest.update(stream.read())
        return digest.hexdigest()[:32]

    def report(self) -> dict[str, Any]:
        """Timing of every topic in every episode, used or not, in plain JSON types."""
        return {
            "path": str(self.path),
            "contract_hash": self.contract.content_hash(),
            "used": sum(not r.problems for r in self.reports),
            "skipped": sum(bool(r.problems) for r in self.reports),
            "episodes": [r.to_dict() for r in self.reports],
            "notes": list(self.notes),
            "contract": self.contract.to_yaml(),
        }


def _equals(message: Any, marker: Marker) -> bool:
    value = select(message, parse_selector(marker.field))
    return bool((value.tolist() if isinstance(value, np.ndarray) else value) == marker.equals)


class McapSource(RosbagSource):
    """Recordings in MCAP files."""

    format = "rosbag2-mcap"


class Sqlite3Source(RosbagSource):
    """Recordings in sqlite3 files."""

    format = "rosbag2-sqlite3"
