"""Black box and writer thread of the recorder: what is kept, what is dropped and counted, what reaches the disk."""

import threading
from pathlib import Path

import numpy as np
import pytest

from robopolicy.datasets import bag_stream
from robopolicy.datasets.rosbag import Bag, latest_types
from robopolicy.hardware.recording import OVERHEAD, BagThread, BlackBox, Message

SECOND = 10**9
START = 1_700_000_000 * SECOND
ARRAY = "std_msgs/msg/Float64MultiArray"


def message(k: int, topic: str = "/a", step: int = SECOND // 100) -> Message:
    store = latest_types()
    layout = store.types["std_msgs/msg/MultiArrayLayout"]([], 0)
    data = store.serialize_cdr(store.types[ARRAY](layout, np.array([float(k)])), ARRAY)
    return Message(START + k * step, topic, ARRAY, bytes(data))


def values(path: Path, topic: str = "/a") -> list[float]:
    with Bag(path) as bag:
        return [float(bag.decode(t, data).data[0]) for _, t, data in bag.messages([topic])]


def test_the_black_box_keeps_the_last_seconds_and_no_more_than_its_bytes() -> None:
    box = BlackBox(2.0, 10**6)
    for k in range(1000):
        box.add(message(k))
    kept = box.messages()
    assert [m.time for m in kept] == [START + k * SECOND // 100 for k in range(799, 1000)]
    assert box.held_s == pytest.approx(2.0)
    assert box.bytes == sum(len(m.data) + OVERHEAD for m in kept)
    small = BlackBox(2.0, 10 * message(0).size)
    for k in range(1000):
        small.add(message(k))
    assert [m.time for m in small.messages()] == [m.time for m in kept[-10:]]
    small.add(message(0))
    assert len(small.messages()) == 1, "a clock that went back starts anew"


def test_bags_one_after_the_other_with_a_black_box_between(tmp_path: Path) -> None:
    writer = BagThread(10**7)
    writer.write(message(-1))
    writer.open(tmp_path / "b0", {"robopolicy.contract": "x"})
    for k in range(500):
        assert writer.write(message(k, "/a" if k % 2 else "/b"))
    writer.dump(tmp_path / "boxes" / "box", {}, [message(k) for k in range(7)])
    writer.write(message(500))
    writer.open(tmp_path / "b1", {})
    writer.write(message(501))
    assert writer.stop()
    assert writer.errors == []
    assert values(tmp_path / "b0") == [*range(1, 500, 2), 500]
    assert values(tmp_path / "b0", "/b") == list(range(0, 500, 2))
    assert values(tmp_path / "b1") == [501]
    assert values(tmp_path / "boxes" / "box") == list(range(7))
    assert {p.name for p in writer.finished} == {"b0", "b1", "box"}
    with Bag(tmp_path / "b0") as bag:
        assert bag.custom == {"robopolicy.contract": "x"}
        assert bag.notes == []


def test_a_slow_disk_costs_messages_and_they_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    plain = bag_stream.BagStream.write

    def slow(self: bag_stream.BagStream, *arguments: object) -> None:
        gate.wait()
        plain(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bag_stream.BagStream, "write", slow)
    writer = BagThread(20 * message(0).size)
    writer.open(tmp_path / "b", {})
    taken = [writer.write(message(k)) for k in range(100)]
    assert 20 <= sum(taken) <= 21, "20 wait, and one may be on its way"
    assert writer.dropped == {"/a": 100 - sum(taken)}
    gate.set()
    assert writer.stop()
    assert values(tmp_path / "b") == [k for k in range(100) if taken[k]]


def test_what_cannot_be_written_is_said_and_the_next_bag_is_written(tmp_path: Path) -> None:
    writer = BagThread(10**7)
    (tmp_path / "taken").mkdir()
    writer.open(tmp_path / "taken", {})
    writer.write(message(0))
    writer.open(tmp_path / "b", {})
    writer.write(message(1))
    writer.write(Message(START + SECOND, "/c", "no_msgs/msg/Such", b"\0\1\0\0"))
    writer.open(tmp_path / "b2", {})
    writer.write(message(2))
    assert writer.stop()
    assert len(writer.errors) == 2
    assert "taken" in writer.errors[0]
    assert "no_msgs/msg/Such" in writer.errors[1]
    assert values(tmp_path / "b2") == [2]


def test_what_is_written_is_on_the_disk_within_the_flush_time(tmp_path: Path) -> None:
    writer = BagThread(10**7, flush_s=0.05)
    writer.open(tmp_path / "b", {})
    k = 0
    done = threading.Event()
    for k in range(10_000):  # Messages all the time: flushing must not need a pause.
        writer.write(message(k))
        done.wait(0.001)
        if k % 50 == 49 and (tmp_path / "b" / "b.mcap").exists() and values(tmp_path / "b"):
            break
    assert 0 < k < 9_999
    assert writer.stop()
    assert values(tmp_path / "b") == list(range(k + 1))
