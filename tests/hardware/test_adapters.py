"""Command adapters and the geometry behind them: what controllers get, received over DDS and compared by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the extra ros2")

from geometry_msgs.msg import PoseStamped, TwistStamped
from ros_graph import Graph, ros_graph
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.geometry import RobotGeometry, quaternion, rotation_vector
from robopolicy.hardware.profiles import RobotProfile, parse_profile
from robopolicy.hardware.ros.adapters import Setpoint, make_adapters
from robopolicy.hardware.ros.messages import gains_content, seconds
from robopolicy.hardware.ros.node import COMMAND

graph = pytest.fixture(ros_graph)
LINKS = """
<mujoco>
  <worldbody>
    <body name="upper">
      <joint name="shoulder" type="hinge" axis="0 0 1"/>
      <geom type="capsule" size="0.02" fromto="0 0 0 0.5 0 0"/>
      <body name="lower" pos="0.5 0 0">
        <joint name="elbow" type="hinge" axis="0 0 1"/>
        <geom type="capsule" size="0.02" fromto="0 0 0 0.5 0 0"/>
        <site name="tip" pos="0.5 0 0"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
ARM = """
name: links
rate_hz: 50
joints:
- {name: elbow, low: -2, high: 2, velocity: 1, acceleration: 4, jerk: 80, home: 0, tracking_error: 0.2, jump: 0.4}
- {name: shoulder, low: -2, high: 2, velocity: 1, acceleration: 4, jerk: 80, home: 0, tracking_error: 0.2, jump: 0.4}
- {name: grip, low: 0, high: 1, velocity: 1, acceleration: 4, jerk: 80, home: 0, tracking_error: .inf, jump: .inf}
gripper: {joint: grip, command: {adapter: forward_position, topic: hand}}
geometry: {mjcf: links.xml, frame: tip, points: [tip, lower]}
gains: {kp: 20, kd: 0.5, damping: 4}
stop_time_s: 0.5
"""


def profile(folder: Path, adapter: str, more: str = "", hold: str = "hold") -> RobotProfile:
    (folder / "links.xml").write_text(LINKS)
    command = f"command: {{adapter: {adapter}, topic: out, frame: base{more}}}\nhold: {hold}\n"
    text = ARM if adapter != "joint_gains" else ARM.replace(", command: {adapter: forward_position, topic: hand}", "")
    return parse_profile(text + command, folder / "links.yaml")


def received(graph: Graph, robot: RobotProfile, kind: Any, topic: str = "out", **changes: Any) -> Any:
    """What arrives when a set-point is sent."""
    limits = robot.gate_config().limits.velocity
    adapters = make_adapters(graph.node, robot, limits)
    found = graph.collect(kind, topic, COMMAND)
    values: dict[str, Any] = {
        "stamp": graph.node.get_clock().now().to_msg(),
        "position": np.array([np.pi / 2, 0.0, 0.3]),
        "velocity": np.array([0.5, 0.0, 0.1]),
        "stop": np.zeros((0, 3)),
        "measured": None,
        "faulty": False,
    }
    setpoint = Setpoint(**(values | changes))

    def sent() -> list[Any]:
        for adapter in adapters:
            adapter.send(setpoint)
        return found

    return graph.until(sent, "a command")[0]


def test_a_trajectory_ends_at_rest_along_the_way_of_braking(graph: Graph) -> None:
    robot = profile(graph.folder, "joint_trajectory", ", lead_s: 0.1")
    ramp = np.array([[1.0], [1.6], [1.9], [2.0]]) * np.array([0.02, 0.01, 0.03])
    start = np.array([0.1, 0.2, 0.3])
    message = received(graph, robot, JointTrajectory, position=start, stop=start + ramp)
    assert message.joint_names == ["elbow", "shoulder"]
    assert message.header.stamp.sec > 0
    assert [seconds(p.time_from_start) for p in message.points] == pytest.approx([0.1, 0.12, 0.14, 0.16, 0.18])
    np.testing.assert_allclose(message.points[0].positions, [0.1, 0.2])
    np.testing.assert_allclose(message.points[0].velocities, [0.5, 0.0])
    # From 1.0 to 1.6 times (0.02, 0.01) in 0.02 s.
    np.testing.assert_allclose(message.points[2].velocities, [0.6, 0.3])
    np.testing.assert_allclose(message.points[-1].positions, [0.14, 0.22])
    np.testing.assert_array_equal(message.points[-1].velocities, [0.0, 0.0])


def test_at_rest_a_trajectory_is_one_point_and_a_long_stop_is_thinned(graph: Graph) -> None:
    robot = profile(graph.folder, "joint_trajectory")
    still = received(graph, robot, JointTrajectory)
    assert [seconds(p.time_from_start) for p in still.points] == [0.02]
    assert list(still.points[0].velocities) == [0.0, 0.0]
    path = np.linspace(0, 1, 41)[1:, None] * np.ones(3)
    long = received(graph, robot, JointTrajectory, position=np.zeros(3), stop=path)
    times = [seconds(p.time_from_start) for p in long.points]
    assert len(times) == 6
    assert times[-1] == pytest.approx(0.02 + 40 * 0.02)
    np.testing.assert_allclose(long.points[-1].positions, [1.0, 1.0])


def test_positions_of_arm_and_gripper_go_to_their_own_topics(graph: Graph) -> None:
    robot = profile(graph.folder, "forward_position")
    assert list(received(graph, robot, Float64MultiArray).data) == [np.pi / 2, 0.0]
    assert list(received(graph, robot, Float64MultiArray, topic="hand").data) == [0.3]


def test_velocities_make_up_for_lag_within_limits_and_not_after_a_fault(graph: Graph) -> None:
    robot = profile(graph.folder, "forward_velocity", ", gain: 3.0")
    measured = np.array([np.pi / 2 - 0.1, -0.9, 0.3])
    # 0.5 + 3 x 0.1, and 3 x 0.9 cut at 1 rad/s.
    assert list(received(graph, robot, Float64MultiArray, measured=measured).data) == pytest.approx([0.8, 1.0])
    faulty = received(graph, robot, Float64MultiArray, measured=measured, faulty=True)
    assert list(faulty.data) == [0.5, 0.0]


def test_pose_and_twist_of_the_tip_of_two_links(graph: Graph) -> None:
    # Shoulder at 0, elbow at 90 degrees: the tip is at (0.5, 0.5), turned by 90 degrees about z.
    pose = received(graph, profile(graph.folder, "pose"), PoseStamped)
    place, turn = pose.pose.position, pose.pose.orientation
    np.testing.assert_allclose([place.x, place.y, place.z], [0.5, 0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose([turn.x, turn.y, turn.z, turn.w], [0, 0, np.sqrt(0.5), np.sqrt(0.5)], atol=1e-12)
    assert pose.header.frame_id == "base"


def test_twist_of_the_tip_of_two_links(graph: Graph) -> None:
    # The elbow turns at 0.5 rad/s: the tip, 0.5 m in front of it along y, moves towards -x at 0.25 m/s.
    twist = received(graph, profile(graph.folder, "twist"), TwistStamped).twist
    linear, angular = twist.linear, twist.angular
    np.testing.assert_allclose([linear.x, linear.y, linear.z], [-0.25, 0, 0], atol=2e-3)
    np.testing.assert_allclose([angular.x, angular.y, angular.z], [0, 0, 0.5], atol=1e-9)


def test_gains_go_with_their_targets_and_damping_replaces_them_after_a_fault(graph: Graph) -> None:
    robot = profile(graph.folder, "joint_gains", hold="damp")
    table = gains_content(received(graph, robot, Float64MultiArray), 3)
    expected = [[np.pi / 2, 0, 0, 20, 0.5], [0, 0, 0, 20, 0.5], [0.3, 0, 0, 20, 0.5]]
    np.testing.assert_allclose(table, expected)
    limp = received(graph, robot, Float64MultiArray, faulty=True)
    np.testing.assert_allclose(gains_content(limp, 3)[:, 3:], [[0, 4]] * 3)
    with pytest.raises(RobopolicyError, match=r"15 numbers .* expected 12 x q,dq,tau,kp,kd"):
        gains_content(limp, 12)


def test_points_of_the_workspace_and_rotations_by_hand(tmp_path: Path) -> None:
    geometry = RobotGeometry(profile(tmp_path, "pose"))
    np.testing.assert_allclose(geometry.points(np.array([np.pi / 2, 0, 0])), [[0.5, 0.5, 0], [0.5, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(geometry.points(np.array([0, np.pi / 2, 0])), [[0, 1, 0], [0, 0.5, 0]], atol=1e-12)
    half = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    np.testing.assert_allclose(quaternion(half), [np.sqrt(0.5), 0, np.sqrt(0.5), 0], atol=1e-12)
    np.testing.assert_allclose(rotation_vector(half), [0, np.pi / 2, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mjcf: links.xml", "mjcf: none.xml", "none.xml does not exist"),
        ("frame: tip", "frame: tpi", "unknown site or body in links.xml: 'tpi'. Did you mean 'tip'"),
        ("[tip, lower]", "[tip, lowr]", "Did you mean 'lower'"),
    ],
)
def test_a_model_that_does_not_fit_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "links.xml").write_text(LINKS)
    text = ARM.replace(old, new) + "command: {adapter: pose, topic: out}\n"
    with pytest.raises(RobopolicyError, match=message):
        RobotGeometry(parse_profile(text, tmp_path / "links.yaml"))
