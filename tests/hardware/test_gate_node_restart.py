"""The gate as a process over DDS: nothing that is cleared, released or configured again moves a robot by itself."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the extra ros2")

from ros_graph import Graph, ros_graph
from std_msgs.msg import Float64MultiArray
from test_gate_node import ARM, Bench

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
