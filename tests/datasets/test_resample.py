"""Resampling against values worked out by hand, and properties that hold for any messages."""

import math
from types import SimpleNamespace as Message

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.datasets.contract import SECOND, Contract, Task, TopicFeature
from robopolicy.datasets.resample import FeatureReader, FrameSampler, Missing, Resampler, replay, slerp
from robopolicy.errors import DataError, RobopolicyError

MS = SECOND // 1000


def filled(how: str, tolerance_ms: float, *messages: tuple[int, float]) -> Resampler:
    resampler = Resampler(how, tolerance_ms * MS)
    for stamp, value in messages:
        resampler.add(stamp * MS, np.array([value]))
    return resampler


def values(resampler: Resampler, *ticks_ms: int) -> list[float | str]:
    found = [resampler.at(t * MS) for t in ticks_ms]
    return [f.reason if isinstance(f, Missing) else float(f[0]) for f in found]


def test_hold_takes_the_newest_message_that_is_not_newer_than_the_tick() -> None:
    assert values(filled("hold", 50, (0, 1), (40, 2), (60, 3)), 0, 39, 40, 59, 60, 110) == [1, 1, 2, 2, 3, 3]


def test_hold_says_why_there_is_nothing() -> None:
    resampler = filled("hold", 50, (10, 1))
    assert values(resampler, 9, 10, 61) == [
        "no message yet",
        1,
        "the newest message is 0.051 s away, tolerance 0.050 s",
    ]


def test_interpolation_is_linear_and_exact_on_a_message() -> None:
    assert values(filled("interpolate", 50, (0, 1), (40, 2), (60, 4)), 0, 10, 40, 45, 60) == [1, 1.25, 2, 2.5, 4]


def test_interpolation_needs_both_neighbours_within_the_tolerance() -> None:
    resampler = filled("interpolate", 50, (10, 1), (70, 2))
    assert values(resampler, 5, 15, 25, 60, 71) == [
        "no message before it",
        "the next after message is 0.055 s away, tolerance 0.050 s",
        1.25,
        pytest.approx(1 + 50 / 60),
        "no message after it",
    ]


def test_nearest_looks_both_ways_and_prefers_the_past() -> None:
    assert values(filled("nearest", 30, (0, 1), (40, 2), (200, 3)), 19, 20, 21, 70, 171) == [1, 1, 2, 2, 3]
    assert "tolerance" in str(values(filled("nearest", 30, (0, 1), (200, 3)), 100)[0])


def test_messages_out_of_order_take_their_place_until_the_tick_is_served() -> None:
    resampler = filled("hold", 1000, (0, 1), (40, 3), (20, 2))
    assert values(resampler, 10, 30, 50) == [1, 2, 3]
    resampler.add(30 * MS, np.array([9.0]))
    assert resampler.late == 1
    assert values(resampler, 60) == [3]


def test_of_two_messages_with_one_stamp_the_later_counts() -> None:
    assert values(filled("hold", 50, (0, 1), (0, 2)), 0) == [2]


def test_ticks_may_not_decrease() -> None:
    resampler = filled("hold", 50, (0, 1))
    resampler.at(10 * MS)
    with pytest.raises(RobopolicyError, match="must not decrease"):
        resampler.at(9 * MS)


def test_history_is_forgotten() -> None:
    resampler = Resampler("hold")
    for k in range(1000):
        resampler.add(k, k)
        resampler.at(k)
        assert len(resampler) == 1


def about_z(degrees: float) -> np.ndarray:
    half = math.radians(degrees) / 2
    return np.array([math.cos(half), 0, 0, math.sin(half)])


def test_slerp_turns_at_constant_speed_on_the_shorter_arc() -> None:
    for weight, angle in ((0, 0), (0.25, 30), (0.5, 60), (1, 120)):
        np.testing.assert_allclose(slerp(about_z(0), about_z(120), weight), about_z(angle), atol=1e-12)
    # -q is the same rotation; 0 to 340 degrees goes backwards by 20.
    mixed = slerp(about_z(0), -about_z(340), 0.5)
    assert abs(float(mixed @ about_z(-10))) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(slerp(about_z(10), about_z(10), 0.3), about_z(10), atol=1e-12)
    with pytest.raises(DataError, match="length 0"):
        slerp(np.zeros(4), about_z(0), 0.5)


def test_a_pose_interpolates_its_position_linearly_and_its_rotation_on_the_sphere() -> None:
    resampler = Resampler("interpolate", math.inf, quaternions=(3,))
    resampler.add(0, np.concatenate([[0, 0, 0], about_z(0)]))
    resampler.add(100, np.concatenate([[1, 2, 4], -about_z(90)]))
    found = resampler.at(50)
    np.testing.assert_allclose(found[:3], [0.5, 1, 2])
    assert abs(float(found[3:] @ about_z(45))) == pytest.approx(1, abs=1e-12)


stamps = st.lists(st.integers(0, 1000), min_size=1, max_size=30)
ticks = st.lists(st.integers(0, 1000), min_size=1, max_size=20).map(sorted)


@settings(max_examples=150, deadline=None)
@given(stamps, ticks, st.integers(0, 300))
def test_hold_never_sees_the_future_and_finds_what_is_there(found: list[int], at: list[int], tolerance: int) -> None:
    resampler = Resampler("hold", tolerance)
    for stamp in found:
        resampler.add(stamp, stamp)
    for tick in at:
        past = [s for s in found if s <= tick]
        value = resampler.at(tick)
        if past and tick - max(past) <= tolerance:
            assert value == max(past)
        else:
            assert isinstance(value, Missing)


@settings(max_examples=150, deadline=None)
@given(stamps, ticks, st.integers(0, 300))
def test_nearest_is_the_nearest_within_the_tolerance(found: list[int], at: list[int], tolerance: int) -> None:
    resampler = Resampler("nearest", tolerance)
    for stamp in found:
        resampler.add(stamp, stamp)
    for tick in at:
        distance = min(abs(s - tick) for s in found)
        value = resampler.at(tick)
        assert isinstance(value, Missing) if distance > tolerance else abs(value - tick) == distance


@settings(max_examples=150, deadline=None)
@given(stamps, ticks)
def test_interpolation_reproduces_a_line(found: list[int], at: list[int]) -> None:
    resampler = Resampler("interpolate")
    for stamp in found:
        resampler.add(stamp, np.array([3.0 * stamp - 7, 5.0]))
    for tick in at:
        value = resampler.at(tick)
        if min(found) <= tick <= max(found):
            np.testing.assert_allclose(value, [3.0 * tick - 7, 5.0], atol=1e-9)
        else:
            assert isinstance(value, Missing)


CONTRACT = Contract(
    10.0,
    {
        "observation.state": TopicFeature("/state", ("data",), resample="interpolate", tolerance_s=0.2),
        "action": TopicFeature("/command", ("data",), kind="action", tolerance_s=0.3, offset_s=0.02),
    },
    Task(topic="/task"),
    latency_s=0.05,
)


def arrivals(seed: int) -> list[tuple[int, str, int, Message]]:
    """(time of arrival, topic, stamp, message): uneven rates, delays up to 60 ms, some out of order."""
    rng = np.random.default_rng(seed)
    found = [(0, "/task", 0, Message(data="go")), (SECOND, "/task", SECOND, Message(data="stop"))]
    for topic, rate in (("/state", 50), ("/command", 17)):
        for k in range(2 * rate):
            stamp = int((k + rng.uniform(-0.3, 0.3)) / rate * SECOND) if k else 0
            late = int(rng.uniform(0, 0.06) * SECOND)
            found.append((stamp + late, topic, stamp, Message(data=np.array([rng.normal()]))))
    return sorted(found, key=lambda m: m[0])


def readers() -> dict[str, FeatureReader]:
    return {key: FeatureReader(key, spec, Message(data=np.zeros(1))) for key, spec in CONTRACT.features.items()}


@pytest.mark.parametrize("seed", range(5))
def test_conversion_and_a_node_that_is_fed_message_by_message_make_the_same_frames(seed: int) -> None:
    found, at = arrivals(seed), [CONTRACT.tick(200 * MS, k) for k in range(15)]
    sampler = FrameSampler(CONTRACT, readers())
    converted = [sampler.at(at[k]) for k in replay(sampler, found, at)]

    node, online, waiting = FrameSampler(CONTRACT, readers()), [], list(at)
    for now in range(0, 3 * SECOND, MS):  # A clock, and messages that arrive in between.
        while found and found[0][0] <= now:
            _, topic, stamp, message = found.pop(0)
            node.add(topic, stamp, message)
        if waiting and now >= waiting[0] + CONTRACT.delay:
            online.append(node.at(waiting.pop(0)))
    assert len(converted) == len(online) == 15
    assert sum(not isinstance(frame, Missing) for frame in converted) >= 12
    for a, b in zip(converted, online, strict=True):
        if isinstance(a, Missing) or isinstance(b, Missing):
            assert a == b
            continue
        assert a.keys() == b.keys() == {"observation.state", "action", "task_index"}
        assert a["task_index"] == b["task_index"]
        np.testing.assert_array_equal(a["observation.state"], b["observation.state"])
        np.testing.assert_array_equal(a["action"], b["action"])


def test_an_offset_takes_the_command_that_answers_the_observation() -> None:
    sampler = FrameSampler(CONTRACT, readers())
    sampler.add("/task", 0, Message(data="go"))
    for k in range(3):
        sampler.add("/state", k * 100 * MS, Message(data=np.array([float(k)])))
        sampler.add("/command", k * 100 * MS + 15 * MS, Message(data=np.array([10.0 + k])))
    frame = sampler.at(100 * MS)
    assert not isinstance(frame, Missing)
    assert (frame["observation.state"].item(), frame["action"].item()) == (1.0, 11.0)
    assert "'action': no message yet" in str(FrameSampler(CONTRACT, readers()).missing(0))


def test_a_frame_is_settled_when_every_periodic_topic_has_spoken_at_or_after_its_tick() -> None:
    contract = Contract(
        10,
        {
            "observation.state": TopicFeature("/a", ("data",), dtype="float64", shape=(1,)),
            "observation.other": TopicFeature("/b", ("data",), dtype="float64", shape=(1,)),
            "observation.goal": TopicFeature("/goal", ("data",), tolerance_s=math.inf),
            "action": TopicFeature("/c", ("data",), kind="action", offset_s=0.02),
        },
    )
    sampler = FrameSampler(contract, {}, keys=["observation.state", "observation.other", "observation.goal"])
    tick = 100 * MS
    assert not sampler.settled(tick)
    sampler.add("/a", 100 * MS, None)
    sampler.add("/b", 99 * MS, None)
    assert not sampler.settled(tick), "a later message of /b could still be the one that holds"
    sampler.add("/b", 105 * MS, None)
    assert sampler.settled(tick), "goals speak only on change"
    assert not sampler.settled(101 * MS)
    late = FrameSampler(contract, {}, keys=["action"])
    late.add("/c", 110 * MS, None)
    assert not late.settled(tick), "its value is that of 120 ms"
    late.add("/c", 120 * MS, None)
    assert late.settled(tick)


def test_what_stands_in_for_silence_is_no_fault_and_is_not_waited_for() -> None:
    features = {
        "observation.state": TopicFeature("/a", ("data",), dtype="float64", shape=(1,)),
        "observation.command": TopicFeature("/b", ("data",), "x/msg/B", shape=(2,), tolerance_s=0.05, absent=(7, 8)),
    }
    contract, zero = Contract(10, features), Message(data=np.zeros(2))
    made = {key: FeatureReader(key, spec, zero if spec.absent else Message(data=np.zeros(1)))
            for key, spec in features.items()}  # fmt: skip
    sampler = FrameSampler(contract, made)

    def command(tick_ms: int) -> list[float]:
        sampler.add("/a", tick_ms * MS, Message(data=np.array([1.0])))
        assert sampler.settled(tick_ms * MS)
        frame = sampler.at(tick_ms * MS)
        assert not isinstance(frame, Missing), frame
        assert frame["observation.command"].dtype == np.float32
        return [float(v) for v in frame["observation.command"]]

    assert command(0) == [7, 8], "before the first message"
    sampler.add("/b", 90 * MS, Message(data=np.array([1.0, 2.0])))
    assert command(100) == [1, 2]
    assert command(200) == [7, 8], "the message is too old by now"
    sampler.add("/b", 280 * MS, Message(data=np.array([3.0, 4.0])))
    assert command(300) == [3, 4]
    assert "observation.state" in str(sampler.missing(600 * MS))
    assert "observation.command" not in str(sampler.missing(600 * MS))
    assert not contract.is_periodic(features["observation.command"])
