"""The recorder over real DDS: its recordings become datasets, and survive whatever happens to it."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.time import Time
from ros_graph import Graph, ros_graph
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import Trigger

from robopolicy.cli import main
from robopolicy.datasets.detect import open_source
from robopolicy.datasets.rosbag import Bag
from robopolicy.hardware.ros.node import COMMAND, LATCHED, SENSOR

graph = pytest.fixture(ros_graph)
SIM, RECORDER = "robopolicy.hardware.ros.sim_node", "robopolicy.hardware.ros.recorder_node"


class Commander:
    """Commands at 50 Hz on a circle, by the test's own node."""

    def __init__(self, graph: Graph) -> None:
        publisher = graph.node.create_publisher(Float64MultiArray, "command", COMMAND)
        self.on, self.begin = False, time.monotonic()
        self.sent: list[np.ndarray] = []

        def tick() -> None:
            if self.on:
                angle = 2.0 * (time.monotonic() - self.begin)
                self.sent.append(np.array([60 + 30 * np.cos(angle), 60 + 30 * np.sin(angle)]))
                publisher.publish(Float64MultiArray(data=self.sent[-1].tolist()))

        graph.node.create_timer(0.02, tick)


def trigger(graph: Graph, service: str) -> tuple[bool, str]:
    answer = graph.call(Trigger, service)
    return answer.success, answer.message


def bags(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("episode_*"))


def test_recordings_become_a_dataset_that_replays_and_trains(
    graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, commander = tmp_path / "rec", Commander(graph)
    graph.start(SIM, episode_seed=4, use_sim_time=True)
    recorder = graph.start(RECORDER, contract="sim_pusht", output=output, use_sim_time=True)
    episodes = graph.collect(String, "recorder/episode", LATCHED)
    graph.first(JointState, "joint_states")
    assert trigger(graph, "recorder/start")[0]
    graph.spin(0.5)
    refused = trigger(graph, "recorder/start")
    assert refused == (False, "an episode is under way: waiting")
    assert bags(output) == [], "nobody has commanded anything yet"
    commander.on = True
    graph.until(lambda: episodes, "the start of the episode")
    graph.spin(2.5)
    done, path = trigger(graph, "recorder/stop")
    assert (done, path) == (True, str(output / "episode_000000"))
    assert trigger(graph, "recorder/stop") == (False, "no episode")
    assert trigger(graph, "recorder/start") == (True, "waiting for /joint_states, /block_state, /command")
    graph.until(lambda: len(episodes) == 3, "the second episode")
    graph.spin(1.5)
    # SIGTERM in the middle of an episode ends it in order.
    assert recorder.end() == 0
    graph.until(lambda: len(episodes) == 4, "the end of the second episode")
    names = ["start episode_000000", "end episode_000000", "start episode_000001", "end episode_000001"]
    assert [e.data for e in episodes] == names
    with Bag(output / "episode_000000") as bag:
        assert bag.notes == []
        assert json.loads(bag.custom["robopolicy.recorder"])["contract_hash"]
        assert bag.counts["/recorder/episode"] == 2
        assert {"/joint_states", "/block_state", "/command"} <= set(bag.counts)
    # Without the contract beside it, a bag is read by the one that it carries.
    with open_source(output / "episode_000001") as source:
        assert source.n_episodes == 1

    main(["data", "convert", str(output), "--output", str(tmp_path / "data")])
    assert "2 episodes" in capsys.readouterr().out
    with open_source(tmp_path / "data") as source:
        assert source.features.rate_hz == 10
        first = source.read(0, source.features.keys())
    assert 23 <= len(first["action"]) <= 32
    state, action = first["observation.state"], first["action"]
    radius = np.hypot(*(action - 60).T)
    np.testing.assert_allclose(radius, 30, atol=0.01)
    # The agent follows its targets with a lag that its controller explains: 2 / omega = 0.2 s at 2 rad/s.
    lag = np.angle(np.exp(1j * (np.arctan2(*(action - 60).T[::-1]) - np.arctan2(*(state - 60).T[::-1]))))[15:]
    assert 0.25 < lag.mean() < 0.55
    main(["data", "replay", str(tmp_path / "data"), "--task", "pusht"])
    said = capsys.readouterr().out
    assert "2 of 2" in said, said
    run = ["train", "pusht-small-flow", "--data.path", str(tmp_path / "data"), "--steps", "5", "--output"]
    main([*run, str(tmp_path / "run"), "--eval.every", "0", "--batch-size", "16"])
    assert (tmp_path / "run" / "checkpoints" / "last").exists()


def test_a_fault_of_the_gate_leaves_a_black_box(graph: Graph, tmp_path: Path) -> None:
    output, commander = tmp_path / "rec", Commander(graph)
    commander.on = True
    graph.start(SIM)
    graph.start(RECORDER, contract="sim_pusht", output=output, black_box_s=1.0, black_box_after_s=0.3)
    gate = graph.node.create_publisher(DiagnosticStatus, "gate/status", LATCHED)
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics", 10)

    def held() -> bool:
        found = [v for a in diagnostics for s in a.status for v in s.values if v.key == "black_box_s"]
        return bool(found) and float(found[-1].value) > 0.9

    gate.publish(DiagnosticStatus(level=DiagnosticStatus.OK, message="active"))
    graph.until(held, "a full black box")
    boxes = output / "black_box"
    assert not boxes.exists()
    faults = [KeyValue(key="faults", value="tracking_error, command_timeout")]
    for _ in range(3):  # The gate says it once per second: one fault is one black box.
        gate.publish(DiagnosticStatus(level=DiagnosticStatus.ERROR, message="tracking_error: ...", values=faults))
        graph.spin(0.1)
    graph.until(lambda: list(boxes.glob("*/metadata.yaml")), "the black box")
    graph.spin(0.6)
    (box,) = boxes.iterdir()
    with Bag(box) as bag:
        assert json.loads(bag.custom["robopolicy.recorder"])["faults"] == ["command_timeout", "tracking_error"]
        assert bag.counts["/gate/status"] >= 1
        times = [t for t, *_ in bag.messages(["/joint_states"])]
        assert 0.8 < (times[-1] - times[0]) * 1e-9 < 1.2
        fault = [t for t, *_ in bag.messages(["/gate/status"])]
        assert (times[-1] - fault[0]) * 1e-9 > 0.15, "it goes on after the fault"
    # Cleared, and another one.
    gate.publish(DiagnosticStatus(level=DiagnosticStatus.OK, message="active"))
    graph.spin(0.2)
    gate.publish(DiagnosticStatus(level=DiagnosticStatus.ERROR, message="clock", values=faults[:1]))
    graph.until(lambda: len(list(boxes.glob("*/metadata.yaml"))) == 2, "the second black box")
    assert bags(output) == []


def test_a_clock_that_stood_still_ends_no_episode_and_one_that_jumped_does(graph: Graph, tmp_path: Path) -> None:
    contract = tmp_path / "contract.yaml"
    contract.write_text(
        "rate_hz: 50\nfeatures:\n"
        '  observation.state: {topic: /joint_states, type: sensor_msgs/msg/JointState, field: "position[x, y]"}\n'
        "  action: {topic: /command, type: std_msgs/msg/Float64MultiArray}\n"
    )
    graph.start(RECORDER, contract=contract, output=tmp_path / "rec", record=True, use_sim_time=True)
    episodes = graph.collect(String, "recorder/episode", LATCHED)
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics", 10)
    clock = graph.node.create_publisher(Clock, "/clock", 10)
    joints = graph.node.create_publisher(JointState, "joint_states", SENSOR)
    commands = graph.node.create_publisher(Float64MultiArray, "command", COMMAND)
    now = 100.0

    def tell(passed: float) -> int:
        """Time goes on and everybody speaks; returns how many starts and ends of episodes there were."""
        nonlocal now
        now += passed
        stamp = Time(nanoseconds=round(now * 1e9)).to_msg()
        clock.publish(Clock(clock=stamp))
        message = JointState(name=["x", "y"], position=[0.0, 0.0])
        message.header.stamp = stamp
        joints.publish(message)
        commands.publish(Float64MultiArray(data=[0.0, 0.0]))
        return len(episodes)

    graph.until(lambda: tell(0.02), "an episode")
    # As when a simulation gets no processor: it stands still, and then goes on where it was.
    time.sleep(1.5)
    for _ in range(25):
        tell(0.02)
        graph.spin(0.02)
    assert len(episodes) == 1
    tell(5.0)
    graph.until(lambda: tell(0.02) == 2, "the end of the episode")
    graph.until(lambda: any("the clock jumped by" in s.message for a in diagnostics for s in a.status), "its reason")


def test_kill_9_loses_no_more_than_the_last_second_and_the_next_recorder_goes_on(graph: Graph, tmp_path: Path) -> None:
    output, commander = tmp_path / "rec", Commander(graph)
    commander.on = True
    sim = graph.start(SIM, use_sim_time=True)
    options: dict[str, Any] = {"contract": "sim_pusht", "output": output, "record": True, "flush_s": 0.2}
    options |= {"use_sim_time": True}
    clocks = graph.collect(Clock, "/clock")
    first = graph.start(RECORDER, **options)
    episodes = graph.collect(String, "recorder/episode", LATCHED)
    graph.until(lambda: episodes, "an episode")
    graph.spin(2.0)
    first.kill()
    killed = clocks[-1].clock.sec * 10**9 + clocks[-1].clock.nanosec
    graph.start(RECORDER, **options)
    graph.until(lambda: len(bags(output)) == 2, "the second episode")
    graph.spin(1.0)
    assert sim.alive, "it does not mind a recorder that dies"
    assert trigger(graph, "recorder/stop")[0]
    graph.until(lambda: (output / "episode_000001" / "metadata.yaml").exists(), "the end of the second episode")
    with Bag(output / "episode_000000") as bag:
        assert "unfinished" in bag.notes[0]
        times = [t for t, *_ in bag.messages(["/joint_states"])]
    assert (killed - times[-1]) * 1e-9 < 0.5
    with open_source(output) as source:
        assert source.n_episodes == 2
        assert min(source.lengths) >= 8


def test_what_does_not_fit_is_refused(graph: Graph, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "contract.yaml").write_text("rate_hz: 20\nfeatures: {action: {topic: /command}}\n")
    (tmp_path / "file").write_text("")
    pairs = [
        ({}, "parameter contract: not given"),
        ({"contract": "sim_push", "output": tmp_path / "a"}, "Did you mean 'sim_pusht'"),
        ({"contract": "sim_pusht", "output": other}, "choose another output"),
        ({"contract": "sim_pusht", "output": tmp_path / "file" / "x"}, "cannot be written"),
    ]
    nodes = [graph.start(RECORDER, **parameters) for parameters, _ in pairs]
    for node, (_, expected) in zip(nodes, pairs, strict=True):
        assert node.wait() == 1
        assert expected in node.output
        assert "Traceback" not in node.output
