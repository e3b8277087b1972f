"""Exact answers for samplers and processes: a 1-D Gaussian mixture, and diffusers' schedulers."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robopolicy.diffusion.processes import VP
from robopolicy.diffusion.samplers import ddim, ddpm, dpmpp_2m, dpmpp_2m_sde
from robopolicy.diffusion.schedules import exponential


class Mixture:
    """Two Gaussians, .3 N(-.6, .12^2) + .7 N(.5, .2^2): its noised densities, scores and flows are closed forms."""

    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([-0.6, 0.5], dtype=torch.float64)
    stds = torch.tensor([0.12, 0.2], dtype=torch.float64)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Posterior mean of the clean value behind x = a + sigma e."""
        wide, variance = x.double()[..., None], self.stds**2 + torch.as_tensor(sigma).double()[..., None] ** 2
        logits = self.weights.log() - variance.log() / 2 - (wide - self.means) ** 2 / (2 * variance)
        each = (self.stds**2 * wide + (variance - self.stds**2) * self.means) / variance
        return (logits.softmax(-1) * each).sum(-1).to(x.dtype)

    def cdf(self, x: Tensor, sigma: float) -> Tensor:
        std = (self.stds**2 + sigma**2).sqrt()
        return (self.weights * torch.special.ndtr((x[..., None] - self.means) / std)).sum(-1)

    def quantile(self, p: Tensor, sigma: float) -> Tensor:
        low, high = torch.full_like(p, -20 - 10 * sigma), torch.full_like(p, 20 + 10 * sigma)
        for _ in range(120):
            middle = (low + high) / 2
            below = self.cdf(middle, sigma) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def sample(self, n: int, sigma: float, generator: torch.Generator) -> Tensor:
        """[n, 1, 1] draws of a + sigma e."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        e = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return (self.means[k] + self.stds[k] * e[:, 0] + sigma * e[:, 1])[:, None, None]

    def noise(self, n: int, generator: torch.Generator) -> Callable[[], Tensor]:
        return lambda: torch.randn(n, 1, 1, generator=generator, dtype=torch.float64)


def errors_by_steps(sampler: Callable[..., Tensor], steps: tuple[int, ...]) -> list[float]:
    """Mean distance to the exact end of the probability-flow ODE, sigma 1 to 0.005, per number of steps.

    In one dimension the flow keeps quantiles, so the end of a path is known without solving anything.
    """
    mixture, start, end = Mixture(), 1.0, 0.005
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    p = p[(p - 0.3).abs() > 0.02]  # p = .3 is the watershed between the modes, where the flow is very steep
    x, exact = mixture.quantile(p, start), mixture.quantile(p, end)
    errors = []
    for n in steps:
        result = sampler(mixture.denoise, x[:, None, None], exponential(n + 1, end, start)[:-1])
        errors.append(float((result.flatten() - exact).abs().mean()))
    return errors


def fitted_order(steps: tuple[int, ...], errors: list[float]) -> float:
    """Slope of ln(error) against -ln(steps), least squares."""
    h = torch.tensor(steps).double().log()
    e = torch.tensor(errors).double().log()
    return float(-((h - h.mean()) * (e - e.mean())).sum() / (h - h.mean()).square().sum())


class RandomNetwork:
    """A small random network with bounded clean predictions, asked for epsilon, sample or v like a trained one."""

    def __init__(self, process: VP, batch: int = 3, horizon: int = 8, dim: int = 2) -> None:
        g = torch.Generator().manual_seed(0)
        self.process = process
        self.shape = (batch, horizon, dim)
        flat = horizon * dim
        self.first = torch.randn(flat + 2, 64, generator=g) / math.sqrt(flat)
        self.second = torch.randn(64, flat, generator=g) / 4

    def __call__(self, tau: Tensor, time: Tensor) -> Tensor:
        """Output for tau [B, H, D] at whole steps `time` [B]."""
        t = time[:, None].to(tau.dtype)
        features = torch.cat([tau.flatten(1), (t / 30).sin(), (t / 30).cos()], dim=1)
        clean = 0.8 * ((features @ self.first.to(tau)).tanh() @ self.second.to(tau)).view(tau.shape)
        level = self.process.levels[time.long()].view(-1, 1, 1)
        alpha, beta = ((1 + level**2) ** -0.5).to(tau), (level * (1 + level**2) ** -0.5).to(tau)
        epsilon = (tau - alpha * clean) / beta
        return {"epsilon": epsilon, "sample": clean, "v": alpha * epsilon - beta * clean}[self.process.prediction]


DIFFUSERS_PREDICTION = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}
PARITY_CASES = [
    (kind, prediction, clip, n, betas)
    for kind, n in (("ddpm", 100), ("ddpm", 10), ("ddim", 10), ("ddim_eta", 20), ("2m", 10), ("2m_sde", 20))
    for prediction in DIFFUSERS_PREDICTION
    for clip in ((None, 0.7) if kind[0] == "d" else (None,))  # diffusers' DPM-Solver++ has no clip_sample
    for betas in ("squaredcos_cap_v2", "linear")
]
PARITY_CASES += [("ddpm_large", p, c, 100, "squaredcos_cap_v2") for p in DIFFUSERS_PREDICTION for c in (None, 0.7)]
# DDIM as diffusers runs it unless told otherwise: the clean chunk is clipped, the direction of the step is not.
PARITY_CASES += [("ddim_default", p, 0.7, 10, b) for p in ("epsilon", "v") for b in ("squaredcos_cap_v2", "linear")]


def diffusers_scheduler(kind: str, prediction: str, clip: float | None, betas: str) -> tuple[Any, dict[str, Any]]:
    """The diffusers scheduler that ours is compared with, and the keyword arguments of its step()."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    common = {
        "num_train_timesteps": 100,
        "beta_schedule": betas,
        "prediction_type": DIFFUSERS_PREDICTION[prediction],
    }
    clipping = {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    if kind.startswith("ddpm"):
        variance = "fixed_large" if kind.endswith("large") else "fixed_small"
        return DDPMScheduler(**common, **clipping, variance_type=variance), {}
    if kind.startswith("ddim"):
        eta = 0.6 if kind.endswith("eta") else 0.0
        return DDIMScheduler(**common, **clipping), {"use_clipped_model_output": kind != "ddim_default", "eta": eta}
    algorithm = "sde-dpmsolver++" if kind.endswith("sde") else "dpmsolver++"
    return DPMSolverMultistepScheduler(**common, timestep_spacing="trailing", algorithm_type=algorithm), {}


OURS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "ddpm": (ddpm, {}),
    "ddpm_large": (ddpm, {"variance": "fixed_large"}),
    "ddim": (ddim, {}),
    "ddim_eta": (ddim, {"eta": 0.6}),
    "2m": (dpmpp_2m, {}),
    "2m_sde": (dpmpp_2m_sde, {}),
}


def diffusers_difference(
    kind: str,
    prediction: str,
    clip: float | None,
    n: int,
    betas: str,
    dtype: torch.dtype = torch.float32,
    process_class: type[VP] = VP,
) -> float:
    """Largest difference over all steps between the noisy chunk tau of diffusers' scheduler and of our sampler.

    Both start from one noise, call one network and draw the same noise while sampling. float64 also widens the
    scheduler's own table, whose float32 arithmetic otherwise dominates: 1 - abar_t / abar_(t-1) keeps three digits
    when beta is 1e-4, and epsilon networks at sigma = 2e3 fix the clean chunk only to 1e-4.
    """
    spacing = "trailing" if kind.startswith("2m") else "leading"
    within = None if kind == "ddim_default" else clip
    process = process_class(100, betas, prediction, within, spacing)  # type: ignore[arg-type]
    network = RandomNetwork(process)
    start = torch.randn(network.shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    scheduler, options = diffusers_scheduler(kind, prediction, clip, betas)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    scheduler.set_timesteps(n)
    sigmas = process.sigmas(n)
    if kind.startswith("2m") and dtype == torch.float64:
        scheduler.sigmas = sigmas
    tau, theirs = start, [start]
    generator = torch.Generator().manual_seed(2)
    for t in scheduler.timesteps:
        output = network(tau, t.expand(len(tau)))
        tau = scheduler.step(output, t, tau, generator=generator, **options).prev_sample
        theirs.append(tau)

    generator = torch.Generator().manual_seed(2)
    # diffusers' SDE solver draws its noise in float32 and widens it.
    noise_dtype = torch.float32 if kind == "2m_sde" else dtype
    ours: list[Tensor] = []

    def record(step: int, x: Tensor, sigma: Tensor, denoised: Tensor) -> None:
        ours.append(x / (1 + sigma**2).sqrt())

    sample, extra = OURS[kind] if kind != "ddim_default" else (ddim, {"clip": clip})
    x = start * float((1 + sigmas[0] ** 2).sqrt())
    ours.append(
        sample(
            lambda x, s: process.denoise(network, x, s),
            x,
            sigmas,
            noise=lambda: torch.randn(start.shape, generator=generator, dtype=noise_dtype).to(dtype),
            callback=record,
            **extra,
        )
    )
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
