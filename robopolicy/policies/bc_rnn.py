"""BC-RNN-GMM (Mandlekar et al., CoRL 2021): robomimic's reference, recurrent behaviour cloning with a mixture head.

An LSTM reads the observations of the last steps and gives, at every one of them, a mixture of Gaussians over the
action of that step; training maximises the likelihood of whole sequences. The recurrent state is forgotten every T_o
steps, as long as the training sequences are. robomimic carries that state from step to step; here the policy reads the
observations made since it was last forgotten and computes it anew, which gives the same actions (a test compares) and
leaves nothing in the policy that an episode could leak from.

Without a recurrent network this is robomimic's BC, without mixture its deterministic variants; layers, activations and
parameters are robomimic's, so that its checkpoints can be imported.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robopolicy.diffusion.noise import Generators, rand, randn
from robopolicy.errors import RobopolicyError
from robopolicy.features import FeatureSpec
from robopolicy.nn.encoder import ObservationEncoder
from robopolicy.nn.normalizer import Normalizer
from robopolicy.nn.vision import VisionConfig
from robopolicy.policies.base import Batch, Metrics, NormalizationConfig, Policy, PolicyConfig, row_mean

LOW_NOISE_STD = 1e-4


@dataclass
class BCRNNConfig(PolicyConfig):
    """Recurrent behaviour cloning; the defaults are the published ones for state observations (1000 for images)."""

    kind: ClassVar[str] = "bc_rnn"
    n_obs_steps: int = 10
    """Length of training sequences, and steps after which the recurrent state is forgotten."""
    horizon: int = 10
    """One action per observation, of which the newest is executed."""
    n_action_steps: int = 1
    normalization: NormalizationConfig = field(default_factory=lambda: NormalizationConfig("identity", "identity"))
    cell: Literal["lstm", "gru", "none"] = "lstm"
    """Recurrent network; none acts on each observation by itself."""
    hidden: int = 400
    layers: int = 2
    mlp: tuple[int, ...] = ()
    """Widths of the layers between the recurrent network, or the observations, and the head."""
    head: Literal["gmm", "deterministic"] = "gmm"
    """A mixture trained by its likelihood, or one action trained by squared error."""
    modes: int = 5
    min_std: float = 1e-4
    low_noise: bool = True
    """Act with the modes' means, up to a standard deviation of 1e-4, instead of samples of the learnt mixture."""
    vision: VisionConfig = field(default_factory=VisionConfig)


@dataclass
class Mixture:
    """Mixtures of Gaussians with diagonal covariance over actions [..., D_a]."""

    mean: Tensor
    """[..., K, D_a]"""
    std: Tensor
    """[..., K, D_a]"""
    logits: Tensor
    """[..., K]: unnormalised logarithms of the modes' shares."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Logarithm of the density [...] at `action` [..., D_a]."""
        z = (action[..., None, :] - self.mean) / self.std
        each = -(0.5 * z.square() + self.std.log() + 0.5 * math.log(2 * math.pi)).sum(dim=-1)
        return torch.logsumexp(each + self.logits.log_softmax(dim=-1), dim=-1)

    def sample(self, generator: Generators) -> Tensor:
        """Actions [B, ..., D_a]: a mode by its share, then a point of it."""
        chosen = rand(self.logits.shape[:-1], generator, self.mean.device)[..., None]
        # Rounding may leave the last cumulative share below the number drawn.
        mode = (self.logits.softmax(dim=-1).cumsum(dim=-1) < chosen).sum(dim=-1).clamp(max=self.logits.shape[-1] - 1)
        index = mode[..., None, None].expand(*mode.shape, 1, self.mean.shape[-1])
        mean, std = (v.gather(-2, index).squeeze(-2) for v in (self.mean, self.std))
        return mean + std * randn(mean.shape, generator, mean.device)


class SequenceNetwork(nn.Module):
    """Features [B, T, F] to one mixture per step, each of the steps up to its own; K is 1 without a mixture head."""

    def __init__(self, config: BCRNNConfig, feature_dim: int, action_dim: int) -> None:
        super().__init__()
        self.min_std = config.min_std
        width = feature_dim
        self.recurrent: nn.LSTM | nn.GRU | None = None
        if config.cell != "none":
            kind = nn.LSTM if config.cell == "lstm" else nn.GRU
            self.recurrent = kind(width, config.hidden, config.layers, batch_first=True)
            width = config.hidden
        layers: list[nn.Module] = []
        for size in config.mlp:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        self.mlp = nn.Sequential(*layers)
        self.modes = config.modes if config.head == "gmm" else 1
        self.mean = nn.Linear(width, self.modes * action_dim)
        self.scale = nn.Linear(width, self.modes * action_dim) if config.head == "gmm" else None
        self.logits = nn.Linear(width, self.modes) if config.head == "gmm" else None

    def forward(self, features: Tensor) -> Mixture:
        return self.mixture(self.read(features))

    def read(self, features: Tensor) -> Tensor:
        """[B, T, W]: what is known at every step, from a forgotten recurrent state on."""
        return features if self.recurrent is None else self.recurrent(features)[0]

    def mixture(self, known: Tensor) -> Mixture:
        hidden = self.mlp(known)
        # Likelihoods of standard deviations down to 1e-4 are not for half precision.
        mean = torch.tanh(self.mean(hidden).float()).unflatten(-1, (self.modes, -1))
        if self.scale is None or self.logits is None:
            return Mixture(mean, torch.zeros_like(mean), torch.zeros_like(mean[..., 0]))
        std = F.softplus(self.scale(hidden).float()).unflatten(-1, (self.modes, -1)) + self.min_std
        return Mixture(mean, std, self.logits(hidden).float())


class BCRNNPolicy(Policy):
    """Observation encoder and sequence network. Actions must be scaled to -1..1, where the modes' means live."""

    Config = BCRNNConfig
    config: BCRNNConfig
    uses_step_count = True

    def __init__(self, config: BCRNNConfig, features: FeatureSpec, normalizer: Normalizer) -> None:
        super().__init__(config, features, normalizer)
        if config.horizon != config.n_obs_steps or config.n_action_steps != 1:
            raise RobopolicyError(
                f"bc_rnn gives one action per observation and executes the newest: horizon {config.horizon} must be "
                f"n_obs_steps {config.n_obs_steps}, and n_action_steps 1, is {config.n_action_steps}"
            )
        self.encoder = ObservationEncoder(features, config.vision, config.state_noise)
        self.network = SequenceNetwork(config, self.encoder.dim, self.action_dim)

    @property
    def first_action(self) -> int:
        return self.config.n_obs_steps - 1

    @property
    def whole_windows(self) -> bool:
        return True

    @property
    def extra_windows(self) -> int:
        return self.config.n_obs_steps - 1

    def fit(self, actions: np.ndarray) -> None:
        scaled = self.normalizer.normalize("action", torch.from_numpy(np.asarray(actions, np.float32)))
        largest = float(scaled.abs().max())
        if largest > 1 + 1e-4:
            raise RobopolicyError(
                f"bc_rnn acts within -1..1, scaled actions reach {largest:.3g}: set "
                "policy.normalization.action to min_max"
            )

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        crops = generator if self.training else None
        mixture = self.network(self.encoder(batch, self.normalizer, crops))
        target = self.normalizer.normalize("action", batch["action"])
        if self.config.head == "gmm":
            error = -mixture.log_prob(target)
        else:
            error = (mixture.mean[..., 0, :] - target).square().mean(dim=-1)
        return row_mean(error, batch["action_is_pad"], self.config.mask_padding), {}

    def predict(self, observation: Batch, generator: Generators) -> Tensor:
        """Rows of the chunk before the newest observation are what was predicted there; those before the recurrent
        state was forgotten repeat the first one after it.
        """
        steps = self.config.n_obs_steps
        batch = len(next(iter(observation.values())))
        length = torch.full((batch,), steps)
        if "past.steps" in observation:
            length = observation["past.steps"].cpu() % steps + 1
        longest = int(length.max())
        newest = {f.key: observation[f.key][:, -longest:] for f in self.features.inputs}
        features, rows = self.encoder(newest, self.normalizer), torch.arange(steps)
        # The sequences begin at different rows: moved to the front, they can be run together.
        front = (rows[:longest] + longest - length[:, None]).clamp(max=longest - 1)
        known = self.network.read(_take(features, front))
        back = (rows - steps + length[:, None]).clamp(min=0)
        mixture = self.network.mixture(_take(known, back))
        if self.config.head != "gmm" or self.config.low_noise:
            mixture.std = torch.full_like(mixture.std, LOW_NOISE_STD if self.config.head == "gmm" else 0.0)
        return self.normalizer.unnormalize("action", mixture.sample(generator))

    def golden(self, observation: Batch, generator: torch.Generator) -> Tensor:
        """The mixtures themselves: a mode drawn at the edge of its share would not survive another machine."""
        mixture = self.network(self.encoder(observation, self.normalizer))
        means = self.normalizer.unnormalize("action", mixture.mean)
        return torch.cat([means.flatten(2), mixture.std.flatten(2), mixture.logits], dim=-1)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [B, w] of x [B, v, D]."""
    return x.gather(1, rows.to(x.device)[..., None].expand(-1, -1, x.shape[-1]))
