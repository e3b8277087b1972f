"""The node of a directly driven robot as a process, with an arm of the test's own behind it."""

import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from ros_graph import Graph, Process, ros_graph
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robopolicy.hardware.profiles import load_profile
from robopolicy.hardware.ros.node import COMMAND

graph = pytest.fixture(ros_graph)
NODE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from arm_of_air import ArmOfAir
from robopolicy.hardware.ros import driver_node
ArmOfAir.says = True
driver_node.make_driver = lambda robot, address: ArmOfAir(address)
sys.exit(driver_node.run(driver_node.DriverNode))
"""
TOPIC = "forward_position_controller/commands"


def start(graph: Graph, *parameters: str, robot: str = "ur5e", address: str = "air") -> Process:
    given = (f"robot:={robot}", f"address:={address}", *parameters)
    options = [text for parameter in given for text in ("-p", parameter)]
    return graph.run([sys.executable, "-c", NODE, "--ros-args", *options])


def status(graph: Graph, found: list[DiagnosticArray]) -> Any:
    """The newest status of the node."""
    return next((s for m in reversed(found) for s in m.status if s.name == "/driver_node"), None)


def test_it_follows_from_where_the_robot_is_and_brakes_when_commands_stop(graph: Graph) -> None:
    node = start(graph, "deadman_s:=0.5")
    first = graph.first(JointState, "joint_states")
    assert tuple(first.name) == load_profile("ur5e").names
    assert list(first.position) == [0.0] * 6
    publisher = graph.node.create_publisher(Float64MultiArray, TOPIC, COMMAND)
    states = graph.collect(JointState, "joint_states")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics", COMMAND)

    def send(value: float) -> bool:
        publisher.publish(Float64MultiArray(data=[value] * 6))
        graph.spin(0.02)
        return bool(states and np.allclose(states[-1].position, value))

    graph.until(lambda: send(0.04), "the first set-point")
    graph.until(lambda: send(0.3), "the next ones may be farther")
    graph.until(lambda: (s := status(graph, diagnostics)) and s.message == "holding", "the robot brakes")
    assert {v.key: v.value for v in status(graph, diagnostics).values}["dried_up"] == "1"
    graph.until(lambda: not send(0.4) and dict_of(status(graph, diagnostics))["refused"] != "0", "a far start")
    assert not np.allclose(states[-1].position, 0.4)
    assert node.end(signal.SIGINT) == 0


def dict_of(found: Any) -> dict[str, str]:
    return {v.key: v.value for v in found.values}


def test_a_robot_that_stops_by_itself_is_let_go_and_named(graph: Graph) -> None:
    node = start(graph, "start_tolerance:=0.2")
    graph.first(JointState, "joint_states")
    publisher = graph.node.create_publisher(Float64MultiArray, TOPIC, COMMAND)
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics", COMMAND)

    def failed() -> bool:
        # The arm of air stops by itself once its last joint is beyond 0.5.
        publisher.publish(Float64MultiArray(data=[0.0] * 6))
        publisher.publish(Float64MultiArray(data=[0.0] * 5 + [0.6]))
        graph.spin(0.02)
        found = status(graph, diagnostics)
        return bool(found and found.level == DiagnosticStatus.ERROR and found.message == "air: protective stop")

    graph.until(failed, "the failure in the diagnostics")
    states = graph.collect(JointState, "joint_states")
    graph.spin(0.5)
    assert states == []
    assert node.alive
    assert node.end(signal.SIGTERM) == 0


def change(graph: Graph, number: int) -> bool:
    return bool(graph.call(ChangeState, "driver_node/change_state", transition=Transition(id=number)).success)


def test_a_robot_that_refuses_to_stop_is_let_go_and_not_started_again(graph: Graph) -> None:
    node = start(graph, "deadman_s:=1.0", address="air-that-does-not-stop")
    graph.first(JointState, "joint_states")
    publisher = graph.node.create_publisher(Float64MultiArray, TOPIC, COMMAND)
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics", COMMAND)
    graph.node.create_timer(0.02, lambda: publisher.publish(Float64MultiArray(data=[0.01] * 6)))
    graph.until(lambda: "arm: start" in node.output, "motion")
    assert not change(graph, Transition.TRANSITION_DEACTIVATE)
    # Set-points go on coming.
    graph.until(lambda: (s := status(graph, diagnostics)) and s.level == DiagnosticStatus.ERROR, "the failure")
    assert status(graph, diagnostics).message == "air-that-does-not-stop: the stop was refused"
    assert graph.call(GetState, "driver_node/get_state").current_state.label == "unconfigured"
    assert [line for line in node.output.splitlines() if line.startswith("arm: ")] == [
        "arm: connect", "arm: start", "arm: stop", "arm: close",
    ]  # fmt: skip
    assert node.end() == 0


def test_a_stop_that_is_refused_at_the_end_is_named_and_the_driver_closed(graph: Graph) -> None:
    node = start(graph, "deadman_s:=1.0", address="air-that-does-not-stop")
    graph.first(JointState, "joint_states")
    publisher = graph.node.create_publisher(Float64MultiArray, TOPIC, COMMAND)
    graph.node.create_timer(0.02, lambda: publisher.publish(Float64MultiArray(data=[0.01] * 6)))
    graph.until(lambda: "arm: start" in node.output, "motion")
    assert node.end() == 1
    assert "air-that-does-not-stop: the stop was refused" in node.output
    assert "arm: close" in node.output


def test_of_a_trajectory_it_takes_the_first_point_by_joint_names(graph: Graph, tmp_path: Path) -> None:
    profile = load_profile("ur5e")
    text = profile.source.read_text()
    before = f"command: {{adapter: forward_position, topic: {TOPIC}}}"
    assert before in text
    (tmp_path / "arm.yaml").write_text(text.replace(before, "command: {adapter: joint_trajectory, topic: path}"))
    start(graph, robot=str(tmp_path / "arm.yaml"))
    states = graph.collect(JointState, "joint_states")
    publisher = graph.node.create_publisher(JointTrajectory, "path", COMMAND)
    # The second point is where braking would end.
    first = JointTrajectoryPoint(positions=[0.01 * k for k in range(6)])
    message = JointTrajectory(
        joint_names=profile.names[::-1], points=[first, JointTrajectoryPoint(positions=[0.05] * 6)]
    )

    def arrived() -> bool:
        publisher.publish(message)
        graph.spin(0.02)
        return bool(states and np.allclose(states[-1].position, [0.05, 0.04, 0.03, 0.02, 0.01, 0.0]))

    graph.until(arrived, "the first point")


def test_time_of_a_real_robot_runs_at_its_own_rate(graph: Graph) -> None:
    node = start(graph, "use_sim_time:=true", "time_scale:=4.0")
    assert node.wait() == 1
    assert "time_scale is 4.0: the time of a real robot is 1" in node.output


@pytest.mark.parametrize(
    ("robot", "message"),
    [("ur5", "Did you mean 'ur5e'"), ("xarm7", "the arm has 6"), ("", "parameter robot is needed")],
)
def test_a_robot_that_does_not_fit_is_refused(graph: Graph, robot: str, message: str) -> None:
    node = graph.run([sys.executable, "-c", NODE, "--ros-args", "-p", f"robot:='{robot}'", "-p", "address:=air"])
    assert node.wait() == 1
    assert message in node.output
