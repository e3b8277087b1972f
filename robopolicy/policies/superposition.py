"""Superposition of denoisers: sampling from "p1 or p2" and from "p1 and p2" (Skreta et al. 2025; GPC section 5.3).

All parents see the same x = a + s e. While it moves, the density q_i that each parent assigns to it is tracked without
any divergence, by Ito's formula for the reverse process dx = -2 D E + n, with noise predictions e_i = (x - D_i) / s,
their mixture E = sum_i k_i e_i, and n of variance 2 s D:

    dlog q_i = -(D / s) |e_i|^2 - <e_i, dx> / s          (sums over all rows and dimensions of the chunk)

OR mixes by these densities, AND mixes so that they stay equal. A step from s to s_next has D = (s^2 - s_next^2) / 2s,
which is the integral of s ds over s, and s_next / s times the published noise. Both agree with the published step to
first order, and make it the exact posterior step (`samplers.ddpm`) of a constant clean chunk. Coarse schedules are
then stable, and the step to 0, which has no noise, ends on that chunk.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from robopolicy.diffusion.samplers import Denoiser, Noise

Mixing = Callable[[Tensor, float, Tensor, Tensor], Tensor]
"""(e [N, B, ...], D, n [B, ...], log q [N, B]) to mixing weights k [N, B], which sum to 1 over the N parents."""
Watch = Callable[[int, Tensor, Tensor], None]
"""Sees the number of a step, and k and log q [N, B] after it."""


def log_density_step(eps: Tensor, change: Tensor, step: float, s: float) -> Tensor:
    """dlog q [N, B] of parents with noise predictions `eps` [N, B, ...] while x [B, ...] moves by `change`."""
    return -(step * eps.square() + eps * change).flatten(2).sum(-1) / s


def mix_or(temperature: float, weights: Sequence[float]) -> Mixing:
    """k = softmax(T log q + ln w): the parents' shares w at first, then whoever finds the chunk likelier."""

    def mixing(eps: Tensor, step: float, noise: Tensor, log_q: Tensor) -> Tensor:
        shares = torch.tensor(weights, dtype=log_q.dtype, device=log_q.device)
        return (temperature * log_q + shares.log()[:, None]).softmax(dim=0)

    return mixing


def mix_and(eps: Tensor, step: float, noise: Tensor, log_q: Tensor) -> Tensor:
    """The k under which all dlog q_i are equal.

    With d_i = e_i - e_N and their Gram matrix G, the first N - 1 weights solve G k = diag(G) / 2 + <d_i, n> / 2D.
    Where the d_i depend on each other, as between identical parents, the solution nearest to 1 / N is taken. For two
    parents k_1 = 1/2 + <d, n> / (2 D |d|^2): equal shares, without the noise along d.
    """
    d = (eps[:-1] - eps[-1]).flatten(2).transpose(0, 1).double()
    gram = d @ d.mT
    push = d @ noise.flatten(1).double()[..., None] / (2 * step)
    equal = torch.full_like(push, 1 / len(eps))
    missing = gram.diagonal(dim1=-2, dim2=-1)[..., None] / 2 + push - gram @ equal
    k = (equal + torch.linalg.pinv(gram, hermitian=True) @ missing)[..., 0].T
    return torch.cat([k, 1 - k.sum(0, keepdim=True)])


def superpose(
    denoisers: Sequence[Denoiser],
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    mixing: Mixing,
    clip: float = 0.0,
    watch: Watch | None = None,
) -> Tensor:
    """Samples a chunk along `sigmas` [n + 1] from x [B, ...], one call of every denoiser per step.

    `clip` limits the mixed clean chunk; 0 does not. Log densities start from 0 for all parents, in float64.
    """
    levels = sigmas.tolist()
    inside = torch.tensor(levels, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.device)
    log_q = torch.zeros(len(denoisers), len(x), dtype=torch.float64, device=x.device)
    for i, (s, s_next) in enumerate(pairwise(levels)):
        means = torch.stack([denoise(x, inside[i]) for denoise in denoisers])
        eps = (x - means) / s
        keep, step = (s_next / s) ** 2, (s**2 - s_next**2) / (2 * s)
        n = s_next * math.sqrt(1 - keep) * noise() if s_next > 0 else torch.zeros_like(x)
        k = mixing(eps, step, n, log_q)
        shares = k.to(x.dtype).view(*k.shape, *(1,) * (x.ndim - 1))
        mean = (shares * means).sum(0)
        mean = mean.clamp(-clip, clip) if clip else mean
        moved = keep * x + (1 - keep) * mean + n
        log_q = log_q + log_density_step(eps.double(), (moved - x).double(), step, s)
        x = moved
        if watch is not None:
            watch(i, k, log_q)
    return x
