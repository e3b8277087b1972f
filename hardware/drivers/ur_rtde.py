"""Universal Robots (e-series and CB3) through ur-rtde's servoJ; extra `ur`.

Not run on hardware. Written after the interface documentation of ur_rtde 1.6 (sdurobotics.gitlab.io/ur_rtde): RTDE
control and receive interfaces, servoJ.
"""

import contextlib
from typing import Any

import numpy as np

from robopolicy.hardware.drivers.base import Driver, DriverError, JointReading, vendor_module

LOOKAHEAD_S = 0.1
"""Smoothing time of servoJ, s; its range is 0.03 to 0.2."""
GAIN = 300.0
"""Position gain of servoJ; its range is 100 to 2000, and small is gentle."""
HORIZON_S = 0.002
"""For how long one servoJ call controls the robot, s: it returns at once, and the target holds until the next call."""
WATCHDOG_HZ = 10.0
"""Without so many calls of `read` per second the robot's own controller ends the program: this process is gone."""
BRAKE = 4.0
"""Deceleration of `stop`, in the vendor's unit for servoStop, m/s^2 at the tool."""


class UrDriver(Driver):
    """UR3e to UR30 and their CB3 ancestors: six joints."""

    joints = 6

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._control_module = vendor_module("rtde_control", "ur-rtde", "ur")
        self._receive_module = vendor_module("rtde_receive", "ur-rtde", "ur")
        self._control: Any = None
        self._receive: Any = None
        self._servoing = False

    def connect(self) -> None:
        self._receive = self._call("RTDE receive", self._receive_module.RTDEReceiveInterface, self.address)

    def start(self) -> None:
        self.read()
        if self._control is None:
            # Uploads and starts the vendor's control script: remote control must be on, the program not paused.
            self._control = self._call("RTDE control", self._control_module.RTDEControlInterface, self.address)
            if not self._call("watchdog", self._control.setWatchdog, WATCHDOG_HZ):
                raise DriverError(f"{self.address}: the robot refused the watchdog of {WATCHDOG_HZ:g} Hz")
        self._servoing = True
        self.send(self.read().position)

    def read(self) -> JointReading:
        receive = self._receive
        if receive is None or not self._call("RTDE receive", receive.isConnected):
            raise DriverError(f"{self.address}: not connected")
        if self._call("state", receive.isEmergencyStopped):
            raise DriverError(f"{self.address}: emergency stop")
        if self._call("state", receive.isProtectiveStopped):
            raise DriverError(f"{self.address}: protective stop")
        if self._control is not None:
            if not self._call("state", self._control.isProgramRunning):
                raise DriverError(f"{self.address}: the control program has stopped")
            self._call("watchdog", self._control.kickWatchdog)
        position = np.asarray(self._call("joint positions", receive.getActualQ), np.float64)
        velocity = np.asarray(self._call("joint velocities", receive.getActualQd), np.float64)
        if position.shape != (self.joints,) or velocity.shape != (self.joints,):
            raise DriverError(f"{self.address}: expected {self.joints} joints, found {len(position)}")
        return JointReading(position, velocity)

    def send(self, position: np.ndarray) -> None:
        target = self._setpoint(position)
        if not self._servoing:
            raise DriverError(f"{self.address}: set-points need start() first")
        # Speed and acceleration, the second and third arguments, are not used by the robot.
        taken = self._call("servoJ", self._control.servoJ, target, 0.0, 0.0, HORIZON_S, LOOKAHEAD_S, GAIN)
        if not taken:
            raise DriverError(f"{self.address}: servoJ was refused")

    def stop(self) -> None:
        if self._servoing:
            self._servoing = False
            if not self._call("servoStop", self._control.servoStop, BRAKE):
                raise DriverError(f"{self.address}: servoStop was refused")

    def close(self) -> None:
        with contextlib.suppress(DriverError):
            self.stop()
        control, self._control = self._control, None
        receive, self._receive = self._receive, None
        # Without a running program nothing can resume after a protective stop.
        for interface, names in ((control, ("stopScript", "disconnect")), (receive, ("disconnect",))):
            for name in names if interface is not None else ():
                with contextlib.suppress(DriverError):
                    self._call(name, getattr(interface, name))
