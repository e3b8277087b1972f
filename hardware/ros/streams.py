"""The topics of a contract as subscriptions of a running node: frames at the policy's rate, made as from a bag.

Message by message and tick by tick this is the `FrameSampler` that also converts recordings, so that a policy sees on
the robot what it was trained on. ROS 2 names are resolved in the namespace of the node: `/joint_states` of a contract
is `/left/joint_states` for a node in `/left`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState

from robopolicy.datasets.contract import SECOND, Contract, TopicFeature
from robopolicy.datasets.resample import FeatureReader, FrameSampler, Missing, Resampler, about_others
from robopolicy.errors import DataError, FeatureMismatch, RobopolicyError
from robopolicy.features import Feature, FeatureSpec
from robopolicy.hardware.actions import misplaced
from robopolicy.hardware.profiles import RobotProfile
from robopolicy.hardware.ros.node import LATCHED, RobotNode

TYPE = re.compile(r"([a-z][a-z0-9_]*)/msg/([A-Z][A-Za-z0-9]*)")
STREAM = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Deeper than the newest sample: each message may be the one of a tick, and a picture takes time to be taken in."""
DAMAGED_S = 1.0
"""Seconds for which frames may be unreadable until that is an error."""
MEASURED = "joint states"
"""Name of the measured joint positions among the streams, for messages."""


def message_class(name: str) -> Any:
    """The class of a message type such as sensor_msgs/msg/Image; RobopolicyError when it is not installed."""
    match = TYPE.fullmatch(name)
    if match is None:
        raise RobopolicyError(f"message type {name!r}: expected a form like sensor_msgs/msg/Image")
    try:
        return getattr(import_module(f"{match[1]}.msg"), match[2])
    except (ImportError, AttributeError):
        raise RobopolicyError(f"message type {name!r} is not installed") from None


def resolved(topic: str, namespace: str) -> str:
    """The name of a contract's topic for a node in `namespace`."""
    inside = namespace == "/" or topic.startswith(namespace.rstrip("/") + "/")
    return topic if inside else namespace.rstrip("/") + topic


def completed(contract: Contract, wanted: FeatureSpec) -> Contract:
    """The contract with the features that the checkpoint reads only, what it leaves open taken from the checkpoint.

    FeatureMismatch showing both sides for every feature that is missing or differs, and for the rate.
    """
    described = {k: _feature(k, spec, wanted) for k, spec in contract.features.items()}
    theirs = FeatureSpec(tuple(described.values()), contract.rate_hz)
    spec = wanted if "action" in described else wanted.select([f.key for f in wanted.inputs])
    spec.require(theirs, "checkpoint", "contract")
    features = {}
    for feature in wanted.inputs:
        entry, mine = contract.features[feature.key], described[feature.key]
        features[feature.key] = replace(
            entry, kind=mine.kind, dtype=mine.dtype, shape=mine.shape, names=mine.names, units=mine.units
        )
    return replace(contract, features=features, task=None)


def _feature(key: str, spec: TopicFeature, wanted: FeatureSpec) -> Feature:
    """What the contract says of a feature; silence agrees with the checkpoint, joints in another order do not."""
    if key not in wanted:
        return Feature(key, spec.shape or (), spec.dtype or "float32", spec.kind)
    theirs = wanted[key]
    same = spec.shape is None or spec.shape == theirs.shape
    moved = misplaced(theirs.names, spec.field)
    return Feature(
        key,
        theirs.shape if spec.shape is None else spec.shape,
        spec.dtype or theirs.dtype,
        spec.kind,
        moved or spec.names or (theirs.names if same else ()),
        spec.units or (theirs.units if same else ()),
        control=spec.control or theirs.control if spec.kind == "action" else None,
    )


@dataclass(frozen=True)
class Frame:
    """The observation of one tick."""

    tick: int
    """Stamp, ns."""
    values: dict[str, np.ndarray]
    measured: np.ndarray
    """Joint positions [n] in the order of the profile."""


class Streams:
    """Subscribes to what a contract and a profile name, and makes frames of it."""

    def __init__(
        self,
        node: RobotNode,
        contract: Contract,
        wanted: FeatureSpec,
        profile: RobotProfile,
        changed: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        """`changed` is called after every message, `failed` with the reason when messages cannot be what the
        checkpoint needs; FeatureMismatch as for `completed`."""
        self._node, self._wanted, self._profile = node, wanted, profile
        self._changed, self._failed = changed, failed
        self.contract = completed(contract, wanted)
        self._joints = resolved(f"/{profile.joint_states.lstrip('/')}", node.get_namespace())
        namespace = node.get_namespace()
        self._topics = {resolved(f.topic, namespace): f.topic for f in self.contract.features.values()}
        self._subscriptions: dict[str, Any] = {}
        self.messages = dict.fromkeys([*self._topics, self._joints], 0)
        """Messages received, by full topic name."""
        self._kept: dict[str, Any] = {}
        """The newest message of topics that speak only on change, by full topic name."""
        self.restart()

    def restart(self) -> None:
        """Forgets all messages but the newest of topics that speak only on change, which a goal's publisher would not
        repeat: the next frames are made of what comes from now on."""
        self._readers: dict[str, FeatureReader] = {
            key: FeatureReader(key, spec, message_class(spec.type)())
            for key, spec in self.contract.features.items()
            if spec.absent
        }
        self._first: dict[str, tuple[int, Any]] = {}
        self._sampler: FrameSampler | None = None
        self._measured = self._no_measurements()
        self._joint_values = np.zeros(len(self._profile.names))
        self._joints_known = np.zeros(len(self._profile.names), bool)
        self._start = self._number = 0
        self._heard: dict[str, int] = {}
        self._damaged_since: int | None = None
        self.skipped = 0
        """Ticks that were over before they could be looked at."""
        for topic, message in self._kept.items():
            # It holds since before any tick, wherever the clock is now.
            self._meet(topic, self._topics[topic], 0, message)

    def _no_measurements(self) -> Resampler:
        return Resampler("hold", max(self._profile.timeouts.observation, 1 / self.contract.rate_hz) * SECOND)

    def close(self) -> None:
        """Ends all subscriptions."""
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions = {}

    # Messages in

    def subscribe(self) -> None:
        """Subscribes to every topic whose type is known by now: by the contract, or by its publisher."""
        known: dict[str, list[str]] = {}
        for topic in [*self._topics, self._joints]:
            if topic in self._subscriptions:
                continue
            specs = [f for f in self.contract.features.values() if f.topic == self._topics.get(topic)]
            name = next((f.type for f in specs if f.type), "")
            if topic == self._joints:
                name = name or "sensor_msgs/msg/JointState"
            known = known or dict(self._node.get_topic_names_and_types())
            name = name or next(iter(known.get(topic, ())), "")
            periodic = not specs or any(math.isfinite(self.contract.tolerance(f)) for f in specs)
            if name and (quality := STREAM if periodic else self._quality(topic)) is not None:
                self._subscriptions[topic] = self._node.create_subscription(
                    message_class(name), topic, lambda message, topic=topic: self._take(topic, message), quality
                )

    def _on_change(self, name: str) -> bool:
        """Whether a topic of the contract speaks only when it has something new."""
        specs = [f for f in self.contract.features.values() if f.topic == name]
        return all(math.isinf(self.contract.tolerance(f)) for f in specs)

    def _quality(self, topic: str) -> QoSProfile | None:
        """Of a topic that speaks only on change: its last message counts where the publisher keeps it."""
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            return None
        kept = all(p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in publishers)
        return LATCHED if kept else STREAM

    def _take(self, topic: str, message: Any) -> None:
        now: int = self._node.get_clock().now().nanoseconds
        if not now:  # Simulated time has not begun.
            return
        header = getattr(message, "header", None)
        header = 0 if header is None else header.stamp.sec * SECOND + header.stamp.nanosec
        stamp = self.contract.message_time(header, now)
        name = self._topics.get(topic)
        if name is not None and self._on_change(name):
            self._kept[topic] = message
        if self._node.state != "active":
            # Nobody takes frames, and what comes would pile up; `restart` begins with the messages that are kept.
            return
        self.messages[topic] += 1
        self._heard[topic] = stamp
        if topic == self._joints and isinstance(message, JointState):
            self._measure(stamp, message)
        if name is not None:
            if self._sampler is not None:
                self._sampler.add(name, stamp, message)
            else:
                try:
                    self._meet(topic, name, stamp, message)
                except RobopolicyError as error:
                    self._failed(str(error))
                    return
        self._changed()

    def _measure(self, stamp: int, message: JointState) -> None:
        """Measured positions once all joints are known; drivers may publish arm and gripper apart."""
        place = {name: i for i, name in enumerate(message.name)}
        values = self._joint_values.copy()
        for i, name in enumerate(self._profile.names):
            j = place.get(name, len(message.position))
            if j < len(message.position):
                values[i], self._joints_known[i] = message.position[j], True
        self._joint_values = values
        if self._joints_known.all():
            if self._sampler is None:
                # A topic that never comes must not make them pile up.
                self._measured = self._no_measurements()
            self._measured.add(stamp, self._joint_values)

    def _meet(self, topic: str, name: str, stamp: int, message: Any) -> None:
        """First messages: they settle what the contract leaves open, and when the first tick is.

        Arm and gripper may tell of their joints apart: each feature waits for a message that holds any of its own.
        """
        for key, spec in self.contract.features.items():
            if spec.topic != name or about_others(spec, message):
                continue
            if key not in self._readers:
                try:
                    reader = FeatureReader(key, spec, message)
                except DataError as error:
                    raise FeatureMismatch(f"topic {topic}: {error}") from error
                wanted = self._wanted.select([key])
                wanted.require(FeatureSpec((reader.feature,)), "checkpoint", f"topic {topic}")
                self._readers[key] = reader
            self._first[key] = (stamp, message)
        self._begin()

    def _begin(self) -> None:
        """Starts the sampler when every stream has spoken."""
        features = self.contract.features
        if len(self._readers) < len(features) or not len(self._measured):
            return
        sampler = FrameSampler(self.contract, self._readers)
        # Several features may be of one message.
        for topic, stamp, message in {
            id(m): (features[k].topic, at, m) for k, (at, m) in self._first.items()
        }.values():
            sampler.add(topic, stamp, message)
        stamps = [stamp for key, (stamp, _) in self._first.items() if self.contract.is_periodic(features[key])]
        self._start, self._number = max([*stamps, self._measured.newest or 0]), 0
        self._first, self._sampler = {}, sampler

    # Frames out

    @property
    def waiting_for(self) -> list[str]:
        """Topics without which there is no first frame yet."""
        if self._sampler is not None:
            return []
        lacking = []
        for topic, name in self._topics.items():
            keys = [k for k, f in self.contract.features.items() if f.topic == name and k not in self._readers]
            if keys:
                heard = f" (its messages hold nothing of {', '.join(keys)})" if self.messages[topic] else ""
                lacking.append(f"{topic}{heard}")
        if not self._joints_known.all() and not any(text.split(" ")[0] == self._joints for text in lacking):
            unknown = [n for n, known in zip(self._profile.names, self._joints_known, strict=True) if not known]
            lacking.append(f"{self._joints} (no position of {', '.join(unknown)})")
        return lacking

    def due(self) -> int | None:
        """The next tick, ns, if its frame is settled or can wait no longer."""
        sampler = self._sampler
        if sampler is None:
            return None
        now: int = self._node.get_clock().now().nanoseconds
        behind = (now - self._start) * self.contract.rate_hz / SECOND - self._number
        if behind > 2 + self.contract.delay * self.contract.rate_hz / SECOND:
            # Too far behind to be of use: on with the newest tick whose time has passed.
            latest = math.floor((now - self.contract.delay - self._start) * self.contract.rate_hz / SECOND)
            self.skipped += max(latest - self._number, 0)
            self._number = max(latest, self._number)
        tick = self.contract.tick(self._start, self._number)
        # Stamps from the future (clocks of two machines) must not run ahead; /clock itself may lag behind stamps.
        near = tick <= now + SECOND / self.contract.rate_hz
        settled = near and sampler.settled(tick) and (self._measured.newest or 0) >= tick
        return tick if settled or now >= tick + self.contract.delay else None

    def frame(self, tick: int) -> Frame | Missing:
        """The frame of the tick that is due, and on to the next one; DataError when it cannot be read for long."""
        assert self._sampler is not None
        self._number += 1
        try:
            values, choice = self._sampler.at(tick), self._measured.choose(tick)
        except DataError as error:
            # One damaged picture is a missing one; messages that stay wrong are not what the checkpoint needs.
            self._damaged_since = tick if self._damaged_since is None else self._damaged_since
            if tick - self._damaged_since >= DAMAGED_S * SECOND:
                raise
            return Missing(str(error))
        self._damaged_since = None
        if isinstance(values, Missing):
            return values
        if isinstance(choice, Missing):
            return Missing(f"{MEASURED}: {choice.reason}")
        for key, value in values.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                return Missing(f"{key!r}: NaN or infinite values")
        if not np.isfinite(choice.first).all():
            return Missing(f"{MEASURED}: NaN or infinite positions")
        return Frame(tick, values, choice.first)

    def went_back(self) -> bool:
        """Whether the clock is before what has already been seen: it was set back."""
        now: int = self._node.get_clock().now().nanoseconds
        newest = max(self._heard.values(), default=0)
        return newest - now > self.contract.max_clock_offset_s * SECOND or (
            self._number > 0 and self.contract.tick(self._start, self._number - 1) - now > SECOND
        )

    def ages(self) -> dict[str, float]:
        """Seconds since the stamp of the newest message, by topic; NaN before the first."""
        now: int = self._node.get_clock().now().nanoseconds
        return {t: (now - self._heard[t]) / SECOND if t in self._heard else math.nan for t in self.messages}

    @property
    def late(self) -> int:
        """Messages that came too late for a tick they belonged to."""
        return sum(self._sampler.late.values()) if self._sampler is not None else 0
