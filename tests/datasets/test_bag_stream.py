"""Recordings that are cut off at any byte, closed, or killed: what is read back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bag_files import MS, START, STORE, numbers
from rosbags.rosbag2 import Reader

from robopolicy.datasets.bag_stream import END, BagStream, mend
from robopolicy.datasets.rosbag import Bag
from robopolicy.errors import DataError

ARRAY, STRING = "std_msgs/msg/Float64MultiArray", "std_msgs/msg/String"


def array(k: int) -> bytes:
    return bytes(STORE.serialize_cdr(numbers([k, -k]), ARRAY))


def values(path: Path) -> list[tuple[int, float]]:
    with Bag(path) as bag:
        return [(t, bag.decode(topic, data).data[0]) for t, topic, data in bag.messages(list(bag.topics))]


def test_a_closed_bag_is_one_like_any_other(tmp_path: Path) -> None:
    bag = BagStream(tmp_path / "b", {"robopolicy.x": "y"})
    bag.add("/a", ARRAY)
    for k in range(5):
        bag.write("/a", START + k * MS, array(k))
    bag.flush()
    bag.write("/a", START + 3 * MS, array(9))
    bag.close()
    with Reader(tmp_path / "b" / "b.mcap") as reader:
        assert reader.message_count == 6
        assert reader.storage.chunks, "it has an index"
    with Bag(tmp_path / "b") as read:
        assert read.notes == []
        assert read.custom == {"robopolicy.x": "y"}
    found = values(tmp_path / "b")
    assert [v for _, v in found] == [0, 1, 2, 3, 4, 9]
    assert found[-1][0] == START + 4 * MS, "times of arrival do not decrease"


def test_before_and_after_every_flush_the_file_on_the_disk_can_be_read(tmp_path: Path) -> None:
    bag = BagStream(tmp_path / "b", {})
    file = tmp_path / "b" / "b.mcap"
    assert file.read_bytes().endswith(END)
    bag.add("/a", ARRAY)
    written = 0
    for k in range(40):
        bag.write("/a", START + k * MS, array(k))
        if k % 10 == 9:
            assert [v for _, v in values(tmp_path / "b")] == list(range(written)) if written else True
            bag.flush()
            written = k + 1
            assert [v for _, v in values(tmp_path / "b")] == list(range(written))
    with Bag(tmp_path / "b") as read:
        assert "unfinished" in read.notes[0]
    bag.close()


def test_a_large_message_makes_a_chunk_by_itself(tmp_path: Path) -> None:
    bag = BagStream(tmp_path / "b", {})
    bag.add("/a", ARRAY)
    big = bytes(STORE.serialize_cdr(numbers(np.arange(200_000.0)), ARRAY))
    bag.write("/a", START, big)
    assert values(tmp_path / "b") == [(START, 0.0)], "without flush"
    bag.close()


def test_a_torn_end_is_cut_off_at_any_byte(tmp_path: Path) -> None:
    bag = BagStream(tmp_path / "b", {})
    bag.add("/a", ARRAY)
    for k in range(3):
        bag.write("/a", START + k * MS, array(k))
    bag.flush()
    file = tmp_path / "b" / "b.mcap"
    first = len(file.read_bytes()) - len(END)
    for k in range(3, 6):
        bag.write("/a", START + k * MS, array(k))
    bag.flush()
    whole = file.read_bytes()
    end_of_chunks = len(whole) - len(END)
    bag.close()
    (tmp_path / "b" / "metadata.yaml").unlink()
    old = whole[:first] + END
    for cut in [*range(first + 1, first + 60), *range(first + 60, end_of_chunks, 7), end_of_chunks - 1]:
        # What the disk holds while the second chunk overwrites the end: the chunk until here, then the old file.
        file.write_bytes(whole[:cut] + old[cut:])
        if not file.read_bytes().endswith(END):
            assert mend(tmp_path / "b") > 0
        found = [v for _, v in values(tmp_path / "b")]
        assert found in ([0, 1, 2], [0, 1, 2, 3, 4, 5]), cut
        assert mend(tmp_path / "b") == 0, "a mended file is left alone"


def test_kill_9_in_the_middle_of_writing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from test_bag_stream import ARRAY, array, START, MS\n"
        "from robopolicy.datasets.bag_stream import BagStream\n"
        "bag = BagStream(Path(sys.argv[1]), {}); bag.add('/a', ARRAY)\n"
        "for k in range(10**7):\n"
        "    bag.write('/a', START + k * MS, array(k))\n"
        "    if k % 50 == 49:\n"
        "        bag.flush(); print(k + 1, flush=True)\n"
    )
    here = str(Path(__file__).parent)
    for run in range(3):
        command = [sys.executable, "-c", code, str(tmp_path / f"b{run}"), here]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(5 + 3 * run):
                flushed = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
            flushed = max([flushed, *(int(line) for line in process.stdout if line.endswith("\n"))])
        mend(tmp_path / f"b{run}")
        found = [v for _, v in values(tmp_path / f"b{run}")]
        assert found == list(range(len(found)))
        assert len(found) >= flushed


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    bag = BagStream(tmp_path / "b", {})
    with pytest.raises(DataError, match="Float64MultiArray"):
        bag.add("/a", "std_msgs/msg/Float64MultiArrey")
    bag.close()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "c.mcap").write_bytes(b"not a bag at all")
    with pytest.raises(DataError, match="does not begin"):
        mend(tmp_path / "c")
