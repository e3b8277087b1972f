"""Parents with closed-form denoisers, for tests of composition."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robopolicy.diffusion.processes import EDM, VP, Flow, NoiseProcess
from robopolicy.features import Feature, FeatureSpec
from robopolicy.nn.normalizer import Normalizer
from robopolicy.policies.base import Policy, PolicyConfig
from robopolicy.policies.diffusion import DiffusionPolicy, SamplerConfig

Exact = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma) in closed form, for x [B, H, D_a] and sigma 0-dim or [B, 1, 1]."""


class Mixture:
    """sum_k w_k N(m_k, v_k I) over the last axis: its noised density, score and posterior mean.

    sigma is 0-dim, or [..., 1] beside x [..., dim].
    """

    def __init__(self, weights: list[float], means: list[list[float]], variances: list[float]) -> None:
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.means = torch.tensor(means, dtype=torch.float64)
        self.variances = torch.tensor(variances, dtype=torch.float64)

    def _parts(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.double()[..., None, :] - self.means
        variance = self.variances + torch.as_tensor(sigma, dtype=torch.float64) ** 2
        dim = self.means.shape[-1]
        logits = self.weights.log() - dim / 2 * variance.log() - wide.square().sum(-1) / (2 * variance)
        return wide, variance, logits

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Up to the constant of the dimension."""
        return self._parts(x, sigma)[2].logsumexp(-1)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        wide, variance, logits = self._parts(x, sigma)
        return -((logits.softmax(-1) / variance)[..., None] * wide).sum(-2)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        square = torch.as_tensor(sigma, dtype=torch.float64) ** 2
        return (x.double() + square * self.score(x, sigma)).to(x.dtype)


@dataclass
class ExactConfig(PolicyConfig):
    """For parents that are no networks."""

    kind: ClassVar[str] = "exact"
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig("euler", 50, "karras"))


class ExactPolicy(DiffusionPolicy):
    """A closed-form denoiser behind the output a network of this process would have; it counts its calls."""

    def __init__(self, exact: Exact, process: NoiseProcess, config: ExactConfig, spec: FeatureSpec) -> None:
        Policy.__init__(self, config, spec, fitted(spec))
        self.exact, self.process = exact, process
        # Shared by the copies that composition makes.
        self.counts = {"calls": 0, "encodings": 0}
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def sigma_of(self, time: Tensor) -> Tensor:
        """The noise level a network is told as `time` [B]."""
        time = time.double()
        if isinstance(self.process, EDM):
            return (4 * time).exp()
        if isinstance(self.process, Flow):
            return time / 1000 / (1 - time / 1000)
        assert isinstance(self.process, VP)
        levels, low = self.process.levels.log(), time.floor().long().clamp(max=self.process.train_steps - 2)
        return torch.lerp(levels[low], levels[low + 1], time - low).exp()

    def output(self, u: Tensor, time: Tensor) -> Tensor:
        """What the network should say about its scaled input u [B, H, D_a]."""
        self.counts["calls"] += 1
        sigma = self.sigma_of(time).view(-1, 1, 1)
        c_in, c_skip, c_out = self.process.preconditioning(sigma)
        x = u.double() / c_in
        return ((self.exact(x, sigma) - c_skip * x) / c_out).to(u.dtype)

    def denoiser(self, observation: dict[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        self.counts["encodings"] += 1
        return lambda x, sigma: self.process.denoise(self.output, x, sigma)


def spec_of(dim: int = 2, **action: object) -> FeatureSpec:
    """One state and an action of `dim`."""
    return FeatureSpec(
        (Feature("observation.state", (1,)), Feature("action", (dim,), kind="action", **action)),  # type: ignore[arg-type]
        rate_hz=10,
    )


def fitted(spec: FeatureSpec, mode: str = "identity", values: np.ndarray | None = None) -> Normalizer:
    """A normaliser that keeps every value, or one with the action fitted to `values`."""
    normalizer = Normalizer(spec.features)
    for feature in spec:
        if feature.kind != "image":
            normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "identity", feature)
    if values is not None:
        normalizer.fit("action", values, mode, spec.action)  # type: ignore[arg-type]
    return normalizer


def exact_parent(
    exact: Exact,
    process: NoiseProcess,
    dim: int = 1,
    horizon: int = 1,
    sampler: SamplerConfig | None = None,
    **changes: object,
) -> ExactPolicy:
    """A parent with the closed-form denoiser `exact`; `changes` go to its configuration."""
    config = ExactConfig(n_obs_steps=1, horizon=horizon, n_action_steps=1, **changes)  # type: ignore[arg-type]
    if sampler is not None:
        config.sampler = sampler
    return ExactPolicy(exact, process, config, spec_of(dim))


def state(batch: int) -> dict[str, Tensor]:
    """An observation of `spec_of`."""
    return {"observation.state": torch.zeros(batch, 1, 1)}


def wasserstein(a: Tensor, b: Tensor) -> float:
    """W1 of two equally large one-dimensional samples."""
    return float((a.flatten().sort().values - b.flatten().sort().values).abs().mean())
