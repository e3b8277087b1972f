import math

import numpy as np
import pytest
import torch
from scipy import stats

from robopolicy.diffusion.sigma import LogLogistic, LogNormal, LogUniform, Uniform


def draws(distribution, n=200_000):
    return distribution.sample(n, torch.Generator().manual_seed(0)).double().numpy()


@pytest.mark.parametrize(
    ("low", "quantiles"),
    [(0.005, (0.102, 0.250, 0.408, 0.612, 0.890)), (0.05, (0.114, 0.256, 0.413, 0.616, 0.891))],
)
def test_log_logistic_quantiles_of_beso(low, quantiles):
    sigma = draws(LogLogistic(0.5, low, 1.0))
    assert sigma.min() >= low
    assert sigma.max() <= 1.0
    np.testing.assert_allclose(np.quantile(sigma, (0.05, 0.25, 0.5, 0.75, 0.95)), quantiles, rtol=0.01)


@pytest.mark.parametrize("scale", [0.5, 0.8])
def test_log_logistic_distribution(scale):
    # ln(sigma) logistic with location ln(.5), cut at both ends; scipy's own logistic is the reference.
    low, high = 0.02, 3.0
    logistic = stats.logistic(math.log(0.5), scale)
    below, above = logistic.cdf(math.log(low)), logistic.cdf(math.log(high))

    def cdf(s):
        return (logistic.cdf(np.log(s)) - below) / (above - below)

    sigma = draws(LogLogistic(0.5, low, high, scale), 20_000)
    assert stats.kstest(sigma, cdf).pvalue > 0.01
    assert stats.kstest(draws(LogNormal(-0.7, 0.9), 20_000), cdf).pvalue < 1e-6


def test_lognormal_loguniform_and_uniform():
    assert (
        stats.kstest(draws(LogNormal(-1.2, 1.1), 20_000), stats.lognorm(1.1, scale=math.exp(-1.2)).cdf).pvalue > 0.01
    )
    assert stats.kstest(draws(LogUniform(0.01, 5.0), 20_000), stats.loguniform(0.01, 5.0).cdf).pvalue > 0.01
    assert stats.kstest(draws(Uniform(0.1, 0.7), 20_000), stats.uniform(0.1, 0.6).cdf).pvalue > 0.01


@pytest.mark.parametrize("kind", [LogUniform, Uniform])
def test_reversed_range_is_refused(kind):
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        kind(1.0, 0.1)
