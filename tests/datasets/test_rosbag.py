"""Recordings to episodes: values worked out by hand, what is skipped and named, and every message type."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from bag_files import (
    CONTRACT,
    MS,
    START,
    header,
    image,
    joint_state,
    make,
    numbers,
    pixels,
    recording,
    text,
    write_bag,
    write_folder,
)
from rosbags.rosbag2 import CompressionMode
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from robopolicy.cli import main
from robopolicy.datasets.contract import SECOND, parse_contract
from robopolicy.datasets.detect import dataset_format, open_dataset, open_source
from robopolicy.datasets.rosbag_source import RosbagSource
from robopolicy.errors import DataError

STORAGES = ("mcap", "sqlite3")


def read_all(path: Path, contract: Path | None = None) -> tuple[RosbagSource, list[dict[str, np.ndarray]]]:
    with RosbagSource(path, contract) as source:
        return source, [source.read(e, source.features.keys()) for e in range(source.n_episodes)]


def check_recording(episode: dict[str, np.ndarray]) -> None:
    """What `recording(1.0)` is at 10 Hz."""
    t = np.arange(11) / 10
    np.testing.assert_allclose(episode["observation.state"], np.stack([t, -2 * t], 1), atol=1e-6)
    k = np.arange(11)
    np.testing.assert_array_equal(episode["action"], np.stack([k, k + 0.5, -k], 1).astype(np.float32))
    np.testing.assert_array_equal(episode["observation.images.top"], np.stack([pixels(2 * i) for i in k]))
    assert episode["task_index"].tolist() == [0] * 11


@pytest.mark.parametrize("storage", STORAGES)
def test_a_recording_becomes_an_episode(storage: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", recording(), recording(start=START + 60 * SECOND), storage=storage)
    assert dataset_format(path) == f"rosbag2-{storage}"
    source, episodes = read_all(path)
    assert source.lengths.tolist() == [11, 11]
    assert source.features.rate_hz == 10
    assert source.features["observation.state"].names == ("a", "b")
    assert source.features["observation.images.top"].shape == (4, 6, 3)
    assert source.tasks == ("push",)
    assert source.notes == []
    for episode in episodes:
        check_recording(episode)
    assert source.attributes(1) == {"bag": "bag_1", "start_ns": START + 60 * SECOND}


def test_a_few_keys_are_the_same_as_all_and_training_loads_them(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", recording())
    _, (everything,) = read_all(path)
    with open_source(path) as source:
        for key in list(everything):
            np.testing.assert_array_equal(source.read(0, [key])[key], everything[key])
    loaded = open_dataset(path, cache_dir=tmp_path / "cache", images=True)
    check_recording({k: np.asarray(v) for k, v in loaded.arrays.items()})


@pytest.mark.parametrize("storage", STORAGES)
def test_one_bag_one_file_and_message_compression(storage: str, tmp_path: Path) -> None:
    mode = CompressionMode.STORAGE if storage == "mcap" else CompressionMode.MESSAGE
    bag = write_bag(tmp_path / "d" / "bag_0", recording(), storage, compression=mode)
    (tmp_path / "d" / "contract.yaml").write_text(CONTRACT)
    check_recording(read_all(bag)[1][0])
    if storage == "mcap":
        check_recording(read_all(next(bag.glob("*.mcap")), tmp_path / "d" / "contract.yaml")[1][0])
    plain = write_bag(tmp_path / "d" / "bag_1", recording(), storage)
    (plain / "metadata.yaml").unlink()
    source, (episode,) = read_all(plain)
    check_recording(episode)
    assert "metadata.yaml is missing" in source.notes[0]


def test_bags_compressed_by_file_say_what_to_do(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", recording(), "sqlite3", compression=CompressionMode.FILE)
    (tmp_path / "contract.yaml").write_text(CONTRACT)
    with pytest.raises(DataError, match="zstd -d"):
        open_source(bag)


def test_without_a_contract_there_is_a_hint_and_the_draft_reads_the_bag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = write_bag(tmp_path / "bag", [*recording(), (START, "/task", text("push"))])
    with pytest.raises(DataError, match="robopolicy data contract"):
        open_source(bag)
    main(["data", "contract", str(bag)])
    draft = capsys.readouterr().out
    contract = parse_contract(draft, "draft")
    assert sorted(contract.features) == ["action", "observation.images.camera", "observation.state"]
    assert contract.rate_hz == 10
    assert contract.features["observation.state"].field == ("position[a, b]",)
    assert "50.0 Hz" in draft
    (tmp_path / "contract.yaml").write_text(draft)
    source, (episode,) = read_all(bag)
    assert source.tasks == ("push",)
    assert len(episode["action"]) == 11


def test_bags_convert_by_a_contract_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bag(tmp_path / "bags" / "a", recording(), "sqlite3")
    write_bag(tmp_path / "bags" / "b", [m for m in recording() if m[1] != "/camera"], "sqlite3")
    (tmp_path / "c.yaml").write_text(CONTRACT)
    output = tmp_path / "store"
    main(["data", "convert", str(tmp_path / "bags"), "--output", str(output), "--contract", str(tmp_path / "c.yaml")])
    said = capsys.readouterr().out
    assert "note:" in said
    assert "b, episode 0 skipped: no messages of /camera" in said
    assert "1 episodes, 11 steps" in said
    with open_source(output) as source:
        check_recording(source.read(0, source.features.keys()))
        assert "contract_hash" in source.metadata
    with pytest.raises(DataError, match="only ROS 2 recordings"):
        open_source(output, tmp_path / "c.yaml")


def test_the_report_is_json_and_info_shows_the_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [m for m in recording() if not (m[1] == "/camera" and START + 300 * MS < m[0] < START + 900 * MS)]
    path = write_folder(tmp_path / "d", recording(), bad)
    main(["data", "contract", str(path), "--report", "--output", str(tmp_path / "r.json")])
    report = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (report["used"], report["skipped"]) == (1, 1)
    assert "/camera: a gap of 0.6" in report["episodes"][1]["problems"][0]
    camera = next(t for t in report["episodes"][0]["topics"] if t["topic"] == "/camera")
    assert (camera["messages"], camera["period_s"], camera["offset_s"]) == (21, 0.05, 0.03)
    capsys.readouterr()
    main(["data", "info", str(path)])
    assert "note: bag_1, episode 0 skipped: /camera: a gap" in capsys.readouterr().out


def shifted(messages: list, topic: str, since: int, by: int) -> list:  # type: ignore[type-arg]
    """The header stamps of a topic moved from some time of arrival on."""
    for receive, name, message in messages:
        if name == topic and receive >= since:
            stamp = message.header.stamp.sec * SECOND + message.header.stamp.nanosec + by
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, SECOND)
    return messages


def problems(tmp_path: Path, messages: list, contract: str = CONTRACT) -> list[str]:  # type: ignore[type-arg]
    """The notes about a second recording beside a good one, all of which must be skipped or used."""
    path = write_folder(tmp_path / "d", recording(start=START + 100 * SECOND), messages, contract=contract)
    with RosbagSource(path) as source:
        assert source.n_episodes == 2 - any("skipped" in note for note in source.notes)
        return source.notes


def test_a_clock_that_jumps_is_named(tmp_path: Path) -> None:
    notes = problems(tmp_path, shifted(recording(), "/joint_states", START + 500 * MS, -2 * SECOND))
    assert any(
        "bag_1, episode 0 skipped" in n and "/joint_states: the clock of the stamps jumps 1 times" in n for n in notes
    )


def test_stamps_that_cannot_be_are_replaced_by_the_time_of_arrival(tmp_path: Path) -> None:
    notes = problems(tmp_path, shifted(recording(), "/camera", 0, -3600 * SECOND))
    assert notes == [], "a topic on another clock is taken by its arrival"
    messages = recording(start=START + 500 * SECOND)
    odd = [m for m in messages if m[1] == "/camera"][5]
    shifted([odd], "/camera", 0, -3600 * SECOND)
    path = write_folder(tmp_path / "e", messages, contract=CONTRACT.replace("max_trim_s: 0.2", "max_jump_s: 1000000"))
    with RosbagSource(path) as source:
        assert any("1 without a believable header stamp" in n for n in source.notes)


def test_dropped_messages_are_counted_and_too_many_skip_the_episode(tmp_path: Path) -> None:
    few = [m for i, m in enumerate(recording(2.0)) if i not in (20, 40)]
    (note,) = problems(tmp_path / "few", few)
    assert "/joint_states: messages 2 dropped; longest gap 0.040 s; in 1 of 2 episodes" in note
    many = [m for i, m in enumerate(recording(2.0)) if i % 5 or i > 100]
    (note,) = problems(tmp_path / "many", many)
    assert "bag_1, episode 0 skipped" in note
    assert "messages dropped" in note


def test_out_of_order_messages_change_nothing_but_are_reported(tmp_path: Path) -> None:
    messages = recording()
    joints = [i for i, m in enumerate(messages) if m[1] == "/joint_states"]
    a, b = joints[10], joints[11]
    messages[a], messages[b] = (messages[a][0], *messages[b][1:]), (messages[b][0], *messages[a][1:])
    path = write_folder(tmp_path / "d", messages)
    source, (episode,) = read_all(path)
    check_recording(episode)
    assert source.notes == ["/joint_states: messages 1 out of order; longest gap 0.020 s; in 1 of 1 episodes"]


def test_a_camera_that_dies_does_not_shorten_an_episode_silently(tmp_path: Path) -> None:
    notes = problems(tmp_path, [m for m in recording() if m[1] != "/camera" or m[0] < START + 600 * MS])
    assert any("0.45 s at the end are without some topic (episode.max_trim_s 0.2)" in n for n in notes)
    tolerant = CONTRACT.replace("max_trim_s: 0.2", "max_trim_s: 1")
    notes = problems(
        tmp_path / "t", [m for m in recording() if m[1] != "/camera" or m[0] < START + 600 * MS], tolerant
    )
    assert notes == ["bag_1, episode 0: 0.00 s at the start and 0.45 s at the end lack a topic, left out"]


def test_a_missing_topic_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    notes = problems(tmp_path, [m for m in recording() if m[1] != "/command"])
    assert any("no messages of /command; it has /camera (21), /joint_states (51)" in n for n in notes)
    path = write_folder(tmp_path / "none", [m for m in recording() if m[1] != "/command"])
    with pytest.raises(DataError, match="no episode can be used; bag_0, episode 0 skipped: no messages of /command"):
        RosbagSource(path)


def test_messages_too_late_for_their_tick_are_explained(tmp_path: Path) -> None:
    slow = [(r + (800 * MS if t == "/camera" else 0), t, m) for r, t, m in recording(3.0)]
    (note,) = problems(tmp_path, slow)
    assert "'observation.images.top': no message yet" in note
    (tmp_path / "d" / "contract.yaml").write_text(CONTRACT.replace("rate_hz: 10", "rate_hz: 10\nlatency_s: 0.9"))
    with RosbagSource(tmp_path / "d") as source:
        assert source.n_episodes == 2


MARKED = CONTRACT.replace(
    "episode: {max_trim_s: 0.2}",
    "episode: {start: {topic: /event, equals: start}, end: {topic: /event, equals: end}}",
).replace("task: {text: push}", "task: {topic: /task}")


@pytest.mark.parametrize("storage", STORAGES)
def test_messages_start_and_end_episodes_and_instructions_hold_until_they_change(storage: str, tmp_path: Path) -> None:
    events = [
        (500, "start"),
        (1200, "end"),
        (1500, "start"),
        (1800, "start"),
        (2000, "end"),
        (2500, "end"),
        (2800, "start"),
    ]
    tasks = [(100, "push"), (1900, "pull")]
    messages = recording(3.0)
    messages += [(START + t * MS, "/event", text(e)) for t, e in events]
    messages += [(START + t * MS, "/task", text(e)) for t, e in tasks]
    source, episodes = read_all(write_folder(tmp_path / "d", messages, contract=MARKED, storage=storage))
    assert source.lengths.tolist() == [8, 3]
    assert source.tasks == ("push", "pull")
    np.testing.assert_allclose(episodes[0]["observation.state"][:, 0], 0.5 + np.arange(8) / 10, atol=1e-6)
    np.testing.assert_allclose(episodes[1]["observation.state"][:, 0], 1.8 + np.arange(3) / 10, atol=1e-6)
    assert episodes[0]["action"][:, 0].tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    assert [e["task_index"].tolist() for e in episodes] == [[0] * 8, [0, 1, 1]]
    begins = [f"the episode that starts at {START / SECOND + t:.3f} s has no end message" for t in (1.5, 2.8)]
    for expected in (*begins, "an end message at"):
        assert any(expected in note for note in source.notes), source.notes


def test_every_message_type_of_the_contract(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg("std_msgs/Header header\nGrip[2] grips\nuint16[] raw\n", "lab/msg/Hand"))
    store.register(get_types_from_msg("float32 width\nstring side\n", "lab/msg/Grip"))
    hand, grip = store.types["lab/msg/Hand"], store.types["lab/msg/Grip"]
    xyz, turned = (
        make("geometry_msgs/msg/Point", 1.0, 2.0, 3.0),
        make("geometry_msgs/msg/Quaternion", 0.0, 0.6, 0.0, 0.8),
    )
    vector = make("geometry_msgs/msg/Vector3", 4.0, 5.0, 6.0)
    layout = make("std_msgs/msg/MultiArrayLayout", [], 0)
    picture = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    png = cv2.imencode(".png", picture[:, :, ::-1])[1].reshape(-1)
    jpeg = cv2.imencode(".jpg", np.full((8, 8, 3), (10, 100, 200), np.uint8))[1].reshape(-1)
    point = make(
        "trajectory_msgs/msg/JointTrajectoryPoint",
        *(np.array([7.0, 8.0]), np.zeros(0), np.zeros(0), np.zeros(0)),
        make("builtin_interfaces/msg/Duration", 0, 0),
    )
    now = START
    table = {
        "/pose": make("geometry_msgs/msg/PoseStamped", header(now), make("geometry_msgs/msg/Pose", xyz, turned)),
        "/twist": make("geometry_msgs/msg/TwistStamped", header(now), make("geometry_msgs/msg/Twist", vector, vector)),
        "/trajectory": make("trajectory_msgs/msg/JointTrajectory", header(now), ["b", "a"], [point]),
        "/matrix": numbers(range(6), (2, 3)),
        "/counts": make("std_msgs/msg/Int64MultiArray", layout, np.array([2**60 + 1, -3])),
        "/flag": make("std_msgs/msg/Bool", True),
        "/mono": image(now, picture[:, :, :1], "mono8"),
        "/bgr": image(now, picture[:, :, ::-1], "bgr8", padding=5),
        "/rgba": image(now, np.dstack([picture, picture[:, :, :1]]), "rgba8"),
        "/png": make("sensor_msgs/msg/CompressedImage", header(now), "png", png),
        "/jpeg": make("sensor_msgs/msg/CompressedImage", header(now), "jpeg", jpeg),
        "/hand": hand(header(now), [grip(0.25, "left"), grip(0.5, "right")], np.array([3, 65535], np.uint16)),
    }
    contract = """
rate_hz: 10
features:
  observation.pose: {topic: /pose}
  observation.turned: {topic: /pose, field: pose.orientation}
  observation.height: {topic: /pose, field: pose.position.z}
  observation.twist: {topic: /twist}
  observation.matrix: {topic: /matrix}
  observation.counts: {topic: /counts}
  observation.flag: {topic: /flag}
  observation.images.mono: {topic: /mono}
  observation.images.bgr: {topic: /bgr}
  observation.images.rgba: {topic: /rgba}
  observation.images.alpha: {topic: /rgba, shape: [4, 6, 4]}
  observation.images.png: {topic: /png}
  observation.images.jpeg: {topic: /jpeg}
  observation.grip: {topic: /hand, field: ["grips[1].width", "grips[0].width"]}
  observation.raw: {topic: /hand, field: raw}
  action: {topic: /trajectory, field: "points[0].positions[a, b]"}
"""
    (tmp_path / "contract.yaml").write_text(contract)
    bag = write_bag(tmp_path / "bag", [(now, topic, message) for topic, message in table.items()], store=store)
    source, (found,) = read_all(bag)
    expected = {
        "observation.pose": [1, 2, 3, 0.8, 0, 0.6, 0],
        "observation.turned": [0.8, 0, 0.6, 0],
        "observation.height": 3,
        "observation.twist": [4, 5, 6, 4, 5, 6],
        "observation.matrix": [[0, 1, 2], [3, 4, 5]],
        "observation.counts": [2**60 + 1, -3],
        "observation.flag": True,
        "observation.grip": [0.5, 0.25],
        "observation.raw": [3, 65535],
        "action": [8, 7],
    }
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key][0], np.array(value, found[key].dtype), err_msg=key)
    assert {k: source.features[k].dtype for k in ("observation.counts", "observation.flag", "observation.raw")} == {
        "observation.counts": "int64",
        "observation.flag": "bool",
        "observation.raw": "int64",
    }
    assert source.features["action"].names == ("a", "b")
    assert source.features["observation.turned"].names[0] == "pose.orientation.w"
    for name in ("bgr", "rgba", "png"):
        np.testing.assert_array_equal(found[f"observation.images.{name}"][0], picture, err_msg=name)
    np.testing.assert_array_equal(found["observation.images.mono"][0], picture[:, :, :1])
    np.testing.assert_array_equal(found["observation.images.alpha"][0][:, :, 3:], picture[:, :, :1])
    assert abs(found["observation.images.jpeg"][0].astype(int) - (200, 100, 10)).max() < 12


def test_a_joint_that_vanishes_is_named_with_its_episode(tmp_path: Path) -> None:
    messages = recording()
    messages[30] = (messages[30][0], "/joint_states", joint_state(START + 600 * MS, ["a", "c"], [0, 0]))
    with RosbagSource(write_folder(tmp_path / "d", messages)) as source:
        with pytest.raises(DataError, match=r"bag_0: episode 0: topic /joint_states: .*no element named 'b'"):
            source.read(0, ["observation.state"])
        assert len(source.read(0, ["action"])["action"]) == 11


def test_a_type_other_than_that_of_the_contract_is_an_error(tmp_path: Path) -> None:
    typed = CONTRACT.replace("topic: /command,", "topic: /command, type: std_msgs/msg/Float32MultiArray,")
    with pytest.raises(DataError, match="/command is std_msgs/msg/Float64MultiArray, the contract says"):
        RosbagSource(write_folder(tmp_path / "d", recording(), contract=typed))


def test_bags_are_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        write_bag(tmp_path / f"bag_{number}", recording(start=START + number * SECOND))
    (tmp_path / "contract.yaml").write_text(CONTRACT)
    with RosbagSource(tmp_path) as source:
        assert [source.attributes(e)["bag"] for e in range(3)] == ["bag_2", "bag_9", "bag_10"]
