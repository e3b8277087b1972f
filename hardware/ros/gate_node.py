"""The safety gate as a process of its own: action chunks and joint states in, checked set-points out, at a fixed rate.

It imports no learning library and knows no policy: whatever happens to the others, this process brakes, holds and
names the fault until somebody clears it.

Topics: `action_chunk`, the profile's joint states and `emergency_stop` in; the profile's command, `setpoint` and
`gate/status` out. Services: `gate/emergency_stop`, `gate/clear`, `gate/hold`, `gate/resume`, `gate/enable`,
`gate/dry_run`. A chunk without points ends a session in order: the robot holds and no further chunk is expected.
"""

import sys
import time
import traceback
from collections import Counter, deque
from dataclasses import dataclass
from threading import Event
from typing import Any, ClassVar

import numpy as np
from builtin_interfaces.msg import Time as Stamp
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.executors import Executor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import MessageInfo
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robopolicy.errors import RobopolicyError, one_line
from robopolicy.hardware.chunks import Chunk, ChunkExecutor
from robopolicy.hardware.geometry import RobotGeometry
from robopolicy.hardware.profiles import load_profile
from robopolicy.hardware.ros.adapters import Setpoint, make_adapters
from robopolicy.hardware.ros.messages import chunk_content, joint_state, positions
from robopolicy.hardware.ros.node import COMMAND, LATCHED, SENSOR, NodeParameters, RobotNode, option, run
from robopolicy.hardware.ros.realtime import Periods, run_periodically, settle
from robopolicy.hardware.safety import SafetyGate

EMERGENCY = [QoSProfile(depth=50, reliability=r) for r in (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT)]
"""Two subscriptions, for a reliable one does not hear publishers that make best effort, and a best-effort one may lose
messages of any. Deep, for a press must not be lost to the release that follows it."""
FUTURE_S = 0.05
"""Stamps may be this much ahead of this node's clock: simulated clocks come in steps, others drift apart a little."""
CLOCK_STEP_S = 0.5
"""Advance of the ROS clock beyond the steady one, from one period to the next, that is a jump."""
BEHIND = 0.1
"""Share of the tracking error by which a set-point stays behind its target where the gate counts an intervention."""


@dataclass(frozen=True)
class GateParameters(NodeParameters):
    """Parameters of the gate."""

    robot: str = option("", "robot profile: a name that comes with the package, or a YAML file")
    dry_run: bool = option(False, "do everything but send commands")
    enable: bool = option(True, "begin to send as soon as joint states are there")
    speed: float = option(1.0, "share of the profile's velocities, accelerations and jerks", low=0.01, high=1.0)
    realtime_priority: int = option(50, "of SCHED_FIFO; 0 leaves the scheduling as it is", low=0, high=98)
    lock_memory: bool = option(True, "keep the process in memory")


class GateNode(RobotNode):
    """See the top of the file."""

    Parameters: ClassVar[type[NodeParameters]] = GateParameters
    NAME: ClassVar[str] = "gate"
    gate: SafetyGate

    def __init__(self) -> None:
        super().__init__()
        # An emergency stop outlives the configuration, and so does a robot's being held.
        self._pressed = self._holding = False

    def configure(self) -> None:
        p: GateParameters = self.parameters
        if not p.robot:
            raise RobopolicyError("parameter robot names no robot profile")
        self.profile = profile = load_profile(p.robot)
        if p.time_scale != 1 and not profile.simulated:
            raise RobopolicyError(f"time_scale is {p.time_scale}, but robot {profile.name} is not a simulated one")
        config = profile.gate_config(p.speed, RobotGeometry(profile).points if profile.workspace else None)
        stopped = self.gate.faults.get("emergency_stop") if hasattr(self, "gate") else None
        self.gate = SafetyGate(config)
        if stopped is not None:
            self.gate.emergency_stop(stopped)
        self.chunks = ChunkExecutor(
            profile.blended,
            profile.interpolation,
            profile.blend_s,
            max_age_s=profile.timeouts.command,
            horizon_s=profile.timeouts.chunk,
        )
        n = len(profile.names)
        self._state, self._renewed = np.zeros(n), np.zeros(n, bool)
        self._state_at, self._state_stamps = -np.inf, np.zeros(n, np.int64)
        self._enabled, self._dry = p.enable, p.dry_run
        self._heard: deque[tuple[int, bool]] = deque(maxlen=4 * EMERGENCY[0].depth)
        self._waiting = "no joint states yet"
        self._behind = np.zeros(n, np.int64)
        self.counts: Counter[str] = Counter()
        self.periods = Periods(1 / profile.rate_hz / p.time_scale)
        self._shown: tuple[Any, ...] = ()
        self._adapters = make_adapters(self, profile, config.limits.velocity)
        commands = profile.command, profile.gripper and profile.gripper.command
        self._gives_way = profile.hold == "damp" or any(c and c.adapter == "forward_velocity" for c in commands)
        self._setpoints = self.create_publisher(JointState, "setpoint", SENSOR)
        self._status = self.create_publisher(DiagnosticStatus, "gate/status", LATCHED)
        self.create_subscription(JointState, profile.joint_states, self._on_state, SENSOR)
        self.create_subscription(JointTrajectory, "action_chunk", self._on_chunk, COMMAND)
        for qos in EMERGENCY:
            self.create_subscription(Bool, "emergency_stop", self._on_emergency_stop, qos)
        self.create_service(Trigger, "gate/emergency_stop", self._serve_emergency_stop)
        self.create_service(Trigger, "gate/clear", self._serve_clear)
        self.create_service(Trigger, "gate/hold", self._serve_hold)
        self.create_service(Trigger, "gate/resume", self._serve_resume)
        self.create_service(SetBool, "gate/enable", self._serve_enable)
        self.create_service(SetBool, "gate/dry_run", self._serve_dry_run)
        self.create_timer(1.0, self._publish_status, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def activate(self) -> None:
        self._clocks_before = None
        settle(
            self.parameters.realtime_priority,
            self.parameters.lock_memory,
            lambda text: self.get_logger().warning(text),
        )

    def deactivate(self) -> None:
        """Brakes to a stop, then sends nothing."""
        deadline = time.monotonic()
        while self.gate.active and not self.gate.at_rest:
            self._send(self.gate.brake())
            deadline += self.periods.period
            time.sleep(max(0.0, deadline - time.monotonic()))
        if self.gate.active:
            self._send(self.gate.setpoint, over=True)
        self.gate.active = False
        self._waiting = "the node is not active"
        self.chunks.clear()
        self._publish_status()

    def spin(self, executor: Executor, stop: Event) -> None:
        while not stop.is_set():
            if self.state == "active":
                run_periodically(
                    executor, stop, self.periods, lambda: self.state == "active", self._tick, self._failed
                )
            else:
                executor.spin_once(timeout_sec=0.05)

    # One control period

    def _tick(self) -> None:
        now, gate = self.steady(), self.gate
        self._watch_clock()
        if not gate.active:
            self._start(now)
        if gate.active:
            target = None
            if not self._enabled or self._holding:
                gate.release()
                if not self._enabled and gate.at_rest:
                    self._send(gate.setpoint, over=True)
                    gate.deactivate()
            elif not gate.faults:
                target = self.chunks.target(now)
                if target is not None:
                    gate.command(now, target)
            sent = gate.tick(now)
            if sent is not None:
                self._send(sent)
                if target is not None:
                    self._behind += np.abs(target - sent) > BEHIND * gate.config.tracking_error
        if self._shown != (shown := self._what_status_shows()):
            self._shown = shown
            self._publish_status()

    def _start(self, now: float) -> None:
        """Begins to send from the measured positions, where that is wanted and possible."""
        if not self._enabled:
            self._waiting = "not enabled"
            return
        try:
            self.gate.activate(now)
        except RobopolicyError as error:
            self._waiting = str(error)
            return
        self._waiting = ""
        self.chunks.clear()

    def _pause(self) -> None:
        """Ends sending, until `_start` begins anew where the robot is; RobopolicyError while the set-points move."""
        if self.gate.active:
            self.gate.deactivate()
            self._send(self.gate.setpoint, over=True)
            self._waiting = "starts from the measured pose"

    def _send(self, position: np.ndarray, over: bool = False) -> None:
        """Sends a set-point; `over` says that it is the last one for now."""
        gate, stamp = self.gate, self.stamp()
        velocity = gate.velocity
        self._setpoints.publish(joint_state(stamp, self.profile.names, position, velocity))
        if self._dry:
            return
        needed = any(a.needs_stop for a in self._adapters) and not gate.at_rest
        path = gate.stop_path() if needed else np.zeros((0, len(position)))
        setpoint = Setpoint(stamp, position, velocity, path, gate.measured, over or bool(gate.faults))
        for adapter in self._adapters:
            adapter.send(setpoint)

    def _watch_clock(self) -> None:
        """A ROS clock that jumps makes every stamp of a buffered chunk wrong."""
        ahead = self.clock_jump(CLOCK_STEP_S)
        if ahead is not None:
            self.chunks.clear()
            self._state_stamps[:] = 0
            self.gate.report("clock", f"the ROS clock jumped by {ahead:.3f} s")

    def _failed(self) -> None:
        """A defect in this process: stop the robot and say so, but do not fall silent."""
        error = sys.exc_info()[1]
        self.get_logger().fatal(traceback.format_exc(), throttle_duration_sec=1.0)
        self.gate.report("internal", one_line(error) if error else "unknown")

    # Messages

    def _age(self, stamp: Stamp) -> float:
        """Seconds since a stamp; 0 for one that is not set."""
        return self.age(stamp) if stamp.sec or stamp.nanosec else 0.0

    def _on_state(self, message: JointState) -> None:
        now, age = self.steady(), self._age(message.header.stamp)
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        there = np.isin(self.profile.names, message.name)
        if not there.any():
            self.counts["joint states of others"] += 1
        elif age < -FUTURE_S:
            self.counts["joint states from the future"] += 1
        elif age > self.profile.timeouts.observation:
            self.counts["joint states too old"] += 1
        elif not (newer := there & ((stamp == 0) | (stamp >= self._state_stamps))).any():
            self.counts["joint states out of order"] += 1
        else:
            # Some robots tell of arm and gripper in messages of their own, which are not equally old.
            self._state_stamps[newer] = stamp
            self._state_at = max(self._state_at, now - max(age, 0.0))
            self._state = np.where(newer, positions(message, self.profile.names), self._state)
            self._renewed |= newer
            if self._renewed.all() or not np.isfinite(self._state).all():
                self._renewed[:] = False
                self._measure()

    def _measure(self) -> None:
        # In a dry run the robot does not follow: what it would have done takes the place of what it did.
        seen = self.gate.setpoint if self._dry and self.gate.active and np.isfinite(self._state).all() else self._state
        self.gate.measure(self._state_at, seen)

    def _on_chunk(self, message: JointTrajectory) -> None:
        if self.state != "active":
            return
        now = self.steady()
        if not message.points:
            self.counts["sessions ended"] += 1
            self.chunks.clear()
            self.gate.release()
            return
        try:
            content = chunk_content(message, self.profile.names)
            stamp = message.header.stamp
            if not (stamp.sec or stamp.nanosec):
                raise RobopolicyError("header.stamp is not set; it is the stamp of the observation")
            age = self.age(stamp)
            observed = now - (age if age < -FUTURE_S else max(age, 0.0))
            chunk = Chunk(content.session, content.number, observed, content.times, content.rows)
        except RobopolicyError as error:
            self.gate.report("command_invalid", f"action chunk: {error}")
            return
        self.chunks.offer(now, chunk)

    def _on_emergency_stop(self, message: Bool, info: MessageInfo) -> None:
        seen = info["source_timestamp"], message.data
        if seen[0] and seen in self._heard:
            # By the other subscription: a press must not come again after its release.
            return
        self._heard.append(seen)
        self._pressed = message.data
        if message.data:
            self.gate.emergency_stop("topic emergency_stop")

    # Services

    def _serve_emergency_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.gate.emergency_stop("service called")
        return _answer(response, True, "braking; clear and resume to go on")

    def _serve_clear(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pressed:
            return _answer(response, False, "the last message on emergency_stop was true; send false first")
        faulty, stopped = bool(self.gate.faults), "emergency_stop" in self.gate.faults
        try:
            self.gate.clear(self.steady())
        except RobopolicyError as error:
            return _answer(response, False, str(error))
        self.chunks.clear()
        if faulty and self._gives_way:
            # Nothing drew it to its set-point during the fault, and clearing must not begin to: start where it is.
            self._pause()
        # Releasing an emergency stop must not by itself set a machine in motion (ISO 13850).
        self._holding |= stopped
        return _answer(response, True, "cleared; holding until resume" if self._holding else "cleared")

    def _serve_hold(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._holding = True
        self.chunks.clear()
        return _answer(response, True, "holding")

    def _serve_resume(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.gate.faults:
            return _answer(response, False, f"clear first: {self.gate.describe()}")
        self._holding = False
        self.chunks.clear()
        return _answer(response, True, "following the next chunk")

    def _serve_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data and self.gate.faults:
            return _answer(response, False, f"clear first: {self.gate.describe()}")
        self._enabled = request.data
        return _answer(
            response, True, "starts from the measured pose" if request.data else "brakes, then sends nothing"
        )

    def _serve_dry_run(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        try:
            # The set-points of a dry run are not where the robot is, and the last command must not stay in force.
            self._pause()
        except RobopolicyError as error:
            return _answer(response, False, str(error))
        self._dry = request.data
        if self.gate.measured is not None:
            self.gate.measure(self._state_at, self._state)
        return _answer(response, True, "commands are not sent" if request.data else "commands are sent")

    # Reports

    def _what_status_shows(self) -> tuple[Any, ...]:
        """What is published at once when it changes."""
        gate = self.gate
        flags = gate.active, gate.at_rest, self._enabled, self._holding, self._dry, self._pressed
        return *flags, tuple(gate.faults), self._waiting

    def report(self) -> tuple[bytes, str, dict[str, Any]]:
        if self.state == "unconfigured" or not hasattr(self, "gate"):
            return super().report()
        now, gate, chunks = self.steady(), self.gate, self.chunks
        values: dict[str, Any] = {
            "robot": self.profile.name,
            "active": gate.active,
            "at_rest": gate.at_rest,
            "enabled": self._enabled,
            "holding": self._holding,
            "dry_run": self._dry,
            "emergency_stop pressed": self._pressed,
            "faults": list(gate.faults),
            "session": chunks.session,
            "chunk refused": chunks.refusal,
            "chunk remaining s": chunks.remaining(now),
            "joint state age s": now - self._state_at if np.isfinite(self._state_at) else "none",
        }
        values |= {f"fault {name}": count for name, count in sorted(gate.counts.items())}
        values |= {f"chunks {name}": count for name, count in sorted(chunks.counts.items())}
        values |= dict(sorted(self.counts.items())) | self.periods.values()
        values |= {f"behind {n}": int(k) for n, k in zip(self.profile.names, self._behind, strict=True) if k}
        if gate.faults:
            return DiagnosticStatus.ERROR, gate.describe(), values
        if not gate.active:
            return DiagnosticStatus.WARN, f"waiting: {self._waiting}", values
        if self._holding or self._dry:
            return DiagnosticStatus.WARN, "holding" if self._holding else "dry run", values
        return DiagnosticStatus.OK, "following" if chunks.remaining(now) else "no chunk to follow", values

    def _publish_status(self) -> None:
        self._status.publish(self.status(*self.report()))


def _answer(response: Any, success: bool, message: str) -> Any:
    response.success, response.message = success, message
    return response


if __name__ == "__main__":
    sys.exit(run(GateNode, sys.argv))
