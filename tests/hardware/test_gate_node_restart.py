"""The gate as a process over DDS: nothing that is cleared, released or configured again moves a robot by itself."""

import signal
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the extra ros2")

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_graph import Graph, ros_graph
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from test_gate_node import ARM, Bench

from robopolicy.hardware.ros.messages import joint_state
from robopolicy.hardware.ros.node import COMMAND

graph = pytest.fixture(ros_graph)
POSITION = "{adapter: forward_position, topic: command}"
VELOCITY = ARM.replace(POSITION, "{adapter: forward_velocity, topic: command}")
SINKING = ARM.replace(
    POSITION, "{adapter: joint_gains, topic: command}\ngains: {kp: 20, kd: 0.5, damping: 2}\nhold: damp"
)


class Stuck(Bench):
    """A robot that stands where it is, whatever it is told."""

    def _follow(self, message: Float64MultiArray) -> None:
        self.sent.append((0.0, np.array(message.data)))

    def further(self, count: int = 20) -> list[Any]:
        """The commands from now on, once there are so many."""
        begun = len(self.sent)
        self.graph.until(lambda: len(self.sent) >= begun + count, f"{count} commands", describe=self.status)
        return [values for _, values in self.sent[begun:]]

    def lag(self) -> "Stuck":
        """Waits until the set-points stand 0.2 ahead of the robot."""
        self.until(active="true")
        self.goal = self.position + 0.2
        ahead = self.position + 0.199
        self.graph.until(
            lambda: self.setpoints and (np.array(self.setpoints[-1].position) > ahead).all(),
            "set-points at the goal",
            describe=self.status,
        )
        return self


def test_clear_does_not_drive_a_robot_of_velocities_to_where_it_was_to_be(graph: Graph) -> None:
    bench = Stuck(graph, VELOCITY)
    bench.lag()
    # It works against the lag: 2 per second of 0.2.
    np.testing.assert_allclose(bench.further()[-1], 0.4, atol=0.01)
    assert bench.call("emergency_stop").success
    bench.until_fault("emergency_stop")
    bench.until(at_rest="true")
    bench.sent.clear()
    graph.until(lambda: bench.sent and not bench.sent[-1][1].any(), "velocity 0")
    bench.sent.clear()
    assert bench.call("clear").success
    bench.until(faults="", active="true", holding="true")
    assert bench.statuses[-1].message == "holding"
    bench.further()
    np.testing.assert_allclose([values for _, values in bench.sent], 0, atol=1e-9)
    assert bench.call("resume").success
    graph.until(lambda: (bench.sent[-1][1] > 0.3).all(), "motion", describe=bench.status)


def test_clear_does_not_raise_a_robot_that_sank(graph: Graph) -> None:
    bench = Stuck(graph, SINKING)
    bench.lag()
    table = bench.further()[-1].reshape(2, 5)
    np.testing.assert_allclose(table[:, 3:], [[20, 0.5]] * 2)
    assert bench.call("emergency_stop").success
    graph.until(lambda: bench.sent[-1][1].reshape(2, 5)[0, 3] == 0, "damping")
    bench.position = bench.position - 0.05
    bench.further()
    bench.sent.clear()
    assert bench.call("clear").success
    bench.until(faults="", active="true", holding="true")
    assert bench.statuses[-1].message == "holding"
    bench.further()
    tables = [values.reshape(2, 5) for _, values in bench.sent]
    stiff = [t for t in tables if t[0, 3] > 0]
    assert len(stiff) > 10
    np.testing.assert_allclose([t[:, 0] for t in stiff], [bench.position] * len(stiff), atol=1e-9)
    # One that is stiff stays so.
    assert all(t[0, 3] > 0 for t in tables[-len(stiff) :])
    assert bench.call("resume").success
    graph.until(lambda: bench.sent[-1][1].reshape(2, 5)[0, 0] > bench.position[0] + 0.1, "motion")


@pytest.mark.parametrize("reliability", [ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT])
def test_a_press_that_is_released_before_the_gate_looks_is_an_emergency_stop(
    graph: Graph, reliability: ReliabilityPolicy
) -> None:
    bench = Bench(graph)
    bench.until(active="true")
    button = graph.node.create_publisher(Bool, "emergency_stop", QoSProfile(depth=10, reliability=reliability))

    def pressed() -> bool:
        button.publish(Bool(data=True))
        return "emergency_stop" in bench.status()["faults"]

    def go_on() -> int:
        """Releases, clears, resumes; returns how often an emergency stop was seen by then."""
        button.publish(Bool(data=False))
        bench.until(at_rest="true", **{"emergency_stop pressed": "false"})
        graph.until(lambda: bench.call("clear").success, "clear", describe=bench.status)
        assert bench.call("resume").success
        bench.until(faults="", holding="false")
        return int(bench.status()["fault emergency_stop"])

    # That the endpoints know of each other does not mean that messages arrive yet.
    graph.until(pressed, "the first press", describe=bench.status)
    count = go_on()
    for press in range(1, 4):
        bench.process.send(signal.SIGSTOP)
        button.publish(Bool(data=True))
        button.publish(Bool(data=False))
        graph.spin(0.1)
        bench.process.send(signal.SIGCONT)
        bench.until_fault("emergency_stop")
        # Two subscriptions hear it, and it is one press.
        assert go_on() == count + press


def test_an_emergency_stop_outlives_the_configuration(graph: Graph) -> None:
    bench = Bench(graph).start()
    bench.button.publish(Bool(data=True))
    bench.until_fault("emergency_stop")
    bench.until(at_rest="true")
    steps = ("DEACTIVATE", "CLEANUP", "CONFIGURE", "ACTIVATE")
    for number in [getattr(Transition, f"TRANSITION_{step}") for step in steps]:
        bench.statuses.clear()
        assert graph.call(ChangeState, "gate/change_state", transition=Transition(id=number)).success
    held = bench.position.copy()
    bench.until(active="false", faults="emergency_stop", **{"emergency_stop pressed": "true"})
    assert bench.statuses[-1].message == "emergency_stop: topic emergency_stop"
    assert "send false first" in bench.call("clear").message
    bench.button.publish(Bool(data=False))
    bench.until(**{"emergency_stop pressed": "false"})
    assert not bench.call("enable", True).success
    bench.sent.clear()
    assert bench.call("clear").success
    bench.until(active="true", faults="", holding="true")
    graph.until(lambda: len(bench.sent) > 20, "commands", describe=bench.status)
    np.testing.assert_allclose([values for _, values in bench.sent], [held] * len(bench.sent), atol=1e-9)
    assert bench.call("resume").success
    bench.start((held[0] - 0.3, held[1]))


@pytest.mark.parametrize(("text", "last"), [(VELOCITY, [0.0, 0.0]), (SINKING, [0.0, 2.0])])
def test_a_dry_run_leaves_no_command_in_force(graph: Graph, text: str, last: list[float]) -> None:
    bench = Stuck(graph, text)
    bench.lag()
    assert bench.call("hold").success
    bench.until(at_rest="true", holding="true")
    assert np.abs(bench.further()[-1]).max() > 0.3
    assert bench.call("dry_run", True).success
    bench.until(active="true", dry_run="true")
    # Velocities, or kp and kd of both joints.
    graph.until(
        lambda: np.array_equal(bench.sent[-1][1].reshape(2, -1)[:, -2:].ravel()[-2:], last), "the last command"
    )
    bench.sent.clear()
    bench.setpoints.clear()
    graph.until(lambda: len(bench.setpoints) > 20, "set-points")
    assert not bench.sent


def test_joints_whose_states_come_apart_need_not_be_equally_old(graph: Graph) -> None:
    bench = Bench(graph)
    bench.measuring = False
    states = graph.node.create_publisher(JointState, "joint_states", COMMAND)

    def measure() -> None:
        states.publish(joint_state(bench.now(), ["a"], bench.position[:1]))

    def measure_late() -> None:
        states.publish(joint_state(bench.now(0.2), ["b"], bench.position[1:]))

    graph.node.create_timer(0.01, measure)
    graph.node.create_timer(0.03, measure_late)
    bench.start()
    graph.until(lambda: np.abs(bench.position - bench.goal).max() < 1e-3, "the goal", describe=bench.status)
    assert "joint states out of order" not in bench.status()
    # One that is older than the last of its own joint is still no news: this one would be a jump.
    states.publish(joint_state(bench.now(0.8), ["b"], [1.5]))
    graph.until(lambda: bench.status().get("joint states out of order") == "1", "the count", describe=bench.status)
    assert bench.status()["faults"] == ""
