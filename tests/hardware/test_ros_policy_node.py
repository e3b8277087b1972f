"""The policy node as a process over DDS, with real checkpoints: what it says, refuses and survives."""

import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the extra ros2")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from policy_files import CAMERA, CONTRACT, PROFILE, RATE, make_policy, save, write
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.time import Time
from ros_graph import Graph, Process, ros_graph
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robopolicy.hardware.ros.messages import chunk_content, seconds
from robopolicy.hardware.ros.node import COMMAND, SENSOR
from robopolicy.inference.runner import PolicyRunner

graph = pytest.fixture(ros_graph)
NODE = "robopolicy.hardware.ros.policy_node"
PERIOD = round(1e9 / RATE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("policy")
    return {
        "checkpoint": save(folder / "checkpoint", make_policy()),
        "contract": write(folder / "contract.yaml", CONTRACT),
        "robot": write(folder / "table.yaml", PROFILE),
    }


class Robot:
    """Joint states at the policy's rate, exactly on a grid of stamps; values are a function of the stamp."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.publisher = graph.node.create_publisher(JointState, "joint_states", SENSOR)
        self.begin: int = graph.node.get_clock().now().nanoseconds
        self.next = 0
        self.silent = False

    def values(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity [2] of step k, in the precision of the features."""
        return np.array([np.sin(0.1 * k), np.cos(0.1 * k)], np.float32), np.array([0.01 * k, -1.0], np.float32)

    def step_of(self, stamp: Any) -> int:
        """The number of the step with this stamp."""
        k, rest = divmod(stamp.sec * 10**9 + stamp.nanosec - self.begin, PERIOD)
        assert rest == 0, "ticks are the stamps of the states"
        return int(k)

    def publish(self) -> None:
        """All states whose time has come, twice each: best effort may lose one."""
        now: int = self.graph.node.get_clock().now().nanoseconds
        while self.begin + self.next * PERIOD <= now:
            k, self.next = self.next, self.next + 1
            if self.silent:
                continue
            position, velocity = self.values(k)
            # In another order than the features have, and with a joint that nobody asked for.
            message = JointState(name=["y", "spare", "x"])
            message.position = [float(position[1]), 9.0, float(position[0])]
            message.velocity = [float(velocity[1]), 9.0, float(velocity[0])]
            message.header.stamp = Time(nanoseconds=self.begin + k * PERIOD).to_msg()
            for _ in range(2):
                self.publisher.publish(message)

    def run(self, holds: Any, what: str) -> Any:
        """Publishes until `holds` returns something true."""

        def step() -> Any:
            self.publish()
            return holds()

        return self.graph.until(step, what)

    def run_for(self, duration: float) -> None:
        end = time.monotonic() + duration
        self.run(lambda: time.monotonic() >= end, f"{duration} s")


def start(graph: Graph, files: dict[str, Path], **parameters: Any) -> Process:
    return graph.start(NODE, **(files | parameters))


def expected(
    robot: Robot, chunks: list[JointTrajectory], strategy: str = "receding", seed: int = 0
) -> list[np.ndarray]:
    """What PolicyRunner plans at the stamps of `chunks` from the same observations; no clock, no ROS."""
    runner = PolicyRunner(make_policy(), strategy=strategy, seeds=[seed])  # type: ignore[arg-type]
    asked = [robot.step_of(c.header.stamp) for c in chunks]
    plans = []
    for k in range(asked[0], asked[-1] + 1):
        position, velocity = robot.values(k)
        observation = {"observation.state": position[None], "observation.environment_state": velocity[None]}
        runner.step(observation, time=(k - asked[0]) / RATE, hold=position[None], ask=k in asked)
        if runner.asked:
            plans.append(runner.plan())
    return plans


def latest(graph: Graph) -> Any:
    """A function that gives level, message and values of the newest diagnostics of the policy node."""
    found = graph.collect(DiagnosticArray, "/diagnostics", 10)

    def newest() -> tuple[bytes, str, dict[str, str]] | None:
        mine = [s for array in found for s in array.status if s.name == "/policy_node"]
        return (mine[-1].level, mine[-1].message, {v.key: v.value for v in mine[-1].values}) if mine else None

    return newest


@pytest.mark.parametrize("strategy", ["receding", "ensemble"])
def test_chunks_are_those_of_the_runner_on_the_same_frames(
    graph: Graph, files: dict[str, Path], strategy: str
) -> None:
    start(graph, files, strategy=strategy, seed=7)
    robot, chunks = Robot(graph), graph.collect(JointTrajectory, "action_chunk", COMMAND)
    robot.run(lambda: len(chunks) >= 8, "eight chunks")
    content = [chunk_content(c, ("x", "y")) for c in chunks]
    assert [c.number for c in content] == list(range(len(chunks)))
    assert len({c.session for c in content}) == 1
    for found, plan in zip(content, expected(robot, chunks, strategy, seed=7), strict=True):
        np.testing.assert_allclose(found.rows, plan, atol=1e-6)
        np.testing.assert_allclose(found.times, np.arange(len(plan)) / RATE, atol=1e-9)
    assert content[0].rows.shape == (11, 2), "rows from first_action on"
    assert np.abs(content[0].rows - content[-1].rows).max() > 1e-3
    if strategy == "receding":
        steps = np.diff([robot.step_of(c.header.stamp) for c in chunks])
        assert (steps >= 4).all(), "a chunk is asked for every n_action_steps steps, later only on a slow machine"


def test_reset_starts_anew_with_the_next_seed_and_the_same_session(graph: Graph, files: dict[str, Path]) -> None:
    start(graph, files)
    robot, chunks = Robot(graph), graph.collect(JointTrajectory, "action_chunk", COMMAND)
    robot.run(lambda: len(chunks) >= 2, "chunks")

    def reset() -> list[JointTrajectory]:
        client = graph.node.create_client(Trigger, "policy/reset")
        robot.run(client.service_is_ready, "the service")
        future = client.call_async(Trigger.Request())
        robot.run(future.done, "the answer")
        assert future.result().success
        first = len(chunks)
        robot.run(lambda: len(chunks) >= first + 3, "chunks after the reset")
        return chunks[first:]

    after = reset()
    for found, plan in zip(after, expected(robot, after, seed=1), strict=True):
        np.testing.assert_allclose(chunk_content(found, ("x", "y")).rows, plan, atol=1e-6)
    numbers = [chunk_content(c, ("x", "y")) for c in chunks]
    assert [c.number for c in numbers] == list(range(len(chunks)))
    assert len({c.session for c in numbers}) == 1
    value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=42)
    request = [Parameter(name="seed", value=value)]
    assert graph.call(SetParameters, "policy_node/set_parameters", parameters=request).results[0].successful
    robot.next = int((graph.node.get_clock().now().nanoseconds - robot.begin) // PERIOD)
    after = reset()
    for found, plan in zip(after, expected(robot, after, seed=42), strict=True):
        np.testing.assert_allclose(chunk_content(found, ("x", "y")).rows, plan, atol=1e-6)


def test_realtime_chunking_continues_what_was_sent(graph: Graph, files: dict[str, Path]) -> None:
    """On a machine under load the measured latency decides how much is frozen; the rest is checked on the runner."""
    start(graph, files, strategy="realtime")
    robot, chunks = Robot(graph), graph.collect(JointTrajectory, "action_chunk", COMMAND)
    robot.run(lambda: len(chunks) >= 10, "chunks")
    gaps = []
    for old, new in pairwise(chunks):
        steps = robot.step_of(new.header.stamp) - robot.step_of(old.header.stamp)
        if steps < 8:
            gaps.append(abs(old.points[steps].positions[0] - new.points[0].positions[0]))
    free = expected(robot, chunks, "receding")
    jumps = [abs(a[4, 0] - b[0, 0]) for a, b in pairwise(free)]
    assert np.median(gaps) < 0.5 * np.median(jumps)


def test_a_stall_ends_the_chunks_and_is_named(graph: Graph, files: dict[str, Path]) -> None:
    short = write(files["contract"].parent / "short.yaml", CONTRACT.replace("latency_s: 2.0", "latency_s: 0.1"))
    node = start(graph, files, contract=short)
    robot, chunks, status = Robot(graph), graph.collect(JointTrajectory, "action_chunk", COMMAND), latest(graph)
    robot.run(lambda: len(chunks) >= 2, "chunks")
    robot.silent = True
    robot.run(lambda: status() and status()[1].startswith("no observation: 'observation.state'"), "the stall")
    level, message, _ = status()
    assert level == DiagnosticStatus.WARN
    assert "newest message is" in message
    count = len(chunks)
    robot.run_for(0.3)
    assert len(chunks) == count, "nothing to act on, nothing to say"
    robot.silent = False
    robot.run(lambda: len(chunks) >= count + 2, "chunks again")
    robot.run(lambda: status()[1] == "running", "running again")
    assert node.alive
    values = status()[2]
    assert int(values["frames_missing"]) > 5
    assert {"rate_hz", "inference_ms_p99", "latency_s_p50", "checkpoint_hash", "contract_hash"} <= values.keys()
    assert float(values["age_s /joint_states"]) < 5


def test_a_killed_inference_process_is_named_and_the_node_lives(graph: Graph, files: dict[str, Path]) -> None:
    node = start(graph, files)
    robot, chunks, status = Robot(graph), graph.collect(JointTrajectory, "action_chunk", COMMAND), latest(graph)
    robot.run(lambda: chunks and status() and "inference_pid" in status()[2], "a running node")
    os.kill(int(status()[2]["inference_pid"]), signal.SIGKILL)
    robot.run(lambda: status()[0] == DiagnosticStatus.ERROR, "the error")
    assert status()[1] == "the inference process was killed by SIGKILL"
    count = len(chunks)
    robot.run_for(0.3)
    assert len(chunks) == count
    assert node.alive
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        request = {"transition": Transition(id=transition)}
        assert graph.call(ChangeState, "policy_node/change_state", **request).success
    robot.next = int((graph.node.get_clock().now().nanoseconds - robot.begin) // PERIOD)
    robot.run(lambda: len(chunks) >= count + 2, "chunks of the new process")
    assert node.end(signal.SIGTERM) == 0
    assert "Traceback" not in node.output.split("configured")[-1]


def test_sigterm_ends_node_and_inference_process(graph: Graph, files: dict[str, Path]) -> None:
    node = start(graph, files)
    robot, status = Robot(graph), latest(graph)
    robot.run(lambda: status() and "inference_pid" in status()[2], "a running node")
    pid = int(status()[2]["inference_pid"])
    assert node.end(signal.SIGTERM) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


REFUSED = {
    "missing camera": (
        {"checkpoint": "images"},
        {},
        "checkpoint has 'observation.images.top' [24, 32, 3], contract does not.",
    ),
    "misspelt": (
        {},
        {"observation.state:": "observation.stat:"},
        "checkpoint has 'observation.state' [2], contract does not. Did you mean 'observation.stat'?",
    ),
    "rate": ({}, {"rate_hz: 50": "rate_hz: 20"}, "rate: checkpoint has 50 Hz, contract has 20 Hz"),
    "shape": (
        {},
        {'position[x, y]"': 'position[x, y]", shape: [3]'},
        "'observation.state' shape: checkpoint has [2], contract has [3]",
    ),
    "robot": ({"robot": "sim_panda"}, {}, "checkpoint has actions x, y; robot sim_panda has joints panda_joint1"),
    "no checkpoint": ({"checkpoint": "nowhere"}, {}, "nowhere: no such checkpoint or run"),
    "latency": (
        {"n_action_steps": 12},
        {},
        "leaves 11 rows of a chunk; 12 action steps",
    ),
    "device": ({"device": "cuda:7"}, {}, "no CUDA device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_at_configure(
    graph: Graph, files: dict[str, Path], case: str, tmp_path: Path
) -> None:
    parameters, edits, message = REFUSED[case]
    text = CONTRACT
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new)
    chosen: dict[str, Any] = files | {"contract": write(tmp_path / "contract.yaml", text)} | parameters
    if chosen["checkpoint"] == "images":
        chosen["checkpoint"] = save(tmp_path / "images", make_policy(images=True))
    node = start(graph, chosen)
    assert node.wait() == 1
    assert message in node.output
    assert "Traceback" not in node.output


def test_a_joint_that_the_robot_does_not_publish_is_named(graph: Graph, files: dict[str, Path]) -> None:
    start(graph, files)
    publisher, status = graph.node.create_publisher(JointState, "joint_states", SENSOR), latest(graph)
    message = JointState(name=["x", "z"], position=[0.0, 0.0], velocity=[0.0, 0.0])

    def publish() -> bool:
        message.header.stamp = graph.node.get_clock().now().to_msg()
        publisher.publish(message)
        return bool(status()) and status()[0] == DiagnosticStatus.ERROR

    graph.until(publish, "the refusal")
    assert "'y'" in status()[1]
    assert "/joint_states" in status()[1]


def test_cameras_are_read_and_wrong_pictures_refused(graph: Graph, files: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "images", make_policy(images=True))
    contract = write(tmp_path / "camera.yaml", CONTRACT.replace("latency_s: 2.0", "latency_s: 0.1") + CAMERA)
    start(graph, files, checkpoint=checkpoint, contract=contract)
    robot, chunks, status = Robot(graph), graph.collect(JointTrajectory, "action_chunk", COMMAND), latest(graph)
    camera = graph.node.create_publisher(Image, "top/image_raw", SENSOR)

    def shoot(width: int = 32, encoding: str = "bgr8", size: int = 3) -> None:
        picture = Image(height=24, width=width, encoding=encoding, step=size * width, data=bytes(24 * width * size))
        picture.header.stamp = graph.node.get_clock().now().to_msg()
        camera.publish(picture)

    def running() -> bool:
        shoot()
        return (
            len(chunks) >= 2
            and bool(status())
            and int(status()[2].get("identical_frames observation.images.top", 0)) > 2
        )

    robot.run(running, "chunks from pictures")

    def refused() -> bool:
        shoot(encoding="32FC1", size=4)
        return bool(status()) and status()[0] == DiagnosticStatus.ERROR

    robot.run(refused, "the refusal")
    assert "image encoding '32FC1' is not read" in status()[1]
    assert "/top/image_raw" in status()[1]


def test_time_from_start_is_relative_to_the_observation(graph: Graph, files: dict[str, Path]) -> None:
    start(graph, files)
    robot, chunks = Robot(graph), graph.collect(JointTrajectory, "action_chunk", COMMAND)
    robot.run(lambda: chunks, "a chunk")
    times = [seconds(p.time_from_start) for p in chunks[0].points]
    np.testing.assert_allclose(times, np.arange(11) / RATE)
    assert list(chunks[0].joint_names) == ["x", "y"]
