"""Damaged and hostile recordings: a DataError naming the file, or a named skip; nothing else, nothing silent."""

import re
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backports import zstd
from bag_files import CONTRACT, MS, START, header, image, make, pixels, recording, write_bag, write_folder
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from robopolicy.datasets import rosbag
from robopolicy.datasets.bag_timing import Arrivals, clock_jumps
from robopolicy.datasets.contract import SECOND
from robopolicy.datasets.detect import open_source
from robopolicy.datasets.rosbag_source import RosbagSource
from robopolicy.errors import DataError

STORAGES = ("mcap", "sqlite3")


def read_all(path: Path) -> list[dict[str, np.ndarray]]:
    with open_source(path) as source:
        return [source.read(e, source.features.keys()) for e in range(source.n_episodes)]


def file_of(path: Path) -> Path:
    return next(p for p in path.rglob("*") if p.suffix in (".mcap", ".db3"))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_an_error(storage: str, part: float, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", recording(), recording(), storage=storage)
    file = file_of(path / "bag_1")
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(DataError, match=re.escape(str(path / "bag_1"))) as error:
        read_all(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("storage", STORAGES)
def test_flipped_bytes_are_errors_or_values_never_crashes(storage: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", recording(0.3), storage=storage)
    rng = np.random.default_rng(0)
    for name in ("metadata.yaml", file_of(path).name):
        good = (path / "bag_0" / name).read_bytes()
        for _ in range(60):
            bad = bytearray(good)
            for place in rng.integers(0, len(bad), 3):
                bad[place] ^= 1 << int(rng.integers(8))
            (path / "bag_0" / name).write_bytes(bad)
            try:
                read_all(path)
            except DataError as error:
                assert "bag_0" in str(error) or str(path) in str(error)  # noqa: PT017
        (path / "bag_0" / name).write_bytes(good)


def change_metadata(path: Path, old: str, new: str) -> None:
    file = path / "bag_0" / "metadata.yaml"
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new))


@pytest.mark.parametrize("name", ["../../bag.mcap", "/etc/passwd", "..", "a/b/bag_0.mcap", ""])
def test_metadata_cannot_name_files_outside_the_bag(name: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", recording())
    (tmp_path / "bag.mcap").write_bytes(file_of(path).read_bytes())
    change_metadata(path, "  - bag_0.mcap\n", f"  - '{name}'\n")
    with pytest.raises(DataError, match=r"not inside the bag|missing, or not"):
        open_source(path)


def test_old_bags_name_files_relative_to_their_parent(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", recording())
    change_metadata(path, "  - bag_0.mcap\n", "  - bag_0/bag_0.mcap\n")
    assert len(read_all(path)[0]["action"]) == 11


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("message_count: 51", "message_count: 52", "52 messages of /joint_states, the storage has 51"),
        ("version: 9", "version: 10", "version 10"),
        ("version: 9", "version: x", "damaged"),
        ("rosbag2_bagfile_information", "other_information", "damaged"),
        ("relative_file_paths:", "relative_file_paths: !!python/name:os.system ''\n  other:", "damaged"),
        ("  - bag_0.mcap\n", "  - bag_1.mcap\n", "missing"),
        ("compression_mode: ''", "compression_mode: rot13", "rot13"),
    ],
)
def test_damaged_metadata(old: str, new: str, said: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", recording())
    change_metadata(path, old, new)
    with pytest.raises(DataError, match=re.escape(said)) as error:
        open_source(path)
    assert "metadata.yaml" in str(error.value) or "bag_1.mcap" in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": 17}, "with step 17 has 72 bytes"),
        ({"step": 2**31}, "has 72 bytes"),
        ({"height": 5}, "6x5 rgb8 with step 18 has 72 bytes"),
        ({"width": 2**20}, "at most 8192"),
        ({"height": 0}, "at most 8192"),
        ({"encoding": "16UC1"}, "'16UC1' is not read"),
        ({"encoding": "bayer_rggb8"}, "'bayer_rggb8' is not read"),
    ],
)
def test_images_that_contradict_themselves(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    messages = recording()
    index = [i for i, m in enumerate(messages) if m[1] == "/camera"][8]
    bad = image(START + 400 * MS, pixels(8))
    for name, value in change.items():
        setattr(bad, name, value)
    messages[index] = (messages[index][0], "/camera", bad)
    path = write_folder(tmp_path / "d", messages)
    with pytest.raises(DataError, match=re.escape(said)) as error:
        read_all(path)
    assert "bag_0: episode 0: topic /camera" in str(error.value)


def png_claiming(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(64)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"GIF89a" + bytes(20), png_claiming(60000, 60000), png_claiming(8, 8)]
)
def test_compressed_images_are_measured_before_they_are_decoded(data: bytes, tmp_path: Path) -> None:
    message = make("sensor_msgs/msg/CompressedImage", header(START), "png", np.frombuffer(data, np.uint8))
    write_bag(tmp_path / "bag", [(START, "/camera", message)])
    (tmp_path / "contract.yaml").write_text("rate_hz: 10\nfeatures: {observation.images.top: {topic: /camera}}\n")
    with pytest.raises(DataError, match=r"bag.*image"):
        open_source(tmp_path)


def test_chunks_may_not_grow_beyond_what_they_declare(tmp_path: Path) -> None:
    bomb = zstd.compress(bytes(64 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(DataError, match="larger than 1000 bytes"):
        rosbag._unzstd(bomb, 1000)
    with pytest.raises(DataError, match="at most"):
        rosbag._unzstd(bomb, 1 << 40)
    assert rosbag._unzstd(zstd.compress(b"ab") + zstd.compress(b"cd"), 4) == b"abcd"


def test_a_journal_that_was_not_merged_is_not_ignored(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", recording(), storage="sqlite3")
    file = file_of(path)
    file.with_name(file.name + "-wal").write_bytes(b"x")
    with pytest.raises(DataError, match="was not closed"):
        open_source(path)


def test_messages_lost_in_the_storage_are_noticed(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", recording(), storage="sqlite3")
    with sqlite3.connect(file_of(path)) as connection:
        connection.execute("DELETE FROM messages WHERE id = 40")
    with pytest.raises(DataError, match=r"metadata.yaml: \d+ messages of"):
        open_source(path)


@pytest.mark.parametrize("value", ["NULL", "'text'", "x'0001'", "x'00010000ffffffffffffffffffffffff'"])
def test_rows_that_are_no_messages(value: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", recording(), storage="sqlite3")
    with sqlite3.connect(file_of(path)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'data BLOB NOT NULL', 'data BLOB')")
    with sqlite3.connect(file_of(path)) as connection:
        connection.execute(f"UPDATE messages SET data = {value}")
    with pytest.raises(DataError, match="bag_0"):
        read_all(path)


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ("lab/Own next\n", "contains itself"),
        ("float64[100000000] many\n", "elements"),
        ("string[5000] many\n", "elements"),
        ("lab/Unknown other\n", "not defined"),
        ("float64\n", "damaged"),
        ("x" * 300_000, "characters"),
    ],
)
def test_message_definitions_are_checked_before_they_are_compiled(definition: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        rosbag._defined_types("lab/msg/Own", "MSG", definition)


def test_the_name_of_a_type_cannot_carry_code(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the name of a message type"):
        rosbag._defined_types('lab/msg/X"""; raise SystemExit', "MSG", "float64 a\n")
    parsed = {"lab/msg/Own": ([], [("a = __import__('os')", (1, ("float64", 0)))])}
    with pytest.raises(DataError, match="not the name of a field"):
        rosbag._collect("lab/msg/Own", parsed, {}, ())


def test_padding_after_a_message_is_ignored_but_not_more(tmp_path: Path) -> None:
    # rclpy 9.1 serialises a JointState without velocities to 8 bytes more than its contents.
    path = write_folder(tmp_path / "d", recording())
    with rosbag.Bag(path / "bag_0") as bag:
        _, topic, data = next(bag.messages(["/joint_states"]))
        assert bag.decode(topic, data + bytes(8)).name == ["a", "b"]
        for bad in (data + bytes(100), data[:-8], data[:3], b"\x01" + data[1:]):
            with pytest.raises(DataError, match=r"bag_0: a sensor_msgs/msg/JointState of /joint_states is damaged"):
                bag.decode(topic, bad)


def test_constants_of_custom_messages_do_no_harm(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg('string WORD="a\\"b"\nint32 N=5\nfloat64 value\n', "lab/msg/Own"))
    messages = [(START + k * 100 * MS, "/own", store.types["lab/msg/Own"](float(k))) for k in range(5)]
    write_bag(tmp_path / "bag", messages, store=store)
    (tmp_path / "contract.yaml").write_text("rate_hz: 10\nfeatures: {action: {topic: /own, field: value}}\n")
    assert read_all(tmp_path)[0]["action"].tolist() == [0, 1, 2, 3, 4]


def test_clocks_that_would_make_endless_episodes_are_refused(tmp_path: Path) -> None:
    messages = recording()
    messages += [(START + 300_000_000 * SECOND, topic, message) for _, topic, message in messages[-1:] + messages[:1]]
    messages += [(START + 300_000_000 * SECOND, "/camera", image(START + 300_000_000 * SECOND, pixels(0)))]
    lenient = CONTRACT.replace("max_trim_s: 0.2", "max_trim_s: 1000000, max_gap_s: 10000000000")
    with pytest.raises(DataError, match=r"steps; its clock must be wrong|a gap of|tolerance|jumps"):
        RosbagSource(write_folder(tmp_path / "d", messages, contract=lenient))


def test_a_stall_of_the_network_is_no_jump_of_a_clock() -> None:
    header = START + np.arange(20) * 50 * MS
    stalled = np.maximum(header, header[15])  # Fifteen messages arrive in a burst.
    window = (int(header[0]), int(header[-1]))
    assert clock_jumps(Arrivals(stalled, header, header), window, 0.25) == 0
    jumped = header + (np.arange(20) > 9) * SECOND
    assert clock_jumps(Arrivals(header, jumped, jumped), window, 0.25) == 1
