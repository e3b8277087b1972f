"""Set-points that a robot can follow: position, velocity, acceleration and jerk within limits, whatever is asked.

Time is discrete with period T: a_k = a_{k-1} + j T, v_k = v_{k-1} + a_k T, q_k = q_{k-1} + v_k T, so that the limits
hold for the differences of what is sent. Every tick takes the acceleration nearest to what the target asks for among
those from which the joint can still stop before its position limits, and from which acceleration and velocity can
still be taken back in time. One such choice always exists: the braking that was found possible one tick before.
"""

from dataclasses import dataclass

import numpy as np

from robopolicy.errors import RobopolicyError

GRID = 48
"""Steps of velocity and of acceleration in the table of braking distances."""
HALVINGS = 12
"""Of the interval of accelerations, when the position limits demand less than the target asks for."""
SLACK = 1e-9
"""Of the limits, relative: room for rounding in the sums here. Rounding of the positions sent adds to it."""


@dataclass(frozen=True)
class MotionLimits:
    """Limits per joint, arrays [n]; radians or metres and seconds."""

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray

    def __post_init__(self) -> None:
        shape = np.shape(self.low)
        for name, value in vars(self).items():
            array = np.asarray(value, np.float64)
            if array.ndim != 1 or array.shape != shape or not np.isfinite(array).all():
                raise RobopolicyError(f"{name} limits: expected {list(shape)} finite numbers, found {value}")
            if name in ("velocity", "acceleration", "jerk") and not (array > 0).all():
                raise RobopolicyError(f"{name} limits must be above 0, are {array.tolist()}")
            object.__setattr__(self, name, array)
        if not (self.low < self.high).all():
            raise RobopolicyError(f"position limits: low {self.low.tolist()} is not below high {self.high.tolist()}")


def releasable(change: np.ndarray, step: np.ndarray, period: float) -> np.ndarray:
    """The largest acceleration that changes a velocity by at most `change` while it is taken back to zero.

    `step` is the largest change of acceleration in one period. An acceleration x that shrinks by `step` per tick adds
    T (x + (x - step) + ...) to the velocity, which is piecewise linear in x and is inverted here.
    """
    u = np.maximum(change, 0.0) / period
    m = np.floor((np.sqrt(1.0 + 8.0 * u / step) - 1.0) / 2.0)
    return (u + step * m * (m + 1.0) / 2.0) / (m + 1.0)


class MotionLimiter:
    """The state of the set-points of n joints, in any number of independent copies: arrays [..., n].

    Joints are independent of each other here. `start` sets the state, `step` moves it one period towards a target.
    """

    def __init__(self, limits: MotionLimits, period: float) -> None:
        if not (np.isfinite(period) and period > 0):
            raise RobopolicyError(f"control period must be above 0 s, is {period}")
        self.limits, self.period = limits, float(period)
        # Differences of positions sent are wrong by a few units in their last place over a power of the period.
        last_place = np.finfo(np.float64).eps * np.maximum(np.abs(limits.low), np.abs(limits.high))
        self._velocity = limits.velocity * (1 - SLACK) - 2 * last_place / period
        self._acceleration = limits.acceleration * (1 - SLACK) - 4 * last_place / period**2
        self._step = (limits.jerk * (1 - SLACK) - 8 * last_place / period**3) * period
        if min(self._velocity.min(), self._acceleration.min(), self._step.min()) <= 0:
            raise RobopolicyError(f"limits {limits} are below what positions can express every {period} s")
        self._low, self._high = limits.low, limits.high
        # Finer near standstill, where a joint spends its time beside a limit.
        grid = np.linspace(-1.0, 1.0, 2 * GRID + 1)
        self._spread = grid * np.abs(grid)
        v = self._spread[:, None, None] * self._velocity
        a = self._spread[None, :, None] * self._acceleration
        reach = self._excursion(v, a)
        self._reach = np.maximum.accumulate(np.maximum.accumulate(reach, axis=0), axis=1)
        self.position = np.zeros_like(limits.low)
        self.velocity = np.zeros_like(limits.low)
        self.acceleration = np.zeros_like(limits.low)

    def start(self, position: np.ndarray) -> None:
        """Sets the state at rest at `position` [..., n]; RobopolicyError when it is outside the position limits."""
        position = np.array(position, np.float64)
        outside = ~((position >= self._low) & (position <= self._high))
        if outside.any():
            joint = int(np.nonzero(outside.reshape(-1, outside.shape[-1]).any(axis=0))[0][0])
            value = float(position.reshape(-1, position.shape[-1])[:, joint][outside[..., joint].reshape(-1)][0])
            raise RobopolicyError(
                f"joint {joint} starts at {value:.4g}, outside its limits "
                f"{self._low[joint]:.4g}..{self._high[joint]:.4g}"
            )
        self.position, self.velocity, self.acceleration = position, np.zeros_like(position), np.zeros_like(position)

    def step(self, target: np.ndarray | None) -> np.ndarray:
        """The next set-point [..., n] on the way to `target` [..., n]; None brakes to a stop."""
        brake = self._braking(self.velocity, self.acceleration)
        chosen = brake if target is None else self._towards(np.asarray(target, np.float64), brake)
        self.position, self.velocity, self.acceleration = self._moved(chosen)
        return self.position

    @property
    def at_rest(self) -> np.ndarray:
        """Whether the set-points stand still, bool [...]."""
        still = (np.abs(self.velocity) < 1e-6 * self._velocity) & (np.abs(self.acceleration) <= self._step)
        return still.all(axis=-1)

    def stop_path(self, most: int = 100_000) -> np.ndarray:
        """The set-points [K, ..., n] of braking from here to a stop, without moving the state."""
        state = self.position, self.velocity, self.acceleration
        path: list[np.ndarray] = []
        while not self.at_rest.all() and len(path) < most:
            path.append(self.step(None))
        self.position, self.velocity, self.acceleration = state
        return np.array(path).reshape(-1, *self.position.shape)

    def _moved(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        v = self.velocity + a * self.period
        return self.position + v * self.period, v, a

    def _braking(self, v: np.ndarray, a: np.ndarray) -> np.ndarray:
        """The next acceleration on the shortest way to a stop without swinging back."""
        wanted = -np.sign(v) * releasable(np.abs(v), self._step, self.period)
        wanted = np.clip(wanted, a - self._step, a + self._step)
        return np.clip(wanted, -self._acceleration, self._acceleration)

    def _towards(self, target: np.ndarray, brake: np.ndarray) -> np.ndarray:
        v, a, period = self.velocity, self.acceleration, self.period
        low = np.maximum(a - self._step, -self._acceleration)
        high = np.minimum(a + self._step, self._acceleration)
        low = np.maximum(low, -releasable(self._velocity + v, self._step, period))
        high = np.minimum(high, releasable(self._velocity - v, self._step, period))
        # The braking of the tick before is possible by construction, even where rounding says otherwise.
        low, high = np.minimum(low, brake), np.maximum(high, brake)
        # Braking in time for the target itself is the same question as for a position limit, without the safety.
        goal = np.clip(target, self._low, self._high)
        ahead = self._last(brake, high, goal, 1.0)
        behind = self._last(brake, low, goal, -1.0)
        forward = self.position + self._rest(v, a, brake) <= goal
        wanted = np.where(forward, ahead, behind)
        # Halving intervals comes only near to a target that is one period away; where it can be met, meet it.
        exact = ((goal - self.position) / period - v) / period
        wanted = np.where((low <= exact) & (exact <= high) & self._stands(exact), exact, wanted)
        top = self._last(brake, np.maximum(wanted, brake), self._high, 1.0)
        bottom = self._last(brake, np.minimum(wanted, brake), self._low, -1.0)
        return np.where(wanted >= brake, top, bottom)

    def _rest(self, v: np.ndarray, a: np.ndarray, brake: np.ndarray) -> np.ndarray:
        """How far braking from now still moves: forward reach or backward reach, whichever way it goes."""
        next_v = v + brake * self.period
        step = next_v * self.period
        return step + np.where(next_v >= 0, self._lookup(next_v, brake), -self._lookup(-next_v, -brake))

    def _last(self, brake: np.ndarray, far: np.ndarray, bound: np.ndarray, sign: float) -> np.ndarray:
        """The acceleration nearest to `far` after which braking still ends on the near side of `bound`."""
        if self._within(far, bound, sign).all():
            return far
        inside, outside = brake, far
        for _ in range(HALVINGS):
            middle = 0.5 * (inside + outside)
            good = self._within(middle, bound, sign)
            inside, outside = np.where(good, middle, inside), np.where(good, outside, middle)
        return np.where(self._within(far, bound, sign), far, inside)

    def _within(self, a: np.ndarray, bound: np.ndarray, sign: float) -> np.ndarray:
        q, v, _ = self._moved(a)
        return sign * q + self._lookup(sign * v, sign * a) <= sign * bound

    def _stands(self, a: np.ndarray) -> np.ndarray:
        """Whether the joint stands still one period after it moved with acceleration `a`."""
        _, v, _ = self._moved(a)
        further = np.maximum(self._lookup(v, a), self._lookup(-v, -a))
        return further <= SLACK * (self._high - self._low)

    def _lookup(self, v: np.ndarray, a: np.ndarray) -> np.ndarray:
        """Upper bound of how far forward braking from (v, a) goes: the next grid point upwards."""
        rows, columns = self._up(v / self._velocity), self._up(a / self._acceleration)
        return self._reach[rows, columns, np.arange(v.shape[-1])]

    @staticmethod
    def _up(x: np.ndarray) -> np.ndarray:
        place = np.ceil(np.sign(x) * np.sqrt(np.abs(x)) * GRID - 1e-9) + GRID
        return np.clip(place, 0, 2 * GRID).astype(np.intp)

    def _excursion(self, v: np.ndarray, a: np.ndarray) -> np.ndarray:
        """The largest displacement forward while braking from (v, a) to a stop, at least 0."""
        v, a = np.broadcast_arrays(v, a)
        q, most = np.zeros_like(v), np.zeros_like(v)
        slowest = np.max(self._velocity / self._acceleration + 2 * self._acceleration / self._step * self.period)
        for _ in range(4 * int(np.ceil(slowest / self.period)) + 20):
            a = self._braking(v, a)
            v = v + a * self.period
            q = q + v * self.period
            most = np.maximum(most, q)
            if ((np.abs(v) <= 1e-12 * self._velocity) & (np.abs(a) <= self._step)).all():
                break
        return most
