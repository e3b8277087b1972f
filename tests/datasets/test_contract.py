"""The contract file: what it accepts, what it refuses, and what its hash covers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Message

import numpy as np
import pytest

from robopolicy.datasets.contract import SECOND, Contract, TopicFeature, parse_contract, read_contract
from robopolicy.datasets.messages import parse_selector, select, to_value
from robopolicy.datasets.resample import FeatureReader
from robopolicy.errors import DataError
from robopolicy.features import Control

TEXT = """
rate_hz: 30
latency_s: 0.05
features:
  observation.state:
    topic: /joint_states
    field: position[shoulder, elbow]
    units: [rad, rad]
    resample: interpolate
    tolerance_s: 0.05
  observation.images.top: {topic: /camera}
  observation.goal: {topic: /goal, tolerance_s: .inf}
  action: {topic: /command, field: data, control: {target: joint, mode: absolute}, offset_s: 0.01}
task: {topic: /task}
episode:
  start: {topic: /event, equals: start}
  end: {topic: /event, equals: end}
  max_gap_s: 1
"""


def test_a_contract_says_what_is_written_and_the_keys_say_the_kinds() -> None:
    contract = parse_contract(TEXT, "c.yaml")
    assert contract.rate_hz == 30.0
    assert [f.kind for f in contract.features.values()] == ["state", "image", "goal", "action"]
    assert contract.features["observation.state"].field == ("position[shoulder, elbow]",)
    assert contract.features["action"].control == Control("joint", "absolute")
    assert contract.episode.max_gap_s == 1.0
    assert contract.episode.start is not None
    assert contract.episode.start.equals == "start"
    assert contract.topics() == ["/joint_states", "/camera", "/goal", "/command", "/task"]
    assert contract.delay == round(0.06 * SECOND)
    assert contract.tolerance(contract.features["observation.images.top"]) == pytest.approx(2 / 30 * SECOND)
    assert not contract.is_periodic(contract.features["observation.goal"])


def test_writing_and_reading_gives_the_same_contract_and_hash(tmp_path: Path) -> None:
    contract = parse_contract(TEXT, "c.yaml")
    (tmp_path / "c.yaml").write_text(contract.to_yaml())
    again = read_contract(tmp_path / "c.yaml")
    assert again == contract
    assert again.content_hash() == contract.content_hash()


def test_the_hash_covers_every_value_and_defaults_written_out_change_nothing() -> None:
    contract = parse_contract(TEXT, "c.yaml")
    assert replace(contract, latency_s=0.06).content_hash() != contract.content_hash()
    state = replace(contract.features["observation.state"], tolerance_s=0.06)
    changed = replace(contract, features=contract.features | {"observation.state": state})
    assert changed.content_hash() != contract.content_hash()
    written_out = parse_contract(TEXT.replace("tolerance_s: 0.05", "tolerance_s: 0.05\n    offset_s: 0"), "c.yaml")
    assert written_out.content_hash() == contract.content_hash()


def test_ticks_do_not_drift() -> None:
    contract = Contract(30.0)
    assert contract.tick(7, 30 * 3600) == 7 + 3600 * SECOND
    assert contract.tick(0, 1) == 33_333_333
    assert contract.tick(0, 2) == 66_666_667


def test_a_header_stamp_is_believed_when_it_is_set_and_near_the_time_of_arrival() -> None:
    contract = Contract(10.0, max_clock_offset_s=5.0)
    now = 1_700_000_000 * SECOND
    assert contract.message_time(now - SECOND, now) == now - SECOND
    assert contract.message_time(0, now) == now
    assert contract.message_time(12 * SECOND, now) == now, "simulated time in a wall-clock recording"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("latency_s", "latencys", "Did you mean 'latency_s'"),
        ("tolerance_s: 0.05", "tolerence_s: 0.05", "Did you mean 'tolerance_s'"),
        ("resample: interpolate", "resample: interpolated", "Did you mean 'interpolate'"),
        ("max_gap_s: 1", "max_gaps: 1", "Did you mean 'max_gap_s'"),
        ("rate_hz: 30", "rate_hz: fast", "rate_hz"),
        ("rate_hz: 30", "rate_hz: 0", "out of range"),
        ("rate_hz: 30", "rate_hz: .nan", "out of range"),
        ("topic: /camera", "topic: camera", "should begin with '/'"),
        ("topic: /camera", "resample: interpolate, topic: /camera", "only floating-point"),
        ("position[shoulder, elbow]", "position[shoulder", "expected a form like"),
        ("  end: {topic: /event, equals: end}\n", "", "both a start and an end"),
        ("task: {topic: /task}", "task: {topic: /task, text: go}", "either a text or a topic"),
        ("features:", "features: []\nother:", "expected a table"),
        ("mode: absolute", "mode: relative", "mode"),
        ("rate_hz: 30", "rate_hz: [30", "damaged YAML"),
        ("units: [rad, rad]", "dtype: object", "unknown dtype"),
        ("units: [rad, rad]", "kind: velocity", "unknown kind"),
        ("units: [rad, rad]", "absent: [0, 0]", "absent needs the type"),
        ("rate_hz: 30", "rate_hz: 30\nassemble: {feature: observation.state, robot: a1}", "expected one of both"),
        ("rate_hz: 30", "rate_hz: 30\nassemble: {function: quadrupd}", "Did you mean 'quadruped'"),
        ("rate_hz: 30", "rate_hz: !!python/object/apply:os.getcwd []", "damaged YAML"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(DataError, match=r"c\.yaml") as error:
        parse_contract(TEXT.replace(old, new), "c.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def joints(names: list[str], values: list[float]) -> Message:
    return Message(name=names, position=np.array(values, float), velocity=np.zeros(0))


def test_joints_are_taken_by_name_whatever_their_order() -> None:
    steps = parse_selector("position[b, a]")
    assert select(joints(["a", "b", "c"], [1, 2, 3]), steps).tolist() == [2, 1]
    assert select(joints(["c", "a", "b"], [3, 1, 2]), steps).tolist() == [2, 1]
    with pytest.raises(DataError, match="no element named 'b'"):
        select(joints(["a", "c"], [1, 3]), steps)
    with pytest.raises(DataError, match="0 values of 'velocity'"):
        select(joints(["a", "b"], [1, 3]), parse_selector("velocity[a]"))


def test_a_bare_position_pins_the_order_of_the_first_message() -> None:
    reader = FeatureReader("observation.state", TopicFeature("/j"), joints(["b", "a"], [2, 1]))
    assert reader.feature.names == ("b", "a")
    assert reader.feature.dtype == "float32"
    assert reader.read(joints(["a", "b"], [1, 2])).tolist() == [2, 1]


def test_first_point_of_a_trajectory_by_joint_name() -> None:
    message = Message(joint_names=["a", "b"], points=[Message(positions=[1.0, 2.0], __slots__=())])
    assert select(message, parse_selector("points[0].positions[b]")).tolist() == [2.0]
    with pytest.raises(DataError, match="1 elements"):
        select(message, parse_selector("points[1].positions"))


def test_quaternions_become_wxyz_and_poses_and_twists_are_flat() -> None:
    xyz, quaternion = Message(x=1.0, y=2.0, z=3.0), Message(x=0.1, y=0.2, z=0.3, w=0.9)
    pose = to_value(Message(position=xyz, orientation=quaternion), "pose")
    assert pose.array.tolist() == [1, 2, 3, 0.9, 0.1, 0.2, 0.3]
    assert pose.quaternions == (3,)
    assert pose.names[3] == "pose.orientation.w"
    assert to_value(Message(linear=xyz, angular=xyz), "twist").array.tolist() == [1, 2, 3, 1, 2, 3]
    with pytest.raises(DataError, match="not numbers"):
        to_value("text", "data")


def test_integers_and_bools_are_exact_or_refused() -> None:
    big = 2**53 + 1
    reader = FeatureReader("observation.count", TopicFeature("/n", ("data",)), Message(data=big))
    assert reader.feature.dtype == "int64"
    assert reader.finish(reader.read(Message(data=big))).item() == big
    flag = FeatureReader("next.done", TopicFeature("/d", ("data",), dtype="bool"), Message(data=1.0))
    with pytest.raises(DataError, match="not bool"):
        flag.finish(flag.read(Message(data=0.5)))
    two = FeatureReader("action", TopicFeature("/a", ("data",)), Message(data=[0.0, 1.0]))
    with pytest.raises(DataError, match=r"shape \[3\], expected \[2\]"):
        two.finish(two.read(Message(data=[0.0, 1.0, 2.0])))
