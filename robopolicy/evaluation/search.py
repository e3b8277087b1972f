"""Honest search for composition weights (GPC section 4.3): chosen on validation seeds, reported on test seeds.

The best of many equal policies looks better than it is on the episodes it was chosen by. So every point of the grid is
scored on validation seeds, the weights are frozen, and everything reported is measured again on test seeds. What the
best point would have scored there, had it been chosen there, is shown beside it as the leaked best.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robopolicy.diffusion.noise import randn
from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.compare import Comparison, compare
from robopolicy.evaluation.result import EvalInfo
from robopolicy.features import ACTION
from robopolicy.policies.composed import ComposedPolicy

FORMAT = "robopolicy-compose-search"
VERSION = 1
MAX_LEVELS = 30
"""Noise levels at which the closed-form weights are computed."""


@dataclass(frozen=True)
class Candidate:
    """One composition to score."""

    label: str
    weights: tuple[float, ...]
    control: bool = False
    """Not a composition that may be chosen but a control: convex, by the sampler that the operator uses."""

    @property
    def parent(self) -> int | None:
        """Number of the parent that has all weight, when one has."""
        return self.weights.index(1.0) if 1.0 in self.weights else None


Score = Callable[[Candidate, list[int]], EvalInfo]
"""Evaluates a candidate on these seeds."""


def simplex_grid(values: Sequence[float], parents: int) -> list[tuple[float, ...]]:
    """Weights to try: for two parents (v, 1 - v) for every value, for more all combinations that sum to 1.

    The single parents come last and are always included.
    """
    if not values or not all(np.isfinite(v) and 0 <= v <= 1 for v in values):
        raise RobopolicyError(f"--grid {' '.join(f'{v:g}' for v in values)}: expected weights in 0..1")
    chosen = sorted(set(values))
    points: list[tuple[float, ...]] = [(v, round(1 - v, 9)) for v in chosen]
    if parents > 2:
        points = [p for p in itertools.product(chosen, repeat=parents) if abs(sum(p) - 1) < 1e-9]
    alone = [tuple(float(i == k) for i in range(parents)) for k in range(parents)]
    return [p for p in points if p not in alone] + alone


@dataclass
class NoiseFit:
    """Weights that predict the noise of held-out demonstrations best, per noise level (Proposition 4.1)."""

    sigmas: list[float]
    errors: list[list[float]]
    """Mean squared error of each parent's noise prediction, [levels][parents]."""
    weights: list[list[float]]
    """Best weights on the simplex at each level."""
    unconstrained: list[list[float]]
    """Best weights with sum 1, which may be negative."""
    overall: list[float]
    """Best weights on the simplex for all levels together."""
    windows: int


@dataclass
class SearchResult:
    """Every number of a search."""

    names: list[str]
    operator: str
    task: str
    validation_seeds: list[int]
    test_seeds: list[int]
    validation: list[tuple[Candidate, EvalInfo]]
    test: list[tuple[Candidate, EvalInfo]]
    chosen: Candidate
    """Best on validation seeds."""
    better_parent: Candidate
    """Better (or best) parent on validation seeds."""
    fit: NoiseFit | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def tested(self, candidate: Candidate) -> EvalInfo:
        """What `candidate` scored on test seeds."""
        return next(info for c, info in self.test if c == candidate)

    @property
    def equal(self) -> Candidate:
        """The candidate with equal weights."""
        return next(c for c, _ in self.test if not c.control and max(c.weights) - min(c.weights) < 1e-6)

    @property
    def leaked(self) -> Candidate | None:
        """Best on test seeds, had it been chosen there; None unless the whole grid was scored there."""
        scored = [(c, i) for c, i in self.test if not c.control]
        if not {c for c, _ in self.validation} <= {c for c, _ in scored}:
            return None
        return max(scored, key=lambda pair: pair[1].score.value)[0]

    def comparisons(self) -> list[Comparison]:
        """Paired tests on test seeds: the chosen weights against each parent, equal weights and controls."""
        chosen = self.tested(self.chosen)
        others = [(c, i) for c, i in self.test if c != self.chosen and (c.parent is not None or c.control)]
        if self.equal != self.chosen:
            others.append((self.equal, self.tested(self.equal)))
        return [compare(info, chosen) for _, info in others]

    @property
    def gain(self) -> Comparison:
        """The honest result: chosen weights minus the parent that validation seeds call better."""
        return compare(self.tested(self.better_parent), self.tested(self.chosen))

    def verdict(self) -> str:
        """Whether composition helped, in one sentence."""
        if self.chosen.parent is not None:
            return f"No composition beat the better parent on validation seeds: the search chose {self.chosen.label}."
        difference = self.gain.difference
        word = "helped" if difference.low > 0 else "harmed" if difference.high < 0 else "made no difference to be seen"
        return (
            f"Composition {word}: {self.chosen.label} minus {self.better_parent.label} is {difference} on "
            f"{len(self.test_seeds)} test episodes."
        )

    def to_json(self) -> str:
        """Plain JSON with the seeds, every candidate's episodes, and the paired tests."""

        def scored(pairs: list[tuple[Candidate, EvalInfo]]) -> list[dict[str, Any]]:
            return [
                asdict(c)
                | {
                    "score": asdict(i.score),
                    "success": asdict(i.success),
                    "episodes": [{"seed": e.seed, "score": e.score, "success": e.success} for e in i.episodes],
                }
                for c, i in pairs
            ]

        data = {
            "format": FORMAT,
            "version": VERSION,
            "task": self.task,
            "operator": self.operator,
            "parents": self.names,
            "seeds": {"validation": self.validation_seeds, "test": self.test_seeds},
            "validation": scored(self.validation),
            "test": scored(self.test),
            "chosen": asdict(self.chosen),
            "better_parent": asdict(self.better_parent),
            "leaked_best": asdict(self.leaked) if self.leaked else None,
            "comparisons": [asdict(c) for c in self.comparisons()],
            "gain": asdict(self.gain) if self.chosen != self.better_parent else None,
            "verdict": self.verdict(),
            "closed_form": asdict(self.fit) if self.fit else None,
            "settings": self.settings,
        }
        return json.dumps(data, indent=1) + "\n"


def search_weights(
    score: Score,
    names: Sequence[str],
    grid: Sequence[tuple[float, ...]],
    validation_seeds: Sequence[int],
    test_seeds: Sequence[int],
    *,
    operator: str = "convex",
    leaked: bool = True,
    fit: NoiseFit | None = None,
) -> SearchResult:
    """Scores `grid` on validation seeds, freezes the best weights, then scores on test seeds.

    Test seeds are first met by the parents, equal weights, the chosen weights and those of `fit`, and for operators
    by their controls; with `leaked` by the rest of the grid, too. Ties go to the earlier point, so to a composition
    before a parent. RobopolicyError when the two lists of seeds share one.
    """
    validation, test = list(validation_seeds), list(test_seeds)
    if common := set(validation) & set(test):
        raise RobopolicyError(
            f"seeds {sorted(common)[:3]} are in both lists: weights must not be chosen on test seeds"
        )
    count, prefix = len(names), "" if operator == "convex" else operator
    candidates = [_candidate(w, names, prefix) for w in grid]
    scored = [(c, score(c, validation)) for c in candidates]
    chosen = max(scored, key=lambda pair: pair[1].score.value)[0]
    better = max((p for p in scored if p[0].parent is not None), key=lambda pair: pair[1].score.value)[0]

    equal = _candidate((1 / count,) * count, names, prefix)
    same = next((c for c in candidates if np.allclose(c.weights, equal.weights, atol=1e-6)), equal)
    wanted = [*(c for c in candidates if c.parent is not None), same, chosen]
    if fit is not None and 1.0 not in fit.overall:
        wanted.append(_candidate(tuple(fit.overall), names, f"closed form {prefix}".rstrip()))
    if operator != "convex":
        parents = [c for c in candidates if c.parent is not None]
        wanted += [Candidate(f"{c.label}, ancestral sampling", c.weights, control=True) for c in parents]
        mean = _candidate(same.weights, names, "convex").label
        wanted.append(Candidate(f"{mean}, ancestral sampling", same.weights, control=True))
    if leaked:
        wanted += candidates
    tested = [(c, score(c, test)) for c in dict.fromkeys(wanted)]
    task = scored[0][1].task
    return SearchResult(list(names), operator, task, validation, test, scored, tested, chosen, better, fit)


def _candidate(weights: tuple[float, ...], names: Sequence[str], prefix: str = "") -> Candidate:
    if 1.0 in weights:
        return Candidate(names[weights.index(1.0)], weights)
    text = " ".join(f"{w:.3g}" for w in weights)
    return Candidate(f"{prefix} w = {text}".strip(), weights)


def fit_noise(composed: ComposedPolicy, batch: dict[str, Tensor], generator: torch.Generator) -> NoiseFit:
    """Least squares of the true noise on the parents' predictions, with weights of sum 1, per noise level.

    `batch` holds windows of demonstrations no parent was trained on, "action" [B, H, D_a] in physical units and
    "action_is_pad" [B, H]. Levels are those that the equal composition is sampled at.
    """
    count = len(composed.parents)
    whole = composed.with_weights((1 / count,) * count, "convex", composed.config.sampler)
    rows = min(p.horizon for p in whole.config.parents)
    clean = whole.normalizer.normalize(ACTION, batch[ACTION])
    real = ~batch["action_is_pad"][:, :rows]
    levels = whole.noise_levels()[:-1]
    if len(levels) > MAX_LEVELS:
        levels = levels[torch.linspace(0, len(levels) - 1, MAX_LEVELS).round().long()]
    products = []
    with torch.inference_mode():
        denoisers = whole.denoisers(batch)
        for sigma in levels.tolist():
            x = clean + sigma * randn(clean.shape, generator, clean.device)
            level = torch.tensor(sigma, dtype=clean.dtype, device=clean.device)
            # The error of a noise prediction (x - D) / sigma is that of D over -sigma.
            errors = [((d(x, level)[:, :rows] - clean[:, :rows]) / sigma)[real].double().flatten() for d in denoisers]
            stacked = torch.stack(errors)
            products.append((stacked @ stacked.T / stacked.shape[1]).cpu().numpy())
    return NoiseFit(
        sigmas=levels.tolist(),
        errors=[np.diag(m).tolist() for m in products],
        weights=[_simplex_minimum(m).tolist() for m in products],
        unconstrained=[_affine_minimum(m).tolist() for m in products],
        overall=_simplex_minimum(np.mean(products, axis=0)).tolist(),
        windows=len(clean),
    )


def _affine_minimum(m: np.ndarray) -> np.ndarray:
    """The w with sum 1 that minimises w^T m w, nearest to equal weights where there are several.

    For two parents w_1 = (m_22 - m_12) / (m_11 + m_22 - 2 m_12), Proposition 4.1 of GPC.
    """
    n = len(m)
    equal = np.full(n, 1 / n)
    directions = np.eye(n)[:, :-1] - np.eye(n)[:, -1:]
    solution = np.linalg.pinv(directions.T @ m @ directions, hermitian=True) @ (directions.T @ m @ equal)
    result: np.ndarray = equal - directions @ solution
    return result


def _simplex_minimum(m: np.ndarray) -> np.ndarray:
    """The w on the simplex that minimises w^T m w: the best of the minima on its faces that lie inside them."""
    n = len(m)
    best, least = np.eye(n)[0], np.inf
    for size in range(1, n + 1):
        for face in map(list, itertools.combinations(range(n), size)):
            w = np.zeros(n)
            w[face] = _affine_minimum(m[np.ix_(face, face)])
            if (w >= 0).all() and w @ m @ w < least - 1e-15:
                best, least = w, w @ m @ w
    return best
