"""The limiter: no sequence of targets makes it leave a limit, and it goes where it is sent without delay."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.limiter import MotionLimiter, MotionLimits, releasable

PERIOD = 0.02


def limits(**changes: Any) -> MotionLimits:
    """Seven joints, from slow and smooth to fast and rough."""
    values = {
        "low": np.array([-2.9, -1.8, -0.1, -3.1, 0.0, -0.02, -1.0]),
        "high": np.array([2.9, 1.8, 0.3, -0.1, 1.0, 3.7, 1.0]),
        "velocity": np.array([2.0, 1.0, 2.0, 0.5, 2.6, 2.0, 3.0]),
        "acceleration": np.array([5.0, 10.0, 3.0, 2.0, 15.0, 4.0, 20.0]),
        "jerk": np.array([50.0, 500.0, 10.0, 40.0, 5000.0, 100.0, 20.0]),
    }
    return MotionLimits(**(values | changes))


@pytest.fixture(scope="module")
def limiter() -> MotionLimiter:
    return MotionLimiter(limits(), PERIOD)


def violations(sent: np.ndarray, limits: MotionLimits, period: float) -> dict[str, float]:
    """Largest share of each limit that set-points [K, ..., n] reach; those of the position as distance beyond it.

    Before the first set-point the robot stood there.
    """
    rest = np.concatenate([sent[:1]] * 3 + [sent])
    velocity = np.diff(rest, axis=0) / period
    acceleration = np.diff(velocity, axis=0) / period
    jerk = np.diff(acceleration, axis=0) / period
    return {
        "position": float(np.maximum(sent - limits.high, limits.low - sent).max()),
        "velocity": float((np.abs(velocity) / limits.velocity).max()),
        "acceleration": float((np.abs(acceleration) / limits.acceleration).max()),
        "jerk": float((np.abs(jerk) / limits.jerk).max()),
    }


def targets(rng: np.random.Generator, shape: tuple[int, ...], ticks: int) -> list[np.ndarray | None]:
    """Steps, noise far beyond the limits, slow waves, and moments without any target."""
    found: list[np.ndarray | None] = []
    held = rng.uniform(-4, 4, shape)
    for k in range(ticks):
        if k % 15 == 0:
            held = rng.uniform(-4, 4, shape)
        noisy = rng.random((*shape[:-1], 1)) < 0.3
        wave = 3 * np.sin(0.1 * k + np.arange(shape[-1]))
        mixed = np.where(noisy, rng.uniform(-40, 40, shape), np.where(rng.random(shape) < 0.2, wave, held))
        found.append(None if rng.random() < 0.05 else mixed)
    return found


def run(limiter: MotionLimiter, start: np.ndarray, asked: list[np.ndarray | None]) -> np.ndarray:
    limiter.start(start)
    return np.array([start, *(limiter.step(target).copy() for target in asked)])


def test_releasable_acceleration_by_hand() -> None:
    # 2 + 1 adds 3 to the velocity, 1.5 + 0.5 adds 2; below one step it is the change itself.
    changes = np.array([3.0, 2.0, 1.0, 0.25, 0.0, -1.0, 6.0])
    np.testing.assert_allclose(releasable(changes, np.ones(7), 1.0), [2.0, 1.5, 1.0, 0.25, 0.0, 0.0, 3.0])
    np.testing.assert_allclose(releasable(np.array([0.3]), np.array([1.0]), 0.1), [2.0])


def test_no_sequence_leaves_a_limit(limiter: MotionLimiter) -> None:
    rng = np.random.default_rng(0)
    bounds = limiter.limits
    start = rng.uniform(bounds.low, bounds.high, (3000, 7))
    found = violations(run(limiter, start, targets(rng, start.shape, 80)), bounds, PERIOD)
    assert found["position"] <= 0
    assert max(found["velocity"], found["acceleration"], found["jerk"]) <= 1


@pytest.mark.parametrize("broken", ["_within", "_braking", "releasable"])
def test_the_check_sees_a_limiter_that_does_not_look_ahead(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = MotionLimiter(limits(), PERIOD)
    if broken == "_within":
        monkeypatch.setattr(limiter, "_within", lambda a, bound, sign: np.ones(a.shape, bool))
    elif broken == "_braking":
        # Brakes with full force whatever the velocity: it swings back and forth.
        monkeypatch.setattr(limiter, "_braking", lambda v, a: -np.sign(v) * limiter.limits.acceleration)
    else:
        monkeypatch.setattr(
            "robopolicy.hardware.limiter.releasable", lambda change, step, period: np.maximum(change, 0) / period
        )
    rng = np.random.default_rng(0)
    start = rng.uniform(limiter.limits.low, limiter.limits.high, (50, 7))
    found = violations(run(limiter, start, targets(rng, start.shape, 80)), limiter.limits, PERIOD)
    assert found["position"] > 0 or max(found["velocity"], found["acceleration"], found["jerk"]) > 1


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.1, 5),
    st.floats(0.5, 50),
    st.floats(2, 5000),
    st.sampled_from([0.002, 0.01, 0.02, 0.1]),
    st.floats(0.05, 6),
    st.integers(0, 2**31),
)
def test_no_limits_can_be_left(
    velocity: float, acceleration: float, jerk: float, period: float, width: float, seed: int
) -> None:
    one = MotionLimits(*(np.array([x]) for x in (-width / 2, width / 2, velocity, acceleration, jerk)))
    limiter, rng = MotionLimiter(one, period), np.random.default_rng(seed)
    start = rng.uniform(-width / 2, width / 2, (64, 1))
    found = violations(run(limiter, start, targets(rng, start.shape, 60)), one, period)
    assert found["position"] <= 0
    assert max(found["velocity"], found["acceleration"], found["jerk"]) <= 1


def test_it_reaches_a_target_without_overshoot_and_nearly_as_fast_as_possible() -> None:
    one = MotionLimits(*(np.array([x]) for x in (-3.0, 3.0, 1.0, 2.0, 20.0)))
    limiter = MotionLimiter(one, 0.01)
    sent = run(limiter, np.zeros(1), [np.array([2.0])] * 400)[:, 0]
    assert sent.max() <= 2.0
    assert sent[-1] == pytest.approx(2.0, abs=1e-6)
    # d / v + v / a + a / j: the shortest time of a move that reaches its velocity and its acceleration.
    shortest = 2.0 / 1.0 + 1.0 / 2.0 + 2.0 / 20.0
    arrived = 0.01 * np.argmax(sent > 2.0 - 0.005)
    assert shortest - 0.2 < arrived < shortest + 0.25


def test_braking_is_short_stays_inside_and_leaves_the_state_alone(limiter: MotionLimiter) -> None:
    limiter.start(np.array([0.0, 0.0, 0.1, -1.0, 0.5, 1.0, 0.0]))
    for _ in range(20):
        limiter.step(limiter.limits.high)
    before = limiter.position.copy()
    path = limiter.stop_path()
    np.testing.assert_array_equal(limiter.position, before)
    assert not limiter.at_rest
    assert (path <= limiter.limits.high).all()
    for expected in path:
        np.testing.assert_array_equal(limiter.step(None), expected)
    assert limiter.at_rest
    np.testing.assert_allclose(limiter.step(None), path[-1], atol=1e-6)


def test_a_limit_is_a_place_where_it_can_rest(limiter: MotionLimiter) -> None:
    limiter.start(0.5 * (limiter.limits.low + limiter.limits.high))
    for _ in range(1500):
        sent = limiter.step(np.full(7, 100.0))
    np.testing.assert_allclose(sent, limiter.limits.high, atol=2e-3)
    assert (sent <= limiter.limits.high).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"velocity": np.zeros(7)}, "velocity limits must be above 0"),
        ({"jerk": np.ones(6)}, r"jerk limits: expected \[7\] finite numbers"),
        ({"low": np.full(7, 4.0)}, "position limits: low .* is not below high"),
        ({"acceleration": np.full(7, np.nan)}, "acceleration limits"),
    ],
)
def test_wrong_limits_are_named(changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RobopolicyError, match=message):
        limits(**changes)


def test_a_start_outside_the_limits_is_refused(limiter: MotionLimiter) -> None:
    start = np.array([0.0, 0.0, 0.1, 5.0, 0.5, 1.0, 0.0])
    with pytest.raises(RobopolicyError, match=r"joint 3 starts at 5, outside its limits -3\.1\.\.-0\.1"):
        limiter.start(start)
    with pytest.raises(RobopolicyError, match="period"):
        MotionLimiter(limits(), 0.0)


def test_a_target_one_period_away_is_met_exactly() -> None:
    # v = (0.3 - 0) / 0.02 = 15, a = 750, and back: -750, so 1500 of change in one period is 75 000 of jerk.
    wide = MotionLimits(*(np.array([x]) for x in (-1.0, 1.0, 20.0, 2000.0, 400_000.0)))
    limiter = MotionLimiter(wide, 0.02)
    limiter.start(np.array([0.0]))
    for target in (0.3, 0.1, 0.1, -0.25, 0.1):
        assert limiter.step(np.array([target]))[0] == pytest.approx(target, abs=1e-12)
    # Too far for one period: 20 rad/s x 0.02 s.
    assert limiter.step(np.array([0.9]))[0] == pytest.approx(0.5, abs=1e-3)
