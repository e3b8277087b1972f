"""What an evaluation found: numbers with intervals, pictures and videos, and how they are stored."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.errors import DataError, RobopolicyError
from robopolicy.evaluation.statistics import Interval, bootstrap_mean, wilson

FORMAT = "robopolicy-eval"
VERSION = 1
INFO_FILE = "eval_info.json"
SCORE_METHOD = "percentile bootstrap over episodes, 10000 resamples"


@dataclass(frozen=True)
class Episode:
    """One rollout from the initial state of `seed`."""

    seed: int
    score: float
    """Task.score of the unrounded rewards."""
    success: bool
    """Whether any step succeeded."""
    steps: int
    rewards: list[float]
    """Reward of each step, rounded to 5 decimals."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Largest value of each of the task's other metrics."""


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation during training."""

    step: int
    score: float
    low: float
    high: float
    success: float


@dataclass
class EvalInfo:
    """Everything in `eval_info.json`; the intervals are functions of the episodes and are recomputed on loading."""

    task: str
    score_name: str
    checkpoint: str
    """Label of what was evaluated, usually the path of the checkpoint."""
    purpose: str
    """What this range of seeds is for: test, validation, training or mixed."""
    episodes: list[Episode]
    runner: dict[str, Any]
    """Settings of the runner that change what is executed."""
    fingerprint: dict[str, str]
    """Versions of the simulator and hashes of its assets."""
    timing: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What a reader must know before using the numbers."""
    confidence: float = 0.95

    @property
    def seeds(self) -> list[int]:
        return [e.seed for e in self.episodes]

    @property
    def score(self) -> Interval:
        """Mean score; percentile bootstrap over episodes."""
        return bootstrap_mean([e.score for e in self.episodes], confidence=self.confidence)

    @property
    def success(self) -> Interval:
        """Success rate; Wilson score interval."""
        return wilson(sum(e.success for e in self.episodes), len(self.episodes), self.confidence)

    @property
    def metrics(self) -> dict[str, Interval]:
        """Means of the task's other metrics; percentile bootstrap over episodes."""
        names = self.episodes[0].metrics if self.episodes else {}
        return {n: bootstrap_mean([e.metrics[n] for e in self.episodes], confidence=self.confidence) for n in names}

    @property
    def best(self) -> Episode:
        """The first of the episodes with the highest score."""
        return max(self.episodes, key=lambda e: e.score)

    @property
    def worst(self) -> Episode:
        """The first of the episodes with the lowest score."""
        return min(self.episodes, key=lambda e: e.score)

    def curve_point(self, step: int) -> CurvePoint:
        """This evaluation as one point of a training curve."""
        score = self.score
        return CurvePoint(step, score.value, score.low, score.high, self.success.value)

    def summary(self) -> str:
        """One line for a log."""
        others = "".join(f"{name} {interval}, " for name, interval in self.metrics.items())
        return (
            f"{self.task}: {self.score_name} {self.score}, {others}success {self.success}, "
            f"{len(self.episodes)} episodes, "
            f"{self.purpose} seeds {min(self.seeds)}..{max(self.seeds)}"
        )

    def to_json(self) -> str:
        """Plain JSON; the layout is fixed by `VERSION`.

        Keys: format, version, task, score_name, checkpoint, purpose, seeds {first, last, count}, confidence, score
        {mean, low, high, method}, success {rate, low, high, successes, method}, metrics {name: {mean, low, high}},
        episodes [{seed, score, success, steps, rewards, metrics}], runner, fingerprint, timing, provenance, notes.
        Limits are null when one episode gives none.
        """
        score, success = self.score, self.success
        data = {
            "format": FORMAT,
            "version": VERSION,
            "task": self.task,
            "score_name": self.score_name,
            "checkpoint": self.checkpoint,
            "purpose": self.purpose,
            "seeds": {"first": min(self.seeds), "last": max(self.seeds), "count": len(self.seeds)},
            "confidence": self.confidence,
            "score": {"mean": score.value} | _limits(score) | {"method": SCORE_METHOD},
            "success": {"rate": success.value}
            | _limits(success)
            | {"successes": sum(e.success for e in self.episodes), "method": "Wilson score interval"},
            "metrics": {name: {"mean": m.value, **_limits(m)} for name, m in self.metrics.items()},
            "episodes": [asdict(e) for e in self.episodes],
            "runner": self.runner,
            "fingerprint": self.fingerprint,
            "timing": self.timing,
            "provenance": self.provenance,
            "notes": self.notes,
        }
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> "EvalInfo":
        """Reads `eval_info.json`, or the folder that holds it."""
        file = Path(path)
        file = file / INFO_FILE if file.is_dir() else file
        try:
            data = json.loads(file.read_text())
        except OSError as error:
            raise DataError(f"{file}: cannot read the evaluation: {error.strerror}") from None
        except ValueError as error:
            raise DataError(f"{file}: not valid JSON: {error}") from None
        if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
            raise DataError(f"{file}: not an evaluation of format {FORMAT!r} version {VERSION}")
        try:
            values = {f.name: data[f.name] for f in fields(cls)}
            return cls(**values | {"episodes": [Episode(**e) for e in data["episodes"]]})
        except (KeyError, TypeError) as error:
            raise DataError(f"{file}: damaged evaluation: {error}") from None


@dataclass
class EvalResult:
    """An evaluation with its pictures and videos."""

    info: EvalInfo
    pictures: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    """Seed -> PNG of the first and of the last state."""
    videos: dict[int, bytes] = field(default_factory=dict)
    """Seed -> MP4."""

    @property
    def episodes(self) -> list[Episode]:
        return self.info.episodes

    @property
    def score(self) -> Interval:
        """Mean score with its interval."""
        return self.info.score

    @property
    def metrics(self) -> dict[str, Interval]:
        """Means of the task's other metrics with their intervals."""
        return self.info.metrics

    @property
    def success(self) -> Interval:
        """Success rate with its interval."""
        return self.info.success

    def save(self, folder: str | Path, overwrite: bool = False, curve: Sequence[CurvePoint] = ()) -> Path:
        """Writes eval_info.json, report.html and videos/episode_<seed>.mp4; all of them or nothing.

        An existing folder is an error unless `overwrite`. `curve` is drawn in the report.
        """
        # Here, so that evaluating during training does not import matplotlib.
        from robopolicy.evaluation.report import build_report

        target = Path(folder)
        if target.exists() and not overwrite:
            raise RobopolicyError(f"{target} exists; pass overwrite to replace it")
        files = {INFO_FILE: self.info.to_json().encode(), "report.html": build_report(self, curve).encode()}
        files |= {f"videos/episode_{seed}.mp4": data for seed, data in self.videos.items()}
        write_folder(target, files)
        return target


def write_folder(target: Path, files: dict[str, bytes]) -> None:
    """Puts a folder of these files in the place of `target`; a kill at any moment leaves no half-written folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        content = temporary / "new"
        content.mkdir()
        for name, data in files.items():
            path = content / name
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        old = temporary / "old"
        if target.exists():
            target.rename(old)
        try:
            content.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _limits(interval: Interval) -> dict[str, float | None]:
    if math.isnan(interval.low):
        return {"low": None, "high": None}
    return {"low": interval.low, "high": interval.high}


def rounded(rewards: Sequence[float]) -> list[float]:
    """Rewards as they are stored."""
    return [float(r) for r in np.round(rewards, 5)]
