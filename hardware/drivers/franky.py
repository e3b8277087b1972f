"""Franka Panda and FR3 through franky-control's joint impedance tracking; extra `franka`.

Not run on hardware. The 1 kHz loop is the vendor package's own, in C++; set-points may come at 50 to 1000 Hz.
"""

import contextlib
from typing import Any

import numpy as np

from robopolicy.hardware.drivers.base import Driver, DriverError, JointReading, vendor_module

STIFFNESS = (600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0)
"""Joint stiffness, Nm/rad: those of franka_ros's joint impedance example controller; damping is critical."""
HAND_SPEED = 0.1
"""m/s, of the width."""
HAND_STEP = 0.001
"""Change of a finger's target, m, that is worth an order to the hand."""


class FrankyDriver(Driver):
    """One arm of seven joints and the Franka Hand, whose two fingers move together."""

    joints = 7
    has_gripper = True

    def __init__(self, address: str, enforce_realtime: bool = True) -> None:
        super().__init__(address)
        self._franky = vendor_module("franky", "franky-control", "franka")
        self._realtime = enforce_realtime
        self._robot: Any = None
        self._tracker: Any = None
        self._hand: Any = None
        self._hand_target = float("nan")
        self._hand_done: Any = None

    def connect(self) -> None:
        config = self._franky.RealtimeConfig
        realtime = config.Enforce if self._realtime else config.Ignore
        self._robot = self._call("connection", self._franky.Robot, self.address, realtime_config=realtime)

    def start(self) -> None:
        self.read()
        # Its first reference is the measured position.
        self._tracker = self._call(
            "control", self._franky.JointImpedanceTracker, self._robot, stiffness=np.array(STIFFNESS)
        )

    def read(self) -> JointReading:
        if self._robot is None:
            raise DriverError(f"{self.address}: not connected")
        if self._call("state", lambda: self._robot.has_errors):
            raise DriverError(f"{self.address}: the robot reports errors: {self._call('state', self._errors)}")
        if self._tracker is not None and not self._call("state", lambda: self._tracker.is_running):
            # Names the reflex that ended the motion, when there was one.
            self._call("control", self._robot.join_motion)
            raise DriverError(f"{self.address}: the control loop has ended")
        state = self._call("state", lambda: self._robot.current_joint_state)
        return JointReading(np.array(state.position, np.float64), np.array(state.velocity, np.float64))

    def send(self, position: np.ndarray) -> None:
        target = self._setpoint(position)
        if self._tracker is None:
            raise DriverError(f"{self.address}: set-points need start() first")
        self._call("set-point", self._tracker.set_target, np.array(target))

    def stop(self) -> None:
        if self._tracker is None:
            return
        tracker, self._tracker = self._tracker, None
        self._call("stop", tracker.stop)

    def close(self) -> None:
        with contextlib.suppress(DriverError):
            self.stop()
        if self._hand_done is not None:
            # Stops the hand: an order that is not finished must not outlive its connection.
            with contextlib.suppress(DriverError):
                self._call("gripper", self._hand.stop)
            with contextlib.suppress(DriverError):
                self._call("gripper", self._hand_done.wait, 5.0)
        # The connections end with their objects, in this order.
        self._hand_done = None
        self._hand = None
        self._robot = None

    def gripper(self) -> float:
        return float(self._call("gripper", lambda: self._gripper().width)) / 2

    def send_gripper(self, position: float) -> None:
        if not np.isfinite(position):
            raise DriverError(f"{self.address}: expected a finite gripper position, found {position!r}")
        if self._hand_done is not None and not self._call("gripper", self._hand_done.wait, 0.0):
            # The hand takes one order at a time; the newest is given as soon as this one is done.
            return
        if abs(position - self._hand_target) < HAND_STEP:
            return
        self._hand_done = self._call("gripper", self._gripper().move_async, 2 * float(position), HAND_SPEED)
        self._hand_target = float(position)

    def _gripper(self) -> Any:
        if self._hand is None:
            self._hand = self._call("gripper", self._franky.Gripper, self.address)
        return self._hand

    def _errors(self) -> str:
        return str(self._robot.state.current_errors)
