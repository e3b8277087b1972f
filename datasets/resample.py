"""Messages that come when they come, as frames at a fixed rate: one code for bags and for the running robot.

A `Resampler` is one topic's buffer; a `FrameSampler` is all topics of a contract. Both take messages one by one and
are asked for one tick after another. `replay` drives a FrameSampler from a recording just as a running node would.
"""

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.datasets import messages
from robopolicy.datasets.contract import SECOND, Contract, TopicFeature
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import TASK_INDEX, Feature


@dataclass(frozen=True)
class Missing:
    """There is no value at a tick, and why."""

    reason: str


@dataclass(frozen=True)
class Choice:
    """What serves a tick: one value, or two neighbours with the weight of the second."""

    first: Any
    second: Any = None
    weight: float = 0.0


class Resampler:
    """The messages of one topic around the present tick.

    Stamps and ticks are integer nanoseconds. Messages may come out of order; one that is older than what already
    served a tick is dropped and counted in `late`. Ticks must not decrease. Only what may still be needed is kept.
    """

    def __init__(self, how: str = "hold", tolerance: float = math.inf, quaternions: Sequence[int] = ()) -> None:
        """`tolerance` in nanoseconds; `quaternions` are the places in a value where a wxyz quaternion begins."""
        self.how = how
        self.tolerance = tolerance
        self.quaternions = tuple(quaternions)
        self.late = 0
        self._stamps: list[int] = []
        self._values: list[Any] = []
        self._served: int | None = None
        self._last_tick: int | None = None

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def newest(self) -> int | None:
        """Stamp of the newest message that is kept."""
        return self._stamps[-1] if self._stamps else None

    def add(self, stamp: int, value: Any) -> None:
        """One message; of two with the same stamp the later one counts."""
        if self._served is not None and stamp < self._served:
            self.late += 1
            return
        at = bisect.bisect_left(self._stamps, stamp)
        if at < len(self._stamps) and self._stamps[at] == stamp:
            self._values[at] = value
        else:
            self._stamps.insert(at, stamp)
            self._values.insert(at, value)

    def choose(self, tick: int) -> Choice | Missing:
        """Which messages serve the tick."""
        if self._last_tick is not None and tick < self._last_tick:
            raise RobopolicyError(f"tick {tick} after tick {self._last_tick}; ticks must not decrease")
        self._last_tick = tick
        after = bisect.bisect_right(self._stamps, tick)
        if after > 1:  # All before the newest message not newer than the tick is history.
            del self._stamps[: after - 1], self._values[: after - 1]
            after = 1
        if after:
            self._served = self._stamps[0]
        before_gap = tick - self._stamps[0] if after else math.inf
        after_gap = self._stamps[after] - tick if after < len(self._stamps) else math.inf
        if before_gap == 0:
            return Choice(self._values[0])
        if self.how == "interpolate":
            return self._between(before_gap, after_gap)
        if self.how == "nearest" and after_gap < before_gap:
            return Choice(self._values[after]) if after_gap <= self.tolerance else _too_far("nearest", after_gap, self)
        if not after:
            return Missing("no message yet")
        return Choice(self._values[0]) if before_gap <= self.tolerance else _too_far("newest", before_gap, self)

    def _between(self, before_gap: float, after_gap: float) -> Choice | Missing:
        for gap, side in ((before_gap, "before"), (after_gap, "after")):
            if gap > self.tolerance or math.isinf(gap):
                return Missing(f"no message {side} it") if math.isinf(gap) else _too_far(f"next {side}", gap, self)
        return Choice(self._values[0], self._values[1], before_gap / (before_gap + after_gap))

    def at(self, tick: int) -> Any:
        """The value at a tick, or `Missing`."""
        choice = self.choose(tick)
        return choice if isinstance(choice, Missing) else self.combine(choice)

    def combine(self, choice: Choice) -> Any:
        """The value of a choice; neighbours are interpolated in float64."""
        if choice.second is None:
            return choice.first
        a, b = np.asarray(choice.first, np.float64), np.asarray(choice.second, np.float64)
        if a.shape != b.shape:
            raise DataError(f"values of shapes {list(a.shape)} and {list(b.shape)} cannot be interpolated")
        mixed = a + choice.weight * (b - a)
        for start in self.quaternions:
            part = slice(start, start + 4)
            mixed[part] = slerp(a[part], b[part], choice.weight)
        return mixed


def _too_far(which: str, gap: float, resampler: Resampler) -> Missing:
    return Missing(f"the {which} message is {gap / SECOND:.3f} s away, tolerance {resampler.tolerance / SECOND:.3f} s")


def slerp(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """The unit quaternion between two, on the shorter arc (Shoemake 1985); q and -q are the same rotation."""
    a, b = _unit(a), _unit(b)
    cosine = float(a @ b)
    if cosine < 0:
        b, cosine = -b, -cosine
    if cosine > 1 - 1e-9:  # The formula divides by the sine of the angle.
        return _unit(a + weight * (b - a))
    angle = math.acos(cosine)
    mixed = (math.sin((1 - weight) * angle) * a + math.sin(weight * angle) * b) / math.sin(angle)
    return np.asarray(mixed)


def _unit(q: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(q))
    if not 0.5 < norm < 2:
        raise DataError(f"quaternion {np.array2string(q, precision=3)} has length {norm:.3g}, expected 1")
    return q / norm


class FeatureReader:
    """The values of one feature; what the contract leaves open is settled by the first message."""

    def __init__(self, key: str, spec: TopicFeature, first: Any) -> None:
        self.key = key
        self._spec = spec
        self.is_image = spec.kind == "image" or (not spec.field and messages.is_image(first))
        self._channels = spec.shape[-1] if self.is_image and spec.shape else None
        self.absent: np.ndarray | None = None
        """What holds where there is no message; None: nothing does."""
        self.fields = spec.field or (() if self.is_image else _default_fields(first))
        self._steps = [messages.parse_selector(text) for text in self.fields]
        self.is_pinned = False
        """Whether the order of the joints was taken from the first message."""
        if len(self._steps) == 1 and not self._steps[0][-1].members:
            self._steps = [_with_members(self._steps[0], spec, first)]
            self.is_pinned = bool(self._steps[0][-1].members)
        value = self._value(first)
        self.quaternions = value.quaternions
        dtype = spec.dtype or _default_dtype(value.array.dtype)
        if spec.resample == "interpolate" and (self.is_image or not dtype.startswith("float")):
            raise DataError(
                f"feature {key!r} of {spec.topic}: {dtype} values are not interpolated; use hold or nearest"
            )
        self.feature = Feature(
            key,
            spec.shape if spec.shape is not None else value.array.shape,
            dtype,
            "image" if self.is_image and spec.kind == "state" else spec.kind,
            spec.names or value.names,
            spec.units,
            spec.low,
            spec.high,
            spec.control,
        )
        self.finish(value.array)
        if spec.absent:
            self.absent = self.finish(np.array(spec.absent, np.float64))

    def concerns(self, message: Any) -> bool:
        """Whether a message holds any of the joints: see `about_others`."""
        return not _disjoint(self._steps, message)

    def _value(self, message: Any) -> messages.Value:
        try:
            return self._select(message)
        except (AttributeError, TypeError, ValueError, LookupError, OverflowError) as error:
            # Definitions in a bag may give a known type other fields.
            raise DataError(f"{type(message).__name__}: {type(error).__name__}: {error}") from error

    def _select(self, message: Any) -> messages.Value:
        if self.is_image:
            if not messages.is_image(message):
                raise DataError(f"{type(message).__name__} is not an image")
            return messages.Value(messages.image(message, self._channels))
        if not self.fields:
            raise DataError(f"name the field; a {type(message).__name__} has several")
        if len(self._steps) == 1 and self.fields == ("data",) and hasattr(message, "layout"):
            return messages.Value(messages.multi_array(message))
        parts = []
        for text, steps in zip(self.fields, self._steps, strict=True):
            part = messages.to_value(messages.select(message, steps), text)
            if steps[-1].members:
                part = messages.Value(part.array, part.quaternions, steps[-1].members)
            elif part.array.ndim == 0 and len(self._steps) > 1:
                part = messages.Value(part.array, (), (text,))
            parts.append(part)
        return parts[0] if len(parts) == 1 else messages.join(parts)

    def read(self, message: Any) -> np.ndarray:
        """The value as the message has it."""
        return self._value(message).array

    def finish(self, array: np.ndarray) -> np.ndarray:
        """The value in the shape and dtype of the feature; DataError when it does not fit."""
        shape, dtype = self.feature.shape, np.dtype(self.feature.dtype)
        if array.shape != shape and (self.is_image or array.size != math.prod(shape)):
            raise DataError(f"feature {self.key!r}: shape {list(array.shape)}, expected {list(shape)}")
        array = array.reshape(shape)
        if dtype.kind in "iub" and array.dtype != dtype:
            with np.errstate(invalid="ignore"):  # What does not fit is found below.
                cast = array.astype(dtype)
            if not np.array_equal(cast.astype(array.dtype), array):
                raise DataError(f"feature {self.key!r}: {array.ravel()[:4]} are not {dtype.name} values")
            return cast
        with np.errstate(over="ignore"):  # Infinity is refused where it matters, when data are written or trained on.
            return array.astype(dtype, copy=False)


def about_others(spec: TopicFeature, message: Any) -> bool:
    """Whether a message names joints, but none that the contract asks for: arm and gripper may speak apart."""
    return _disjoint([messages.parse_selector(text) for text in spec.field], message)


def _disjoint(fields: Sequence[tuple[messages.Step, ...]], message: Any) -> bool:
    members = {member for steps in fields for member in steps[-1].members}
    names = messages.joint_names(message, message) if members else []
    return bool(names) and members.isdisjoint(names)


_DEFAULT_FIELDS = (
    ("name", "position"),
    ("data",),
    ("pose",),
    ("twist",),
    ("position", "orientation"),
    ("linear", "angular"),
)


def _default_fields(message: Any) -> tuple[str, ...]:
    if hasattr(message, "points"):
        return ("points[0].positions",)
    found = next((names for names in _DEFAULT_FIELDS if all(hasattr(message, n) for n in names)), ())
    return found[1:] if found[:1] == ("name",) else found


def _with_members(steps: tuple[messages.Step, ...], spec: TopicFeature, message: Any) -> tuple[messages.Step, ...]:
    """Pins the order of the joints of a bare `position`: drivers publish them in whatever order they like."""
    joints = messages.joint_names(message, message) if not steps[-1].indices else []
    if not joints or len(set(joints)) < len(joints) or steps[-1].name not in _PER_JOINT:
        return steps
    members = spec.names if sorted(spec.names) == sorted(joints) else tuple(joints)
    return (*steps[:-1], messages.Step(steps[-1].name, (), members))


_PER_JOINT = ("position", "velocity", "effort", "positions", "velocities", "accelerations")


def _default_dtype(dtype: np.dtype[Any]) -> str:
    if dtype == np.uint8:
        return "uint8"
    return {"f": "float32", "b": "bool"}.get(dtype.kind, "int64")


class FrameSampler:
    """All features of a contract, message by message, tick by tick.

    `decode(topic, message)` makes the message object when it is needed; a robot has it already.
    """

    def __init__(
        self,
        contract: Contract,
        readers: dict[str, FeatureReader],
        decode: Callable[[str, Any], Any] | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        """`keys` limits what is made; without a reader for a key only `missing` works."""
        self.contract = contract
        self._readers = readers
        self._decode = decode
        self._by_topic: dict[str, dict[str, Resampler]] = {}
        self._optional: set[str] = set()
        self._entries: list[tuple[str, str, int, Resampler]] = []
        for key, spec in contract.features.items():
            if keys is not None and key not in keys:
                continue
            quaternions = readers[key].quaternions if key in readers else ()
            resampler = Resampler(spec.resample, contract.tolerance(spec), quaternions)
            if spec.absent:
                self._optional.add(key)
            self._entries.append((key, spec.topic, round(spec.offset_s * SECOND), resampler))
        if contract.task is not None and contract.task.topic and (keys is None or TASK_INDEX in keys):
            self._entries.append((TASK_INDEX, contract.task.topic, 0, Resampler()))
        for key, topic, _, resampler in self._entries:
            self._by_topic.setdefault(topic, {})[key] = resampler
        self._last: dict[str, tuple[Choice, Any]] = {}

    @property
    def topics(self) -> list[str]:
        return list(self._by_topic)

    @property
    def late(self) -> dict[str, int]:
        """Messages per topic that came too late for a tick they belonged to."""
        return {topic: max(r.late for r in rs.values()) for topic, rs in self._by_topic.items()}

    def add(self, topic: str, stamp: int, message: Any) -> None:
        """A message; of one that a robot has at hand, only what it concerns is told."""
        for key, resampler in self._by_topic.get(topic, {}).items():
            if self._decode is not None or key not in self._readers or self._readers[key].concerns(message):
                resampler.add(stamp, message)

    def settled(self, tick: int) -> bool:
        """Whether no message that comes in order can change the frame of a tick: all periodic topics have spoken at
        or after it. A running robot need not wait for `Contract.delay` then."""
        return all(
            math.isinf(r.tolerance) or key in self._optional or (r.newest is not None and r.newest >= tick + offset)
            for key, _, offset, r in self._entries
        )

    def _choices(self, tick: int) -> dict[str, Choice | Missing]:
        return {key: resampler.choose(tick + offset) for key, _, offset, resampler in self._entries}

    def missing(self, tick: int) -> str | None:
        """Why there is no frame at a tick; None when there is one."""
        return self._lacking(self._choices(tick)) or None

    def _lacking(self, choices: dict[str, Choice | Missing]) -> str:
        found = {key: c.reason for key, c in choices.items() if isinstance(c, Missing) and key not in self._optional}
        return "; ".join(f"{key!r}: {reason}" for key, reason in found.items())

    def at(self, tick: int) -> dict[str, Any] | Missing:
        """The frame at a tick: arrays in the shapes and dtypes of the features, and the instruction as text."""
        choices = self._choices(tick)
        if lacking := self._lacking(choices):
            return Missing(lacking)
        return {key: self._make(key, topic, choices[key], resampler) for key, topic, _, resampler in self._entries}

    def _make(self, key: str, topic: str, choice: Any, resampler: Resampler) -> Any:
        if isinstance(choice, Missing):
            return self._readers[key].absent
        known = self._last.get(key)
        if known is not None and known[0].first is choice.first and choice.second is None is known[0].second:
            return known[1]
        try:
            value = self._value(key, topic, choice, resampler)
        except DataError as error:
            raise DataError(f"topic {topic}: {error}") from error
        self._last[key] = (choice, value)
        return value

    def _value(self, key: str, topic: str, choice: Choice, resampler: Resampler) -> Any:
        first = self._message(topic, choice.first)
        if key == TASK_INDEX:
            assert self.contract.task is not None
            return instruction(first, self.contract.task.field)
        reader = self._readers[key]
        a = reader.read(first)
        b = None if choice.second is None else reader.read(self._message(topic, choice.second))
        return reader.finish(resampler.combine(Choice(a, b, choice.weight)))

    def _message(self, topic: str, message: Any) -> Any:
        return message if self._decode is None else self._decode(topic, message)


def instruction(message: Any, field: str) -> str:
    """The text of an instruction or of a marker's field."""
    value = messages.select(message, messages.parse_selector(field))
    if not isinstance(value, str):
        raise DataError(f"field {field!r} is {type(value).__name__}, the instruction should be text")
    return value


def replay(
    sampler: FrameSampler, arrivals: Iterable[tuple[int, str, int, Any]], ticks: Sequence[int]
) -> Iterator[int]:
    """Feeds (time of arrival, topic, stamp, message) to the sampler; yields the number of each tick when it is due.

    A tick is due `contract.delay` after its stamp, as on the robot, and at the end of the recording.
    """
    due, delay = 0, sampler.contract.delay
    for receive, topic, stamp, message in arrivals:
        while due < len(ticks) and receive > ticks[due] + delay:
            yield due
            due += 1
        if due == len(ticks):
            return
        sampler.add(topic, stamp, message)
    yield from range(due, len(ticks))
