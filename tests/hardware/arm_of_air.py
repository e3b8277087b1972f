"""A robot of the test's own behind the driver interface: joints that are at once where they are told to be."""

from typing import ClassVar

import numpy as np

from robopolicy.hardware.drivers.base import Driver, DriverError, JointReading


class ArmOfAir(Driver):
    """Six joints. `calls` says what was asked of it, without the reading; so does the output where `says` is set.

    The address `air-that-does-not-stop` belongs to one that refuses to stop.
    """

    joints: ClassVar[int] = 6
    says: ClassVar[bool] = False

    def __init__(self, address: str = "air") -> None:
        super().__init__(address)
        self.position, self.calls = np.zeros(6), list[str]()
        self.stopped_by_itself = False

    def connect(self) -> None:
        self._called("connect")

    def start(self) -> None:
        self._called("start")

    def read(self) -> JointReading:
        if self.stopped_by_itself:
            raise DriverError(f"{self.address}: protective stop")
        return JointReading(self.position.copy(), np.zeros(6))

    def send(self, position: np.ndarray) -> None:
        self._called("send")
        self.position = np.array(self._setpoint(position))
        # The last joint stands for whatever makes a robot stop.
        self.stopped_by_itself = bool(self.position[5] > 0.5)

    def stop(self) -> None:
        self._called("stop")
        if self.address == "air-that-does-not-stop":
            raise DriverError(f"{self.address}: the stop was refused")

    def close(self) -> None:
        self._called("close")

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.says and what != "send":
            print(f"arm: {what}", flush=True)
