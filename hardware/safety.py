"""The safety gate: the last thing between any policy and a robot's controller.

It knows nothing of policies. Targets come in, set-points within every limit come out, one per control period; whatever
goes wrong on either side makes it brake within the same limits, hold, and keep a named fault until somebody clears it.
Times are those of one steady clock, never of ROS or of a simulator, which may jump or stand still.

A software gate is not a safety function in the sense of a standard: the robot's own emergency stop stays in reach.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.limiter import MotionLimiter, MotionLimits

Forward = Callable[[np.ndarray], np.ndarray]
"""Joint positions [n] to the places [k, 3] of points of the robot that must stay in the workspace, in metres."""
Fault = Literal[
    "command_invalid",
    "command_jump",
    "command_timeout",
    "observation_invalid",
    "observation_jump",
    "observation_timeout",
    "tracking_error",
    "workspace",
    "overrun",
    "clock",
    "emergency_stop",
    "internal",
]
BESIDE_LIMIT = 0.01
"""Share of its range by which a joint may be measured outside its limits when the gate starts: encoder noise."""
PATH_POINTS = 16
"""Places along the way of braking at which the workspace is checked, besides its end."""


@dataclass(frozen=True)
class Workspace:
    """A box in metres that points of the robot must not leave."""

    low: np.ndarray
    high: np.ndarray
    forward: Forward

    def holds(self, joints: np.ndarray) -> bool:
        points = self.forward(joints)
        return bool(((points >= self.low) & (points <= self.high)).all())


@dataclass(frozen=True)
class GateConfig:
    """What a robot allows; arrays [n] in radians or metres, times in seconds."""

    limits: MotionLimits
    rate_hz: float
    """Control rate: one set-point per period."""
    tracking_error: np.ndarray
    """Largest distance of the measured positions from the set-points."""
    jump: np.ndarray
    """Largest distance of a target from the measured positions; what is farther is no small step of a policy."""
    command_timeout: float = 0.5
    """Age at which the newest target is no longer followed."""
    observation_timeout: float = 0.1
    """Age at which the newest measured positions are no longer believed."""
    overrun_periods: float = 5.0
    """Periods without a tick after which the gate itself was too late."""
    workspace: Workspace | None = None

    def __post_init__(self) -> None:
        n = len(self.limits.low)
        for name in ("tracking_error", "jump"):
            value = np.asarray(getattr(self, name), np.float64)
            if value.shape != (n,) or not (value > 0).all():
                raise RobopolicyError(f"{name}: expected {n} numbers above 0, found {value.tolist()}")
            object.__setattr__(self, name, value)
        for name in ("rate_hz", "command_timeout", "observation_timeout", "overrun_periods"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise RobopolicyError(f"{name} must be above 0, is {getattr(self, name)}")


@dataclass
class SafetyGate:
    """Feed it with `measure` and `command` as messages arrive, and send what `tick` returns once per period.

    It starts inactive. `activate` takes the measured positions as first set-point. Any fault is latched: the robot
    brakes and holds, targets are ignored, until `clear`.
    """

    config: GateConfig
    faults: dict[Fault, str] = field(default_factory=dict)
    """Latched faults, and what was found when each came up first."""
    counts: Counter[str] = field(default_factory=Counter)
    """How often each fault was seen since the start, latched or not."""
    active: bool = False

    def __post_init__(self) -> None:
        self._limiter = MotionLimiter(self.config.limits, 1.0 / self.config.rate_hz)
        self._n = len(self.config.limits.low)
        self._measured: np.ndarray | None = None
        self._measured_at = self._target_at = self._ticked_at = -np.inf
        self._target: np.ndarray | None = None

    @property
    def setpoint(self) -> np.ndarray:
        """The positions [n] last sent."""
        return self._limiter.position.copy()

    @property
    def velocity(self) -> np.ndarray:
        """Of the set-points, [n] per second."""
        return self._limiter.velocity.copy()

    @property
    def measured(self) -> np.ndarray | None:
        """The measured positions [n] last believed."""
        return None if self._measured is None else self._measured.copy()

    @property
    def at_rest(self) -> bool:
        return bool(self._limiter.at_rest)

    def stop_path(self) -> np.ndarray:
        """The set-points [K, n] that would follow if it braked from now on; none when at rest."""
        return self._limiter.stop_path()

    def measure(self, time: float, position: np.ndarray) -> None:
        """Measured joint positions [n] of this moment."""
        values = _numbers(position)
        if values.shape != (self._n,) or not np.isfinite(values).all():
            self._fault("observation_invalid", f"expected {self._n} finite positions, found {_short(position)}")
            return
        if time < self._measured_at:
            self._fault("clock", f"a measurement of {self._measured_at - time:.3f} s before the last one")
            return
        if self.active and self._measured is not None:
            # What no joint can do in the time that passed is a wrong reading; half a timeout is granted on top.
            room = self.config.limits.velocity * (time - self._measured_at + 0.5 * self.config.observation_timeout)
            moved = np.abs(values - self._measured)
            if (moved > room + self.config.tracking_error).any():
                joint = int(np.argmax(moved - room - self.config.tracking_error))
                self._fault("observation_jump", f"joint {joint} moved {moved[joint]:.3g} since the last measurement")
                return
        self._measured, self._measured_at = values, float(time)

    def command(self, time: float, target: np.ndarray) -> bool:
        """A new target [n]; returns whether it was taken. One that is refused leaves no trace but its fault."""
        values = _numbers(target)
        if values.shape != (self._n,) or not np.isfinite(values).all():
            self._fault("command_invalid", f"expected {self._n} finite positions, found {_short(target)}")
            return False
        if time < self._target_at:
            self._fault("clock", f"a target of {self._target_at - time:.3f} s before the last one")
            return False
        if not self.active or self.faults or self._measured is None:
            return False
        away = np.abs(values - self._measured)
        if (away > self.config.jump).any():
            joint = int(np.argmax(away - self.config.jump))
            self._fault(
                "command_jump",
                f"joint {joint} asked to go {away[joint]:.3g} away, at most {self.config.jump[joint]:.3g}",
            )
            return False
        self._target, self._target_at = values, float(time)
        return True

    def activate(self, time: float) -> np.ndarray:
        """Starts to send set-points, the first being the measured positions, which are returned.

        A joint that is measured a hair outside its limits, as a closed gripper is, starts at its limit.
        """
        if self._measured is None or time - self._measured_at > self.config.observation_timeout:
            raise RobopolicyError("the gate cannot start: no fresh joint positions")
        if self.faults:
            raise RobopolicyError(f"the gate cannot start: {self.describe()}; clear it first")
        if self.config.workspace and not self.config.workspace.holds(self._measured):
            raise RobopolicyError("the gate cannot start: the robot is outside its workspace")
        limits, rate = self.config.limits, self.config.rate_hz
        start = np.clip(self._measured, limits.low, limits.high)
        # No farther than a set-point may move in one period, and than the robot may be from it.
        beside = np.minimum(BESIDE_LIMIT * (limits.high - limits.low), limits.velocity / rate)
        near = np.abs(start - self._measured) <= np.minimum(beside, self.config.tracking_error)
        self._limiter.start(np.where(near, start, self._measured))
        self._target, self._target_at, self._ticked_at, self.active = None, -np.inf, float(time), True
        return self.setpoint

    def release(self) -> None:
        """Forgets the target: brake, hold, and expect no further ones (the policy stopped in order)."""
        self._target = None

    def deactivate(self) -> None:
        """Sends nothing further; RobopolicyError while the set-points still move."""
        if self.active and not self.at_rest:
            raise RobopolicyError("the gate cannot stop sending while the robot moves; release it first")
        self.active = False

    def brake(self) -> np.ndarray:
        """The set-point [n] of one period of braking without any watchdog: for a process that ends."""
        self._target = None
        return self._limiter.step(None).copy()

    def emergency_stop(self, reason: str = "asked for") -> None:
        """Brakes at once, from any state."""
        self._fault("emergency_stop", reason)

    def report(self, fault: Fault, found: str) -> None:
        """Latches a fault that was found outside, by whoever feeds the gate."""
        self._fault(fault, found)

    def clear(self, time: float) -> None:
        """Forgets all faults; RobopolicyError while their cause may persist.

        The set-point stays: if the robot was moved away from it meanwhile, `deactivate` and `activate` are needed.
        """
        if not self.faults:
            return
        if self.active:
            if not self.at_rest:
                raise RobopolicyError("cannot clear: the robot has not come to rest")
            if self._measured is None or time - self._measured_at > self.config.observation_timeout:
                raise RobopolicyError("cannot clear: no fresh joint positions")
            away = np.abs(self._measured - self._limiter.position)
            if (away > self.config.tracking_error).any():
                joint = int(np.argmax(away - self.config.tracking_error))
                raise RobopolicyError(
                    f"cannot clear: joint {joint} is {away[joint]:.3g} away from its set-point; "
                    "deactivate, then activate"
                )
        self.faults.clear()
        self._target, self._target_at = None, -np.inf

    def describe(self) -> str:
        """The latched faults in one line; empty without any."""
        return "; ".join(f"{name}: {text}" for name, text in self.faults.items())

    def tick(self, time: float) -> np.ndarray | None:
        """The set-point [n] of this period; None while inactive. Never raises for anything that arrived."""
        if not self.active:
            return None
        self._watch(time)
        self._ticked_at = float(time)
        target = None if self.faults else self._target
        if self.config.workspace is None or target is None:
            return self._limiter.step(target).copy()
        return self._step_inside(self.config.workspace, target)

    def _watch(self, time: float) -> None:
        config, since = self.config, time - self._ticked_at
        if since < 0:
            self._fault("clock", f"went back by {-since:.3f} s")
            # Measured at a time that is yet to come: it would look fresh for as long as the clock went back.
            self._measured_at = -np.inf
        elif since > config.overrun_periods / config.rate_hz:
            self._fault("overrun", f"{since:.3f} s between two control periods of {1 / config.rate_hz:.3f} s")
        if time - self._measured_at > config.observation_timeout:
            self._fault("observation_timeout", f"no joint positions for {time - self._measured_at:.3f} s")
        elif self._measured is not None:
            away = np.abs(self._measured - self._limiter.position)
            if (away > config.tracking_error).any():
                joint = int(np.argmax(away - config.tracking_error))
                self._fault("tracking_error", f"joint {joint} is {away[joint]:.3g} away from its set-point")
        if self._target is not None and time - self._target_at > config.command_timeout:
            self._fault("command_timeout", f"no target for {time - self._target_at:.3f} s")

    def _step_inside(self, workspace: Workspace, target: np.ndarray) -> np.ndarray:
        """One step if the way of braking after it stays in the workspace, else braking as the step before allowed."""
        limiter = self._limiter
        before = limiter.position, limiter.velocity, limiter.acceleration
        reached = limiter.step(target).copy()
        path = limiter.stop_path()
        rows = np.unique(np.linspace(0, max(len(path) - 1, 0), PATH_POINTS).astype(int))
        if not all(workspace.holds(q) for q in (reached, *(path[rows] if len(path) else ()))):
            limiter.position, limiter.velocity, limiter.acceleration = before
            self._fault("workspace", "the way ahead leaves the workspace")
            return limiter.step(None).copy()
        return reached

    def _fault(self, name: Fault, found: str) -> None:
        self.counts[name] += 1
        self.faults.setdefault(name, found)


def _numbers(values: object) -> np.ndarray:
    """As an array of float64; an empty one for what is no array of numbers."""
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError):
        return np.empty(0)


def _short(values: object) -> str:
    array = _numbers(values)
    if array.ndim != 1:
        return f"shape {list(array.shape)}"
    wrong = [i for i, value in enumerate(array.tolist()) if not np.isfinite(value)]
    return f"{len(array)} values" + (f", value {wrong[0]} is {array[wrong[0]]}" if wrong else "")
