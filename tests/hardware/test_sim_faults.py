"""What an outbox sends when it is told to delay, drop and swap."""

import itertools

import numpy as np

from robopolicy.hardware.sim_faults import Faults, Outbox


def sent(faults: Faults, count: int = 1000, topics: int = 1) -> list[tuple[float, int]]:
    """(time of sending, number) of messages 0.01 s apart."""
    box, now, found = Outbox(np.random.default_rng(0)), [0.0], list[tuple[float, int]]()
    for k in range(count):
        now[0] = k * 0.01
        box.release(now[0])
        box.put(now[0], str(k % topics), lambda n: found.append((now[0], n)), k, faults)
    return found


def test_without_faults_everything_leaves_at_once_and_in_order() -> None:
    assert sent(Faults()) == [(k * 0.01, k) for k in range(1000)]
    assert Faults().names == []


def test_delay_moves_every_message_by_the_same_time() -> None:
    found = sent(Faults(delay_s=0.05))
    assert [n for _, n in found] == list(range(995))
    assert all(abs(t - n * 0.01 - 0.05) < 1e-9 for t, n in found)


def test_drop_loses_its_share() -> None:
    found = sent(Faults(drop=0.3), 10_000)
    assert 6800 < len(found) < 7200
    assert [n for _, n in found] == sorted(n for _, n in found)
    assert sent(Faults(drop=1.0)) == []


def test_reordered_messages_are_overtaken_by_one_of_their_own_topic_and_none_is_lost() -> None:
    found = [n for _, n in sent(Faults(reorder=0.2), 10_000, topics=2)]
    for topic in (0, 1):
        mine = [n // 2 for n in found if n % 2 == topic]
        swaps = sum(a > b for a, b in itertools.pairwise(mine))
        assert 600 < swaps < 1000, "a swap takes two messages, so less than a fifth of 5000"
        assert set(range(4999)) <= set(mine), "the last one may still wait"
        assert all(abs(place - n) <= 1 for place, n in enumerate(mine))


def test_faults_have_names() -> None:
    assert Faults(nan=True, clock_jump_s=-1.0).names == ["nan", "clock_jump_s"]
