"""The node of a simulated robot: its topics are those of the real one, its clock is its own if you ask for it.

    python -m robopolicy.hardware.ros.sim_node --ros-args -p robot:=sim_pusht

Publishes `joint_states`, one Float64MultiArray per stream of the robot, `<camera>/image_raw`, `sim/result` at the end
of each episode, and `/clock` under use_sim_time. Legged robots also publish `imu`, and `cmd_vel` for as long as
nobody else does: the operator who is part of the episode. Takes the commands of the robot's profile, and `sim/reset`,
which starts the episode of the parameter episode_seed. Mode `real_time` follows the steady clock times time_scale;
mode `stepped` advances one control period per command. The parameters from delay_s on make the sensors fail, at any
time.
"""

import sys
import threading
from collections import Counter
from dataclasses import dataclass, fields
from time import time_ns
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from builtin_interfaces.msg import Time as Stamp
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Twist
from rclpy.executors import Executor
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, Imu, JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.profiles import RobotProfile, load_profile
from robopolicy.hardware.ros.messages import gains_content, imu_message, twist_message
from robopolicy.hardware.ros.node import COMMAND, LATCHED, SENSOR, NodeParameters, RobotNode, option, run
from robopolicy.hardware.sim_faults import Faults, Outbox

if TYPE_CHECKING:
    from robopolicy.sim.robots import LeggedRobot, SimRobot

BEHIND_S = 0.25
"""Wall seconds by which a simulation may be late and still catch up; after more it goes on from where it is."""
IDLE_S = 0.1
"""Wall seconds after which a stepped simulation that waits for a command shows its state again."""
MODES = ("real_time", "stepped")


@dataclass(frozen=True)
class SimParameters(NodeParameters):
    """Of sim_node."""

    robot: str = option("sim_pusht", "a simulated robot")
    profile: str = option("", "robot profile, a name or a YAML file; empty takes that of the robot's name")
    mode: str = option("real_time", "what makes time pass", choices=MODES)
    state_hz: float = option(100.0, "rate of joint_states, streams and /clock in real_time", low=1.0, high=1000.0)
    camera_hz: float = option(0.0, "rate of the pictures, 0 for none", low=0.0, high=100.0)
    deadman_s: float = option(0.0, "without a command for so long the robot holds; 0 takes the profile's timeout")
    episode_seed: int = option(0, "episode that sim/reset starts", low=0, high=2**31, runtime=True)
    delay_s: float = option(0.0, "fault: every message leaves so much later", low=0.0, high=60.0, runtime=True)
    drop: float = option(0.0, "fault: share of messages that are lost", low=0.0, high=1.0, runtime=True)
    reorder: float = option(0.0, "fault: share overtaken by the next one", low=0.0, high=1.0, runtime=True)
    noise: float = option(0.0, "fault: standard deviation of joint positions", low=0.0, high=1e6, runtime=True)
    nan: bool = option(False, "fault: joint positions are not a number", runtime=True)
    stale_stamps: bool = option(False, "fault: stamps stand still", runtime=True)
    freeze_camera: bool = option(False, "fault: cameras repeat their last picture", runtime=True)
    clock_jump_s: float = option(0.0, "fault: added to stamps and /clock", low=-1e6, high=1e6, runtime=True)


class SimNode(RobotNode):
    """One simulated robot."""

    Parameters: ClassVar[type[NodeParameters]] = SimParameters
    NAME = "sim_node"

    def configure(self) -> None:
        from robopolicy.sim.robots import LeggedRobot, make_robot

        p: SimParameters = self.parameters
        self._simulated_clock = bool(self.get_parameter("use_sim_time").value)
        if p.mode == "stepped" and not self._simulated_clock:
            raise RobopolicyError("mode stepped makes its own time: it needs use_sim_time:=true")
        self._profile = load_profile(p.profile or p.robot)
        self._robot: SimRobot | None = make_robot(p.robot)
        robot = self._robot
        self._legged: LeggedRobot | None = robot if isinstance(robot, LeggedRobot) else None
        _check(self._profile, robot)
        self._period = 1.0 / (self._profile.rate_hz if p.mode == "stepped" else p.state_hz)
        self._deadman = p.deadman_s or self._profile.timeouts.command
        self._outbox = Outbox(np.random.default_rng(0))
        self._counts: Counter[str] = Counter()
        self._origin = time_ns()
        """Date at which simulated time began."""
        self._elapsed = 0.0
        self._due = self._commanded_at = self._shown_at = self._pictured_at = -np.inf
        self._lag = 0.0
        self._holding = False
        self._frozen_stamp: Stamp | None = None
        self._pictures: dict[str, np.ndarray] = {}
        self._start_episode()
        if p.camera_hz:
            self._pictures = {camera: robot.picture(camera) for camera in robot.cameras}
        self._make_topics()

    def _make_topics(self) -> None:
        robot, command = self._robot, self._profile.command
        assert robot is not None
        if self._legged is not None:
            self._imu = self.create_publisher(Imu, "imu", SENSOR)
            self._operator = self.create_publisher(Twist, "cmd_vel", COMMAND)
            self._others = self.create_subscription(Twist, "cmd_vel", self._on_velocity, COMMAND)
        self._states = self.create_publisher(JointState, self._profile.joint_states, SENSOR)
        self._streams = {s: self.create_publisher(Float64MultiArray, s, SENSOR) for s in robot.streams}
        self._cameras = {
            c: self.create_publisher(Image, f"{c}/image_raw", SENSOR)
            for c in (robot.cameras if self.parameters.camera_hz else ())
        }
        self._result = self.create_publisher(DiagnosticStatus, "sim/result", LATCHED)
        self._time_topic = self.create_publisher(ClockMessage, "/clock", 1) if self._simulated_clock else None
        if command.adapter == "joint_gains":
            self._commands = self.create_subscription(Float64MultiArray, command.topic, self._on_gains, COMMAND)
        elif command.adapter == "joint_trajectory":
            self._commands = self.create_subscription(JointTrajectory, command.topic, self._on_trajectory, COMMAND)
        else:
            self._commands = self.create_subscription(Float64MultiArray, command.topic, self._on_positions, COMMAND)
        self._reset = self.create_service(Trigger, "sim/reset", self._on_reset)

    def activate(self) -> None:
        self._due = self.steady()

    def cleanup(self) -> None:
        robot, self._robot = getattr(self, "_robot", None), None
        if robot is None:
            return
        robot.close()
        if hasattr(self, "_reset"):
            for publisher in (self._states, self._result, *self._streams.values(), *self._cameras.values()):
                self.destroy_publisher(publisher)
            if self._time_topic is not None:
                self.destroy_publisher(self._time_topic)
            self.destroy_subscription(self._commands)
            if self._legged is not None:
                self.destroy_publisher(self._imu)
                self.destroy_publisher(self._operator)
                self.destroy_subscription(self._others)
            self.destroy_service(self._reset)

    # Time

    def spin(self, executor: Executor, stop: threading.Event) -> None:
        while not stop.is_set():
            if self.state != "active":
                executor.spin_once(timeout_sec=0.05)
            elif self.parameters.mode == "stepped":
                executor.spin_once(timeout_sec=0.02)
                if self.steady() / self.parameters.time_scale - self._shown_at >= IDLE_S:
                    self._show()
            elif (wait := (self._due - self.steady()) / self.parameters.time_scale) > 0:
                executor.spin_once(timeout_sec=min(wait, 0.05))
            else:
                # Late: commands and requests have their turn between the slices that are made up for.
                for _ in range(3 if wait < -self._period else 0):
                    executor.spin_once(timeout_sec=0)
                self._tick(-wait)

    def _tick(self, late: float) -> None:
        """One slice of time; `late` in wall seconds."""
        self._lag = max(self._lag, late)
        if late > BEHIND_S:
            self._counts["slipped"] += 1
            self._due = self.steady()
        self._due += self._period
        if not self._holding and self._elapsed - self._commanded_at > self._deadman and self._counts["commands"]:
            self._holding = True
            self._counts["deadman"] += 1
            self.get_logger().warning(f"no command for {self._deadman:.3g} s: the robot holds")
            assert self._robot is not None
            self._robot.hold()
        self._advance()

    def _advance(self) -> None:
        robot = self._robot
        assert robot is not None
        before = robot.result
        robot.advance(self._period)
        self._elapsed += self._period
        if robot.result is not None and before is None:
            self._publish_result()
        self._show()

    def now(self) -> int:
        """Nanoseconds on the clock of this robot: simulated, or that of the machine."""
        if not self._simulated_clock:
            return int(self.get_clock().now().nanoseconds) + self._jump()
        return self._origin + round(self._elapsed * 1e9) + self._jump()

    def _jump(self) -> int:
        return round(self.parameters.clock_jump_s * 1e9)

    # Messages out

    def faults(self) -> Faults:
        """As the parameters say now."""
        return Faults(**{f.name: getattr(self.parameters, f.name) for f in fields(Faults)})

    def _show(self) -> None:
        """Publishes what a robot publishes at this moment."""
        robot, faults = self._robot, self.faults()
        assert robot is not None
        self._shown_at = self.steady() / self.parameters.time_scale
        now = self.now()
        if self._time_topic is not None:
            self._time_topic.publish(ClockMessage(clock=Time(nanoseconds=now).to_msg()))
        stamp: Stamp = Time(nanoseconds=now).to_msg()
        if not faults.stale_stamps:
            self._frozen_stamp = None
        elif self._frozen_stamp is None:
            self._frozen_stamp = stamp
        stamp = self._frozen_stamp or stamp
        self._outbox.release(self._elapsed)
        if self._legged is not None:
            self._ask(self._legged)
            reading = self._legged.imu()
            said = (reading.orientation, reading.angular_velocity, reading.linear_acceleration)
            self._send("imu", self._imu, imu_message(stamp, "imu", *said), faults)
        self._send(self._profile.joint_states, self._states, self._joints(stamp, faults), faults)
        for name, publisher in self._streams.items():
            self._send(name, publisher, _numbers(robot.stream(name), robot.streams[name]), faults)
        if self._cameras and self._elapsed - self._pictured_at >= 1 / self.parameters.camera_hz - 1e-9:
            self._pictured_at = self._elapsed
            for camera, publisher in self._cameras.items():
                if not faults.freeze_camera:
                    self._pictures[camera] = robot.picture(camera)
                self._send(camera, publisher, picture_message(self._pictures[camera], stamp, camera), faults)

    def _ask(self, robot: "LeggedRobot") -> None:
        """The operator of the episode speaks unless somebody else publishes velocities."""
        if self.count_publishers("cmd_vel") > 1:
            return
        robot.ask(None)
        self._operator.publish(twist_message(robot.asked()))

    def _send(self, topic: str, publisher: Any, message: Any, faults: Faults) -> None:
        self._outbox.put(self._elapsed, topic, publisher.publish, message, faults)

    def _joints(self, stamp: Stamp, faults: Faults) -> JointState:
        assert self._robot is not None
        reading = self._robot.joint_state()
        position = reading.position
        if faults.noise:
            position = position + self._outbox.rng.normal(0.0, faults.noise, position.shape)
        if faults.nan:
            position = np.full_like(position, np.nan)
        message = JointState(name=list(reading.names), position=position.tolist(), velocity=reading.velocity.tolist())
        if reading.effort is not None:
            message.effort = reading.effort.tolist()
        message.header.stamp = stamp
        return message

    def _publish_result(self) -> None:
        assert self._robot is not None
        result = self._robot.result
        assert result is not None
        values = {
            "episode_seed": result.seed,
            "score": f"{result.score:.17g}",
            "success": result.success,
            "steps": result.steps,
            **{name: f"{value:.9g}" for name, value in result.details.items()},
        }
        self._result.publish(self.status(DiagnosticStatus.OK, "episode over", values))

    # Messages in

    def _on_positions(self, message: Float64MultiArray) -> None:
        self._command(np.array(message.data, np.float64))

    def _on_gains(self, message: Float64MultiArray) -> None:
        robot = self._legged
        assert robot is not None
        try:
            q, dq, tau, kp, kd = gains_content(message, len(robot.joints)).T
            if dq.any() or tau.any():
                raise RobopolicyError("velocities and torques of a command are not simulated")
            robot.gains(kp, kd)
        except RobopolicyError:
            self._counts["refused"] += 1
            return
        self._command(q)

    def _on_velocity(self, message: Twist) -> None:
        # Its own words come back to it; they say what the robot knows.
        if self._legged is not None and self.count_publishers("cmd_vel") > 1:
            self._legged.ask(np.array([message.linear.x, message.linear.y, message.angular.z]))

    def _on_trajectory(self, message: JointTrajectory) -> None:
        assert self._robot is not None
        names = list(message.joint_names)
        if sorted(names) != sorted(self._robot.joints) or not message.points:
            self._counts["refused"] += 1
            return
        # What follows the set-point is the way of braking, for the case that no further message comes.
        row = message.points[0].positions
        order = [names.index(joint) for joint in self._robot.joints]
        self._command(np.array([row[i] for i in order if i < len(row)], np.float64))

    def _command(self, target: np.ndarray) -> None:
        if self.state != "active" or self._robot is None:
            return
        try:
            self._robot.command(target)
        except RobopolicyError:
            self._counts["refused"] += 1
            return
        self._counts["commands"] += 1
        self._commanded_at, self._holding = self._elapsed, False
        if self.parameters.mode == "stepped":
            self._advance()

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._start_episode()
        if self.state == "active":
            self._show()
        response.success, response.message = True, f"episode {self.parameters.episode_seed}"
        return response

    def _start_episode(self) -> None:
        assert self._robot is not None
        self._robot.reset(self.parameters.episode_seed)
        self._outbox.clear()
        self._commanded_at, self._holding = self._elapsed, False
        self._counts["commands"] = 0

    def report(self) -> tuple[bytes, str, dict[str, Any]]:
        if self._robot is None or self.state != "active":
            return DiagnosticStatus.WARN, self.state, {}
        faults, result = self.faults().names, self._robot.result
        words = [f"faults on: {', '.join(faults)}"] if faults else []
        words += ["holds, no command"] if self._holding else []
        values = {
            "episode_seed": self._robot.seed,
            "episode_over": result is not None,
            "simulated_s": self._elapsed,
            "latest_slice_late_ms": self._lag * 1e3,
            **{name: self._counts[name] for name in ("commands", "refused", "deadman", "slipped")},
        }
        self._lag = 0.0
        return (DiagnosticStatus.WARN if words else DiagnosticStatus.OK), "; ".join(words) or "running", values


def _check(profile: RobotProfile, robot: "SimRobot") -> None:
    """RobopolicyError showing both sides when the profile is of another robot."""
    if profile.names != robot.joints:
        raise RobopolicyError(
            f"profile {profile.name} has joints {', '.join(profile.names)}; {robot.name} has {', '.join(robot.joints)}"
        )
    if profile.command.adapter not in robot.takes:
        takes = ", ".join(robot.takes)
        raise RobopolicyError(
            f"profile {profile.name} sends {profile.command.adapter} commands; {robot.name} takes {takes}"
        )
    if profile.gripper is not None and profile.gripper.command is not None:
        raise RobopolicyError(
            f"profile {profile.name} commands its gripper on {profile.gripper.command.topic}; {robot.name} takes all "
            f"joints together on {profile.command.topic}"
        )


def _numbers(values: np.ndarray, names: tuple[str, ...]) -> Float64MultiArray:
    message = Float64MultiArray(data=values.tolist())
    message.layout.dim = [MultiArrayDimension(label=" ".join(names), size=len(values), stride=len(values))]
    return message


def picture_message(picture: np.ndarray, stamp: Stamp, camera: str) -> Image:
    """sensor_msgs/Image of a picture [height, width, 3] uint8 RGB."""
    from array import array

    height, width, channels = picture.shape
    # An array of bytes is taken over as it is; from any other type rclpy would check every number.
    data = array("B", np.ascontiguousarray(picture).tobytes())
    message = Image(height=height, width=width, encoding="rgb8", step=width * channels, data=data)
    message.header.stamp, message.header.frame_id = stamp, camera
    return message


if __name__ == "__main__":
    sys.exit(run(SimNode))
