"""A stream of set-points into a driver: it begins where the robot is, and when it dries up the robot brakes."""

from collections.abc import Callable

import numpy as np

from robopolicy.hardware.drivers.base import Driver, JointReading


class SetpointStream:
    """Between set-points that arrive by messages and a connected driver.

    The first set-point after a pause has to be within `tolerance` (radians or metres, each joint) of the measured
    position; farther ones are refused and leave the robot where it stands. `clock` is a steady one, in seconds.
    """

    def __init__(self, driver: Driver, timeout: float, tolerance: float, clock: Callable[[], float]) -> None:
        self._driver, self._timeout, self._tolerance, self._clock = driver, timeout, tolerance, clock
        self._sent_at = -np.inf
        self.streaming = False
        self.refused = 0
        """Set-points that began too far away."""
        self.dried_up = 0
        """How often set-points stopped coming while the robot followed them."""

    def send(self, position: np.ndarray) -> bool:
        """A set-point [n]; whether it was passed on. DriverError as of the driver."""
        if not self.streaming:
            away = np.abs(position - self._driver.read().position)
            if not (away <= self._tolerance).all():
                self.refused += 1
                return False
            self._driver.start()
            self.streaming = True
        self._driver.send(position)
        # Only now: to start a robot may take longer than the timeout.
        self._sent_at = self._clock()
        return True

    def tick(self) -> JointReading:
        """Brakes when no set-point came for `timeout`, and reads; call it at the control rate."""
        if self.streaming and self._clock() - self._sent_at > self._timeout:
            self.streaming = False
            self.dried_up += 1
            self._driver.stop()
        return self._driver.read()

    def stop(self) -> None:
        """Brakes when the robot is following set-points."""
        if self.streaming:
            self.streaming = False
            self._driver.stop()
