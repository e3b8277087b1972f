from dataclasses import replace

import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.compare import compare
from robopolicy.evaluation.result import Episode, EvalInfo


def info(scores, first=100_000, name="", **changes):
    episodes = [Episode(first + i, s, s >= 1.0, 10, [s]) for i, s in enumerate(scores)]
    base = EvalInfo("point", "maximum reward", name, "test", episodes, {"latency_steps": 0}, {"engine": "1"})
    return replace(base, **changes)


def test_counts_by_hand():
    a = info([1.0, 0.5, 1.0, 0.2] * 5, name="old")
    b = info([0.4, 1.0, 1.0, 0.2] * 5, name="new")
    found = compare(a, b)
    assert (found.n, found.wins, found.ties, found.losses) == (20, 5, 10, 5)
    assert (found.only_a, found.only_b, found.p_success) == (5, 5, 1.0)
    assert found.difference.value == pytest.approx(-0.025)
    assert (found.success_a, found.success_b) == (0.5, 0.5)
    assert found.conclusion.startswith("Not distinguishable with 20 episodes")
    text = str(found)
    assert "b higher in 5, equal in 10, lower in 5" in text
    assert "a (old)" in text


def test_clear_winners_are_named_either_way_round():
    low, high = info([0.1, 0.2] * 10, name="low"), info([0.5, 0.7] * 10, name="high")
    assert compare(low, high).conclusion.startswith("b (high) scores higher by 0.450 [0.4")
    assert compare(high, low).conclusion.startswith("a (high) scores higher by 0.450 [0.4")


def test_the_number_of_episodes_needed_is_stated_with_two_digits():
    # Differences +-0.5 around 0.02: s = 0.50, n = (2.8016 * 0.5063 / 0.02)^2 = 5030.
    b = info([0.52 if i % 2 else -0.48 for i in range(40)])
    found = compare(info([0.0] * 40), b)
    assert found.needed == pytest.approx(5030, abs=10)
    assert found.conclusion.endswith("about 5000 episodes would be needed to see it.")


def test_few_episodes_conclude_nothing():
    found = compare(info([0.0, 0.0, 0.0]), info([1.0, 1.0, 1.0]))
    assert found.conclusion == "3 common episodes support no conclusion; run at least 10."


def test_only_common_seeds_count():
    a, b = info([0.0] * 20), info([1.0] * 20, first=100_008)
    found = compare(a, b)
    assert found.n == 12
    assert "8 of 20 episodes of a have no partner" in str(found)
    shuffled = replace(b, episodes=b.episodes[::-1])
    assert compare(a, shuffled).difference == found.difference


def test_differences_that_matter_are_shown_or_refused():
    a = info([0.5] * 12)
    b = info([0.5] * 12, fingerprint={"engine": "2"}, runner={"latency_steps": 3}, notes=["not reproducible"])
    warnings = compare(a, b).warnings
    assert warnings == [
        "simulator engine differs: 1 and 2",
        "runner latency_steps differs: 0 and 3",
        "b: not reproducible",
    ]
    assert "optimistic" in compare(replace(a, purpose="validation"), a).warnings[0]
    with pytest.raises(RobopolicyError, match="cannot compare task 'point' with task 'line'"):
        compare(a, info([0.5], task="line"))
    with pytest.raises(RobopolicyError, match=r"no common seeds: a has 100000..100011, b has 200000..200000"):
        compare(a, info([0.5], first=200_000))
    with pytest.raises(RobopolicyError, match="cannot compare score"):
        compare(a, info([0.5], score_name="time"))
