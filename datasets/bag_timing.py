"""How regularly the topics of a recording spoke, and which parts of it are fit to be episodes."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from robopolicy.datasets.contract import SECOND, Contract, TopicFeature


@dataclass
class Arrivals:
    """The messages of one topic in the order in which they arrived, [N] int64 nanoseconds each."""

    receive: np.ndarray
    header: np.ndarray
    """Stamp in the header, 0 without."""
    stamp: np.ndarray
    """The time that is used."""


@dataclass(frozen=True)
class TopicTiming:
    """One topic within one episode."""

    topic: str
    messages: int
    period_s: float | None
    """Median distance of consecutive stamps; None with fewer than two messages."""
    max_gap_s: float
    offset_s: float
    """Median of time of arrival minus stamp."""
    out_of_order: int
    """Messages older than one that came before."""
    duplicates: int
    """Messages with the stamp of another."""
    dropped: int
    """Messages that are missing, judged by the median period."""
    drop_rate: float
    jumps: int
    """Changes of the header's clock against the time of arrival that regular messages do not explain."""
    without_header: int
    """Messages whose time of arrival is used, though others of the topic have a believable header stamp."""

    @property
    def is_clean(self) -> bool:
        return not (self.out_of_order or self.duplicates or self.dropped or self.jumps or self.without_header)


@dataclass
class EpisodeReport:
    """One candidate for an episode: where it is, and why it is used or not."""

    bag: str
    number: int
    """Counts the episodes of the bag."""
    start: int
    """Stamp of the first tick, ns."""
    steps: int
    trimmed_s: tuple[float, float]
    """Cut off at the start and at the end, where not all topics speak."""
    topics: list[TopicTiming] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Why it is skipped; empty when it is used."""

    @property
    def name(self) -> str:
        return f"{self.bag}, episode {self.number}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"used": not self.problems}


def topic_timing(topic: str, arrivals: Arrivals, start: int, stop: int, jumps: int, periodic: bool) -> TopicTiming:
    """The timing of the messages with stamps in [start, stop]; drops are seen only in periodic topics."""
    inside = (arrivals.stamp >= start) & (arrivals.stamp <= stop)
    receive, header, stamp = arrivals.receive[inside], arrivals.header[inside], arrivals.stamp[inside]
    n = len(stamp)
    if n == 0:
        return TopicTiming(topic, 0, None, (stop - start) / SECOND, 0.0, 0, 0, 0, 0.0, jumps, 0)
    steps = np.diff(np.unique(stamp))
    period = float(np.median(steps)) if len(steps) else 0.0
    lost = np.rint(steps[steps > 1.5 * period] / period) - 1 if periodic and period and n >= 5 else np.zeros(0)
    dropped = int(lost.sum())
    from_header = stamp == header
    return TopicTiming(
        topic,
        n,
        period / SECOND if len(steps) else None,
        float(steps.max()) / SECOND if len(steps) else 0.0,
        float(np.median(receive - stamp)) / SECOND,
        int((stamp < np.maximum.accumulate(stamp)).sum()),
        n - len(np.unique(stamp)),
        dropped,
        dropped / (n + dropped),
        jumps,
        int((~from_header).sum()) if from_header.any() else 0,
    )


def clock_jumps(arrivals: Arrivals, window: tuple[int, int], max_jump_s: float) -> int:
    """How often the stamps in the headers leap although the messages arrive, or arrive as if nothing had happened.

    A stall of the network is no jump: its messages arrive late, but their stamps go on regularly.
    """
    inside = (arrivals.header > 0) & (arrivals.receive >= window[0]) & (arrivals.receive <= window[1])
    by_header, by_arrival = np.diff(arrivals.header[inside]), np.diff(arrivals.receive[inside])
    if len(by_header) == 0:
        return 0
    period, limit = float(np.median(by_header)), max_jump_s * SECOND
    return int(((np.abs(by_header - by_arrival) > limit) & (np.abs(by_header - period) > limit)).sum())


def span(
    contract: Contract, arrivals: dict[str, Arrivals], window: tuple[int, int]
) -> tuple[int, int, tuple[float, float]]:
    """First tick, last possible tick, and seconds cut off a window so that every feature has messages there."""
    starts, ends = [window[0]], [window[1]]
    for spec in _specs(contract):
        stamps, offset = arrivals[spec.topic].stamp, round(spec.offset_s * SECOND)
        starts.append(int(stamps.min()) - offset)
        if contract.is_periodic(spec):
            ends.append(int(stamps.max()) - offset)
    start, end = max(starts), min(ends)
    return start, end, ((start - window[0]) / SECOND, (window[1] - end) / SECOND)


def _specs(contract: Contract) -> list[TopicFeature]:
    specs = list(contract.features.values())
    if contract.task is not None and contract.task.topic:
        specs.append(TopicFeature(topic=contract.task.topic, tolerance_s=math.inf))
    return specs


def judge(
    contract: Contract, report: EpisodeReport, arrivals: dict[str, Arrivals], end: int, window: tuple[int, int]
) -> None:
    """Fills in the topics of a report, and its problems."""
    rule = contract.episode
    for side, cut in zip(("start", "end"), report.trimmed_s, strict=True):
        if cut > rule.max_trim_s:
            report.problems.append(
                f"{cut:.2f} s at the {side} are without some topic (episode.max_trim_s {rule.max_trim_s:g})"
            )
    specs = _specs(contract)
    for topic in contract.topics():
        periodic = [contract.tolerance(s) / SECOND for s in specs if s.topic == topic and contract.is_periodic(s)]
        jumps = clock_jumps(arrivals[topic], window, rule.max_jump_s)
        timing = topic_timing(topic, arrivals[topic], report.start, end, jumps, bool(periodic))
        report.topics.append(timing)
        if timing.jumps:
            report.problems.append(f"{topic}: the clock of the stamps jumps {timing.jumps} times")
        if periodic and timing.max_gap_s > max(rule.max_gap_s, *periodic):
            report.problems.append(
                f"{topic}: a gap of {timing.max_gap_s:.3f} s (episode.max_gap_s {rule.max_gap_s:g})"
            )
        if periodic and timing.drop_rate > rule.max_drop:
            report.problems.append(
                f"{topic}: {timing.dropped} messages dropped, {timing.drop_rate:.1%} "
                f"(episode.max_drop {rule.max_drop:g})"
            )


def summary(reports: list[EpisodeReport], period_s: float) -> list[str]:
    """One line per skipped episode, per noticeably trimmed one, and per topic that was not clean in used ones."""
    lines = [f"{r.name} skipped: {'; '.join(r.problems)}" for r in reports if r.problems]
    used = [r for r in reports if not r.problems]
    for report in used:
        if max(report.trimmed_s) > period_s:
            a, b = report.trimmed_s
            lines.append(f"{report.name}: {a:.2f} s at the start and {b:.2f} s at the end lack a topic, left out")
    for topic in dict.fromkeys(t.topic for r in used for t in r.topics):
        found = [t for r in used for t in r.topics if t.topic == topic and not t.is_clean]
        counts = {
            "out of order": sum(t.out_of_order for t in found),
            "with the stamp of another": sum(t.duplicates for t in found),
            "dropped": sum(t.dropped for t in found),
            "without a believable header stamp": sum(t.without_header for t in found),
        }
        said = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        if said:
            gap = max(t.max_gap_s for t in found)
            lines.append(f"{topic}: messages {said}; longest gap {gap:.3f} s; in {len(found)} of {len(used)} episodes")
    return lines
