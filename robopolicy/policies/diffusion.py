"""Diffusion Policy (Chi et al., RSS 2023): a chunk of actions is sampled by denoising, given the observations.

Training adds noise of a random level to a demonstrated chunk and teaches the network to undo it. Sampling starts
from noise and lets any sampler of `robopolicy.diffusion.samplers` follow the denoiser D(x, sigma). What the
network is asked to output, and how noise levels are drawn, is the noise process: `VPConfig` is the paper's DDPM,
`EDMConfig` the preconditioned denoiser of Karras et al. (2022), `FlowProcessConfig` rectified flow (see flow.py).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robopolicy.diffusion.inpainting import inpainting
from robopolicy.diffusion.noise import Generators, randn
from robopolicy.diffusion.processes import EDM, VP, Flow, NoiseProcess
from robopolicy.diffusion.samplers import sampler
from robopolicy.diffusion.schedules import schedule
from robopolicy.features import FeatureSpec
from robopolicy.nn.encoder import ObservationEncoder
from robopolicy.nn.mlp import ResidualMLP
from robopolicy.nn.normalizer import Normalizer
from robopolicy.nn.transformer import DiffusionTransformer
from robopolicy.nn.unet1d import ConditionalUnet1D
from robopolicy.nn.vision import VisionConfig
from robopolicy.policies.base import Batch, Metrics, Policy, PolicyConfig, chunk_error

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass
class NetworkConfig:
    """Base of the network choices."""


@dataclass
class UnetConfig(NetworkConfig):
    """1-D convolutional U-Net with FiLM; the defaults are the published state-based sizes."""

    kind: ClassVar[str] = "unet"
    down_dims: tuple[int, ...] = (256, 512, 1024)
    time_dim: int = 256
    kernel_size: int = 5
    groups: int = 8


@dataclass
class TransformerConfig(NetworkConfig):
    """Causal transformer decoder; the defaults are the published PushT sizes."""

    kind: ClassVar[str] = "transformer"
    layers: int = 8
    heads: int = 4
    width: int = 256
    dropout: float = 0.01
    embedding_dropout: float = 0.0
    causal: bool = True
    """Action rows see earlier rows only, as published."""


@dataclass
class MLPConfig(NetworkConfig):
    """Residual MLP with AdaLN on the flattened chunk: the smallest network, made for two CPU cores."""

    kind: ClassVar[str] = "mlp"
    width: int = 256
    blocks: int = 4
    dropout: float = 0.0


@dataclass
class ProcessConfig:
    """Base of the noise processes."""


@dataclass
class VPConfig(ProcessConfig):
    """DDPM (Ho et al. 2020) with the squared-cosine betas of Nichol & Dhariwal (2021), as published."""

    kind: ClassVar[str] = "vp"
    train_steps: int = 100
    betas: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    prediction: Literal["epsilon", "sample", "v"] = "epsilon"
    clip: float = 1.0
    """Predicted clean actions are clipped to this magnitude (normalised units) while sampling; 0 does not clip."""
    clip_direction: bool = True
    """Clipping also turns the direction of the next step. False clips without that where the sampler is `ddim` and no
    action is committed yet, as diffusers' DDIM does by default; compositions have a clip of their own."""

    def build(self) -> NoiseProcess:
        return VP(self.train_steps, self.betas, self.prediction, self.clip or None)


@dataclass
class EDMConfig(ProcessConfig):
    """Preconditioned denoiser with continuous noise levels (Karras et al. 2022, table 1)."""

    kind: ClassVar[str] = "edm"
    sigma_data: float = 0.5
    """Standard deviation of the normalised actions."""
    sigma_min: float = 0.01
    sigma_max: float = 10.0
    p_mean: float = -1.0
    p_std: float = 1.2
    """Noise levels are drawn with ln(sigma) ~ N(p_mean, p_std^2)."""

    def build(self) -> NoiseProcess:
        return EDM(self.sigma_data, self.sigma_min, self.sigma_max, self.p_mean, self.p_std)


@dataclass
class FlowProcessConfig(ProcessConfig):
    """Rectified flow: straight lines from data (t = 0) to noise (t = 1) (Liu et al. 2023, Lipman et al. 2023)."""

    kind: ClassVar[str] = "flow"
    times: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of t while training."""

    def build(self) -> NoiseProcess:
        return Flow(self.times)


@dataclass
class SamplerConfig:
    """How a trained denoiser is turned into a chunk; free to change after training."""

    name: str = "ddpm"
    """Any of `robopolicy.diffusion.samplers.SAMPLERS`."""
    steps: int = 100
    """Denoiser steps."""
    schedule: str = "native"
    """native: the process's own noise levels; otherwise any of `robopolicy.diffusion.schedules.SCHEDULES`."""


@dataclass
class DiffusionConfig(PolicyConfig):
    """Diffusion Policy; the defaults are the published state-based ones."""

    kind: ClassVar[str] = "diffusion"
    network: NetworkConfig = field(default_factory=UnetConfig)
    process: ProcessConfig = field(default_factory=VPConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)


class DiffusionPolicy(Policy):
    """Observation encoder, noise process and denoising network."""

    Config: type[DiffusionConfig] = DiffusionConfig
    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig, features: FeatureSpec, normalizer: Normalizer) -> None:
        super().__init__(config, features, normalizer)
        self.encoder = self._make_encoder(config, features)
        self.process = config.process.build()  # type: ignore[attr-defined]
        self.network = self._make_network(config)
        sampler(config.sampler.name)

    def _make_encoder(self, config: DiffusionConfig, features: FeatureSpec) -> ObservationEncoder:
        return ObservationEncoder(features, config.vision, config.state_noise)

    def _make_network(self, config: DiffusionConfig) -> nn.Module:
        net, scale, features = config.network, self.process.time_scale, self.encoder.dim
        flat = config.n_obs_steps * features
        if isinstance(net, UnetConfig):
            return ConditionalUnet1D(
                self.action_dim, flat, net.down_dims, net.time_dim, net.kernel_size, net.groups, scale
            )
        if isinstance(net, TransformerConfig):
            return DiffusionTransformer(
                self.action_dim,
                features,
                config.horizon,
                config.n_obs_steps,
                net.layers,
                net.heads,
                net.width,
                net.dropout,
                net.embedding_dropout,
                scale,
                net.causal,
            )
        assert isinstance(net, MLPConfig)
        return ResidualMLP(self.action_dim, flat, config.horizon, net.width, net.blocks, net.dropout, scale)

    @property
    def first_action(self) -> int:
        return self.config.n_obs_steps - 1

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        context = self.encoder(batch, self.normalizer, generator if self.training else None)
        clean = self.normalizer.normalize("action", batch["action"])
        sample = self.process.training_sample(clean, generator)
        output = self.network(sample.input, sample.time, context)
        return chunk_error(output, sample.target, batch["action_is_pad"], self.config.mask_padding), {}

    def denoiser(self, observation: Batch) -> Denoiser:
        """D(x, sigma): the clean chunk expected behind x = clean + sigma * noise, in normalised units.

        The observation is encoded once; every sampler step then costs one pass of the network.
        """
        context = self.encoder(observation, self.normalizer)
        return lambda x, sigma: self.process.denoise(lambda u, t: self.network(u, t, context), x, sigma)

    def noise_levels(self) -> Tensor:
        """The [steps + 1] noise levels a chunk is sampled along, ending in 0."""
        config = self.config.sampler
        if config.schedule == "native":
            return self.process.sigmas(config.steps)
        return schedule(config.schedule, config.steps, self.process.sigma_min, self.process.sigma_max)

    def predict(self, observation: Batch, generator: Generators) -> Tensor:
        batch = len(next(iter(observation.values())))
        shape = (batch, self.config.horizon, self.action_dim)
        sigmas = self.noise_levels()
        x = self.process.initial(shape, float(sigmas[0]), generator, self.device)
        sample = sampler(self.config.sampler.name)
        options = self._clipping(observation)
        denoising = unclipped(self) if options else self.sampled(observation)
        denoiser = self.continued(observation, denoising.denoiser(observation))
        chunk = sample(denoiser, x, sigmas, noise=lambda: randn(shape, generator, self.device), **options)
        return self.normalizer.unnormalize("action", chunk)

    def _clipping(self, observation: Batch) -> dict[str, float]:
        """What the sampler has to clip, because the denoiser shall not: see `VPConfig.clip_direction`."""
        process = getattr(self.config, "process", None)
        if (
            not isinstance(process, VPConfig)
            or process.clip_direction
            or self.config.sampler.name != "ddim"
            or "prefix.action" in observation
            or self.process.clip is None
        ):
            return {}
        return {"clip": self.process.clip}

    @property
    def inpaints(self) -> bool:
        return True

    def sampled(self, observation: Batch) -> Any:
        """The policy whose denoiser is sampled: when actions are committed, clipping has to follow the inpainting."""
        return unclipped(self) if "prefix.action" in observation else self

    def continued(self, observation: Batch, denoiser: Denoiser) -> Denoiser:
        """The denoiser of `sampled`, pulled towards the committed actions when there are any."""
        if "prefix.action" not in observation:
            return denoiser
        prefix = self.normalizer.normalize("action", observation["prefix.action"])
        return inpainting(denoiser, prefix, observation["prefix.weight"], getattr(self.process, "clip", None))

    def golden(self, observation: Batch, generator: torch.Generator) -> Tensor:
        """One denoiser evaluation at a middle noise level: it passes through every weight and scale."""
        batch = len(next(iter(observation.values())))
        sigma = torch.tensor(0.5, device=self.device)
        x = 0.5 * randn((batch, self.config.horizon, self.action_dim), generator, self.device)
        return self.normalizer.unnormalize("action", self.denoiser(observation)(x, sigma))


def unclipped(policy: Any) -> Any:
    """The same policy, sharing its weights, whose denoiser leaves clean chunks as the network gives them."""
    if getattr(policy.process, "clip", None) is None:
        return policy
    bare = copy.copy(policy)
    bare.process = copy.copy(policy.process)
    bare.process.clip = None
    return bare
