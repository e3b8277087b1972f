"""The simulated robot as a process: its topics, its clock, its episodes, and what happens when its sensors fail."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from ros_graph import Graph, ros_graph
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robopolicy.hardware.profiles import FOLDER
from robopolicy.hardware.ros.node import COMMAND, LATCHED
from robopolicy.sim.pusht import ENVIRONMENT, PushTState
from robopolicy.sim.robots import make_robot

graph = pytest.fixture(ros_graph)
SIM = "robopolicy.hardware.ros.sim_node"


def nanoseconds(stamp: Any) -> int:
    return int(stamp.sec * 10**9 + stamp.nanosec)


def seconds(stamp: Any) -> float:
    return nanoseconds(stamp) * 1e-9


def set_parameters(graph: Graph, **values: Any) -> list[bool]:
    changes = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    answer = graph.call(SetParameters, "sim_node/set_parameters", parameters=changes)
    return [r.successful for r in answer.results]


@pytest.fixture
def command(graph: Graph) -> Any:
    publisher = graph.node.create_publisher(Float64MultiArray, "command", COMMAND)
    return lambda target: publisher.publish(Float64MultiArray(data=[float(v) for v in target]))


def value(arrays: list[DiagnosticArray], key: str) -> str:
    """The newest value of this name in the node's diagnostics, empty before the first."""
    found = [v.value for a in arrays for s in a.status if s.name == "/sim_node" for v in s.values if v.key == key]
    return found[-1] if found else ""


def test_stepped_it_is_the_task_to_the_last_bit(graph: Graph, command: Any) -> None:
    graph.start(SIM, mode="stepped", use_sim_time=True, episode_seed=11)
    task = PushTState()
    observation, _ = task.reset(seed=11)
    first = graph.first(JointState, "joint_states")
    assert list(first.name) == ["x", "y"]
    np.testing.assert_array_equal(first.position, task.agent_position)
    states, blocks, clocks = (
        graph.collect(*topic)
        for topic in ((JointState, "joint_states"), (Float64MultiArray, "block_state"), (Clock, "/clock"))
    )
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics", 10)
    graph.until(lambda: states and blocks and clocks, "all topics")

    def heard() -> bool:
        """Whether commands arrive; one that is no target makes no time pass."""
        command([np.nan, 1.0])
        command([1.0, 2.0, 3.0])
        return int(value(diagnostics, "refused") or 0) > 2

    graph.until(heard, "refused commands")
    time = nanoseconds(states[-1].header.stamp)
    assert time == nanoseconds(first.header.stamp)

    def shows(moment: int, block: np.ndarray | None = None) -> bool:
        """Whether the newest state and clock are of this moment, and the block is there."""
        stamps = (states[-1].header.stamp, clocks[-1].clock)
        there = block is None or np.allclose(blocks[-1].data, block, rtol=1e-6)
        return there and all(nanoseconds(stamp) == moment for stamp in stamps)

    for step in range(12):
        block = observation[ENVIRONMENT][:2]
        target = np.clip(block + 50 * np.array([np.cos(step), np.sin(step)]), 0, 512)
        for _ in range(5):  # 50 Hz commands, 10 Hz task.
            command(target)
            time += 20_000_000
            graph.until(partial(shows, time), "the next state")
        observation, *_ = task.step(target)
        np.testing.assert_array_equal(states[-1].position, task.agent_position)
        np.testing.assert_array_equal(states[-1].velocity, task.agent_velocity)
        graph.until(partial(shows, time, observation[ENVIRONMENT]), "the block")


def test_of_a_trajectory_it_follows_the_set_point_not_the_way_of_braking(graph: Graph) -> None:
    text = (FOLDER / "sim_pusht.yaml").read_text()
    profile = graph.folder / "sim_pusht.yaml"
    profile.write_text(text.replace("adapter: forward_position", "adapter: joint_trajectory"))
    graph.start(SIM, mode="stepped", use_sim_time=True, episode_seed=11, profile=str(profile))
    task = PushTState()
    task.reset(seed=11)
    states = graph.collect(JointState, "joint_states")
    publisher = graph.node.create_publisher(JointTrajectory, "command", COMMAND)
    graph.until(lambda: states and publisher.get_subscription_count(), "the robot")
    target = np.array([300.0, 200.0])
    points = [JointTrajectoryPoint(positions=(target + k).tolist()) for k in (0.0, 50.0, 100.0)]
    for _ in range(5):
        before = nanoseconds(states[-1].header.stamp)
        publisher.publish(JointTrajectory(joint_names=["x", "y"], points=points))
        graph.until(lambda before=before: nanoseconds(states[-1].header.stamp) > before, "the next state")
    task.step(target)
    np.testing.assert_array_equal(states[-1].position, task.agent_position)


def test_an_episode_in_scaled_time_ends_with_its_result(graph: Graph, command: Any) -> None:
    node = graph.start(SIM, time_scale=25.0, use_sim_time=True, episode_seed=100_003)
    results = graph.collect(DiagnosticStatus, "sim/result", LATCHED)
    clocks = graph.collect(Clock, "/clock")
    graph.first(JointState, "joint_states")
    begin = seconds(clocks[-1].clock)

    def over(episodes: int) -> bool:
        command([256.0, 256.0])
        return len(results) == episodes

    for seed in (100_003, 100_004):
        assert set_parameters(graph, episode_seed=seed) == [True]
        answer = graph.call(Trigger, "sim/reset")
        assert (answer.success, answer.message) == (True, f"episode {seed}")
        graph.until(partial(over, seed - 100_002), "a result")
        values = {v.key: v.value for v in results[-1].values}
        task = PushTState()
        task.reset(seed=seed)
        assert values["episode_seed"] == str(seed)
        assert values["steps"] == "300"
        assert values["success"] == "false"
        still = task.score(np.array([task.step(np.array([256.0, 256.0]))[1] for _ in range(300)]))
        assert float(values["score"]) == pytest.approx(still, abs=1e-9)
    assert seconds(clocks[-1].clock) - begin >= 60.0, "two episodes of 30 s"
    assert node.end() == 0
    assert "Traceback" not in node.output


def test_sensors_fail_on_request_and_recover(graph: Graph) -> None:
    graph.start(SIM, camera_hz=20.0)
    states = graph.collect(JointState, "joint_states")
    pictures = graph.collect(Image, "camera/image_raw")
    arrays = graph.collect(DiagnosticArray, "/diagnostics", 10)
    graph.until(lambda: states and pictures, "states and pictures")
    assert (pictures[-1].height, pictures[-1].width, pictures[-1].encoding) == (96, 96, "rgb8")
    true = np.array(states[-1].position)

    def after(**values: Any) -> JointState:
        """A message published when these parameters held."""
        assert all(set_parameters(graph, **values))
        graph.spin(0.1)
        count = len(states)
        graph.until(lambda: len(states) > count + 3, "joint states")
        return states[-1]

    assert np.isnan(after(nan=True).position).all()
    np.testing.assert_allclose(after(nan=False).position, true, atol=1e-6)
    assert 1e-3 < np.abs(np.array(after(noise=5.0).position) - true).max() < 50
    after(noise=0.0)
    stale = {seconds(after(stale_stamps=True).header.stamp) for _ in range(2)}
    assert len(stale) == 1
    graph.until(
        lambda: any("stale_stamps" in s.message for a in arrays for s in a.status if s.name == "/sim_node"),
        "the fault in the diagnostics",
    )
    now = seconds(after(stale_stamps=False).header.stamp)
    assert now > max(stale)
    assert seconds(after(clock_jump_s=100.0).header.stamp) - now > 99
    after(clock_jump_s=0.0)
    assert set_parameters(graph, drop=1.0) == [True]
    graph.spin(0.1)
    count = len(states)
    graph.spin(0.3)
    assert len(states) == count
    after(drop=0.0)
    assert set_parameters(graph, drop=1.5) == [False]
    assert set_parameters(graph, robot="sim_panda") == [False], "read when the node is configured"


def test_cameras_in_a_process_of_their_own_show_the_same_scene(graph: Graph) -> None:
    sim = graph.start(SIM, episode_seed=9)
    camera = graph.start("robopolicy.hardware.ros.camera_node", camera_hz=20.0)
    picture = graph.first(Image, "camera/image_raw")
    state = graph.first(JointState, "joint_states")
    robot = make_robot("sim_pusht")
    robot.reset(9)
    shown = np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 3)
    np.testing.assert_array_equal(shown, robot.picture("camera"))
    assert picture.header.frame_id == "camera"
    assert abs(seconds(picture.header.stamp) - seconds(state.header.stamp)) < 60
    camera.kill()
    graph.first(JointState, "joint_states")
    assert sim.alive


def test_without_commands_it_holds_and_says_so(graph: Graph, command: Any) -> None:
    node = graph.start(SIM, deadman_s=0.2)
    states = graph.collect(JointState, "joint_states")
    graph.until(lambda: states, "a state")
    away = np.array(states[-1].position) + np.array([0.0, 100.0])
    away = np.where(away > 500, away - 300, away)
    graph.until(lambda: (command(away), np.abs(np.array(states[-1].velocity)).max() > 50)[1], "motion")
    graph.until(lambda: "no command for 0.2 s: the robot holds" in node.output, "the deadman")
    held = np.array(states[-1].position)
    graph.until(lambda: np.abs(np.array(states[-1].velocity)).max() < 0.1, "a robot at rest")
    np.testing.assert_allclose(states[-1].position, held, atol=40.0)
    assert np.abs(away - states[-1].position).max() > 1.0, "it holds where it was, not where it was sent"
    held = np.array(states[-1].position)
    graph.until(lambda: (command(held - 30.0), np.abs(states[-1].position - held + 30.0).max() < 1.0)[1], "motion")


def test_a_robot_that_does_not_fit_is_refused_showing_both_sides(graph: Graph, tmp_path: Path) -> None:
    pairs = [
        ({"mode": "stepped"}, "use_sim_time"),
        ({"robot": "sim_push"}, "Did you mean 'sim_pusht'"),
        ({"profile": "franka_panda"}, "panda_joint1"),
        ({"state_hz": 0.0}, "state_hz"),
    ]
    nodes = [graph.start(SIM, **parameters) for parameters, _ in pairs]
    for node, (_, expected) in zip(nodes, pairs, strict=True):
        assert node.wait() == 1
        assert expected in node.output
        assert "Traceback" not in node.output
