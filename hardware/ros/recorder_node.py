"""The recorder: what a contract names, and what the gate says, as MCAP recordings that become datasets.

    python -m robopolicy.hardware.ros.recorder_node --ros-args -p contract:=sim_pusht -p output:=recordings

Service `recorder/start` begins an episode as soon as every topic of the contract has spoken, `recorder/stop` ends it;
each episode is a bag of its own in the output folder, next to contract.yaml: `robopolicy data convert OUTPUT` makes a
dataset of it. Topic `recorder/episode` says when episodes start and end, and is recorded too. The last seconds are in
memory at any time and are written to OUTPUT/black_box when the gate reports a fault. Messages are taken over as bytes
and written by a thread; when the disk is too slow they are dropped, counted, and the diagnostics say so.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import String
from std_srvs.srv import Trigger

from robopolicy.datasets.bag_stream import mend
from robopolicy.datasets.contract import CONTRACT_FILE, Contract, read_contract
from robopolicy.datasets.rosbag import METADATA, is_bag
from robopolicy.datasets.rosbag_source import CONTRACT_DATA
from robopolicy.errors import RobopolicyError
from robopolicy.hardware.recording import BagThread, BlackBox, Message
from robopolicy.hardware.ros.node import LATCHED, NodeParameters, RobotNode, option, run
from robopolicy.hardware.ros.policy_node import contract_file
from robopolicy.hardware.ros.streams import message_class, resolved

GATE_STATUS = "/gate/status"
EPISODE = "/recorder/episode"
STRING = "std_msgs/msg/String"
STATUS = "diagnostic_msgs/msg/DiagnosticStatus"
OTHERS = {
    "/command": "",
    "/setpoint": "sensor_msgs/msg/JointState",
    "/action_chunk": "trajectory_msgs/msg/JointTrajectory",
    "/emergency_stop": "std_msgs/msg/Bool",
    "/sim/result": STATUS,
    GATE_STATUS: STATUS,
}
"""Recorded beside the topics of the contract when somebody publishes them, with their types where these are fixed."""
DEPTH = 100
CLOCK_JUMP_S = 1.0
"""Advance of the clock beyond the steady one, from one message to the next, that ends an episode."""
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class RecorderParameters(NodeParameters):
    """Of recorder_node."""

    output: str = option("recordings", "folder of the recordings, made when it is missing")
    contract: str = option("", "YAML file that says which topics are which features, or the name of one that is here")
    topics: tuple[str, ...] = option((), "further topics, recorded when somebody publishes them")
    black_box_s: float = option(30.0, "seconds kept in memory", low=0.0, high=600.0)
    black_box_mb: int = option(512, "memory for them at most, MiB", low=1, high=65536)
    black_box_after_s: float = option(2.0, "seconds that a black box goes on after the fault", low=0.0, high=60.0)
    queue_mb: int = option(256, "messages waiting for the disk at most, MiB", low=1, high=65536)
    flush_s: float = option(
        1.0, "after so long what arrived is on the disk; kill -9 loses no more", low=0.05, high=60.0
    )
    record: bool = option(False, "start an episode at activation, without recorder/start")


@dataclass
class _Topic:
    """One recorded topic."""

    name: str
    """In the recording: without the namespace of the robot."""
    resolved: str
    type: str
    """Empty while it is not known."""
    required: bool
    kept: bool
    """Whether its last message still holds when an episode starts."""
    subscription: Any = None
    quality: tuple[Any, Any] | None = None
    count: int = 0
    """Messages since the episode was asked for; of kept topics, ever."""
    last: Message | None = None


class RecorderNode(RobotNode):
    """Recorder and black box of one robot."""

    Parameters: ClassVar[type[NodeParameters]] = RecorderParameters
    NAME = "recorder_node"

    def configure(self) -> None:
        p: RecorderParameters = self.parameters
        self._writer: BagThread | None = None
        self._topics: dict[str, _Topic] = {}
        self._made: list[Any] = []
        if not p.contract:
            raise RobopolicyError("parameter contract: not given")
        self._contract = read_contract(contract_file(p.contract))
        self._output = Path(p.output)
        _prepare(self._output, self._contract, self.get_logger().warning)
        self._box = BlackBox(p.black_box_s, p.black_box_mb * MEGABYTE)
        self._bag = ""
        """Name of the episode under way, empty between episodes."""
        self._wanted = p.record
        numbers = [b.name.rpartition("_")[2] for b in self._output.glob("episode_*")]
        self._number = max([int(n) for n in numbers if n.isdigit()], default=-1) + 1
        self._recorded: Counter[str] = Counter()
        self._faults: set[str] = set()
        self._fault_at: int | None = None
        self._fault_names: list[str] = []
        self._boxes = 0
        self._reported = 0
        self._clocks_before = None
        self._ended = ""
        """Why the latest episode ended, when nobody asked for it."""
        self._plan()
        self._writer = BagThread(p.queue_mb * MEGABYTE, p.flush_s)
        self._episode = self.create_publisher(String, EPISODE.lstrip("/"), LATCHED)
        services = [
            self.create_service(Trigger, "recorder/start", self._on_start),
            self.create_service(Trigger, "recorder/stop", self._on_stop),
        ]
        timer = self.create_timer(0.2, self._poll, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._made = [
            lambda: self.destroy_publisher(self._episode),
            lambda: self.destroy_timer(timer),
            *(lambda service=service: self.destroy_service(service) for service in services),
        ]

    def _plan(self) -> None:
        """The topics to record, with the types that are known already."""
        contract, namespace = self._contract, self.get_namespace()
        rule = contract.episode
        markers = [m.topic for m in (rule.start, rule.end) if m is not None]
        others = [*OTHERS, *markers, *(f"/{t.lstrip('/')}" for t in self.parameters.topics)]
        for name in dict.fromkeys([*contract.topics(), *others]):
            specs = [f for f in contract.features.values() if f.topic == name]
            kind = next((f.type for f in specs if f.type), OTHERS.get(name, ""))
            if contract.task is not None and contract.task.topic == name and contract.task.field == "data":
                kind = kind or STRING
            on_change = not any(contract.is_periodic(f) for f in specs)
            required = name in contract.topics()
            where = resolved(name, namespace)
            self._topics[name] = _Topic(
                name, where, kind, required, kept=(required and on_change) or name == GATE_STATUS
            )

    def activate(self) -> None:
        self._poll()

    def deactivate(self) -> None:
        self._end("the recorder was stopped")

    def cleanup(self) -> None:
        for topic in getattr(self, "_topics", {}).values():
            if topic.subscription is not None:
                self.destroy_subscription(topic.subscription)
        self._topics = {}
        writer, self._writer = getattr(self, "_writer", None), None
        if writer is not None and self._fault_at is not None:
            self._dump(writer)
        if writer is not None and not writer.stop():
            self.get_logger().error(f"{writer.waiting} bytes were not written in time")
        for undo in getattr(self, "_made", ()):
            undo()
        self._made = []

    # Messages in

    def _poll(self) -> None:
        """Subscribes to what is published by now, in the quality that all its publishers offer."""
        if self.state in ("unconfigured", "finalized"):
            return
        for topic in self._topics.values():
            publishers = self.get_publishers_info_by_topic(topic.resolved)
            if not publishers:
                continue
            reliable = all(i.qos_profile.reliability == ReliabilityPolicy.RELIABLE for i in publishers)
            kept = all(i.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for i in publishers)
            quality = (
                ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
                DurabilityPolicy.TRANSIENT_LOCAL if kept else DurabilityPolicy.VOLATILE,
            )
            if topic.subscription is None or topic.quality != quality:
                self._subscribe(topic, publishers[0].topic_type, quality)
        if self._wanted and self.state == "active" and not self._bag:
            self._begin()
        self._watch_faults()
        self._complain()

    def _subscribe(self, topic: _Topic, found: str, quality: tuple[Any, Any]) -> None:
        if topic.type and topic.type != found:
            self.get_logger().error(
                f"{topic.resolved} is {found}, expected {topic.type}: not recorded", throttle_duration_sec=30.0
            )
            return
        if topic.subscription is not None:
            self.destroy_subscription(topic.subscription)
        reliability, durability = quality
        topic.type, topic.quality = found, quality
        topic.subscription = self.create_subscription(
            message_class(found),
            topic.resolved,
            lambda data, topic=topic: self._take(topic, data),
            QoSProfile(depth=DEPTH, reliability=reliability, durability=durability),
            raw=True,
        )

    def _take(self, topic: _Topic, data: bytes) -> None:
        """One message, as bytes: into the black box, and to the disk while an episode is under way."""
        now: int = self.get_clock().now().nanoseconds
        self._watch_clock()
        message = Message(now, topic.name, topic.type, data)
        topic.count += 1
        topic.last = message
        self._box.add(message)
        if topic.name == GATE_STATUS:
            self._hear_gate(data)
        if self._bag:
            self._write(message)
        elif self._wanted and self.state == "active" and topic.required and topic.count == 1:
            self._begin()

    def _write(self, message: Message) -> None:
        assert self._writer is not None
        if self._writer.write(message):
            self._recorded[message.topic] += 1

    def _watch_clock(self) -> None:
        """A clock that jumps ends the episode: no frames can be made across it."""
        ahead = self.clock_jump(CLOCK_JUMP_S)
        if ahead is not None:
            self._box.clear()
            self._end(f"the clock jumped by {ahead:.3f} s")

    # Episodes

    @property
    def _silent(self) -> list[str]:
        """Topics of the contract that have not spoken since the episode was asked for."""
        return [t.resolved for t in self._topics.values() if t.required and not t.count]

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.state != "active" or self._bag or self._wanted:
            what = f"an episode is under way: {self._bag or 'waiting'}"
            response.success, response.message = False, what if self.state == "active" else f"the node is {self.state}"
            return response
        self._wanted = True
        for topic in self._topics.values():
            topic.count = 1 if topic.kept and topic.last is not None else 0
        waiting = ", ".join(self._silent)
        response.success, response.message = True, f"waiting for {waiting}" if waiting else "recording"
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        name, waiting = self._bag, ", ".join(self._silent)
        self._wanted = False
        if not name:
            response.success = False
            response.message = f"no episode: {waiting or 'nothing'} was silent" if waiting else "no episode"
            return response
        self._end("")
        response.success, response.message = True, str(self._output / name)
        return response

    def _begin(self) -> None:
        if self._silent or self._writer is None:
            return
        name = f"episode_{self._number:06d}"
        self._bag, self._ended = name, ""
        self._number += 1
        self._recorded.clear()
        self._writer.open(self._output / name, self._custom({}))
        now: int = self.get_clock().now().nanoseconds
        for topic in self._topics.values():
            if topic.kept and topic.last is not None:
                self._write(Message(now, topic.name, topic.type, topic.last.data))
        self._mark(f"start {name}", now)
        self.get_logger().info(f"recording {self._output / name}")

    def _end(self, reason: str) -> None:
        """Ends the episode under way; `reason` when nobody asked for it."""
        name = self._bag
        if not name or self._writer is None:
            return
        self._mark(f"end {name}", self.get_clock().now().nanoseconds)
        self._bag, self._wanted, self._ended = "", False, reason
        self._writer.close()
        text = f"{name} ended with {sum(self._recorded.values())} messages"
        if reason:
            self.get_logger().warning(f"{text}: {reason}")
        else:
            self.get_logger().info(text)

    def _mark(self, text: str, now: int) -> None:
        marker = String(data=text)
        self._episode.publish(marker)
        self._write(Message(now, EPISODE, STRING, serialize_message(marker)))

    def _custom(self, about: dict[str, Any]) -> dict[str, str]:
        """Free metadata of a bag: the contract, its hash, and whatever `about` says."""
        contract = self._contract
        facts = {"contract_hash": contract.content_hash(), "namespace": self.get_namespace()} | about
        return {CONTRACT_DATA: contract.to_yaml(), "robopolicy.recorder": json.dumps(facts, sort_keys=True)}

    # Black box

    def _hear_gate(self, data: bytes) -> None:
        status: DiagnosticStatus = deserialize_message(data, DiagnosticStatus)
        found = {v.value for v in status.values if v.key == "faults"}
        faults = {name for text in found for name in text.split(", ") if name}
        if not faults and status.level == DiagnosticStatus.ERROR:
            faults = {status.message}
        new, self._faults = faults - self._faults, faults
        if new:
            self._fault_names += sorted(new - set(self._fault_names))
            if self._fault_at is None:
                self._fault_at = round(self.steady() * 1e9)

    def _watch_faults(self) -> None:
        """Writes the black box once the time after a fault has passed."""
        if self._fault_at is None or self._writer is None or not self._box.seconds:
            return
        if self.steady() * 1e9 - self._fault_at >= self.parameters.black_box_after_s * 1e9:
            self._dump(self._writer)

    def _dump(self, writer: BagThread) -> None:
        folder = self._output / "black_box"
        folder.mkdir(exist_ok=True)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{self._boxes:03d}"
        about = {"faults": self._fault_names, "episode": self._bag}
        writer.dump(folder / name, self._custom(about), self._box.messages())
        self.get_logger().warning(f"{', '.join(self._fault_names)}: black box {folder / name}")
        self._boxes += 1
        self._fault_at, self._fault_names = None, []

    # Diagnostics

    def _complain(self) -> None:
        writer = self._writer
        assert writer is not None
        for text in writer.errors[self._reported :]:
            self.get_logger().error(f"not recorded: {text}")
            self._end("it could not be written")
        self._reported = len(writer.errors)

    def report(self) -> tuple[bytes, str, dict[str, Any]]:
        writer = getattr(self, "_writer", None)
        if self.state != "active" or writer is None:
            return super().report()
        dropped, level = sum(writer.dropped.values()), DiagnosticStatus.OK
        message = f"recording {self._bag}" if self._bag else "idle"
        if self._wanted and not self._bag:
            level, message = DiagnosticStatus.WARN, f"waiting for {', '.join(self._silent)}"
        if self._ended:
            level, message = DiagnosticStatus.WARN, f"{message}; the latest episode ended: {self._ended}"
        if dropped:
            level, message = DiagnosticStatus.WARN, f"{message}; {dropped} messages dropped"
        if writer.errors:
            level, message = DiagnosticStatus.ERROR, f"{message}; {writer.errors[-1]}"
        values: dict[str, Any] = {
            "episode": self._bag,
            "output": str(self._output),
            "contract_hash": self._contract.content_hash(),
            "bags": len(writer.finished),
            "black_boxes": self._boxes,
            "black_box_s": self._box.held_s,
            "black_box_mb": self._box.bytes / MEGABYTE,
            "waiting_mb": writer.waiting / MEGABYTE,
            "dropped": dropped,
        }
        values |= {f"dropped {topic}": n for topic, n in writer.dropped.items()}
        values |= {f"recorded {topic}": n for topic, n in self._recorded.items()}
        return level, message, values


def _prepare(output: Path, contract: Contract, warn: Any) -> None:
    """Makes the folder with its contract, and mends what an earlier recorder left when it was killed."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = output / CONTRACT_FILE
        if file.exists():
            there = read_contract(file)
            if there.content_hash() != contract.content_hash():
                raise RobopolicyError(
                    f"{file} has hash {there.content_hash()}, the contract of the recorder {contract.content_hash()}: "
                    "recordings of one folder share a contract; choose another output"
                )
        else:
            draft = file.with_name(f".{file.name}")
            with draft.open("w") as stream:
                stream.write(contract.to_yaml())
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(file)
        for folder in (output, output / "black_box"):
            for bag in folder.iterdir() if folder.is_dir() else ():
                if bag.is_dir() and is_bag(bag) and not (bag / METADATA).exists() and (cut := mend(bag)):
                    warn(f"{bag}: its recorder was killed while it wrote; the last {cut} bytes were cut off")
    except OSError as error:
        raise RobopolicyError(f"{output}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(run(RecorderNode))
