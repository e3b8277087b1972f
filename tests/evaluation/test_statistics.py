from math import comb

import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.statistics import (
    bootstrap_mean,
    mcnemar_exact,
    mean_over_seeds,
    paired_bootstrap,
    pairs_needed,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Closed form with z = 1.959964; 81/263 and 15/148 are the worked examples of Newcombe 1998, table I.
        (45, 50, 0.7864, 0.9565),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (0, 1, 0.0, 0.7935),
    ],
)
def test_wilson_published_values(successes, n, low, high):
    found = wilson(successes, n)
    assert found.value == successes / n
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=5e-5)


def test_wilson_ends_are_exact_and_bad_counts_refused():
    assert wilson(0, 7).low == 0.0
    assert wilson(7, 7).high == 1.0
    assert wilson(5, 10, 0.8).high < wilson(5, 10, 0.99).high
    for successes, n in ((3, 2), (-1, 5), (0, 0)):
        with pytest.raises(RobopolicyError, match="successes"):
            wilson(successes, n)


def test_bootstrap_of_two_values_has_the_known_distribution():
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    found = bootstrap_mean([0.0, 1.0], confidence=0.95)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    narrow = bootstrap_mean([0.0, 1.0], confidence=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_bootstrap_of_a_large_normal_sample_is_the_normal_interval():
    data = np.random.default_rng(1).normal(3.0, 2.0, 4000)
    found = bootstrap_mean(data)
    half = 1.959964 * data.std() / np.sqrt(len(data))
    np.testing.assert_allclose([found.low, found.high], [data.mean() - half, data.mean() + half], atol=0.1 * half)


def test_bootstrap_covers_the_true_mean_as_often_as_it_says():
    # Scores like those of PushT: many exactly 1, the others spread; mean 0.6 + 0.4 / 2 = 0.8.
    rng = np.random.default_rng(2)
    hits = 0
    for i in range(400):
        data = np.where(rng.random(50) < 0.6, 1.0, rng.random(50))
        found = bootstrap_mean(data, seed=i, n_resamples=500)
        hits += found.low <= 0.8 <= found.high
    assert 0.91 <= hits / 400 <= 0.975


def test_bootstrap_is_reproducible_and_shows_when_it_cannot_say():
    data = np.arange(9.0)
    assert bootstrap_mean(data, seed=1) == bootstrap_mean(data, seed=1)
    assert bootstrap_mean(data, seed=1) != bootstrap_mean(data, seed=2)
    single = bootstrap_mean([0.7])
    assert single.value == 0.7
    assert np.isnan(single.low)
    assert str(single) == "0.700 [no interval]"
    for bad in ([], [[1.0]], [1.0, float("nan")]):
        with pytest.raises(RobopolicyError):
            bootstrap_mean(bad)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 1, 60)
    a, b = hard, hard + 0.1 + rng.normal(0, 0.05, 60)
    paired = paired_bootstrap(a, b)
    assert 0.08 < paired.low < paired.value < paired.high < 0.12
    # Unpaired, the difference drowns: b's interval contains a's mean.
    assert bootstrap_mean(b).low < a.mean()
    with pytest.raises(RobopolicyError, match="equal length, got 2 and 3"):
        paired_bootstrap([1, 2], [1, 2, 3])


def test_mcnemar_by_hand():
    a = np.array([1] * 9 + [0] * 2 + [1] * 20 + [0] * 5, dtype=bool)
    b = np.array([0] * 9 + [1] * 2 + [1] * 20 + [0] * 5, dtype=bool)
    b10, b01, p = mcnemar_exact(a, b)
    assert (b10, b01) == (9, 2)
    assert p == pytest.approx(2 * sum(comb(11, k) for k in range(3)) / 2**11)
    assert mcnemar_exact(b, a) == (2, 9, p)
    assert mcnemar_exact(a, a) == (0, 0, 1.0)
    # Equal counts: twice the half would exceed one.
    assert mcnemar_exact([True, False], [False, True])[2] == 1.0


def test_mean_over_seeds_counts_both_sources_of_chance():
    # Two training seeds, one perfect and one useless: episodes say nothing, seeds everything.
    between = mean_over_seeds(np.array([[0.0] * 100, [1.0] * 100]))
    assert (between.value, between.low, between.high) == (0.5, 0.0, 1.0)
    # Pooling all episodes is the plausible mistake: it claims 200 independent results.
    pooled = bootstrap_mean([0.0] * 100 + [1.0] * 100)
    assert pooled.high - pooled.low < 0.15

    # The same hard initial states for all training seeds: more seeds do not help.
    hard = np.array([0.0] * 10 + [1.0] * 10)
    same = mean_over_seeds(np.tile(hard, (50, 1)))
    alone = bootstrap_mean(hard)
    np.testing.assert_allclose([same.low, same.high], [alone.low, alone.high], atol=0.051)
    with pytest.raises(RobopolicyError, match="training seeds, episodes"):
        mean_over_seeds([1.0, 2.0])


def test_mean_over_seeds_matches_the_analytic_variance():
    # Additive effects: the crossed bootstrap variance is var(rows) / S + var(columns) / E.
    rng = np.random.default_rng(0)
    rows, columns = rng.normal(0, 1, 30), rng.normal(0, 2, 200)
    found = mean_over_seeds(rows[:, None] + columns[None])
    half = 1.959964 * np.sqrt(rows.var() / 30 + columns.var() / 200)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_pairs_needed_is_the_textbook_formula():
    data = np.array([-1.0, 3.0] * 50) * 0.1
    s = data.std(ddof=1)
    assert pairs_needed(data) == int(np.ceil(((1.959964 + 0.841621) * s / 0.1) ** 2))
    assert pairs_needed([0.0, 0.0]) is None
    assert pairs_needed([1.0, -1.0]) is None
