"""Small real checkpoints, contracts and robots for tests of the policy node."""

from pathlib import Path

import numpy as np
import torch

from robopolicy.configs import to_dict
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.nn.vision import VisionConfig
from robopolicy.policies.base import NormalizationConfig, Policy
from robopolicy.policies.diffusion import MLPConfig, SamplerConfig
from robopolicy.policies.flow import FlowConfig
from robopolicy.training import checkpoint

RATE = 50.0
STATE = Feature("observation.state", (2,), names=("x", "y"))
SPEED = Feature("observation.environment_state", (2,), names=("x", "y"))
IMAGE = Feature("observation.images.top", (40, 48, 3), "uint8", "image")
ACTION = Feature("action", (2,), kind="action", names=("x", "y"), control=Control("joint", "absolute"))
CONTRACT = """
rate_hz: 50
latency_s: 2.0
features:
  observation.state: {topic: /joint_states, type: sensor_msgs/msg/JointState, field: "position[x, y]"}
  observation.environment_state: {topic: /joint_states, type: sensor_msgs/msg/JointState, field: "velocity[x, y]"}
"""
CAMERA = """  observation.images.top: {topic: /top/image_raw, type: sensor_msgs/msg/Image}
"""
PROFILE = """
name: table
kind: planar
rate_hz: 100
joints:
- {name: x, low: -5, high: 5, velocity: 10, acceleration: 100, jerk: 10000, home: 0, tracking_error: 5, jump: 5}
- {name: y, low: -5, high: 5, velocity: 10, acceleration: 100, jerk: 10000, home: 0, tracking_error: 5, jump: 5}
command: {adapter: forward_position, topic: command}
stop_time_s: 0.5
timeouts: {command: 0.5, observation: 0.2, chunk: 2.0}
"""


def make_policy(images: bool = False, action: Feature = ACTION, rate: float = RATE) -> Policy:
    """An untrained flow policy whose outputs lie around the origin."""
    spec = FeatureSpec((STATE, SPEED, *((IMAGE,) if images else ()), action), rate)
    config = FlowConfig(
        n_obs_steps=2,
        horizon=12,
        n_action_steps=4,
        normalization=NormalizationConfig("identity", "identity"),
        network=MLPConfig(16, 1),
        sampler=SamplerConfig("euler", 4),
        vision=VisionConfig(crop=0),
    )
    torch.manual_seed(0)
    policy = checkpoint.build(to_dict(config), spec)
    # Untrained output layers are zero: chunks would not depend on what is observed.
    for parameter in policy.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.2)
    for feature in spec:
        if feature.kind != "image":
            policy.normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "identity", feature)
    policy.eval()
    return policy


def save(folder: Path, policy: Policy) -> Path:
    """A checkpoint of it."""
    observation = {
        f.key: torch.zeros((1, policy.config.n_obs_steps, *f.shape), dtype=getattr(torch, f.dtype))
        for f in policy.features.inputs
    }
    checkpoint.save(folder, policy, "table", observation, {})
    return folder


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
