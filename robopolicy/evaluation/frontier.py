"""Score against latency: which sampler settings are worth their time, and which meet the control period."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robopolicy.evaluation.statistics import Interval

FORMAT = "robopolicy-frontier"
VERSION = 1


@dataclass(frozen=True)
class Setting:
    """One way to draw a chunk from trained weights."""

    sampler: str
    steps: int
    schedule: str
    guidance: float | None = None
    """None for policies without guidance."""
    dtype: str = "float32"
    compiled: bool = False

    @property
    def family(self) -> str:
        """Everything but the steps, in words."""
        parts = [self.sampler, "" if self.schedule == "native" else self.schedule]
        parts += ["" if self.guidance is None else f"guidance {self.guidance:g}"]
        parts += ["" if self.dtype == "float32" else self.dtype, "compiled" if self.compiled else ""]
        return ", ".join(p for p in parts if p)


@dataclass(frozen=True)
class Point:
    """A setting with its score and its latency for one chunk in ms."""

    setting: Setting
    score: Interval
    success: Interval
    p50: float
    p95: float
    p99: float


@dataclass
class Frontier:
    """All points of one checkpoint on one machine."""

    checkpoint: str
    task: str
    score_name: str
    purpose: str
    """What the seeds of the episodes are for."""
    episodes: int
    period_ms: float | None
    """T_a / rate: a chunk must be ready before the last is used up; None without a known rate."""
    machine: dict[str, Any]
    points: list[Point]

    def meets(self, point: Point) -> bool | None:
        """Whether 99 of 100 chunks are ready in time."""
        return None if self.period_ms is None else point.p99 < self.period_ms

    def best(self, point: Point) -> bool:
        """Whether no other point is at least as fast (p50) and as good (mean score), and better in one."""
        mine = (point.p50, -point.score.value)
        others = [(p.p50, -p.score.value) for p in self.points]
        return not any(o != mine and o[0] <= mine[0] and o[1] <= mine[1] for o in others)

    def table(self) -> str:
        """One line per point, fastest first."""
        width = max(len("setting"), *(len(p.setting.family) for p in self.points))
        lines = [
            f"{self.task}, {self.episodes} episodes on {self.purpose} seeds; latency of one chunk, "
            f"{self.machine['device']}, {self.machine['threads']} threads"
        ]
        if self.period_ms is not None:
            lines.append(f"control period {self.period_ms:.0f} ms: met when p99 is below")
        head = f"{'setting':<{width}} {'steps':>5}  {'score':<22} {'success':<22}"
        lines.append(f"{head} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}  meets  best")
        for p in sorted(self.points, key=lambda p: p.p50):
            meets = {True: "yes", False: "no", None: ""}[self.meets(p)]
            text = f"{p.setting.family:<{width}} {p.setting.steps:5d}  {p.score!s:<22} {p.success!s:<22}"
            best = "*" if self.best(p) else ""
            lines.append(f"{text} {p.p50:8.2f} {p.p95:8.2f} {p.p99:8.2f}  {meets:<5}  {best}".rstrip())
        return "\n".join(lines)

    def to_json(self) -> str:
        """Plain JSON with every point."""
        rows = [asdict(p) | {"meets_period": self.meets(p), "best": self.best(p)} for p in self.points]
        data = {k: v for k, v in vars(self).items() if k != "points"}
        return json.dumps({"format": FORMAT, "version": VERSION} | data | {"points": rows}, indent=1) + "\n"

    def picture(self) -> bytes:
        """PNG: score with its interval against latency from p50 to p99."""
        figure = Figure(figsize=(8.0, 5.0), dpi=140)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        families = list(dict.fromkeys(p.setting.family for p in self.points))
        for number, family in enumerate(families):
            points = sorted((p for p in self.points if p.setting.family == family), key=lambda p: p.p50)
            self._draw(axes, points, f"C{number % 10}")
        best = sorted((p for p in self.points if self.best(p)), key=lambda p: p.p50)
        axes.plot([p.p50 for p in best], [p.score.value for p in best], color="0.6", lw=1, ls="--", zorder=0)
        handles = [Line2D([], [], color=f"C{n % 10}", marker="o", label=f) for n, f in enumerate(families)]
        handles.append(Line2D([], [], color="0.6", ls="--", label="none is faster and better"))
        if self.period_ms is not None:
            axes.axvline(self.period_ms, color="0.2", lw=1.2, ls=":")
            handles.append(Line2D([], [], color="0.2", ls=":", label=f"control period {self.period_ms:.0f} ms"))
            handles.append(Line2D([], [], color="0.4", ls="", marker="o", mfc="white", label="p99 misses it"))
        axes.set_xscale("log")
        axes.set_xlabel("latency of one chunk, p50 to p99 (ms)")
        axes.set_ylabel(f"score ({self.score_name})")
        axes.set_title(f"{self.task}, {self.episodes} {self.purpose} episodes; numbers are steps", fontsize=10)
        axes.grid(True, color="0.9")
        axes.set_axisbelow(True)
        axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
        return buffer.getvalue()

    def _draw(self, axes: Any, points: Sequence[Point], colour: str) -> None:
        for p in points:
            face = "white" if self.meets(p) is False else colour
            low, high = (v if v == v else p.score.value for v in (p.score.low, p.score.high))
            axes.plot([p.p50, p.p99], [p.score.value] * 2, color=colour, lw=1, alpha=0.6)
            axes.plot([p.p50] * 2, [low, high], color=colour, lw=1, alpha=0.6)
            axes.plot(p.p50, p.score.value, color=colour, marker="o", ms=6, mfc=face)
            axes.annotate(str(p.setting.steps), (p.p50, p.score.value), (4, 4), textcoords="offset points", fontsize=8)
