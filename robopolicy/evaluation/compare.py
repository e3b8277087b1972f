"""Compares two evaluations episode by episode and says what can be concluded."""

from dataclasses import dataclass, field

import numpy as np

from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.result import EvalInfo
from robopolicy.evaluation.statistics import Interval, mcnemar_exact, paired_bootstrap, pairs_needed

TIE = 1e-6
"""Scores closer than this are a tie."""
FEWEST = 10
"""With fewer pairs a bootstrap interval is too narrow to conclude anything from."""


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same initial states; differences are b - a."""

    name_a: str
    name_b: str
    task: str
    purpose: str
    n: int
    """Episodes that both ran."""
    score_a: float
    score_b: float
    difference: Interval
    """Mean difference of the scores, paired bootstrap."""
    success_a: float
    success_b: float
    only_a: int
    """Episodes in which only a succeeded."""
    only_b: int
    p_success: float
    """Exact McNemar test on success."""
    wins: int
    """Episodes in which b scored higher."""
    ties: int
    losses: int
    needed: int | None
    """Episodes at which the observed mean difference would be seen with 80 % power; None when it is zero."""
    confidence: float
    warnings: list[str] = field(default_factory=list)

    @property
    def conclusion(self) -> str:
        """One sentence that claims no more than the intervals allow."""
        d, percent = self.difference, f"{100 * self.confidence:g} %"
        if self.n < FEWEST:
            return f"{self.n} common episodes support no conclusion; run at least {FEWEST}."
        if d.low > 0 or d.high < 0:
            winner, low, high = (self.name_b, d.low, d.high) if d.low > 0 else (self.name_a, -d.high, -d.low)
            return f"{winner} scores higher by {abs(d.value):.3f} [{low:.3f}, {high:.3f}] ({percent} interval)."
        text = f"Not distinguishable with {self.n} episodes: the difference of {d} includes 0."
        if self.needed is None:
            return text
        # Two digits: the estimate itself rests on a difference that was not established.
        digits = max(0, len(str(self.needed)) - 2)
        return f"{text} If it is real, about {round(self.needed, -digits)} episodes would be needed to see it."

    def __str__(self) -> str:
        lines = [
            f"task      {self.task}, {self.n} common episodes, {self.purpose} seeds",
            f"a         {self.name_a}: score {self.score_a:.3f}, success {self.success_a:.3f}",
            f"b         {self.name_b}: score {self.score_b:.3f}, success {self.success_b:.3f}",
            f"score     b - a = {self.difference} (paired bootstrap, {100 * self.confidence:g} %)",
            f"episodes  b higher in {self.wins}, equal in {self.ties}, lower in {self.losses}",
            f"success   only a in {self.only_a}, only b in {self.only_b}, McNemar p = {self.p_success:.3g}",
            *(f"warning   {w}" for w in self.warnings),
            self.conclusion,
        ]
        return "\n".join(lines)


def compare(a: EvalInfo, b: EvalInfo, confidence: float = 0.95) -> Comparison:
    """Pairs the episodes of `a` and `b` by seed.

    Raises `RobopolicyError` when the tasks differ or no seed is common; other differences become warnings.
    """
    if a.task != b.task:
        raise RobopolicyError(f"cannot compare task {a.task!r} with task {b.task!r}")
    if a.score_name != b.score_name:
        raise RobopolicyError(f"cannot compare score {a.score_name!r} with score {b.score_name!r}")
    left, right = {e.seed: e for e in a.episodes}, {e.seed: e for e in b.episodes}
    seeds = [s for s in left if s in right]
    if not seeds:
        raise RobopolicyError(
            f"no common seeds: a has {min(left)}..{max(left)}, b has {min(right)}..{max(right)}; "
            "evaluate both on the same seeds"
        )
    scores_a, scores_b = (np.array([side[s].score for s in seeds]) for side in (left, right))
    success_a, success_b = (np.array([side[s].success for s in seeds]) for side in (left, right))
    difference = scores_b - scores_a
    only_a, only_b, p = mcnemar_exact(success_a, success_b)
    return Comparison(
        name_a=_name(a, "a"),
        name_b=_name(b, "b"),
        task=a.task,
        purpose=a.purpose,
        n=len(seeds),
        score_a=float(scores_a.mean()),
        score_b=float(scores_b.mean()),
        difference=paired_bootstrap(scores_a, scores_b, confidence=confidence),
        success_a=float(success_a.mean()),
        success_b=float(success_b.mean()),
        only_a=only_a,
        only_b=only_b,
        p_success=p,
        wins=int(np.sum(difference > TIE)),
        ties=int(np.sum(np.abs(difference) <= TIE)),
        losses=int(np.sum(difference < -TIE)),
        needed=pairs_needed(difference, confidence=confidence),
        confidence=confidence,
        warnings=_warnings(a, b, len(seeds)),
    )


def _name(info: EvalInfo, fallback: str) -> str:
    return f"{fallback} ({info.checkpoint})" if info.checkpoint else fallback


def _warnings(a: EvalInfo, b: EvalInfo, common: int) -> list[str]:
    lines = []
    for what, left, right in (("simulator", a.fingerprint, b.fingerprint), ("runner", a.runner, b.runner)):
        for key in sorted({*left, *right}):
            if left.get(key) != right.get(key):
                lines.append(f"{what} {key} differs: {left.get(key)} and {right.get(key)}")
    for name, info in (("a", a), ("b", b)):
        if len(info.episodes) > common:
            lines.append(f"{len(info.episodes) - common} of {len(info.episodes)} episodes of {name} have no partner")
        lines += [f"{name}: {note}" for note in info.notes]
    if a.purpose == "validation":
        lines.append("validation seeds: if they chose either checkpoint, the difference is optimistic")
    return lines
