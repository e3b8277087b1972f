"""The gate as a process over DDS: what it follows, what it refuses, and that it stops, holds and says why."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the extra ros2")

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.time import Time
from ros_graph import Graph, Process, ros_graph
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robopolicy.hardware.profiles import load_profile
from robopolicy.hardware.ros.messages import chunk_message, joint_state
from robopolicy.hardware.ros.node import COMMAND, LATCHED, SENSOR

graph = pytest.fixture(ros_graph)
GATE = "robopolicy.hardware.ros.gate_node"
STEP, RATE = 0.05, 50
ARM = """
name: arm
rate_hz: 50
joints:
- {name: a, low: -2, high: 2, velocity: 1, acceleration: 8, jerk: 400, home: 0, tracking_error: 0.3, jump: 0.6}
- {name: b, low: -2, high: 2, velocity: 1, acceleration: 8, jerk: 400, home: 0, tracking_error: 0.3, jump: 0.6}
command: {adapter: forward_position, topic: command}
interpolation: hold
timeouts: {command: 0.4, observation: 1.0, chunk: 1.0, overrun: 2.0}
stop_time_s: 0.4
"""
PUBLISHER = """
import sys, time
import numpy as np, rclpy
from trajectory_msgs.msg import JointTrajectory
from robopolicy.hardware.ros.messages import chunk_message
from robopolicy.hardware.ros.node import COMMAND
rclpy.init()
node = rclpy.create_node("policy")
publisher = node.create_publisher(JointTrajectory, "action_chunk", COMMAND)
start, rows = time.monotonic(), np.arange(8) * 0.05
for number in range(10**6):
    t = time.monotonic() - start + rows
    targets = np.stack([0.15 * np.sin(t), 0.15 * np.sin(2 * t)], axis=1)
    publisher.publish(chunk_message(node.get_clock().now().to_msg(), "child", number, ["a", "b"], rows, targets))
    time.sleep(0.1)
"""


class Bench:
    """A gate with a robot that follows each command at once, and a policy, both played by the test's own node."""

    def __init__(self, graph: Graph, text: str = ARM, **parameters: Any) -> None:
        self.graph, self.node = graph, graph.node
        profile = graph.folder / "arm.yaml"
        profile.write_text(text)
        options = {"robot": profile, "realtime_priority": 0, "lock_memory": False} | parameters
        self.process: Process = graph.start(GATE, **options)
        self.position, self.measuring, self.age = np.array([0.1, -0.2]), True, 0.0
        self.sent: list[tuple[float, np.ndarray]] = []
        self.goal: np.ndarray | None = None
        self.session, self.number = "test", 0
        self.statuses: list[DiagnosticStatus] = graph.collect(DiagnosticStatus, "gate/status", LATCHED)
        self.setpoints: list[JointState] = graph.collect(JointState, "setpoint", SENSOR)
        self._states = self.node.create_publisher(JointState, "joint_states", COMMAND)
        self.chunks = self.node.create_publisher(JointTrajectory, "action_chunk", COMMAND)
        self.button = self.node.create_publisher(Bool, "emergency_stop", COMMAND)
        self.node.create_subscription(Float64MultiArray, "command", self._follow, COMMAND)
        self.node.create_timer(0.01, self._measure)
        self.node.create_timer(0.05, self._think)

    def stop_policy(self) -> None:
        """Ends the session in order: a chunk without points."""
        self.goal = None
        self.chunks.publish(JointTrajectory())

    def now(self, age: float = 0.0) -> Any:
        return Time(nanoseconds=self.node.get_clock().now().nanoseconds - round(age * 1e9)).to_msg()

    def _follow(self, message: Float64MultiArray) -> None:
        self.sent.append((time.monotonic(), np.array(message.data)))
        self.position = np.array(message.data)

    def _measure(self) -> None:
        if self.measuring:
            self._states.publish(joint_state(self.now(self.age), ["other", "b", "a"], [9.0, *self.position[::-1]]))

    def _think(self) -> None:
        if self.goal is not None:
            self.chunk(self.position + np.clip(self.goal - self.position, -0.3, 0.3))

    def chunk(self, target: Any, age: float = 0.0, rows: int = 8, number: int | None = None, **changes: Any) -> None:
        """Publishes a chunk that wants the joints at `target`."""
        self.number = self.number + 1 if number is None else number
        table = np.broadcast_to(np.asarray(target, float), (rows, 2))
        names = changes.get("names", ["a", "b"])
        session = changes.get("session", self.session)
        times = STEP * np.arange(rows)
        self.chunks.publish(chunk_message(self.now(age), session, self.number, names, times, table))

    def status(self) -> dict[str, str]:
        if not self.statuses:
            return {}
        return {v.key: v.value for v in self.statuses[-1].values}

    def until(self, **values: str) -> None:
        self.graph.until(
            lambda: all(self.status().get(k) == v for k, v in values.items()), f"{values}", describe=self.status
        )

    def until_fault(self, name: str) -> str:
        self.graph.until(lambda: name in self.status().get("faults", ""), f"fault {name}", describe=self.status)
        return str(self.statuses[-1].message)

    def start(self, goal: tuple[float, float] = (0.8, -0.9)) -> "Bench":
        """Waits until the robot moves towards the goal."""
        self.until(active="true")
        self.goal = np.array(goal)
        begun = self.position.copy()
        self.graph.until(lambda: np.abs(self.position - begun).max() > 0.1, "motion", describe=self.status)
        return self

    def call(self, name: str, *value: bool) -> Any:
        if value:
            return self.graph.call(SetBool, f"gate/{name}", data=value[0])
        return self.graph.call(Trigger, f"gate/{name}")

    def check(self) -> None:
        """Every command ever sent is within the limits; missed messages make the differences no larger."""
        values = np.array([v for _, v in self.sent])
        assert len(values) > 10
        assert np.abs(values).max() <= 2
        # One set-point per period may move by 1 / 50; of some the test's depth-1 subscription sees only the last.
        assert np.abs(np.diff(values, axis=0)).max() <= 5 / RATE


def test_it_starts_from_the_measured_pose_follows_and_ends_at_rest(graph: Graph) -> None:
    bench = Bench(graph)
    bench.until(active="true", at_rest="true")
    graph.until(lambda: bench.sent, "a command")
    np.testing.assert_allclose(bench.sent[0][1], [0.1, -0.2])
    bench.start()
    graph.until(lambda: np.abs(bench.position - bench.goal).max() < 1e-3, "the goal")
    assert bench.statuses[-1].level == DiagnosticStatus.OK
    assert bench.status()["faults"] == ""
    assert bench.setpoints[-1].name == ["a", "b"]
    bench.check()
    bench.goal = np.array([-0.8, 0.9])
    graph.until(lambda: len(bench.setpoints) > 0 and abs(bench.setpoints[-1].velocity[0]) > 0.5, "speed")
    # SIGTERM in motion: it brakes before it ends.
    count = len(bench.sent)
    bench.process.popen.send_signal(signal.SIGTERM)
    graph.until(lambda: not bench.process.alive, "the end")
    assert bench.process.wait() == 0
    graph.spin(0.2)
    assert len(bench.sent) > count + 3
    last = np.diff([v for _, v in bench.sent[-3:]], axis=0)
    assert np.abs(last).max() < 0.01


def test_kill_9_of_the_policy_ends_in_a_named_fault_at_rest_and_clear_goes_on(graph: Graph) -> None:
    bench = Bench(graph)
    bench.until(active="true")
    policy = graph.run([sys.executable, "-c", PUBLISHER])
    graph.until(lambda: bench.status().get("session") == "child", "chunks", patience=60)
    graph.spin(0.5)
    policy.kill()
    killed = time.monotonic()
    message = bench.until_fault("command_timeout")
    bench.until(at_rest="true")
    assert message.startswith("command_timeout: no target for 0.4")
    profile = load_profile(graph.folder / "arm.yaml")
    # Rows of the last chunk, the silence that is a fault, and the stop; the rest is this machine's.
    moving = [t for (t, a), (_, b) in zip(bench.sent[1:], bench.sent, strict=False) if np.abs(a - b).max() > 1e-9]
    assert max(moving) - killed < 8 * STEP + profile.timeouts.command + profile.stop_time_s + 1.0
    held = bench.position.copy()
    graph.spin(0.3)
    np.testing.assert_array_equal(bench.position, held)
    assert bench.call("clear").success
    bench.start((held[0] + 0.3, held[1]))
    assert bench.status()["faults"] == ""
    bench.check()


def nan(bench: Bench) -> None:
    bench.goal = None
    bench.chunk([np.nan, 0.0])


def jump(bench: Bench) -> None:
    bench.goal = None
    bench.chunk(bench.position + 1.5)


def names(bench: Bench) -> None:
    bench.chunk([0.0, 0.0], names=["a", "c"])


def frozen(bench: Bench) -> None:
    bench.measuring = False


def late(bench: Bench) -> None:
    bench.age = 2.0


def stale(bench: Bench) -> None:
    bench.goal = None
    for _ in range(30):
        bench.chunk(bench.position + 0.1, age=3.0)
        bench.graph.spin(0.05)


def pressed(bench: Bench) -> None:
    bench.button.publish(Bool(data=True))


def called(bench: Bench) -> None:
    bench.call("emergency_stop")


@pytest.mark.parametrize(
    ("inject", "fault", "text"),
    [
        (nan, "command_invalid", "row 0 of the chunk has nan for joint 0"),
        (jump, "command_jump", "asked to go"),
        (names, "command_invalid", "joint_names lack 'b'"),
        (frozen, "observation_timeout", "no joint positions for 1."),
        (late, "observation_timeout", "no joint positions for 1."),
        (stale, "command_timeout", "no target for 0.4"),
        (pressed, "emergency_stop", "topic emergency_stop"),
        (called, "emergency_stop", "service called"),
    ],
)
def test_a_fault_is_named_the_robot_stops_and_only_clear_at_rest_goes_on(
    graph: Graph, inject: Any, fault: str, text: str
) -> None:
    bench = Bench(graph).start()
    inject(bench)
    assert text in bench.until_fault(fault)
    if bench.status()["at_rest"] == "false" and inject is not pressed:
        early = bench.call("clear")
        assert early.success == (early.message[:7] == "cleared")
        assert early.success or "not come to rest" in early.message or "no fresh" in early.message
    bench.until(at_rest="true")
    held = bench.position.copy()
    graph.spin(0.2)
    np.testing.assert_array_equal(bench.position, held)
    if inject is stale:
        assert int(bench.status()["chunks stale"]) > 5
        assert bench.status()["chunk refused"].startswith("stale: an observation of 3.0")
    bench.measuring, bench.age = True, 0.0
    if inject is pressed:
        assert "send false first" in bench.call("clear").message
        bench.button.publish(Bool(data=False))
        bench.until(**{"emergency_stop pressed": "false"})
    graph.until(lambda: bench.call("clear").success, "clear")
    if fault == "emergency_stop":
        bench.goal = np.array([0.0, 0.0])
        graph.spin(0.3)
        # Clearing an emergency stop does not set the robot in motion.
        np.testing.assert_allclose(bench.position, held, atol=1e-9)
        assert bench.status()["holding"] == "true"
        assert bench.call("resume").success
    bench.start((held[0] - 0.3, held[1]))
    bench.check()


def test_reordered_duplicated_and_foreign_chunks_are_counted_and_ignored(graph: Graph) -> None:
    bench = Bench(graph).start()
    bench.goal = None
    target = bench.position + 0.1
    for number in (100, 100, 99, 101):
        bench.chunk(target if number in (100, 101) else [1.9, 1.9], number=number)
        graph.spin(0.05)
    bench.chunk([1.9, 1.9], session="somebody else")
    graph.spin(0.05)
    bench.chunk(target, age=-2.0, number=102)
    graph.spin(0.05)
    bench.chunk(target, number=103)
    graph.until(lambda: bench.status().get("chunks future") == "1", "counts")
    status = bench.status()
    assert (status["chunks duplicate"], status["chunks reordered"], status["chunks foreign"]) == ("1", "1", "1")
    np.testing.assert_allclose(bench.position, target, atol=0.05)
    # After a silence a restarted policy is followed again, once the fault is cleared.
    bench.until_fault("command_timeout")
    bench.until(at_rest="true")
    assert bench.call("clear").success
    bench.session, bench.number = "restarted", 0
    bench.start((target[0] - 0.3, target[1]))
    assert bench.status()["session"] == "restarted"


def test_hold_resume_enable_and_dry_run(graph: Graph) -> None:
    bench = Bench(graph, dry_run=True)
    bench.until(active="true", dry_run="true")
    bench.goal = np.array([0.5, 0.5])
    # The robot does not move, the set-points do.
    graph.until(lambda: bench.setpoints and bench.setpoints[-1].position[0] > 0.3, "set-points")
    assert not bench.sent
    bench.stop_policy()
    bench.until(at_rest="true", **{"sessions ended": "1"})
    graph.spin(0.6)
    assert bench.status()["faults"] == ""
    assert bench.call("dry_run", False).success
    graph.until(lambda: bench.sent, "a command")
    # From where the robot is, not from where the dry run ended.
    np.testing.assert_allclose(bench.sent[0][1], [0.1, -0.2], atol=1e-9)
    bench.start()
    assert bench.call("hold").success
    bench.until(at_rest="true", holding="true")
    held = bench.position.copy()
    graph.spin(0.6)
    np.testing.assert_array_equal(bench.position, held)
    assert bench.status()["faults"] == ""
    assert bench.call("resume").success
    bench.start((-0.5, 0.5))
    assert bench.call("enable", False).success
    bench.until(active="false")
    graph.spin(0.2)
    count = len(bench.sent)
    bench.position = np.array([-0.3, 0.4])
    graph.spin(0.3)
    assert len(bench.sent) == count
    bench.stop_policy()
    bench.sent.clear()
    assert bench.call("enable", True).success
    graph.until(lambda: bench.sent, "a command")
    np.testing.assert_allclose(bench.sent[0][1], [-0.3, 0.4])


def test_a_managed_gate_and_one_that_never_sees_its_robot(graph: Graph) -> None:
    bench = Bench(graph, autostart=False)
    bench.measuring = False

    def change(number: int) -> bool:
        return bool(graph.call(ChangeState, "gate/change_state", transition=Transition(id=number)).success)

    assert change(Transition.TRANSITION_CONFIGURE)
    assert change(Transition.TRANSITION_ACTIVATE)
    graph.until(lambda: bench.statuses and "no fresh joint positions" in bench.statuses[-1].message, "the reason")
    bench.measuring = True
    bench.start()
    assert change(Transition.TRANSITION_DEACTIVATE)
    last = np.diff([v for _, v in bench.sent[-2:]], axis=0)
    graph.spin(0.2)
    count = len(bench.sent)
    graph.spin(0.2)
    assert len(bench.sent) == count
    assert np.abs(last).max() < 0.05
    assert change(Transition.TRANSITION_CLEANUP)
    assert change(Transition.TRANSITION_CONFIGURE)
    assert change(Transition.TRANSITION_ACTIVATE)
    bench.start((0.0, 0.0))
    assert bench.process.end() == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"robot": "sim_push"}, "unknown robot 'sim_push'. Did you mean 'sim_pusht'?"),
        ({"robot": ""}, "parameter robot names no robot profile"),
        ({"robto": "sim_pusht"}, "unknown parameter 'robto'. Did you mean 'robot'?"),
        ({"robot": "ur5e", "use_sim_time": True, "time_scale": 2.0}, "but robot ur5e is not a simulated one"),
    ],
)
def test_what_it_cannot_be_is_refused(graph: Graph, parameters: dict[str, Any], message: str) -> None:
    process = graph.start(GATE, **parameters)
    assert process.wait() == 1
    assert message in process.output


def test_its_process_imports_no_learning_library() -> None:
    code = "import sys, robopolicy.hardware.ros.gate_node; print({'torch', 'cv2', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_it_ends_with_its_parent(graph: Graph) -> None:
    (graph.folder / "arm.yaml").write_text(ARM)
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-m', {GATE!r}, '--ros-args', '-p', "
        f"'robot:={graph.folder / 'arm.yaml'}'])\n"
        "print(child.pid, flush=True)\ntime.sleep(100)\n"
    )
    process = graph.run([sys.executable, "-c", parent])
    graph.first(DiagnosticStatus, "gate/status", LATCHED)
    child = Path(f"/proc/{int(process.output.split()[0])}")
    process.kill()
    graph.until(lambda: not child.exists() or ") Z" in (child / "stat").read_text(), "the end of the gate")
    assert os.path.exists(graph.folder / "arm.yaml")
