"""A first contract for a recording, guessed from its topics; a person corrects it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.contract import SECOND, Contract, Task, TopicFeature, default_kind
from robopolicy.datasets.resample import FeatureReader
from robopolicy.datasets.rosbag import Bag
from robopolicy.datasets.rosbag_source import bags_in
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import Control

_COMMAND = re.compile(r"command|cmd|action|target|goal_pose|joint_trajectory|servo")
_INSTRUCTION = re.compile(r"task|instruction|prompt|language")
_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_FAST = 100.0
"""Hz; a contract drafted from faster topics alone takes this rate."""


def draft_contract(path: Path) -> str:
    """A contract in YAML for the recording at `path`, or the first one inside it, with comments on the guesses."""
    bags = bags_in(path)
    if not bags:
        raise DataError(f"{path}: holds no rosbag2 recording")
    with Bag(bags[0]) as bag:
        rates = _rates(bag)
        features: dict[str, TopicFeature] = {}
        task: Task | None = None
        unused: list[str] = []
        for topic, msgtype in sorted(bag.topics.items()):
            if not bag.counts[topic]:
                unused.append(f"{topic} ({msgtype}): no messages")
            elif msgtype == "std_msgs/msg/String" and task is None and _INSTRUCTION.search(topic):
                task = Task(topic=topic)
            else:
                key = _key(topic, msgtype, features)
                try:
                    features[key] = _feature(bag, key, topic, msgtype)
                except RobopolicyError as error:
                    unused.append(f"{topic} ({msgtype}): {error}")
    if not features:
        raise DataError(f"{bags[0]}: no topic can become a feature; {'; '.join(unused) or 'it is empty'}")
    periodic = [rates[f.topic] for f in features.values() if rates[f.topic] > 0]
    rate = float(max(1, round(min([*periodic, _FAST]))))
    # A topic that is slower than two periods of the rate speaks on change, as far as one can tell.
    tolerant = {k: _tolerant(f, rates[f.topic]) for k, f in features.items()}
    lines = [
        f"# Draft from {bags[0].name}. Check every line: which topics are observed and which is the action, what the",
        "# action means (control), the rate, the joints and their order, units, and how each topic is resampled.",
        *(f"# {topic}: {bag_rate:.1f} Hz" for topic, bag_rate in sorted(rates.items()) if bag_rate),
        *(f"# not used: {line}" for line in unused),
    ]
    if "action" not in features:
        lines.append("# No topic looks like a command; name the one that is the action 'action'.")
    return "".join(" ".join(line.split()) + "\n" for line in lines) + Contract(rate, tolerant, task).to_yaml()


def _tolerant(feature: TopicFeature, rate: float) -> TopicFeature:
    return feature if rate > 0 else replace(feature, tolerance_s=float("inf"))


def _rates(bag: Bag) -> dict[str, float]:
    """Median rate of each topic by the time of arrival, Hz; 0 where there are too few messages to say."""
    times: dict[str, list[int]] = {topic: [] for topic in bag.topics}
    for receive, topic, _ in bag.messages(list(bag.topics)):
        times[topic].append(receive)
    steps = {topic: np.diff(found) for topic, found in times.items()}
    return {t: SECOND / float(np.median(d)) if len(d) >= 2 and np.median(d) > 0 else 0.0 for t, d in steps.items()}


def _key(topic: str, msgtype: str, taken: dict[str, Any]) -> str:
    name = re.sub(r"[^a-z0-9_]+", "_", topic.lower()).strip("_").removeprefix("observation_").removeprefix("images_")
    if msgtype in _IMAGES:
        short = re.sub(r"_?(image_raw|image|compressed|raw|color|rgb)(?=_|$)", "", name)
        key = f"observation.images.{short or name}"
    elif _COMMAND.search(topic) and "action" not in taken:
        key = "action"
    elif msgtype == "sensor_msgs/msg/JointState" and "observation.state" not in taken:
        key = "observation.state"
    else:
        key = f"observation.{name}"
    return key if key not in taken else f"observation.{name}"


def _feature(bag: Bag, key: str, topic: str, msgtype: str) -> TopicFeature:
    """The feature of a topic, once its first message could be read."""
    message = bag.first(topic)
    spec = TopicFeature(topic, type=msgtype, kind=default_kind(key))
    reader = FeatureReader(key, spec, message)
    names = reader.feature.names if reader.is_pinned else ()
    if any(set(name) & set("[],") for name in names):
        names = ()
    fields = reader.fields if not names else (f"{reader.fields[0]}[{', '.join(names)}]",)
    control = None
    if key == "action":
        control = Control("joint", "absolute") if names else None
        control = Control("velocity", "absolute", "base") if "Twist" in msgtype else control
        control = Control("end_effector_pose", "absolute", "base", "quat_wxyz") if "Pose" in msgtype else control
    return TopicFeature(topic, fields, msgtype, spec.kind, control=control)
