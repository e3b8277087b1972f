"""Faults against the running graph, one after the other, judged from outside: does the robot stay safe and go on?

    python benchmarks/ros_faults.py CHECKPOINT [--each 20] [--only KIND ...] [--record]

CHECKPOINT is of task pusht-state-image. Robot, camera, gate, policy and recorder are processes over DDS; the robot has
limits far tighter than PushT's own, so that they matter. Before every fault the robot starts from a new initial state
and is moving. A fault is survived when every command that left the gate kept its limits (position, velocity,
acceleration and jerk of consecutive set-points), the robot was at rest within the profile's stop time, the fault had
the right name and stayed until it was cleared, no other process died, and the graph went on afterwards. Where nothing
needs to stop (a dead recorder, some lost or swapped messages) it may also just go on.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "hardware"))

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from ledger import record
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from ros_graph import Graph, Process, free_domain
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robopolicy.datasets.rosbag import Bag
from robopolicy.evaluation.statistics import wilson
from robopolicy.hardware.graph import GraphSettings, NodeProcess, nodes
from robopolicy.hardware.profiles import RobotProfile, load_profile
from robopolicy.hardware.ros.node import COMMAND, LATCHED
from robopolicy.progress import progress_bar

PROFILE = """
name: sim_pusht
kind: planar
simulated: true
rate_hz: 50
joints:
- {name: x, low: 0, high: 512, velocity: 400, acceleration: 4000, jerk: 200000, home: 256, tracking_error: 200,
   jump: 300}
- {name: y, low: 0, high: 512, velocity: 400, acceleration: 4000, jerk: 200000, home: 256, tracking_error: 200,
   jump: 300}
command: {adapter: forward_position, topic: command}
interpolation: hold
timeouts: {command: 0.5, observation: 0.25, chunk: 2.0, overrun: 0.5}
stop_time_s: 0.3
"""
DETECTION_S = 6.0
"""Until a fault must be noticed: a chunk is followed for up to 2 s, its end noticed 0.5 s later; and busy machines."""
STILL = 1e-6
"""Pixels by which set-points of a robot at rest may differ."""
RECORDING_S = 10.0
"""Seconds from the start of a recorder on after which something is on disk."""
TRIES = 3
STARVED = {"command_timeout", "observation_timeout"}
"""What stops the robot when the machine has no time for its policy, or for its simulation."""
LOST = 1.6
"""Periods between two commands from which on one was lost on the way to this observer, not sent."""


@dataclass
class Outcome:
    """What one fault led to."""

    kind: str
    problems: list[str]
    moving: bool
    """Whether the robot moved when the fault came."""
    noticed_s: float = float("nan")
    ticks_to_rest: int = 0
    """Set-points that still moved after the fault was published."""
    starved: int = 0
    """Tries before this one in which the busy machine stopped the robot before the fault could."""
    stalls: int = 0
    """Times that the busy machine stopped the robot once more after the fault was cleared."""


class Trial:
    """The graph, and the observer beside it."""

    def __init__(self, graph: Graph, checkpoint: Path, folder: Path) -> None:
        self.graph, self.folder = graph, folder
        file = folder / "sim_pusht.yaml"
        file.write_text(PROFILE)
        self.profile: RobotProfile = load_profile(file)
        settings = GraphSettings(
            str(file), str(checkpoint), contract="sim_pusht_camera", record=str(folder / "bags"), mode="real_time"
        )
        self._settings = settings
        found = {n.executable: n for n in nodes(settings)}
        found["camera_node"] = NodeProcess("camera_node", {"robot": "sim_pusht", "autostart": True})
        clocks = {"use_sim_time": True}
        self._nodes = {k: replace(n, parameters={**n.parameters, **clocks}) for k, n in found.items()}
        self.commands: list[tuple[float, np.ndarray]] = []
        self.status: list[tuple[float, DiagnosticStatus]] = []
        self.chunks: list[JointTrajectory] = []
        self.facts: dict[str, dict[str, str]] = {}
        self._segments = [0]
        self.started: dict[str, float] = {}
        node = graph.node
        deep = QoSProfile(depth=1000)
        node.create_subscription(Float64MultiArray, "command", self._on_command, deep)
        node.create_subscription(DiagnosticStatus, "gate/status", self._on_status, LATCHED)
        node.create_subscription(JointTrajectory, "action_chunk", self.chunks.append, COMMAND)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.rogue = node.create_publisher(JointTrajectory, "action_chunk", COMMAND)
        self.button = node.create_publisher(Bool, "emergency_stop", COMMAND)
        self.processes: dict[str, Process] = {name: self.start(name) for name in self._nodes}
        graph.until(lambda: self.following, "the graph", 90)

    def start(self, name: str) -> Process:
        self.started[name] = time.monotonic()
        return self.graph.run(list(self._nodes[name].program(self._settings, self.folder).command))

    def _on_command(self, message: Float64MultiArray) -> None:
        self.commands.append((time.monotonic(), np.array(message.data)))

    def _on_status(self, message: DiagnosticStatus) -> None:
        self.status.append((time.monotonic(), message))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.facts[status.name.strip("/")] = {v.key: v.value for v in status.values}

    # What is seen

    @property
    def gate(self) -> dict[str, str]:
        return {v.key: v.value for v in self.status[-1][1].values} if self.status else {}

    @property
    def faults(self) -> set[str]:
        return {name.strip() for name in self.gate.get("faults", "").split(",") if name.strip()}

    @property
    def following(self) -> bool:
        return bool(self.status) and self.status[-1][1].message == "following"

    def moving(self, last: int = 6) -> bool:
        recent = [c for _, c in self.commands[max(self._segments[-1], len(self.commands) - last) :]]
        return len(recent) >= last and bool(np.abs(np.diff(recent, axis=0)).max() > 1.0)

    def dead(self) -> list[str]:
        return [name for name, process in self.processes.items() if not process.alive]

    # What is done

    def trigger(self, service: str) -> Any:
        return self.graph.call(Trigger, service)

    def set(self, node: str, **values: Any) -> None:
        changes = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        answer = self.graph.call(SetParameters, f"{node}/set_parameters", parameters=changes)
        assert all(r.successful for r in answer.results), answer

    def begin(self, seed: int) -> None:
        """A new initial state, and the robot on its way."""
        self.graph.until(lambda: self.graph.call(SetBool, "gate/enable", data=False).success, "gate/enable false")
        self.graph.until(lambda: self.gate.get("active") == "false", "an inactive gate")
        self.set("sim_node", episode_seed=seed)
        self.trigger("sim/reset")
        self.trigger("policy/reset")
        self.clear()
        self._segments.append(len(self.commands))
        self.graph.until(lambda: self.graph.call(SetBool, "gate/enable", data=True).success, "gate/enable true")
        self.graph.until(lambda: self.following, "a robot that follows")
        end = time.monotonic() + 3.0
        while not self.moving() and time.monotonic() < end:
            self.graph.spin(0.02)

    def clear(self) -> None:
        self.graph.until(lambda: self.trigger("gate/clear").success, "gate/clear")
        self.graph.until(lambda: not self.faults, "a status without faults")
        if self.gate.get("holding") == "true":
            self.trigger("gate/resume")

    def beyond_limits(self) -> str:
        """The first limit that a command of the present segment left; empty when all kept them."""
        part = self.commands[self._segments[-1] :]
        if not part:
            return ""
        limits, period = self.profile.gate_config().limits, 1 / self.profile.rate_hz
        times = np.array([t for t, _ in part])
        sent = np.array([c for _, c in part])
        if not np.isfinite(sent).all() or (sent < limits.low).any() or (sent > limits.high).any():
            return "position"
        rates = np.concatenate([sent[:1]] * 3 + [sent])
        whole = np.concatenate([np.ones(3, bool), np.diff(times, prepend=times[0] - period) < LOST * period])
        for name in ("velocity", "acceleration", "jerk"):
            rates = np.diff(rates, axis=0) / period
            # A difference across a lost command says nothing.
            whole = whole[1:] & whole[:-1] if name != "velocity" else whole[1:]
            if (np.abs(rates) > getattr(limits, name) * (1 + 1e-6) + 1e-6)[whole].any():
                return name
        return ""


Undo = Callable[[], None]
Kind = tuple[Callable[[Trial], Undo], set[str]]
"""Does the damage and returns what ends it; the faults one of which must be named, empty where none is needed."""


def kill(name: str) -> Callable[[Trial], Undo]:
    def inject(trial: Trial) -> Undo:
        trial.processes[name].kill()

        def undo() -> None:
            trial.processes[name] = trial.start(name)
            if name == "policy_node":
                seen = len(trial.chunks)
                trial.graph.until(lambda: len(trial.chunks) > seen, "chunks of the new policy", 90)

        return undo

    return inject


def kill_inference(trial: Trial) -> Undo:
    """Only the process in which the checkpoint runs; its node must say so."""
    os.kill(int(trial.facts["policy_node"]["inference_pid"]), 9)

    def undo() -> None:
        trial.processes["policy_node"].kill()
        trial.processes["policy_node"] = trial.start("policy_node")
        seen = len(trial.chunks)
        trial.graph.until(lambda: len(trial.chunks) > seen, "chunks of the new policy", 90)

    return undo


def kill_recorder(trial: Trial) -> Undo:
    lived = time.monotonic() - trial.started["recorder_node"]
    undo = kill("recorder_node")(trial)
    bags = sorted((trial.folder / "bags").glob("episode_*"))

    def again() -> None:
        for bag in bags[-1:]:
            with Bag(bag) as readable:
                # It writes once a second, and needs a few to start.
                assert readable.topics or lived < RECORDING_S, bag
        undo()

    return again


def sensors(seconds: float, **values: Any) -> Callable[[Trial], Undo]:
    """Parameters of the simulation for so long."""

    def inject(trial: Trial) -> Undo:
        before = {name: type(value)(0) for name, value in values.items()}
        trial.set("sim_node", **values)
        trial.graph.spin(seconds)
        trial.set("sim_node", **before)
        return lambda: None

    return inject


def clock_jump(trial: Trial) -> Undo:
    by = float(np.random.default_rng(len(trial.commands)).choice([-7.0, -2.0, 2.0, 7.0]))
    trial.set("sim_node", clock_jump_s=by)
    return lambda: trial.set("sim_node", clock_jump_s=0.0)


def rogue(change: Callable[[list[float]], list[float]]) -> Callable[[Trial], Undo]:
    """A chunk as the policy's next one, with other numbers in it."""

    def inject(trial: Trial) -> Undo:
        seen = len(trial.chunks)
        trial.graph.until(lambda: len(trial.chunks) > seen, "a chunk")
        message = deepcopy(trial.chunks[-1])
        session, _, number = message.header.frame_id.rpartition(":")
        message.header.frame_id = f"{session}:{int(number) + 1}"
        for point in message.points:
            point.positions = change(list(point.positions))
        trial.rogue.publish(message)
        return lambda: None

    return inject


def stop_button(trial: Trial) -> Undo:
    trial.button.publish(Bool(data=True))
    return lambda: trial.button.publish(Bool(data=False))


def stop_service(trial: Trial) -> Undo:
    trial.trigger("gate/emergency_stop")
    return lambda: None


KINDS: dict[str, Kind] = {
    "kill_policy": (kill("policy_node"), {"command_timeout"}),
    "kill_inference": (kill_inference, {"command_timeout"}),
    "kill_camera": (kill("camera_node"), {"command_timeout"}),
    "kill_recorder": (kill_recorder, set()),
    "stall": (sensors(1.0, drop=1.0), {"observation_timeout"}),
    "stale_stamps": (sensors(1.0, stale_stamps=True), {"observation_timeout"}),
    "nan_observation": (sensors(0.3, nan=True), {"observation_invalid"}),
    "nan_action": (rogue(lambda row: [float("nan"), *row[1:]]), {"command_invalid"}),
    "jump_action": (rogue(lambda row: [10 * v + 600 for v in row]), {"command_jump"}),
    "clock_jump": (clock_jump, {"clock", "observation_timeout"}),
    "dropped": (sensors(1.5, drop=0.3), set()),
    "reordered": (sensors(1.5, reorder=0.3), set()),
    "stop_button": (stop_button, {"emergency_stop"}),
    "stop_service": (stop_service, {"emergency_stop"}),
}


def run_one(trial: Trial, kind: str, seed: int) -> Outcome:
    """One fault from a new initial state to a graph that follows its policy again."""
    inject, expected = KINDS[kind]
    trial.begin(seed)
    outcome = Outcome(kind, [], trial.moving())
    others = set(trial.processes) - {kind.replace("kill_", "") + "_node"}
    begin, said = time.monotonic(), len(trial.status)
    undo = inject(trial)
    if expected:
        trial.graph.until(lambda: trial.faults, "a fault", DETECTION_S)
    if trial.faults:
        noticed = next(t for t, s in trial.status[said:] if s.level == DiagnosticStatus.ERROR)
        outcome.noticed_s = noticed - begin
        trial.graph.spin(max(0.0, noticed + 1.0 - time.monotonic()))
        after = [c for t, c in trial.commands if t > noticed]
        steps = np.abs(np.diff(after, axis=0)).max(axis=1) if len(after) > 1 else np.zeros(0)
        outcome.ticks_to_rest = int(np.nonzero(steps > STILL)[0].max() + 1) if (steps > STILL).any() else 0
        if outcome.ticks_to_rest > trial.profile.stop_time_s * trial.profile.rate_hz + 2:
            outcome.problems.append(f"moved for {outcome.ticks_to_rest} periods after the fault")
        if not after:
            outcome.problems.append("the gate fell silent")
        if expected and not trial.faults & expected:
            outcome.problems.append(f"named {sorted(trial.faults)}, expected one of {sorted(expected)}")
        named = set(trial.faults)
        undo()
        trial.graph.spin(0.3)
        if not named <= trial.faults:
            outcome.problems.append(f"{sorted(named - trial.faults)} went away by itself")
    else:
        undo()
    if left := trial.beyond_limits():
        outcome.problems.append(f"a command left its {left} limit")
    if gone := [name for name in trial.dead() if name in others or kind != f"kill_{name.removesuffix('_node')}"]:
        outcome.problems.append(f"{gone} died")
    trial.clear()
    outcome.stalls = go_on(trial)
    return outcome


def go_on(trial: Trial) -> int:
    """Until the robot follows its policy again; returns how often a stalled machine stopped it once more.

    Where two cores start a process or train beside, the simulation was seen to stand still for more than the 0.25 s
    after which the gate, rightly, stops the robot: a second fault, that nobody injected.
    """
    stalls = 0
    while True:
        trial.graph.until(
            lambda: trial.following or trial.faults, "going on after the fault", 30, lambda: f"gate: {trial.gate}"
        )
        if not trial.faults:
            return stalls
        stalls += 1
        assert trial.faults <= STARVED, f"after the fault was cleared: {trial.gate}"
        assert stalls < TRIES, f"stopped again {stalls} times: {trial.gate}"
        trial.clear()


def survived(trial: Trial, kind: str, seed: int) -> Outcome:
    """`run_one`, again when the policy got no processor: then the gate rightly stops for want of commands instead."""
    outcome = run_one(trial, kind, seed)
    for tries in range(1, TRIES):
        if not any(p.startswith("named ['command_timeout']") for p in outcome.problems):
            break
        outcome = replace(run_one(trial, kind, seed), starved=tries)
    return outcome


def main() -> None:
    """Runs all kinds in turn, prints what went wrong, and records the share that was survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=sorted(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    order = [kind for _ in range(args.each) for kind in args.only]
    outcomes: list[Outcome] = []
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    domain, lock = free_domain()
    with tempfile.TemporaryDirectory() as temporary, lock:
        graph = Graph(Path(temporary), domain)
        try:
            trial = Trial(graph, args.checkpoint.absolute(), Path(temporary))
            with progress_bar(total=len(order), unit="fault") as bar:
                for number, kind in enumerate(order):
                    try:
                        outcomes.append(survived(trial, kind, args.seed + number))
                    except (pytest.fail.Exception, AssertionError) as error:
                        outcomes.append(Outcome(kind, [str(error)[:2000]], False))
                    if outcomes[-1].problems:
                        print(f"{number} {kind}: {'; '.join(outcomes[-1].problems)}", flush=True)
                    if dead := trial.dead():
                        trial.processes |= {name: trial.start(name) for name in dead}
                    bar.update(1)
        finally:
            graph.close()
    report(outcomes, args)


def report(outcomes: list[Outcome], args: argparse.Namespace) -> None:
    good, total = Counter(o.kind for o in outcomes if not o.problems), Counter(o.kind for o in outcomes)
    interval = wilson(sum(good.values()), len(outcomes))
    noticed = {k: [o.noticed_s for o in outcomes if o.kind == k and o.noticed_s == o.noticed_s] for k in total}
    lines = [
        f"{kind} {good[kind]}/{n}" + (f" (median {np.median(noticed[kind]):.2f} s)" if noticed[kind] else "")
        for kind, n in total.items()
    ]
    rest = max(o.ticks_to_rest for o in outcomes)
    moving = sum(o.moving for o in outcomes)
    starved, stalls = sum(o.starved for o in outcomes), sum(o.stalls for o in outcomes)
    text = f"{', '.join(lines)}. The robot was moving in {moving}; at most {rest} set-points moved after a fault"
    text += f"; {starved} tries repeated because a starved policy stopped the robot first, {stalls} times a stalled "
    text += "machine stopped it once more after a fault was cleared"
    print(f"{sum(good.values())} of {len(outcomes)} survived {interval}: {text}")
    if args.record:
        record(
            "ros2_faults_survived",
            f"python benchmarks/ros_faults.py CHECKPOINT --each {args.each} --seed {args.seed} --record",
            interval.value,
            interval.low,
            interval.high,
            "share of injected faults survived",
            len(outcomes),
            seeds=f"{args.seed}..{args.seed + len(outcomes) - 1}",
            note=f"{text} (stop time of the profile: 15). In brackets the time from the injection to the fault's "
            "publication. Judged from outside by the commands on the wire: position, velocity, acceleration and jerk "
            "of consecutive set-points against limits of 400 px/s, 4000 px/s^2 and 200000 px/s^3.",
        )


if __name__ == "__main__":
    main()
