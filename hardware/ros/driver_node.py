"""The node of a real robot that is driven by its vendor's Python package, in the place of its ROS 2 driver.

    python -m robopolicy.hardware.ros.driver_node --ros-args -p robot:=ur5e -p address:=192.168.1.10

It speaks the topics of the robot's profile: publishes joint states, takes commands. Set-points have to begin where the
robot is; without one for deadman_s the robot brakes. When the robot stops by itself (protective stop, reflex, lost
connection) the node goes to `unconfigured` and stays there: look at the robot, then `ros2 lifecycle set` again.
"""

import sys
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.executors import Executor
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.drivers import Driver, DriverError, make_driver
from robopolicy.hardware.drivers.stream import SetpointStream
from robopolicy.hardware.profiles import RobotProfile, load_profile
from robopolicy.hardware.ros.messages import joint_state
from robopolicy.hardware.ros.node import COMMAND, SENSOR, NodeParameters, RobotNode, option, run


@dataclass(frozen=True)
class DriverParameters(NodeParameters):
    """Of driver_node."""

    robot: str = option("", "robot profile, a name or a YAML file, of a robot that has a direct driver")
    address: str = option("", "network address of the robot")
    state_hz: float = option(100.0, "rate of joint_states and of looking after the robot", low=10.0, high=500.0)
    gripper_hz: float = option(10.0, "rate of looking after the gripper", low=1.0, high=50.0)
    deadman_s: float = option(0.1, "without a command for so long the robot brakes", low=0.02, high=1.0)
    start_tolerance: float = option(
        0.05, "largest distance of a first set-point from the robot, rad", low=0.001, high=0.2
    )


class DriverNode(RobotNode):
    """One real robot."""

    Parameters: ClassVar[type[NodeParameters]] = DriverParameters
    NAME = "driver_node"
    _driver: Driver | None = None

    def configure(self) -> None:
        p: DriverParameters = self.parameters
        if not p.robot:
            raise RobopolicyError("parameter robot is needed: the name of a robot that has a direct driver")
        if p.time_scale != 1:
            raise RobopolicyError(f"time_scale is {p.time_scale}: the time of a real robot is 1")
        self._profile = load_profile(p.robot)
        self._gripper = self._profile.gripper if self._profile.gripper and self._profile.gripper.command else None
        driver = make_driver(self._profile.name, p.address)
        self._arm = arm_joints(self._profile, driver)
        driver.connect()
        self._driver = driver
        driver.read()
        self._stream = SetpointStream(driver, p.deadman_s, p.start_tolerance, self.steady)
        self._finger = driver.gripper() if self._gripper else 0.0
        self._failure = ""
        self._states = self.create_publisher(JointState, self._profile.joint_states, SENSOR)
        self._inputs = [self._subscribe(self._profile.command.adapter, self._profile.command.topic, self._on_arm)]
        if self._gripper and self._gripper.command:
            command = self._gripper.command
            self._inputs.append(self._subscribe(command.adapter, command.topic, self._on_gripper))

    def _subscribe(self, adapter: str, topic: str, callback: Any) -> Any:
        if adapter == "joint_trajectory":
            return self.create_subscription(JointTrajectory, topic, lambda m: callback(_first_point(m)), COMMAND)
        return self.create_subscription(Float64MultiArray, topic, lambda m: callback(np.array(m.data)), COMMAND)

    def deactivate(self) -> None:
        self._stream.stop()

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        done = super().on_deactivate(state)
        if done == TransitionCallbackReturn.FAILURE:
            # Back in `active` the next set-point would start the robot again; an error leads through `cleanup`.
            self._failure = self.refused
            return TransitionCallbackReturn.ERROR
        return done

    def cleanup(self) -> None:
        driver, self._driver = self._driver, None
        if driver is None:
            return
        driver.close()
        if hasattr(self, "_inputs"):
            self.destroy_publisher(self._states)
            for subscription in self._inputs:
                self.destroy_subscription(subscription)

    def spin(self, executor: Executor, stop: threading.Event) -> None:
        due = looked_at_gripper = self.steady()
        while not stop.is_set():
            if self.state != "active" or self._driver is None:
                executor.spin_once(timeout_sec=0.05)
                due = self.steady()
            elif (wait := due - self.steady()) > 0:
                executor.spin_once(timeout_sec=wait)
            else:
                due = max(due + 1 / self.parameters.state_hz, self.steady() - 0.1)
                try:
                    self._publish(self._stream.tick())
                    if self._gripper and self.steady() - looked_at_gripper > 1 / self.parameters.gripper_hz:
                        looked_at_gripper, self._finger = self.steady(), self._driver.gripper()
                except DriverError as error:
                    self._fail(error)

    def _publish(self, reading: Any) -> None:
        position, velocity, names = reading.position, reading.velocity, list(self._arm)
        if self._gripper:
            names.append(self._gripper.joint)
            position, velocity = np.append(position, self._finger), np.append(velocity, 0.0)
        self._states.publish(joint_state(self.stamp(), names, position, velocity))

    def _on_arm(self, values: "np.ndarray | dict[str, float]") -> None:
        if isinstance(values, dict):
            if set(values) != set(self._arm):
                return
            values = np.array([values[name] for name in self._arm])
        if self.state == "active" and values.shape == (len(self._arm),) and np.isfinite(values).all():
            try:
                self._stream.send(values)
            except DriverError as error:
                self._fail(error)

    def _on_gripper(self, values: "np.ndarray | dict[str, float]") -> None:
        numbers = np.array(list(values.values())) if isinstance(values, dict) else values
        if self.state == "active" and numbers.shape == (1,) and np.isfinite(numbers).all() and self._driver:
            try:
                self._driver.send_gripper(float(numbers[0]))
            except DriverError as error:
                self._fail(error)

    def _fail(self, error: DriverError) -> None:
        """The robot has stopped, or cannot be reached: no way back without a person."""
        self._failure = str(error)
        self.get_logger().error(f"{error}; the driver lets go of the robot")
        self._stream.streaming = False
        self.trigger_deactivate()
        self.trigger_cleanup()

    def report(self) -> tuple[bytes, str, dict[str, Any]]:
        if self.state != "active":
            failure = getattr(self, "_failure", "")
            return (DiagnosticStatus.ERROR, failure, {}) if failure else (DiagnosticStatus.WARN, self.state, {})
        stream = self._stream
        values = {"following": stream.streaming, "refused": stream.refused, "dried_up": stream.dried_up}
        return DiagnosticStatus.OK, "following" if stream.streaming else "holding", values


def arm_joints(profile: RobotProfile, driver: Driver) -> tuple[str, ...]:
    """The joints that the driver's arm has; RobopolicyError showing both sides when they do not fit."""
    gripper = profile.gripper
    apart = {gripper.joint} if gripper is not None and gripper.command is not None else set()
    names = tuple(name for name in profile.names if name not in apart)
    if len(names) != driver.joints:
        raise RobopolicyError(f"profile {profile.name} has the joints {', '.join(names)}; the arm has {driver.joints}")
    if apart and not driver.has_gripper:
        raise RobopolicyError(f"profile {profile.name} has a gripper; its driver has none")
    taken = ("forward_position", "joint_trajectory")
    for command in (profile.command, gripper.command if gripper is not None else None):
        if command is not None and command.adapter not in taken:
            raise RobopolicyError(
                f"profile {profile.name} sends {command.adapter} commands; a direct driver takes {', '.join(taken)}"
            )
    return names


def _first_point(message: JointTrajectory) -> dict[str, float]:
    """Positions by joint of the first point; the others are the way of braking, for controllers that can follow it."""
    if not message.points or len(message.points[0].positions) != len(message.joint_names):
        return {}
    return dict(zip(message.joint_names, message.points[0].positions, strict=True))


if __name__ == "__main__":
    sys.exit(run(DriverNode))
