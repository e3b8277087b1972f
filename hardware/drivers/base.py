"""What every direct driver does, and when it gives up."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from robopolicy.errors import RobopolicyError, one_line


class DriverError(RobopolicyError):
    """The robot cannot be reached, does not accept commands, or has stopped by itself."""


@dataclass(frozen=True)
class JointReading:
    """Measured joints, arrays [n] in radians and rad/s."""

    position: np.ndarray
    velocity: np.ndarray


class Driver(ABC):
    """One robot. `connect`; then `start`, `send` and `read` at the control rate, `stop`, as often as wanted; `close`.

    Every method may raise DriverError; after that the robot is standing or braking by its own controller, and only
    `close` may follow. There is no recovery by itself: a person looks at the robot first.
    """

    joints: ClassVar[int]
    """Of the arm, without a gripper."""
    has_gripper: ClassVar[bool] = False
    """Whether `gripper` and `send_gripper` work."""
    address: str

    def __init__(self, address: str) -> None:
        if not address:
            raise DriverError(f"{type(self).__name__}: the robot's network address is needed")
        self.address = address

    @abstractmethod
    def connect(self) -> None:
        """Opens the connection; nothing moves."""

    @abstractmethod
    def start(self) -> None:
        """Takes control and holds the measured position."""

    @abstractmethod
    def read(self) -> JointReading:
        """The newest measurement. DriverError when the robot has stopped by itself or is not connected."""

    @abstractmethod
    def send(self, position: np.ndarray) -> None:
        """The next set-point [n], near the last one: whoever calls this limits velocity, acceleration and jerk."""

    @abstractmethod
    def stop(self) -> None:
        """Brakes to standstill and waits for it; set-points need `start` again."""

    @abstractmethod
    def close(self) -> None:
        """Stops when needed and ends the connection; may be called at any time, raises nothing."""

    def gripper(self) -> float:
        """Measured position of one finger, m."""
        raise DriverError(f"{type(self).__name__} has no gripper")

    def send_gripper(self, position: float) -> None:
        """Where one finger shall go, m; returns before it is there."""
        raise DriverError(f"{type(self).__name__} has no gripper")

    def _setpoint(self, position: np.ndarray) -> list[float]:
        values = np.asarray(position, np.float64)
        if values.shape != (self.joints,) or not np.isfinite(values).all():
            raise DriverError(f"{self.address}: expected {self.joints} finite joint positions, found {position!r}")
        return [float(v) for v in values]

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """The result of a vendor's function; what it raises becomes a DriverError that names the robot."""
        try:
            return function(*arguments, **named)
        except DriverError:
            raise
        except Exception as error:
            # Vendors raise classes of their own, some of them straight from C++.
            raise DriverError(f"{self.address}: {what}: {one_line(error)}") from error


def vendor_module(name: str, package: str, extra: str) -> Any:
    """A vendor's module, or the error that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise DriverError(
            f"{package} is not installed ({one_line(error)}); install the extra: pip install 'robopolicy[{extra}]'"
        ) from error
