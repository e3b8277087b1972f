"""The deployed half of a reinforcement-learning run: the mean action, with its scaling inside, as any other policy."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robopolicy.diffusion.noise import Generators
from robopolicy.features import FeatureSpec
from robopolicy.nn.normalizer import Normalizer
from robopolicy.policies.base import Batch, Metrics, Policy, PolicyConfig
from robopolicy.rl.nets import NetConfig, mlp
from robopolicy.rl.normalise import CLIP, RunningNormaliser
from robopolicy.rl.vec import VecEnv


@dataclass
class ActorConfig(PolicyConfig):
    """An actor trained by reinforcement learning: one observation in, one action out."""

    kind: ClassVar[str] = "actor"
    n_obs_steps: int = 1
    horizon: int = 1
    n_action_steps: int = 1
    hidden: tuple[int, ...] = (128, 128)
    activation: str = "elu"


class ActorPolicy(Policy):
    """The mean of a Gaussian actor of the "policy" observations, in the physical units of the action feature."""

    Config = ActorConfig
    config: ActorConfig

    def __init__(self, config: ActorConfig, features: FeatureSpec, normalizer: Normalizer) -> None:
        super().__init__(config, features, normalizer)
        inputs = features["observation.state"].shape[0]
        self.network = mlp(inputs, config.hidden, self.action_dim, config.activation, last_gain=0.01)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error to recorded actions [B, 1, A]: what the actor would be cloned with."""
        action = self.normalizer.normalize("action", batch["action"])
        return (self.raw(batch["observation.state"][:, -1]) - action[:, 0]).square().mean(), {}

    def raw(self, observation: Tensor) -> Tensor:
        """Actions [B, A] as the environment's `step` takes them, for observations [B, D]."""
        normalised = self.normalizer.normalize("observation.state", observation).clamp(-CLIP, CLIP)
        action: Tensor = self.network(normalised)
        return action

    def predict(self, observation: Batch, generator: Generators) -> Tensor:
        action = self.raw(observation["observation.state"][:, -1])
        return self.normalizer.unnormalize("action", action).unsqueeze(1)


def deployed(env: VecEnv, net: NetConfig, network: dict[str, Tensor], normaliser: RunningNormaliser) -> ActorPolicy:
    """The policy with the weights `network` of an actor's MLP and the scaling it was trained with."""
    config = ActorConfig(hidden=net.hidden, activation=net.activation)
    policy = ActorPolicy(config, env.features, Normalizer(env.features.features))
    policy.network.load_state_dict(network)
    offset, scale = normaliser.offset_and_scale()
    statistics: dict[str, Any] = {
        "offset_observation_state": offset,
        "scale_observation_state": scale,
        "offset_action": env.action_offset,
        "scale_action": env.action_scale,
    }
    policy.normalizer.load_state_dict(statistics)
    return policy.eval()
