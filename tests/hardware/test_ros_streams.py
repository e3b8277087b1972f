"""The topics of a contract in a node that is not active, or that waits: what it keeps of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the extra ros2")

import rclpy
from policy_files import CAMERA, CONTRACT, PROFILE, make_policy
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from ros_graph import free_domain
from sensor_msgs.msg import JointState
from std_msgs.msg import Header

from robopolicy.datasets.contract import parse_contract
from robopolicy.datasets.resample import Missing
from robopolicy.errors import DataError, FeatureMismatch
from robopolicy.features import FeatureSpec
from robopolicy.hardware.profiles import parse_profile
from robopolicy.hardware.ros.node import RobotNode
from robopolicy.hardware.ros.sim_node import picture_message
from robopolicy.hardware.ros.streams import Frame, Streams, completed

GOAL = '/goal, type: sensor_msgs/msg/JointState, tolerance_s: .inf, field: "velocity'


class Listener(RobotNode):
    """Streams without a policy, in the process of the test."""

    NAME = "listener"

    def __init__(self, text: str) -> None:
        super().__init__()
        self.failures: list[str] = []
        contract = parse_contract(text, Path("contract.yaml"))
        wanted = FeatureSpec(make_policy(images="image" in text).features.inputs)
        profile = parse_profile(PROFILE, Path("table.yaml"))
        self.streams = Streams(self, contract, wanted, profile, lambda: None, self.failures.append)

    def activate(self) -> None:
        self.streams.restart()

    def hear(self, topic: str, stamp: int) -> None:
        """A message of two joints, or a picture, as a subscription would hand it over."""
        header = Header(stamp=Time(nanoseconds=stamp).to_msg())
        if topic == "/joint_states":
            values = [0.1, 0.2]
            message: Any = JointState(header=header, name=["x", "y"], position=values, velocity=values)
        else:
            message = picture_message(np.zeros((40, 48, 3), np.uint8), header.stamp, "top")
        self.streams._take(topic, message)

    @property
    def kept(self) -> int:
        """Messages that it holds, of every kind."""
        streams = self.streams
        sampler = streams._sampler
        resamplers = [] if sampler is None else [r for one in sampler._by_topic.values() for r in one.values()]
        first = {id(message) for _, message in streams._first.values()}
        return len(first) + len(streams._kept) + len(streams._measured) + sum(map(len, resamplers))


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Listener] = []

    def make(text: str) -> Listener:
        made.append(Listener(text))
        return made[-1]

    domain, lock = free_domain()
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    rclpy.init(args=["test"], domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    try:
        yield make
    finally:
        for node in made:
            node.destroy_node()
        rclpy.try_shutdown()
        lock.close()


def test_a_node_that_is_not_active_keeps_no_messages(listener: Any) -> None:
    node = listener(CONTRACT + CAMERA)
    node.trigger_configure()
    now: int = node.get_clock().now().nanoseconds
    for k in range(100):
        for topic in ("/joint_states", "/top/image_raw"):
            node.hear(topic, now + k)
    assert node.kept == 0
    node.trigger_activate()
    for topic in ("/joint_states", "/top/image_raw"):
        node.hear(topic, now + 100)
    assert node.streams.waiting_for == []
    node.trigger_deactivate()
    before = node.kept
    for k in range(100, 200):
        for topic in ("/joint_states", "/top/image_raw"):
            node.hear(topic, now + k)
    assert node.kept == before
    assert node.failures == []


def test_of_topics_that_speak_only_on_change_the_newest_message_is_kept_until_activation(listener: Any) -> None:
    goal = CONTRACT.replace('/joint_states, type: sensor_msgs/msg/JointState, field: "velocity', GOAL)
    assert goal != CONTRACT
    node = listener(goal)
    node.trigger_configure()
    now: int = node.get_clock().now().nanoseconds
    for value in (1.0, 2.0):
        message = JointState(name=["x", "y"], position=[0.0, 0.0], velocity=[value, value])
        message.header.stamp = Time(nanoseconds=now).to_msg()
        node.streams._take("/goal", message)
    assert node.kept == 1
    node.trigger_activate()
    node.hear("/joint_states", now)
    assert node.streams.waiting_for == []
    tick = node.streams.due()
    np.testing.assert_array_equal(node.streams.frame(tick).values["observation.environment_state"], [2.0, 2.0])


def test_measurements_do_not_pile_up_while_a_topic_is_waited_for(listener: Any) -> None:
    node = listener(CONTRACT + CAMERA)
    node.trigger_configure()
    node.trigger_activate()
    now: int = node.get_clock().now().nanoseconds
    for k in range(100):
        node.hear("/joint_states", now + k)
    assert node.streams.waiting_for == ["/top/image_raw"]
    assert node.kept == 2, "the newest message and the newest measurement"
    node.hear("/top/image_raw", now + 99)
    frame = node.streams.frame(node.streams.due())
    np.testing.assert_allclose(frame.measured, [0.1, 0.2])


def test_messages_about_other_joints_are_passed_over(listener: Any) -> None:
    node = listener(CONTRACT)
    node.trigger_configure()
    node.trigger_activate()
    now: int = node.get_clock().now().nanoseconds

    def gripper(stamp: int) -> None:
        message = JointState(name=["finger"], position=[0.5], velocity=[0.0])
        message.header.stamp = Time(nanoseconds=stamp).to_msg()
        node.streams._take("/joint_states", message)

    gripper(now)
    assert node.streams.waiting_for == [
        "/joint_states (its messages hold nothing of observation.state, observation.environment_state)"
    ]
    node.hear("/joint_states", now + 1)
    gripper(now + 2)
    frame = node.streams.frame(node.streams.due())
    np.testing.assert_allclose(frame.values["observation.state"], [0.1, 0.2])
    assert node.failures == []


def test_a_damaged_picture_is_a_missing_one_and_only_what_stays_damaged_an_error(listener: Any) -> None:
    node = listener(CONTRACT.replace("latency_s: 2.0", "latency_s: 0.02") + CAMERA)
    node.trigger_configure()
    node.trigger_activate()
    streams = node.streams
    start: int = node.get_clock().now().nanoseconds
    node.hear("/joint_states", start)
    node.hear("/top/image_raw", start)

    def hear(stamp: int, damaged: bool) -> None:
        node.hear("/joint_states", stamp)
        message = picture_message(np.zeros((40, 48, 3), np.uint8), Time(nanoseconds=stamp).to_msg(), "top")
        if damaged:
            message.data = message.data[:100]
        streams._take("/top/image_raw", message)

    def frame(k: int, damaged: bool) -> Any:
        tick = streams.contract.tick(streams._start, k)
        hear(tick, damaged)
        return streams.frame(tick)

    assert isinstance(frame(0, False), Frame)
    bad = frame(1, True)
    assert isinstance(bad, Missing)
    assert "/top/image_raw" in bad.reason
    assert isinstance(frame(2, False), Frame)
    for k in range(3, 53):
        assert isinstance(frame(k, True), Missing)
    with pytest.raises(DataError, match="/top/image_raw"):
        frame(53, True)


@pytest.mark.parametrize("feature", ["observation.state", "observation.environment_state"])
def test_a_contract_with_the_joints_in_another_order_is_refused(feature: str) -> None:
    wanted = FeatureSpec(make_policy().features.inputs)
    field = "position" if feature == "observation.state" else "velocity"
    swapped = CONTRACT.replace(f"{field}[x, y]", f"{field}[y, x]")
    with pytest.raises(FeatureMismatch, match=r"has \['y', 'x'\]"):
        completed(parse_contract(swapped, "contract.yaml"), wanted)
    # Joints that the robot calls otherwise are those at the same place.
    renamed = CONTRACT.replace(f"{field}[x, y]", f"{field}[joint_1, joint_2]")
    assert completed(parse_contract(renamed, "contract.yaml"), wanted).features[feature].names == ("x", "y")
