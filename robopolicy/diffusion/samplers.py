"""Samplers: from noise to a clean chunk along a denoiser D(x, sigma).

One signature for all, `sampler(denoiser, x, sigmas, noise=None, callback=None, **options)`:

- denoiser(x, sigma) is the posterior mean D in the frame x = a + sigma * e; sigma is a positive 0-dim tensor;
- x [B, ...] starts at noise level sigmas[0], see `NoiseProcess.initial`;
- sigmas [n + 1] decrease, normally to 0, see `schedules`; steps are taken between neighbours;
- noise() returns standard normal noise of x's shape; samplers that add noise need it (ValueError without);
- callback(step, x, sigma, D) sees the state before each step.

The probability-flow ODE they follow is dx / d sigma = (x - D(x, sigma)) / sigma. Steps are written as weighted sums
of x and D where that is possible, since sigma spans many decades and x + (s' - s) d would lose digits in float32.
`s`, `s_next` are neighbouring noise levels and lambda = -ln(sigma).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robopolicy.errors import unknown

Denoiser = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]
Callback = Callable[[int, Tensor, Tensor, Tensor], None]
Sampler = Callable[..., Tensor]


def guided(conditional: Denoiser, unconditional: Denoiser, weight: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): D_u + weight (D_c - D_u); weights 0 and 1 call one denoiser."""
    if weight == 1:
        return conditional
    if weight == 0:
        return unconditional
    return lambda x, sigma: torch.lerp(unconditional(x, sigma), conditional(x, sigma), weight)


def ancestral_split(s: float, s_next: float, eta: float) -> tuple[float, float]:
    """Down to s_down deterministically, then up by s_up noise: s_down^2 + s_up^2 = s_next^2 (k-diffusion).

    eta = 1 is the variance of DDPM's posterior, eta = 0 the ODE.
    """
    up = min(s_next, eta * s_next * math.sqrt(1 - (s_next / s) ** 2))
    return math.sqrt(max(s_next**2 - up**2, 0.0)), up


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
    clip: float | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16); eta = 1 is DDPM.

    `clip` limits the clean chunk that each step is built on, not the noise left on it, as diffusers' DDIM does by
    default; a denoiser that clips limits both.
    """
    draw = _source("ddim", noise, eta > 0)
    levels, sigmas = _levels(x, sigmas)
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoiser(x, sigmas[i])
        _report(callback, i, x, sigmas[i], denoised)
        down, up = ancestral_split(s, s_next, eta)
        if clip is None:
            x = (down / s) * x + (1 - down / s) * denoised
        else:
            x = (down / s) * (x - denoised) + denoised.clamp(-clip, clip)
        if up > 0:
            x = x + up * draw()
    return x


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small",
) -> Tensor:
    """Ancestral sampling of DDPM (Ho et al. 2020, algorithm 2, eq. 7).

    fixed_small is the posterior's variance (then equal to `euler_ancestral` with eta = 1), fixed_large is beta_t of
    the variance-preserving process.
    """
    if variance not in ("fixed_small", "fixed_large"):
        raise unknown("variance", variance, ("fixed_small", "fixed_large"))
    draw = _source("ddpm", noise, True)
    levels, sigmas = _levels(x, sigmas)
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoiser(x, sigmas[i])
        _report(callback, i, x, sigmas[i], denoised)
        keep = (s_next / s) ** 2
        x = keep * x + (1 - keep) * denoised
        if s_next > 0:
            small = s_next**2 * (1 - keep)
            large = (s**2 - s_next**2) * (1 + s_next**2) / (1 + s**2)
            x = x + math.sqrt(small if variance == "fixed_small" else large) * draw()
    return x


def euler(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler steps of the ODE, noise added before each when s_churn > 0 (Karras et al. 2022, algorithm 2 without 2nd
    order); without churn it is the same map as `ddim`.
    """
    draw = _source("euler", noise, s_churn > 0)
    levels, _ = _levels(x, sigmas)
    hats = _churned(levels, s_churn, s_tmin, s_tmax)
    hat_sigmas = _tensor(x, hats)
    for i, (s, s_next) in enumerate(pairwise(levels)):
        if hats[i] > s:
            x = x + s_noise * math.sqrt(hats[i] ** 2 - s**2) * draw()
        denoised = denoiser(x, hat_sigmas[i])
        _report(callback, i, x, hat_sigmas[i], denoised)
        x = torch.lerp(denoised, x, s_next / hats[i])
    return x


def euler_ancestral(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler step to s_down, then noise s_up (k-diffusion's Euler ancestral)."""
    draw = _source("euler_ancestral", noise, eta > 0)
    levels, sigmas = _levels(x, sigmas)
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoiser(x, sigmas[i])
        _report(callback, i, x, sigmas[i], denoised)
        down, up = ancestral_split(s, s_next, eta)
        x = torch.lerp(denoised, x, down / s)
        if up > 0:
            x = x + s_noise * up * draw()
    return x


def heun(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's trapezoidal rule with optional churn (Karras et al. 2022, algorithm 2); Euler on the step to 0."""
    draw = _source("heun", noise, s_churn > 0)
    levels, sigmas = _levels(x, sigmas)
    hats = _churned(levels, s_churn, s_tmin, s_tmax)
    hat_sigmas = _tensor(x, hats)
    for i, (s, s_next) in enumerate(pairwise(levels)):
        if hats[i] > s:
            x = x + s_noise * math.sqrt(hats[i] ** 2 - s**2) * draw()
        denoised = denoiser(x, hat_sigmas[i])
        _report(callback, i, x, hat_sigmas[i], denoised)
        predicted = torch.lerp(denoised, x, s_next / hats[i])
        if s_next == 0:
            x = predicted
        else:
            slope = (x - denoised) / hats[i]
            slope_next = (predicted - denoiser(predicted, sigmas[i + 1])) / s_next
            x = x + (s_next - hats[i]) * (slope + slope_next) / 2
    return x


def dpm2(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DPM-Solver-2 (Lu et al. 2022, algorithm 1): the slope at the middle in ln(sigma); Euler on the step to 0.

    eta > 0 takes the step to s_down and adds noise s_up (k-diffusion's DPM2 ancestral).
    """
    draw = _source("dpm2", noise, eta > 0)
    levels, sigmas = _levels(x, sigmas)
    splits = [ancestral_split(s, s_next, eta) for s, s_next in pairwise(levels)]
    middles = [math.sqrt(s * down) for s, (down, _) in zip(levels, splits, strict=False)]
    middle_sigmas = _tensor(x, middles)
    for i, (s, (down, up)) in enumerate(zip(levels, splits, strict=False)):
        denoised = denoiser(x, sigmas[i])
        _report(callback, i, x, sigmas[i], denoised)
        if down == 0:
            x = denoised
        else:
            middle = torch.lerp(denoised, x, middles[i] / s)
            slope = (middle - denoiser(middle, middle_sigmas[i])) / middles[i]
            x = x + (down - s) * slope
        if up > 0:
            x = x + up * draw()
    return x


def dpmpp_2s(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1, r = 1/2); first order on the step to 0.

    eta > 0 takes the step to s_down and adds noise s_up (k-diffusion's DPM++ 2S ancestral).
    """
    draw = _source("dpmpp_2s", noise, eta > 0)
    levels, sigmas = _levels(x, sigmas)
    splits = [ancestral_split(s, s_next, eta) for s, s_next in pairwise(levels)]
    middles = [math.sqrt(s * down) for s, (down, _) in zip(levels, splits, strict=False)]
    middle_sigmas = _tensor(x, middles)
    for i, (s, (down, up)) in enumerate(zip(levels, splits, strict=False)):
        denoised = denoiser(x, sigmas[i])
        _report(callback, i, x, sigmas[i], denoised)
        if down > 0:
            middle = torch.lerp(denoised, x, middles[i] / s)
            denoised = denoiser(middle, middle_sigmas[i])
        x = torch.lerp(denoised, x, down / s)
        if up > 0:
            x = x + up * draw()
    return x


def dpmpp_2m(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): D extrapolated from the step before; first order on the first
    step and on the step to 0.
    """
    levels, sigmas = _levels(x, sigmas)
    previous: Tensor | None = None
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoiser(x, sigmas[i])
        _report(callback, i, x, sigmas[i], denoised)
        target = denoised
        if previous is not None and s_next > 0:
            r = math.log(levels[i - 1] / s) / math.log(s / s_next)
            target = torch.lerp(previous, denoised, 1 + 1 / (2 * r))
        x = torch.lerp(target, x, s_next / s)
        previous = denoised
    return x


def dpmpp_2m_sde(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M), midpoint (Lu et al. 2022b, section 5); eta = 0 is `dpmpp_2m`.

    With h = ln(s / s_next), x is kept by (s_next / s) exp(-eta h) and the added noise is
    s_next sqrt(1 - exp(-2 eta h)).
    """
    draw = _source("dpmpp_2m_sde", noise, eta > 0)
    levels, sigmas = _levels(x, sigmas)
    previous: Tensor | None = None
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoiser(x, sigmas[i])
        _report(callback, i, x, sigmas[i], denoised)
        target = denoised
        if previous is not None and s_next > 0:
            r = math.log(levels[i - 1] / s) / math.log(s / s_next)
            target = torch.lerp(previous, denoised, 1 + 1 / (2 * r))
        x = torch.lerp(target, x, (s_next / s) ** (1 + eta))
        if s_next > 0 and eta > 0:
            x = x + s_noise * s_next * math.sqrt(1 - (s_next / s) ** (2 * eta)) * draw()
        previous = denoised
    return x


def lms(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    callback: Callback | None = None,
    order: int = 4,
) -> Tensor:
    """Linear multistep (Adams-Bashforth on uneven levels): the polynomial through the last `order` slopes is
    integrated over the step, the one to 0 included (k-diffusion's LMS). The first steps have fewer slopes, hence a
    lower order.
    """
    levels, sigmas = _levels(x, sigmas)
    slopes: list[Tensor] = []
    for i, (s, s_next) in enumerate(pairwise(levels)):
        denoised = denoiser(x, sigmas[i])
        _report(callback, i, x, sigmas[i], denoised)
        slopes = [*slopes, (x - denoised) / s][-order:]
        weights = _lagrange_integrals(levels[i - len(slopes) + 1 : i + 1], s, s_next)
        for weight, slope in zip(weights, slopes, strict=True):
            x = x + weight * slope
    return x


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm2": dpm2,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "lms": lms,
}


def sampler(name: str) -> Sampler:
    """The sampler called `name`; RobopolicyError with the nearest name for any other."""
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def _tensor(x: Tensor, levels: list[float]) -> Tensor:
    """Noise levels beside x, in at least float32."""
    return torch.tensor(levels, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.device)


def _levels(x: Tensor, sigmas: Tensor) -> tuple[list[float], Tensor]:
    """Noise levels as numbers for the step weights and as a tensor for the denoiser: one transfer per sample."""
    levels = sigmas.tolist()
    return levels, _tensor(x, levels)


def _churned(levels: list[float], s_churn: float, s_tmin: float, s_tmax: float) -> list[float]:
    """Noise level each step is raised to before it is taken (Karras et al. 2022, algorithm 2)."""
    steps = len(levels) - 1
    gamma = min(s_churn / steps, math.sqrt(2) - 1)
    return [s * (1 + gamma) if s_tmin <= s <= s_tmax else s for s in levels[:-1]]


def _source(name: str, noise: Noise | None, needed: bool) -> Noise:
    def missing() -> Tensor:
        raise ValueError(f"sampler {name!r} adds noise with these options: pass noise, a function that draws it")

    if noise is None and needed:
        missing()
    return noise or missing


def _report(callback: Callback | None, step: int, x: Tensor, sigma: Tensor, denoised: Tensor) -> None:
    if callback is not None:
        callback(step, x, sigma, denoised)


def _lagrange_integrals(nodes: list[float], start: float, end: float) -> list[float]:
    """Integrals over [start, end] of the Lagrange polynomials of `nodes`, exact by Gauss-Legendre quadrature."""
    points, weights = np.polynomial.legendre.leggauss(len(nodes))
    at = (start + end) / 2 + (end - start) / 2 * points
    scale = (end - start) / 2 * weights
    integrals = []
    for node in nodes:
        factors = [(at - other) / (node - other) for other in nodes if other != node]
        integrals.append(float(scale @ np.prod([np.ones_like(at), *factors], axis=0)))
    return integrals
