"""Inpainting of action chunks: a denoiser that is pulled towards actions which are already committed.

Real-time chunking (Black, Galliker & Levine 2025) asks for a chunk Y-consistent in its first rows while the rest stays
free. Pseudo-inverse guidance (Song et al. 2023) adds the gradient of log p(Y | x) to the score. In the frame
x = a + s e, with posterior mean D and the posterior variance r^2 = s^2 / (1 + s^2) of unit-variance data, that is

    D'(x, s) = D + (s^2 / r^2) J^T W (Y - D),    J = dD/dx,    s^2 / r^2 = 1 + s^2

The paper writes it for a flow of time tau = 1 / (1 + s), with J_tau = dD / d(tau x) (eq. 2 and 4), as

    v + min(beta, (1 - tau) / (tau r^2)) J_tau^T W (Y - D)

D = tau x + (1 - tau) v turns this into D + s min(beta, (1 + s^2) / s) J^T W (Y - D): the same, with a limit of beta s.
Hence it serves every process and every sampler. The limit keeps the first steps, in almost pure noise, finite. It also
lowers the weight where s < 1 / beta, which the paper's five steps never visit; there it would let go of the prefix on
finer schedules, while 1 + s^2 is harmless, so here the limit is at least 1.
"""

import torch
from torch import Tensor

from robopolicy.diffusion.samplers import Denoiser
from robopolicy.errors import RobopolicyError

MAX_WEIGHT = 5.0
"""beta, the paper's clip of the guidance weight (section 4.2): unclipped it diverges in pure noise."""


def inpainting(
    denoiser: Denoiser, prefix: Tensor, weight: Tensor, clip: float | None = None, max_weight: float = MAX_WEIGHT
) -> Denoiser:
    """`denoiser`, pulled towards the rows of `prefix` [B, H, D_a] as far as `weight` [B, H] in 0..1 says.

    Rows of weight 0 are free, and only move with the others as the denoiser finds likely. `clip` limits clean chunks;
    give it here and not to the denoiser, which has no gradient where it is clipped. Each call costs a forward and a
    backward pass.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise RobopolicyError("inpainting needs gradients: call predict under torch.no_grad, not inference_mode")
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            clean = denoiser(leaf, sigma)
        bounded = _clamped(clean.detach(), clip)
        error = weight[..., None].to(x) * (prefix.to(x) - bounded)
        (pull,) = torch.autograd.grad(clean, leaf, error)
        return _clamped(bounded + torch.minimum((max_weight * sigma).clamp(min=1), 1 + sigma**2) * pull, clip)

    return denoise


def _clamped(x: Tensor, clip: float | None) -> Tensor:
    return x if clip is None else x.clamp(-clip, clip)
