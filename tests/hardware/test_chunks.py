"""The chunk executor: which target holds when, by hand, and what must be true of any sequence of chunks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.chunks import STAMP_TOLERANCE, Chunk, ChunkExecutor

SMOOTH = np.array([True, False])


def chunk(
    number: int, stamp: float, values: Any, period: float = 0.1, session: str = "a", first: float = 0.0
) -> Chunk:
    """One smooth joint with `values`, and a gripper with ten times their signs."""
    column = np.asarray(values, float)
    times = first + period * np.arange(len(column))
    return Chunk(session, number, stamp, times, np.stack([column, 10 * np.sign(column)], axis=1))


def executor(**options: Any) -> ChunkExecutor:
    return ChunkExecutor(SMOOTH, **({"interpolation": "hold"} | options))


def joint(e: ChunkExecutor, now: float) -> float | None:
    target = e.target(now)
    return None if target is None else float(target[0])


def test_the_row_of_the_present_step_holds_and_rows_of_the_past_are_skipped() -> None:
    e = executor()
    assert joint(e, 100.0) is None
    # Arrives 0.25 s after its observation: rows 0 and 1 are over, row 2 is for 0.2 to 0.3.
    assert e.offer(100.25, chunk(0, 100.0, [1, 2, 3, 4, 5]))
    assert [joint(e, 100 + t) for t in (0.25, 0.299, 0.31, 0.45)] == [3, 3, 4, 5]
    assert e.counts == {"accepted": 1, "rows skipped": 2}
    # Row 4 lasts as long as row 3 did.
    assert e.remaining(100.31) == pytest.approx(0.19)
    assert joint(e, 100.499) == 5
    assert joint(e, 100.501) is None
    assert joint(e, 100.6) is None
    assert e.remaining(100.6) == 0
    assert e.counts["dry"] == 1


def test_cubic_hermite_by_hand() -> None:
    e = executor(interpolation="hermite")
    e.offer(0.0, chunk(0, 0.0, [0, 1, 4]))
    # Slopes: 1 per step at row 0 (one-sided), (4 - 0) / 2 = 2 at row 1, 3 at row 2. Half way through step 0:
    # (p0 + p1) / 2 + (m0 - m1) / 8 = 0.5 - 1/8; through step 1: 2.5 - 1/8.
    assert joint(e, 0.05) == pytest.approx(0.375)
    assert joint(e, 0.15) == pytest.approx(2.375)
    assert [joint(e, t) for t in (0.0, 0.1, 0.2)] == pytest.approx([0, 1, 4])
    # No row after the last one: it is held.
    assert joint(e, 0.25) == 4
    # A quarter through step 0: h00 = 27/32, h10 = 9/64, h01 = 5/32, h11 = -3/64.
    assert joint(e, 0.025) == pytest.approx(9 / 64 * 1 + 5 / 32 * 1 - 3 / 64 * 2)
    # Velocity does not jump at a row.
    d = 1e-6
    before, after = (joint(e, 0.1) - joint(e, 0.1 - d)) / d, (joint(e, 0.1 + d) - joint(e, 0.1)) / d  # type: ignore[operator]
    assert before == pytest.approx(20, rel=1e-3)
    assert after == pytest.approx(20, rel=1e-3)


def test_cross_fade_by_hand_and_never_of_the_gripper() -> None:
    e = executor(blend_s=0.2)
    e.offer(0.0, chunk(0, 0.0, [1, 1, 1, 1, 1, 1, 1, 1]))
    e.offer(0.25, chunk(1, 0.2, [-3] * 8))
    for now, expected in ((0.25, 1.0), (0.3, 0.0), (0.35, -1.0), (0.4, -2.0), (0.45, -3.0), (0.6, -3.0)):
        target = e.target(now)
        assert target is not None
        assert target[0] == pytest.approx(expected)
        assert target[1] == -10
    assert e.counts["blended"] == 1


def test_without_a_cross_fade_the_newest_chunk_replaces_at_once() -> None:
    e = executor()
    e.offer(0.0, chunk(0, 0.0, [1] * 8))
    e.offer(0.25, chunk(1, 0.2, [-3] * 2))
    assert joint(e, 0.25) == -3
    # The old chunk had rows for now, but it is superseded.
    assert joint(e, 0.45) is None


def test_a_chunk_that_begins_later_leaves_the_old_one_in_force_until_then() -> None:
    e = executor()
    e.offer(0.0, chunk(0, 0.0, [1] * 8))
    assert e.offer(0.1, chunk(1, 0.1, [2] * 4, first=0.3))
    assert joint(e, 0.39) == 1
    assert joint(e, 0.41) == 2


@pytest.mark.parametrize(
    ("offered", "now", "reason"),
    [
        (chunk(5, 1.0, [9]), 1.1, "duplicate: number 5 again"),
        (chunk(4, 1.05, [9]), 1.1, "reordered: number 4 after 5"),
        (chunk(6, 0.9, [9]), 1.1, "older: an observation 0.100 s before the last one"),
        (chunk(6, 1.0, [9]), 1.6, "stale: an observation of 0.600 s ago, at most 0.5"),
        (chunk(6, 1.2, [9]), 1.1, "future: an observation of 0.100 s from now"),
        (chunk(6, 1.1, [9], session="b"), 1.2, "foreign: session 'b' while 'a' is followed"),
        (chunk(6, 1.1, [9, 9], period=0.01), 1.2, "late: its last row was for 0.080 s ago"),
    ],
)
def test_what_is_refused_is_counted_and_changes_nothing(offered: Chunk, now: float, reason: str) -> None:
    e = executor()
    assert e.offer(1.0, chunk(5, 1.0, np.arange(1, 11)))
    assert not e.offer(now, offered)
    assert e.refusal == reason
    assert e.counts[reason.partition(":")[0]] == 1
    assert joint(e, 1.15) == 2


def test_a_stamp_that_comes_out_a_little_earlier_the_second_time_is_the_same_observation() -> None:
    e = executor()
    assert e.offer(1.0, chunk(5, 1.0, np.arange(1, 11)))
    assert e.offer(1.01, chunk(6, 1.0 - 0.9 * STAMP_TOLERANCE, np.arange(11, 21)))
    assert not e.offer(1.01, chunk(7, 1.0 - 1.1 * STAMP_TOLERANCE, np.arange(1, 11)))
    assert e.counts["older"] == 1
    assert joint(e, 1.01) == 11


def test_a_restarted_policy_is_followed_after_a_silence_or_a_reset() -> None:
    e = executor()
    e.offer(1.0, chunk(7, 1.0, [1] * 20))
    assert not e.offer(1.4, chunk(0, 1.4, [2] * 20, session="b"))
    assert e.offer(1.6, chunk(1, 1.6, [2] * 20, session="b"))
    assert e.session == "b"
    e.clear()
    assert joint(e, 1.6) is None
    assert e.offer(1.6, chunk(0, 1.5, [3] * 20))


def test_no_chunk_is_followed_beyond_its_horizon_and_a_single_row_while_it_is_fresh() -> None:
    e = executor(horizon_s=0.35)
    e.offer(0.0, chunk(0, 0.0, np.arange(1, 20)))
    assert joint(e, 0.34) == 4
    assert joint(e, 0.36) is None
    single = executor()
    single.offer(0.1, chunk(0, 0.0, [7]))
    assert joint(single, 0.49) == 7
    assert joint(single, 0.51) is None


def test_a_chunk_replaced_before_it_was_used_is_counted() -> None:
    e = executor()
    e.offer(0.0, chunk(0, 0.0, [1] * 8))
    e.offer(0.01, chunk(1, 0.01, [1] * 8))
    assert e.counts["unused"] == 1


@pytest.mark.parametrize(
    ("times", "rows", "message"),
    [
        ([0.0, 0.0], np.zeros((2, 2)), "times of a chunk start at 0 or later and increase; found \\[0, 0\\]"),
        ([-0.1, 0.0], np.zeros((2, 2)), "start at 0 or later"),
        ([0.0, np.nan], np.zeros((2, 2)), "increase"),
        ([0.0, 0.1], np.zeros((3, 2)), "each with its time"),
        ([], np.zeros((0, 2)), "1 to 1000 rows"),
        ([0.0, 0.1], np.array([[0, 0], [0, np.inf]]), "row 1 of the chunk has inf for joint 1"),
    ],
)
def test_a_malformed_chunk_is_an_error(times: list[float], rows: np.ndarray, message: str) -> None:
    with pytest.raises(RobopolicyError, match=message):
        Chunk("a", 0, 0.0, np.array(times), rows)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_arrives_targets_stay_among_the_rows_and_observations_never_go_back(data: st.DataObject) -> None:
    draw = data.draw
    interpolation = draw(st.sampled_from(["hold", "hermite"]))
    e = executor(interpolation=interpolation, blend_s=draw(st.sampled_from([0.0, 0.05, 0.3])))
    now, stamps, low, high, grips = 10.0, [], np.inf, -np.inf, set()
    for _ in range(draw(st.integers(1, 12))):
        now += draw(st.floats(0.0, 0.3))
        offered = chunk(
            draw(st.integers(0, 6)),
            now - draw(st.floats(-0.1, 0.7)),
            draw(st.lists(st.floats(-1, 1), min_size=1, max_size=6)),
            period=draw(st.sampled_from([0.02, 0.1])),
            session=draw(st.sampled_from("aab")),
        )
        session = e.session
        if e.offer(now, offered):
            if e.session != session:
                stamps = []
            # One stamp comes out differently by so much when it is carried over from another clock.
            assert offered.stamp >= max(stamps, default=-np.inf) - STAMP_TOLERANCE - 1e-9
            stamps.append(offered.stamp)
            low, high = min(low, offered.rows[:, 0].min()), max(high, offered.rows[:, 0].max())
            grips |= set(offered.rows[:, 1])
        target = e.target(now)
        assert (target is None) or e.remaining(now) > 0
        if target is not None:
            # Hermite leaves the range of its rows by at most (|m0| + |m1|) / 4 of a step, slopes being up to 2.
            room = 1.0 if interpolation == "hermite" else 1e-12
            assert low - room <= target[0] <= high + room
            assert target[1] in grips
