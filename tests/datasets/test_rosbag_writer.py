"""Datasets as recordings: what a ROS 2 installation finds in them, and what comes back."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from mixed import TASKS, mixed_episodes, write_mixed
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from robopolicy.datasets.contract import SECOND, read_contract
from robopolicy.datasets.detect import make_writer, open_source
from robopolicy.datasets.rosbag_writer import EPOCH, topic_names
from robopolicy.errors import DataError
from robopolicy.features import Feature, FeatureSpec

FORMATS = ("rosbag2-mcap", "rosbag2-sqlite3")


@pytest.mark.parametrize("name", FORMATS)
def test_any_reader_finds_standard_messages_with_the_stamps_of_the_ticks(name: str, tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "d", name)
    episode, store = mixed_episodes()[2], get_typestore(Stores.ROS2_HUMBLE)
    found: dict[str, list] = {}  # type: ignore[type-arg]
    with Reader(path / "episode_000002") as reader:
        for connection, receive, data in reader.messages():
            message = store.deserialize_cdr(data, connection.msgtype)
            found.setdefault(connection.topic, []).append((receive, message))
            assert connection.msgdef.data, "the definition is in the bag"
            assert connection.digest == store.hash_rihs01(connection.msgtype) or not connection.digest
        first = reader.start_time
    # Two episodes of 7 steps and 1 step came before, at 20 Hz, each followed by a pause of 10 s.
    assert first == EPOCH + 8 * SECOND // 20 + 20 * SECOND
    for k, (receive, message) in enumerate(found["/observation/state"]):
        assert message.name == ["x", "y", "angle"]
        assert message.position.tolist() == episode["observation.state"][k].astype(np.float64).tolist()
        assert receive == message.header.stamp.sec * SECOND + message.header.stamp.nanosec == first + k * SECOND // 20
    (_, picture), *_ = found["/observation/images/top"]
    assert (picture.height, picture.width, picture.encoding, picture.step) == (48, 64, "rgb8", 192)
    assert picture.data.tobytes() == episode["observation.images.top"][0].tobytes()
    said = [(receive, message.data) for receive, message in found["/task_index"]]
    assert said == [(first, TASKS[0]), (first + 6 * SECOND // 20, TASKS[1])], "at the start and on change"
    assert [d.size for d in found["/observation/keypoints"][0][1].layout.dim] == [2, 2]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_data_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    a, b = write_mixed(tmp_path / "a", name), write_mixed(tmp_path / "b", name)
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert len(files) == 10
    for file in files:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


def test_metadata_are_those_that_humble_understands(tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "d", "rosbag2-sqlite3")
    data = yaml.safe_load((path / "episode_000000" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert data["version"] == 8
    assert data["storage_identifier"] == "sqlite3"
    assert data["relative_file_paths"] == ["episode_000000.db3"]
    assert json.loads(data["custom_data"]["robopolicy"])["tasks"] == list(TASKS)
    assert all(t["topic_metadata"]["offered_qos_profiles"] == "" for t in data["topics_with_message_count"])


@pytest.mark.parametrize("name", FORMATS)
def test_every_dtype_and_shape_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    features = FeatureSpec(
        (
            Feature("simulator.state", (3,), "float64"),
            Feature("observation.half", (2,), "float16", names=("a", "a")),
            Feature("observation.odd names", (2,), names=("a,b", "c]")),
            Feature("observation.odd_names", (1,), names=("only one",)),
            Feature("observation.count", (), "int64"),
            Feature("observation.big", (2, 1), "uint64"),
            Feature("observation.bytes", (4,), "uint8"),
            Feature("observation.flags", (3,), "bool"),
            Feature("observation.images.mono", (3, 5, 1), "uint8", "image"),
            Feature("observation.images.alpha", (3, 5, 4), "uint8", "image"),
            Feature("2d", (2, 2, 2), low=(-1.0,) * 8, high=(float("inf"),) * 8),
        ),
        rate_hz=29.97,
    )
    rng, n = np.random.default_rng(0), 11
    episode = {}
    for f in features:
        shape, dtype = (n, *f.shape), np.dtype(f.dtype)
        if dtype.kind == "f":
            episode[f.key] = rng.normal(size=shape).astype(dtype) * dtype.type(1e-3)
        elif dtype.kind == "b":
            episode[f.key] = rng.random(shape) < 0.5
        else:
            episode[f.key] = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    episode["simulator.state"][0] = [-0.0, 5e-324, 1.7976931348623157e308]
    with make_writer(name, tmp_path / "d", features) as writer:
        writer.add(episode, {"seed": 3, "note": "ü: 'x'"})
        writer.add({k: v[:1] for k, v in episode.items()})
    with open_source(tmp_path / "d") as source:
        assert source.features == features
        assert source.notes == []
        assert source.attributes(0) == {"seed": 3, "note": "ü: 'x'"}
        assert source.attributes(1) == {}
        found = source.read(0, features.keys())
        for key, values in episode.items():
            assert found[key].dtype == values.dtype
            assert found[key].tobytes() == values.tobytes(), key
        assert source.read(1, ["2d"])["2d"].tobytes() == episode["2d"][:1].tobytes()


def test_data_without_a_rate_stay_without_one(tmp_path: Path) -> None:
    features = FeatureSpec((Feature("action", (2,), kind="action"),))
    with make_writer("rosbag2-mcap", tmp_path / "d", features) as writer:
        writer.add({"action": np.ones((4, 2), np.float32)})
    with open_source(tmp_path / "d") as source:
        assert source.features == features
        assert source.lengths.tolist() == [4]


def test_topics_are_valid_names_and_never_the_same() -> None:
    names = topic_names(["observation.state", "observation.images.2nd cam", "a-b", "a_b", "..."])
    assert list(names.values()) == ["/observation/state", "/observation/images/n2nd_cam", "/a_b", "/a_b_2", "/feature"]


@pytest.mark.parametrize(
    "feature",
    [
        Feature("observation.images.depth", (4, 4, 1), "uint16", "image"),
        Feature("observation.images.six", (4, 4, 6), "uint8", "image"),
        Feature("observation.text", (), "int64", "language"),
    ],
)
def test_what_has_no_place_in_a_bag_is_refused_before_anything_is_written(feature: Feature, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=feature.key):
        make_writer("rosbag2-mcap", tmp_path / "d", FeatureSpec((feature,)))
    assert list(tmp_path.iterdir()) == []


def test_a_single_bag_reads_itself_by_the_contract_it_carries(tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "d", "rosbag2-mcap")
    contract = read_contract(path / "contract.yaml")
    (path / "contract.yaml").unlink()
    with open_source(path / "episode_000002") as source:
        assert source.contract.content_hash() == contract.content_hash()  # type: ignore[attr-defined]
        found = source.read(0, ["action", "task_index"])
    np.testing.assert_array_equal(found["action"], mixed_episodes()[2]["action"])
    np.testing.assert_array_equal(found["task_index"], mixed_episodes()[2]["task_index"])


def test_what_the_bags_say_about_themselves_must_be_true(tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "d", "rosbag2-mcap")
    contract = (path / "contract.yaml").read_text()
    (path / "contract.yaml").write_text(contract.replace("- m/s\n", "- km/h\n", 1))
    with pytest.raises(DataError, match=r"'action' units: the bags has .*the contract has"):
        open_source(path)
    (path / "contract.yaml").write_text(contract)
    other = path / "episode_000001" / "metadata.yaml"
    other.write_text(other.read_text().replace("go home, slowly", "go home, faster"))
    with pytest.raises(DataError, match=r"metadata.yaml: missing or changed \(its checksum is not the one"):
        open_source(path)
    (path / "checksums.json").unlink()
    with pytest.raises(DataError, match="carry different"):
        open_source(path)
