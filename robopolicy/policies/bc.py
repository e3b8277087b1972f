"""Chunked behaviour cloning: a residual-free MLP trained with mean-squared error. The floor of every comparison.

Squared error learns the mean of the demonstrations, so where people go left or right around an obstacle it goes
straight ahead (a test shows it failing on two modes, where the generative policies do not).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robopolicy.diffusion.noise import Generators
from robopolicy.features import FeatureSpec
from robopolicy.nn.encoder import ObservationEncoder
from robopolicy.nn.mlp import DirectMLP
from robopolicy.nn.normalizer import Normalizer
from robopolicy.nn.vision import VisionConfig
from robopolicy.policies.base import Batch, Metrics, Policy, PolicyConfig, chunk_error


@dataclass
class BCConfig(PolicyConfig):
    """Behaviour cloning with an MLP."""

    kind: ClassVar[str] = "bc"
    width: int = 512
    layers: int = 3
    vision: VisionConfig = field(default_factory=VisionConfig)


class BCPolicy(Policy):
    """Encodes the observations and regresses the chunk."""

    Config = BCConfig
    config: BCConfig

    def __init__(self, config: BCConfig, features: FeatureSpec, normalizer: Normalizer) -> None:
        super().__init__(config, features, normalizer)
        self.encoder = ObservationEncoder(features, config.vision, config.state_noise)
        cond_dim = config.n_obs_steps * self.encoder.dim
        self.network = DirectMLP(self.action_dim, cond_dim, config.horizon, config.width, config.layers)

    @property
    def first_action(self) -> int:
        return self.config.n_obs_steps - 1

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        crops = generator if self.training else None
        chunk = self.network(self.encoder(batch, self.normalizer, crops))
        target = self.normalizer.normalize("action", batch["action"])
        return chunk_error(chunk, target, batch["action_is_pad"], self.config.mask_padding), {}

    def predict(self, observation: Batch, generator: Generators) -> Tensor:
        chunk = self.network(self.encoder(observation, self.normalizer))
        return self.normalizer.unnormalize("action", chunk)
