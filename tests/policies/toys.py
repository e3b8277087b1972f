"""Tiny features, policies and data shared by the policy and training tests."""

import numpy as np
import torch

from robopolicy.configs import to_dict
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.policies.base import NormalizationConfig, Policy, PolicyConfig
from robopolicy.policies.bc import BCConfig
from robopolicy.policies.bc_rnn import BCRNNConfig
from robopolicy.policies.beso import BESOConfig, GPTConfig, GuidedSamplerConfig
from robopolicy.policies.diffusion import (
    DiffusionConfig,
    EDMConfig,
    MLPConfig,
    SamplerConfig,
    TransformerConfig,
    UnetConfig,
    VPConfig,
)
from robopolicy.policies.flow import FlowConfig
from robopolicy.training.checkpoint import build

STATE = Feature("observation.state", (2,))
ACTION = Feature("action", (2,), kind="action", control=Control("pixel_target", "absolute"))
SPEC = FeatureSpec((STATE, ACTION), rate_hz=10)
IMAGE_SPEC = FeatureSpec((STATE, Feature("observation.images.top", (72, 72, 3), "uint8", "image"), ACTION), 10)
SIZES = {
    "n_obs_steps": 2,
    "horizon": 4,
    "n_action_steps": 2,
    "normalization": NormalizationConfig("identity", "identity"),
}
UNET = UnetConfig(down_dims=(16, 32), time_dim=16, groups=4)
TRANSFORMER = TransformerConfig(layers=2, heads=2, width=32, dropout=0.0, causal=False)
MLP = MLPConfig(width=64, blocks=2)
GPT = GPTConfig(width=32, layers=2, heads=2, attention_dropout=0.0, residual_dropout=0.0, causal=False)

CONFIGS: dict[str, PolicyConfig] = {
    "edm-mlp": DiffusionConfig(**SIZES, network=MLP, process=EDMConfig(), sampler=SamplerConfig("euler", 10)),
    "ddpm-unet": DiffusionConfig(
        **SIZES, network=UNET, process=VPConfig(clip=2.0), sampler=SamplerConfig("ddpm", 100)
    ),
    "ddpm-x0-mlp": DiffusionConfig(
        **SIZES, network=MLP, process=VPConfig(prediction="sample", clip=2.0), sampler=SamplerConfig("ddim", 20)
    ),
    "ddpm-v-transformer": DiffusionConfig(
        **SIZES, network=TRANSFORMER, process=VPConfig(prediction="v", clip=2.0), sampler=SamplerConfig("dpmpp_2m", 20)
    ),
    "flow-mlp": FlowConfig(**SIZES, network=MLP),
    "flow-unet": FlowConfig(**SIZES, network=UNET),
    "beso": BESOConfig(**SIZES, network=GPT, sampler=GuidedSamplerConfig("ddim", 3)),
    "bc": BCConfig(**SIZES, width=64),
    # Deviations down to 1e-4 would reward a few points met exactly more than all others.
    "bc-rnn": BCRNNConfig(n_obs_steps=4, horizon=4, hidden=64, modes=2, min_std=0.1),
}


def make(name: str, spec: FeatureSpec = SPEC) -> Policy:
    """An untrained policy with identity scaling."""
    torch.manual_seed(0)
    policy = build(to_dict(CONFIGS[name]), spec)
    for feature in spec:
        if feature.kind != "image":
            policy.normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "identity", feature)
    return policy


def train(policy: Policy, batch_of, steps: int, lr: float = 3e-3) -> list[float]:
    """AdamW on `batch_of(step)`; returns the losses."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
    generator, losses = torch.Generator().manual_seed(0), []
    policy.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        loss, _ = policy.loss(batch_of(step), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    policy.eval()
    return losses
