"""What every simulated robot is: joints that follow targets, streams, cameras, and an episode that is scored."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from robopolicy.errors import RobopolicyError, unknown


@dataclass(frozen=True)
class JointReading:
    """The measured joints: names, and arrays [n] in radians or metres (px for planar ones) and seconds."""

    names: tuple[str, ...]
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray | None = None
    """Nm or N, of robots that measure it."""


@dataclass(frozen=True)
class ImuReading:
    """What an inertial measurement unit says."""

    orientation: np.ndarray
    """Quaternion wxyz that turns coordinates of the body into those of the world."""
    angular_velocity: np.ndarray
    """[3] in the body's frame, rad/s."""
    linear_acceleration: np.ndarray
    """[3] in the body's frame, m/s^2, with the reaction to gravity: (0, 0, 9.81) at rest."""


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode ended."""

    seed: int
    score: float
    """In [0, 1], as the task defines it."""
    success: bool
    steps: int
    """Control steps of the task."""
    details: dict[str, float] = field(default_factory=dict)
    """What else was measured, by name and unit."""


class SimRobot(ABC):
    """A robot and its surroundings, advanced by its owner.

    `reset` first; then `command`, `advance` and the readings in any order. Until the first command after a reset the
    robot holds still where it is and the episode has not begun, so that nothing is lost while a policy starts up.
    After the end of an episode the physics goes on and the result stays.
    """

    name: ClassVar[str]
    joints: ClassVar[tuple[str, ...]]
    """Names of the commanded joints, in the order of `command`."""
    streams: ClassVar[dict[str, tuple[str, ...]]]
    """What can be observed besides joints and pictures: names of the numbers of each stream."""
    cameras: ClassVar[dict[str, tuple[int, int]]]
    """Height and width of each camera's pictures, px."""
    step_s: ClassVar[float]
    """Physics step, s."""
    steps_per_control: ClassVar[int]
    """Physics steps in one control step of the task."""
    max_steps: ClassVar[int]
    """Control steps of the longest episode."""
    takes: ClassVar[tuple[str, ...]] = ("forward_position", "joint_trajectory")
    """Kinds of commands, as robot profiles call them."""

    def __init__(self) -> None:
        self.seed: int | None = None
        """Of the present episode; None before the first reset."""
        self.result: EpisodeResult | None = None
        """Of the present episode once it is over."""
        self.time = 0.0
        """Simulated seconds since the reset."""
        self._physics_steps = self._control_steps = 0
        self._owed = 0.0
        self._begun = False
        self._best, self._success = 0.0, False

    def reset(self, seed: int) -> None:
        """Starts the episode of `seed`."""
        self._reset(seed)
        self.seed, self.result, self.time = seed, None, 0.0
        self._physics_steps = self._control_steps = 0
        self._owed, self._begun = 0.0, False
        self._best, self._success = 0.0, False

    def command(self, target: np.ndarray) -> None:
        """New targets [n] of the joints. RobopolicyError for a misshapen or non-finite one."""
        values = np.asarray(target, np.float64)
        if values.shape != (len(self.joints),) or not np.isfinite(values).all():
            raise RobopolicyError(f"{self.name}: expected {len(self.joints)} finite joint targets, found {target!r}")
        self._begun = self._begun or self._begins(values)
        self._follow(values)

    def advance(self, seconds: float) -> int:
        """Lets time pass; returns the physics steps made. What is no whole step is made up for later."""
        self._owed += seconds
        steps = int(self._owed / self.step_s + 1e-9)
        self._owed = max(self._owed - steps * self.step_s, 0.0)
        left = steps
        while left > 0:
            until = self.steps_per_control - self._physics_steps % self.steps_per_control
            made = min(left, until) if self._begun else left
            self._advance(made)
            left -= made
            if self._begun:
                self._physics_steps += made
                if made == until and self.result is None:
                    self._judge()
        self.time += steps * self.step_s
        return steps

    def _begins(self, target: np.ndarray) -> bool:
        """Whether the episode, not begun yet, begins with this target."""
        return True

    def _judge(self) -> None:
        """After every control step of the task, as its evaluation does."""
        assert self.seed is not None
        self._control_steps += 1
        reward, success = self._assess()
        self._best, self._success = max(self._best, reward), self._success or success
        if success or self._control_steps >= self.max_steps:
            self.result = EpisodeResult(self.seed, self._best, self._success, self._control_steps)

    def stream(self, name: str) -> np.ndarray:
        """The numbers of one of `streams`, float64. RobopolicyError for another name."""
        if name not in self.streams:
            raise unknown(f"stream of {self.name}:", name, self.streams)
        return self._stream(name)

    def picture(self, camera: str) -> np.ndarray:
        """The picture [height, width, 3] uint8 RGB of one of `cameras`. RobopolicyError for another name."""
        if camera not in self.cameras:
            raise unknown(f"camera of {self.name}:", camera, self.cameras)
        return self._picture(camera)

    @abstractmethod
    def joint_state(self) -> JointReading:
        """The joints as they are now."""

    @abstractmethod
    def hold(self) -> None:
        """Makes the present joint positions the targets, as a drive does that lost its commands."""

    @abstractmethod
    def mirror(self, position: np.ndarray, streams: dict[str, np.ndarray]) -> None:
        """Puts robot [n] and surroundings where the readings of another one say, to draw them; nothing moves on."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Versions of the simulator, as `Task.fingerprint`."""

    @abstractmethod
    def close(self) -> None:
        """Frees the simulator."""

    @abstractmethod
    def _reset(self, seed: int) -> None: ...

    @abstractmethod
    def _follow(self, target: np.ndarray) -> None: ...

    @abstractmethod
    def _advance(self, steps: int) -> None: ...

    @abstractmethod
    def _assess(self) -> tuple[float, bool]:
        """Reward and success of this moment."""

    @abstractmethod
    def _stream(self, name: str) -> np.ndarray: ...

    @abstractmethod
    def _picture(self, camera: str) -> np.ndarray: ...


class LeggedRobot(SimRobot):
    """A robot that walks as fast as somebody asks it to: by default an operator who is part of the episode."""

    takes: ClassVar[tuple[str, ...]] = ("joint_gains",)

    @abstractmethod
    def gains(self, kp: np.ndarray, kd: np.ndarray) -> None:
        """Gains [n] of the joints' controllers from now on, Nm/rad and Nm s/rad."""

    @abstractmethod
    def imu(self) -> ImuReading:
        """What the trunk's IMU says now."""

    @abstractmethod
    def asked(self) -> np.ndarray:
        """The velocity [3] that is asked for now: forward and sideways, m/s, and yaw rate, rad/s."""

    @abstractmethod
    def ask(self, velocity: np.ndarray | None) -> None:
        """Somebody asks for this velocity [3] in place of the operator; None: the operator again."""
