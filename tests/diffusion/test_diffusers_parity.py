"""Our samplers against diffusers' schedulers: one network, one start, one stream of noise."""

import pytest
import torch
from oracles import PARITY_CASES, diffusers_difference

from robopolicy.diffusion.processes import VP

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(("kind", "prediction", "clip", "n", "betas"), PARITY_CASES)
def test_equal_in_float64(kind, prediction, clip, n, betas):
    # diffusers' DPM-Solver++ computes its steps in float32 whatever it is given.
    limit = 1e-6 if kind.startswith("2m") else 1e-11
    assert diffusers_difference(kind, prediction, clip, n, betas, torch.float64) < limit


@pytest.mark.parametrize(("kind", "prediction", "clip", "n", "betas"), PARITY_CASES)
def test_equal_in_float32(kind, prediction, clip, n, betas):
    limit = 1e-5
    if kind == "ddpm" and betas == "linear" and n == 100:
        limit = 2e-4  # diffusers' beta_t = 1 - abar_t / abar_(t-1) in float32 keeps three digits of 1e-4
    if kind.startswith("2m") and prediction == "epsilon" and betas == "squaredcos_cap_v2":
        limit = 2e-4  # at sigma = 2e3 float32 noise predictions fix the clean chunk to 1e-4, and 2M extrapolates it
    assert diffusers_difference(kind, prediction, clip, n, betas) < limit


def test_a_process_that_forgets_to_divide_by_alpha_is_caught():
    class Wrong(VP):
        def preconditioning(self, sigma):
            alpha, skip, out = super().preconditioning(sigma)
            return alpha, alpha * skip, alpha * out

    case = ("ddim", "epsilon", None, 10, "linear")
    assert diffusers_difference(*case, torch.float64, Wrong) > 0.01
