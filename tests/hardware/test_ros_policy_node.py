"""The policy node as a process over DDS, with real checkpoints: what it says, refuses and survives."""

import os
import signal
import time
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

from robopolicy.datasets.contract import parse_contract
from robopolicy.errors import FeatureMismatch, RobopolicyError
from robopolicy.hardware.ros.messages import chunk_content
from robopolicy.hardware.ros.node import COMMAND, SENSOR
from robopolicy.hardware.ros.streams import completed, message_class, resolved
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

    def catch_up(self) -> None:
        """Leaves out the states whose time is over."""
        self.next = int((self.graph.node.get_clock().now().nanoseconds - self.begin) // PERIOD)

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


def latest(graph: Graph) -> Any:
    """A function that gives level, message and values of the newest diagnostics of the policy node."""
    found = graph.collect(DiagnosticArray, "/diagnostics", 10)

    def newest() -> tuple[bytes, str, dict[str, str]] | None:
        mine = [s for array in found for s in array.status if s.name == "/policy_node"]
        return (mine[-1].level, mine[-1].message, {v.key: v.value for v in mine[-1].values}) if mine else None

    return newest


def test_a_node_without_a_robot_says_what_it_waits_for(graph: Graph, files: dict[str, Path]) -> None:
    node = start(graph, files)
    graph.until(lambda: "no observation yet" in node.output, "the warning")
    assert "waiting for /joint_states; messages so far: 0 of /joint_states" in node.output


def test_chunks_are_those_of_the_runner_on_the_same_frames_and_reset_starts_anew(
    graph: Graph, files: dict[str, Path]
) -> None:
    start(graph, files, seed=7)
    robot, chunks = Robot(graph), graph.collect(JointTrajectory, "action_chunk", COMMAND)
    robot.run(lambda: len(chunks) >= 6, "six chunks")
    check(robot, chunks[:6], seed=7)
    first = chunk_content(chunks[0], ("x", "y"))
    assert first.rows.shape == (11, 2), "rows from first_action on"
    np.testing.assert_allclose(first.times, np.arange(11) / RATE, atol=1e-9)
    steps = np.diff([robot.step_of(c.header.stamp) for c in chunks])
    assert (steps >= 4).all(), "a chunk is asked for every n_action_steps steps, later only on a slow machine"

    def reset() -> list[JointTrajectory]:
        # Silence around it tells the chunks of one episode from those of the other.
        robot.silent = True
        robot.run_for(0.3)
        assert graph.call(Trigger, "policy/reset").success
        count, robot.silent = len(chunks), False
        robot.catch_up()
        robot.run(lambda: len(chunks) >= count + 3, "chunks after the reset")
        return chunks[count:]

    check(robot, reset(), seed=8)
    value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=42)
    request = [Parameter(name="seed", value=value)]
    assert graph.call(SetParameters, "policy_node/set_parameters", parameters=request).results[0].successful
    check(robot, reset(), seed=42)
    content = [chunk_content(c, ("x", "y")) for c in chunks]
    assert [c.number for c in content] == list(range(len(chunks)))
    assert len({c.session for c in content}) == 1, "the gate follows one session; a reset is no other policy"


def check(robot: Robot, chunks: list[JointTrajectory], seed: int) -> None:
    """The chunks are those of a `PolicyRunner` at their stamps on the same observations: no clock, no ROS.

    The first frame is that of the first chunk, or one before it that had to wait until there were two.
    """
    asked = [robot.step_of(c.header.stamp) for c in chunks]
    found = [chunk_content(c, ("x", "y")).rows for c in chunks]
    both = [planned(robot, asked, asked[0] - earlier, seed) for earlier in (0, 1)]
    plans = min(both, key=lambda plans: float(np.abs(plans[0] - found[0]).max()))
    for rows, plan in zip(found, plans, strict=True):
        np.testing.assert_allclose(rows, plan, atol=1e-6)
    assert np.abs(found[0] - found[-1]).max() > 1e-3, "other observations, other chunks"


def planned(robot: Robot, asked: list[int], begin: int, seed: int) -> list[np.ndarray]:
    runner = PolicyRunner(make_policy(), seeds=[seed])
    plans = []
    for k in range(begin, asked[-1] + 1):
        position, velocity = robot.values(k)
        observation = {"observation.state": position[None], "observation.environment_state": velocity[None]}
        runner.step(observation, time=(k - begin) / RATE, hold=position[None], ask=k in asked)
        if runner.asked:
            plans.append(runner.plan())
    return plans


def test_a_stall_ends_the_chunks_and_is_named_and_sigterm_ends_both_processes(
    graph: Graph, files: dict[str, Path]
) -> None:
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
    pid = int(values["inference_pid"])
    assert node.end(signal.SIGTERM) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


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
    robot.catch_up()
    robot.run(lambda: len(chunks) >= count + 2, "chunks of the new process")
    assert node.end(signal.SIGTERM) == 0
    assert "Traceback" not in node.output


def test_a_contract_that_does_not_fit_ends_the_node_with_both_sides(
    graph: Graph, files: dict[str, Path], tmp_path: Path
) -> None:
    wrong = CONTRACT.replace("observation.state:", "observation.stat:").replace("rate_hz: 50", "rate_hz: 20")
    node = start(graph, files, contract=write(tmp_path / "contract.yaml", wrong))
    assert node.wait() == 1
    assert (
        "checkpoint has 'observation.state' [2], contract does not. Did you mean 'observation.stat'?; "
        "rate: checkpoint has 50 Hz, contract has 20 Hz"
    ) in node.output
    assert "Traceback" not in node.output


DIFFERENT = {
    "shape": ('position[x, y]"', 'position[x, y]", shape: [3]', "'observation.state' shape: checkpoint has .2., con"),
    "names": (
        'position[x, y]"',
        'position[x, y]", names: [y, x]',
        r"names: checkpoint has \['x', 'y'\], cont",
    ),
    "dtype": ('position[x, y]"', 'position[x, y]", dtype: float64', "dtype: checkpoint has float32, contract has flo"),
    "action": (
        "features:",
        "features:\n  action: {topic: /c, control: {target: joint, mode: delta}}",
        "contract has delta",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_a_contract_says_is_compared(case: str) -> None:
    old, new, message = DIFFERENT[case]
    with pytest.raises(FeatureMismatch, match=message):
        completed(parse_contract(CONTRACT.replace(old, new), "test"), make_policy().features)


def test_what_a_contract_leaves_open_is_taken_from_the_checkpoint() -> None:
    text = CONTRACT + CAMERA + "  observation.extra: {topic: /extra}\n"
    found = completed(parse_contract(text, "test"), make_policy(images=True).features)
    assert list(found.features) == ["observation.state", "observation.environment_state", "observation.images.top"]
    camera = found.features["observation.images.top"]
    assert (camera.shape, camera.dtype, camera.kind) == ((40, 48, 3), "uint8", "image")
    assert found.features["observation.state"].names == ("x", "y")
    with pytest.raises(FeatureMismatch, match=r"checkpoint has 'observation.images.top' .*, contract does not"):
        completed(parse_contract(CONTRACT, "test"), make_policy(images=True).features)


def test_topics_are_resolved_in_the_namespace() -> None:
    assert resolved("/joint_states", "/") == "/joint_states"
    assert resolved("/joint_states", "/left") == "/left/joint_states"
    assert resolved("/left/joint_states", "/left") == "/left/joint_states"
    assert resolved("/lefty/joint_states", "/left") == "/left/lefty/joint_states"


def test_message_types_are_names_of_messages_only() -> None:
    assert message_class("sensor_msgs/msg/Image") is Image
    for name in ("os/path", "sensor_msgs/srv/SetCameraInfo", "../msg/Image", "sensor_msgs/msg/image", "a.b/msg/C"):
        with pytest.raises(RobopolicyError, match="expected a form like"):
            message_class(name)
    with pytest.raises(RobopolicyError, match="'no_msgs/msg/Thing' is not installed"):
        message_class("no_msgs/msg/Thing")


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

    def shoot(width: int = 48, encoding: str = "bgr8", size: int = 3) -> None:
        picture = Image(height=40, width=width, encoding=encoding, step=size * width, data=bytes(40 * width * size))
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
