"""Inpainting against closed forms: the paper's own formula for flows, and data whose posterior is known."""

import math

import pytest
import torch

from robopolicy.diffusion.inpainting import MAX_WEIGHT, inpainting
from robopolicy.diffusion.processes import EDM, VP, Flow
from robopolicy.diffusion.samplers import SAMPLERS, euler, sampler
from robopolicy.diffusion.schedules import karras
from robopolicy.errors import RobopolicyError

ROWS = 8


def _correlated(spread=1.0):
    """A denoiser of N(0, C), C[i, j] = spread^2 * 0.9^|i - j| over the rows of a chunk [B, 8, 1], and C."""
    place = torch.arange(ROWS, dtype=torch.float64)
    covariance = spread**2 * 0.9 ** (place[:, None] - place).abs()

    def denoise(x, sigma):
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(ROWS, dtype=torch.float64))
        return gain @ x

    return denoise, covariance


def _committed(batch, rows=3):
    prefix = torch.zeros(batch, ROWS, 1, dtype=torch.float64)
    prefix[:, :rows] = torch.tensor([1.0, 1.2, 0.9], dtype=torch.float64)[:rows, None]
    weight = torch.zeros(batch, ROWS, dtype=torch.float64)
    weight[:, :rows] = 1.0
    return prefix, weight


def test_it_is_the_papers_guided_velocity():
    """v' = v + min(beta, (1 - tau) / (tau r^2)) (dA1/dA)^T W (Y - A1), r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2)."""
    denoise, _ = _correlated(0.7)
    prefix, weight = _committed(4)
    g = torch.Generator().manual_seed(0)
    for tau in (0.02, 0.1, 0.3, 0.5, 0.8):  # Above 5/6 the limit is ours.
        a = torch.randn(4, ROWS, 1, generator=g, dtype=torch.float64, requires_grad=True)

        def clean(a, tau=tau):
            return denoise(a / tau, torch.tensor((1 - tau) / tau, dtype=torch.float64))

        one = clean(a)
        velocity = (one - a) / (1 - tau)
        (pull,) = torch.autograd.grad(one, a, weight[..., None] * (prefix - one.detach()))
        r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        wanted = velocity + min(MAX_WEIGHT, (1 - tau) / (tau * r2)) * pull
        x, sigma = a.detach() / tau, torch.tensor((1 - tau) / tau, dtype=torch.float64)
        guided = inpainting(denoise, prefix, weight)(x, sigma)
        assert torch.allclose((guided - a) / (1 - tau), wanted, rtol=1e-9, atol=1e-9), tau


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samples_keep_the_committed_rows_and_the_rest_follows_as_the_data_would(name):
    """The free rows come near to the conditional distribution of the Gaussian.

    Not quite: the method takes the posterior's covariance for r^2 I, which pulls too hard where rows are correlated.
    """
    denoise, covariance = _correlated()
    batch = 2000
    prefix, weight = _committed(batch)
    g = torch.Generator().manual_seed(1)

    def noise():
        return torch.randn(batch, ROWS, 1, generator=g, dtype=torch.float64)

    sigmas = karras(20, 0.01, 40.0)
    chunk = sampler(name)(inpainting(denoise, prefix, weight), sigmas[0] * noise(), sigmas, noise=noise)[..., 0]
    assert (chunk[:, :3] - prefix[:, :3, 0]).abs().max() < 5e-3
    mean = covariance[3:, :3] @ torch.linalg.inv(covariance[:3, :3]) @ prefix[0, :3, 0]
    assert (chunk[:, 3:].mean(0) - mean).abs().max() < 0.35, "unguided it is 0.81"
    # Far from the prefix the data's own spread is left: sqrt(1 - 0.9^2k).
    assert chunk[:, -1].std() == pytest.approx(math.sqrt(1 - 0.9**10), rel=0.3)


@pytest.mark.parametrize("process", [VP(clip=None), EDM(), Flow()], ids=["vp", "edm", "flow"])
def test_every_process_keeps_the_prefix_on_its_own_schedule(process):
    denoise, _ = _correlated()
    prefix, weight = _committed(64)
    sigmas = process.sigmas(20)
    g = torch.Generator().manual_seed(0)
    x = process.initial((64, ROWS, 1), float(sigmas[0]), g).double()
    error = euler(inpainting(denoise, prefix, weight), x, sigmas)[:, :3] - prefix[:, :3]
    assert error.abs().max() < 0.1


def test_free_rows_and_clipping():
    denoise, _ = _correlated()
    prefix, weight = _committed(2)
    x, sigma = torch.full((2, ROWS, 1), 3.0, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(inpainting(denoise, prefix, 0 * weight)(x, sigma), denoise(x, sigma))
    weight[1] = 0
    both = inpainting(denoise, prefix, weight)(x, sigma)
    assert torch.allclose(both[1], denoise(x, sigma)[1])
    assert not torch.allclose(both[0], both[1])
    assert inpainting(denoise, prefix, weight, clip=1.0)(x, sigma).abs().max() == 1.0
    # A clipped denoiser has no gradient, so a clip given to it would leave the prefix without effect.
    deaf = inpainting(lambda x, s: denoise(x, s).clamp(-1, 1), prefix, weight)(x, sigma)
    assert torch.equal(deaf[0], deaf[1])


def test_inference_mode_is_refused_in_words():
    prefix, weight = _committed(1)
    guided = inpainting(_correlated()[0], prefix, weight)
    with torch.inference_mode(), pytest.raises(RobopolicyError, match="needs gradients"):
        guided(torch.zeros(1, ROWS, 1).double(), torch.tensor(1.0).double())
