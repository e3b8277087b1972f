"""Actors and critics: plain MLPs, a Gaussian with learned spread, a value function with several heads."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "tanh": nn.Tanh, "relu": nn.ReLU}
_LOG_2PI = math.log(2 * math.pi)


@dataclass
class NetConfig:
    """An MLP."""

    hidden: tuple[int, ...] = (128, 128)
    activation: Literal["elu", "tanh", "relu"] = "elu"
    initial_std: float = 1.0
    """Standard deviation of an untrained actor, in every dimension."""


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int, activation: str, last_gain: float) -> nn.Sequential:
    """Linear layers with orthogonal weights (gain sqrt 2, the last `last_gain`) and zero biases."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [_linear(inputs, width, math.sqrt(2)), ACTIVATIONS[activation]()]
        inputs = width
    return nn.Sequential(*layers, _linear(inputs, outputs, last_gain))


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class GaussianActor(nn.Module):
    """A Gaussian over actions: the mean from an MLP, one learned standard deviation per dimension."""

    def __init__(self, inputs: int, actions: int, config: NetConfig) -> None:
        super().__init__()
        self.network = mlp(inputs, config.hidden, actions, config.activation, last_gain=0.01)
        self.log_std = nn.Parameter(torch.full((actions,), math.log(config.initial_std)))

    def forward(self, observation: Tensor) -> Tensor:
        """Mean [..., A]."""
        mean: Tensor = self.network(observation)
        return mean

    def sample(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        """A draw [..., A] around `mean` [..., A]."""
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return torch.addcmul(mean, noise, self.log_std.exp())

    def log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        """Logarithm of the density of `action` [..., A], [...]."""
        z = (action - mean) * torch.exp(-self.log_std)
        return -0.5 * z.square().sum(dim=-1) - self.log_std.sum() - 0.5 * _LOG_2PI * mean.shape[-1]

    def entropy(self) -> Tensor:
        """Scalar; the same in every state."""
        return self.log_std.sum() + 0.5 * (1 + _LOG_2PI) * len(self.log_std)


def gaussian_kl(mean: Tensor, log_std: Tensor, new_mean: Tensor, new_log_std: Tensor) -> Tensor:
    """KL(old || new) of diagonal Gaussians [..., A], [...]."""
    ratio = torch.exp(2 * (log_std - new_log_std))
    shift = ((new_mean - mean) * torch.exp(-new_log_std)).square()
    return (new_log_std - log_std + 0.5 * (ratio + shift - 1)).sum(dim=-1)


class Critic(nn.Module):
    """One trunk and k scalar values."""

    def __init__(self, inputs: int, heads: int, config: NetConfig) -> None:
        super().__init__()
        self.network = mlp(inputs, config.hidden, heads, config.activation, last_gain=1.0)

    def forward(self, observation: Tensor) -> Tensor:
        """Values [..., k]."""
        values: Tensor = self.network(observation)
        return values
