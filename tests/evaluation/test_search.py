"""The honest protocol: seeds, freezing, the leaked best; and weights in closed form."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.diffusion.processes import EDM, Flow
from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.result import Episode, EvalInfo
from robopolicy.evaluation.search import (
    Candidate,
    SearchResult,
    _affine_minimum,
    _simplex_minimum,
    fit_noise,
    search_weights,
    simplex_grid,
)
from robopolicy.evaluation.search_report import build_search_report
from robopolicy.policies.composed import compose

sys.path.insert(0, str(Path(__file__).parent.parent / "policies"))
from composition import exact_parent

VALIDATION, TEST = list(range(200, 260)), list(range(100, 160))
GRID = simplex_grid([0.2, 0.5, 0.8], 2)


class Scorer:
    """Scores a composition by a curve over the first weight, and remembers who met which seeds in which order."""

    def __init__(self, validation: dict[float, float], test: dict[float, float]) -> None:
        self.curves, self.calls = {"validation": validation, "test": test}, []

    def __call__(self, candidate: Candidate, seeds: list[int]) -> EvalInfo:
        purpose = "validation" if seeds == VALIDATION else "test"
        self.calls.append((purpose, candidate))
        mean = self.curves[purpose][candidate.weights[0]]
        scores = [mean + 0.1 * np.sin(s + 10 * candidate.weights[0]) for s in seeds]
        episodes = [Episode(s, float(v), bool(v > 0.5), 10, [float(v)]) for s, v in zip(seeds, scores, strict=True)]
        return EvalInfo("toy", "score", candidate.label, purpose, episodes, {}, {})


PEAK = {0.0: 0.3, 0.2: 0.4, 0.5: 0.5, 0.8: 0.7, 1.0: 0.4}
ELSEWHERE = {0.0: 0.6, 0.2: 0.9, 0.5: 0.5, 0.8: 0.55, 1.0: 0.4}


def _search(score: Scorer, **options: object) -> SearchResult:
    return search_weights(score, ["a", "b"], GRID, VALIDATION, TEST, **options)  # type: ignore[arg-type]


def test_weights_are_frozen_before_any_test_seed_is_met() -> None:
    score = Scorer(PEAK, ELSEWHERE)
    result = _search(score)
    purposes = [p for p, _ in score.calls]
    assert purposes == sorted(purposes, reverse=True), "all validation comes before any test"
    assert result.chosen.weights == (0.8, 0.2)
    assert result.better_parent.label == "a", "by validation, though b is better on test seeds"
    # What is reported was measured again, and the leaked best is what choosing on test seeds would have given.
    assert result.tested(result.chosen).score.value == pytest.approx(0.55, abs=0.03)
    assert result.leaked is not None
    assert result.leaked.weights == (0.2, 0.8)
    assert {e.seed for _, i in result.test for e in i.episodes} == set(TEST)
    assert len({c for _, c in score.calls}) == 5


def test_test_scores_do_not_change_the_choice() -> None:
    for test in (ELSEWHERE, PEAK, dict.fromkeys(PEAK, 0.5)):
        assert _search(Scorer(PEAK, test)).chosen.weights == (0.8, 0.2)


def test_without_the_leak_only_the_reported_points_meet_test_seeds() -> None:
    score = Scorer(PEAK, ELSEWHERE)
    result = _search(score, leaked=False)
    assert [c.weights[0] for p, c in score.calls if p == "test"] == [1.0, 0.0, 0.5, 0.8]
    assert result.leaked is None
    assert "leaked best:" not in build_search_report(result)


def test_shared_seeds_are_refused_before_anything_runs() -> None:
    score = Scorer(PEAK, ELSEWHERE)
    with pytest.raises(RobopolicyError, match=r"seeds \[159\] are in both lists"):
        search_weights(score, ["a", "b"], GRID, [159, 300], TEST)
    assert score.calls == []


def test_the_verdict_says_no_more_than_the_interval() -> None:
    assert "helped" in _search(Scorer(PEAK, PEAK)).verdict()
    assert "harmed" in _search(Scorer(PEAK, PEAK | {0.8: 0.1})).verdict()
    same = _search(Scorer(PEAK, PEAK | {0.8: 0.4}))
    assert "no difference" in same.verdict()
    parent = _search(Scorer(PEAK | {1.0: 0.9}, PEAK))
    assert "No composition beat" in parent.verdict()
    assert parent.gain.difference.value == 0.0


def test_operators_bring_their_controls() -> None:
    score = Scorer(PEAK, ELSEWHERE)
    result = _search(score, operator="or", leaked=False)
    controls = [c for c, _ in result.test if c.control]
    assert [c.weights for c in controls] == [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    assert all("ancestral" in c.label for c in controls)
    assert len(result.comparisons()) == 6


def test_the_report_and_json_hold_every_number() -> None:
    result = _search(Scorer(PEAK, ELSEWHERE))
    data = json.loads(result.to_json())
    assert data["seeds"] == {"validation": VALIDATION, "test": TEST}
    assert len(data["validation"]) == len(data["test"]) == 5
    assert len(data["validation"][0]["episodes"]) == 60
    assert data["leaked_best"]["weights"] == [0.2, 0.8]
    page = build_search_report(result)
    for text in ("chosen on validation seeds", "leaked best:", "equal weights", "McNemar p", result.verdict()):
        assert text in page
    assert page.count("data:image/png") == 2
    assert "<script" not in page


def test_grids() -> None:
    assert simplex_grid([0.0, 0.5, 1.0], 2) == [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]
    three = simplex_grid([0.0, 0.5, 1.0], 3)
    assert set(three[:3]) == {(0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)}
    assert three[3:] == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    tenths = simplex_grid([i / 10 for i in range(11)], 3)
    assert len(tenths) == len(set(tenths)) == 66
    for bad in ([], [1.2], [float("nan")]):
        with pytest.raises(RobopolicyError, match="--grid"):
            simplex_grid(bad, 2)


def _measured_products(bias: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two estimators with biases and partly common noise: their errors, and the expected and measured products."""
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=40_000), rng.normal(size=(2, 40_000))
    errors = np.array(bias)[:, None] + 0.3 * common + np.array([[0.4], [0.6]]) * own
    expected = np.outer(bias, bias) + 0.09 + np.diag([0.16, 0.36])
    return errors, expected, errors @ errors.T / errors.shape[1]


def test_proposition_4_1_the_error_is_quadratic_in_w_and_its_minimum_is_known() -> None:
    errors, expected, measured = _measured_products((0.5, -0.3))
    grid = np.linspace(0, 1, 21)
    curve = np.array([np.mean((w * errors[0] + (1 - w) * errors[1]) ** 2) for w in grid])
    fit = np.polynomial.polynomial.polyfit(grid, curve, 2)
    assert np.abs(np.polynomial.polynomial.polyval(grid, fit) - curve).max() < 1e-10
    # w* = (E|e2|^2 - E<e1, e2>) / E|e1 - e2|^2 of the numbers the errors were made from.
    best = (expected[1, 1] - expected[0, 1]) / (expected[0, 0] + expected[1, 1] - 2 * expected[0, 1])
    assert 0 < best < 1
    assert _affine_minimum(measured)[0] == pytest.approx(best, rel=0.02)
    assert -fit[1] / (2 * fit[2]) == pytest.approx(_affine_minimum(measured)[0], abs=1e-6)
    assert curve.min() < 0.7 * min(curve[0], curve[-1]), "a strict gain, as the biases differ"


def test_weights_outside_the_simplex_are_brought_back() -> None:
    """Where one parent is the other plus noise, the best affine weight exceeds 1 and the best share is 1."""
    m = np.array([[1.0, 1.2], [1.2, 2.0]])
    assert _affine_minimum(m) == pytest.approx([4 / 3, -1 / 3])
    assert _simplex_minimum(m) == pytest.approx([1.0, 0.0])
    three = np.diag([1.0, 2.0, 4.0])
    assert _simplex_minimum(three) == pytest.approx(np.array([4, 2, 1]) / 7)
    assert _affine_minimum(np.ones((2, 2))) == pytest.approx([0.5, 0.5])


def test_the_closed_form_finds_the_complementary_weight_of_real_denoisers() -> None:
    """Parents whose clean chunks err by +-c around the truth, c_2 = 3 c_1: three quarters for the first."""
    g = torch.Generator().manual_seed(0)
    actions = torch.rand(400, 3, 2, generator=g) * 2 - 1
    parents = [
        exact_parent(lambda x, s: actions.to(x) + 0.1, EDM(sigma_max=80.0), 2, 3),
        exact_parent(lambda x, s: actions.to(x) - 0.3, Flow(), 2, 3),
    ]
    batch = {"observation.state": torch.zeros(400, 1, 1), "action": actions}
    pad = torch.zeros(400, 3, dtype=torch.bool)
    fit = fit_noise(compose(parents), batch | {"action_is_pad": pad}, g)
    assert fit.windows == 400
    assert np.array(fit.weights) == pytest.approx(np.array([[0.75, 0.25]] * len(fit.sigmas)), abs=2e-3)
    assert fit.overall == pytest.approx([0.75, 0.25], abs=2e-3)
    assert fit.errors[0] == pytest.approx([(0.1 / fit.sigmas[0]) ** 2, (0.3 / fit.sigmas[0]) ** 2], rel=0.02)
    # Padded rows do not count: there the first parent is made wrong.
    pad[:, 2] = True
    parents[0].exact = lambda x, s: actions.to(x) + 0.1 + 5 * pad[..., None]
    assert fit_noise(compose(parents), batch | {"action_is_pad": pad}, g).overall[0] == pytest.approx(0.75, abs=2e-3)
