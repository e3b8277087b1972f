from itertools import pairwise

import pytest
import torch
from oracles import Mixture, errors_by_steps, fitted_order

from robopolicy.diffusion.noise import randn
from robopolicy.diffusion.processes import EDM, Flow
from robopolicy.diffusion.samplers import (
    SAMPLERS,
    ancestral_split,
    ddim,
    ddpm,
    dpm2,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    euler,
    euler_ancestral,
    guided,
    heun,
    lms,
    sampler,
)
from robopolicy.diffusion.schedules import exponential, karras
from robopolicy.errors import RobopolicyError

STEPS = (32, 64, 128)
STOCHASTIC = {
    "ddim": {"eta": 0.7},
    "ddpm": {},
    "ddpm_large": {"variance": "fixed_large"},
    "euler": {"s_churn": 20.0, "s_tmin": 0.01, "s_tmax": 5.0},
    "euler_ancestral": {},
    "heun": {"s_churn": 20.0, "s_tmin": 0.01, "s_tmax": 5.0},
    "dpm2": {"eta": 1.0},
    "dpmpp_2s": {"eta": 1.0},
    "dpmpp_2m_sde": {},
}
ODE = {
    "ddim": {},
    "euler": {},
    "euler_ancestral": {"eta": 0.0},
    "heun": {},
    "dpm2": {},
    "dpmpp_2s": {},
    "dpmpp_2m": {},
    "dpmpp_2m_sde": {"eta": 0.0},
    "lms": {},
}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def both():
    ode = [(name, options) for name, options in ODE.items()]
    return ode + [(name.removesuffix("_large"), options) for name, options in STOCHASTIC.items()]


def order_of(sample):
    return fitted_order(STEPS, errors_by_steps(sample, STEPS))


@pytest.mark.parametrize(
    ("sample", "low", "high"),
    [
        (ddim, 0.8, 1.1),
        (euler, 0.8, 1.1),
        (heun, 1.8, 2.2),
        (dpm2, 1.8, 2.2),
        (dpmpp_2s, 1.8, 2.2),
        (dpmpp_2m, 1.8, 2.2),
        (lms, 2.0, 4.0),
    ],
)
def test_order_of_convergence(sample, low, high):
    assert low <= order_of(sample) <= high


def test_every_ode_sampler_comes_close_to_the_exact_flow():
    for name, options in ODE.items():
        error = errors_by_steps(lambda *a, f=SAMPLERS[name], o=options: f(*a, **o), (128,))[0]
        assert error < (3e-3 if name in ("ddim", "euler", "euler_ancestral") else 1e-4), name


def test_a_heun_that_repeats_the_first_slope_is_caught():
    def wrong_heun(denoiser, x, sigmas):
        for s, s_next in pairwise(sigmas):
            slope = (x - denoiser(x, s)) / s
            predicted = x + (s_next - s) * slope
            slope_next = (predicted - denoiser(x, s)) / s_next  # D should be taken at the predicted point
            x = x + (s_next - s) * (slope + slope_next) / 2
        return x

    assert not 1.8 <= order_of(wrong_heun) <= 2.2


def test_a_2m_that_forgets_the_ratio_of_steps_is_caught():
    def wrong_2m(denoiser, x, sigmas):
        previous = None
        for s, s_next in pairwise(sigmas):
            denoised = denoiser(x, s)
            target = denoised if previous is None else 1.5 * denoised - 0.5 * previous
            x = target + s_next / s * (x - target)
            previous = denoised
        return x

    # Equal steps in ln(sigma) hide the mistake, uneven ones do not.
    mixture, p = Mixture(), torch.linspace(0.05, 0.25, 21, dtype=torch.float64)
    start, exact = mixture.quantile(p, 1.0)[:, None, None], mixture.quantile(p, 0.005)

    def error(sample):
        levels = exponential(61, 0.005, 1.0)[:-1]
        uneven = torch.cat([levels[:1], levels[1:-1] * torch.tensor([1.03, 0.97] * 30)[:59], levels[-1:]])
        return float((sample(mixture.denoise, start, uneven).flatten() - exact).abs().mean())

    assert error(wrong_2m) > 2 * error(dpmpp_2m)


def moments(x):
    """Weight of the left mode; mean and standard deviation of each."""
    x = x.flatten()
    left, right = x[x < -0.1], x[x >= -0.1]
    return [len(left) / len(x), left.mean(), left.std(), right.mean(), right.std()]


def moment_gap(sample, options, n=20_000, steps=48):
    mixture = Mixture()
    x = mixture.sample(n, 20.0, gen(0))
    out = sample(mixture.denoise, x, karras(steps, 0.005, 20.0), noise=mixture.noise(n, gen(1)), **options)
    expected = [0.3, -0.6, 0.12, 0.5, 0.2]
    return max(abs(float(a) - b) for a, b in zip(moments(out), expected, strict=True))


@pytest.mark.parametrize(("name", "options"), both())
def test_samples_of_a_mixture_have_its_weights_and_moments(name, options):
    # Standard error of the weight with 20 000 draws is .003; first-order samplers shrink the modes a little.
    # fixed_large is the variance of a reverse step for data N(0, 1): too much noise for narrower modes.
    limit = {"fixed_large": 0.06}.get(options.get("variance"), 0.025)
    assert moment_gap(SAMPLERS[name], options) < limit


def test_ancestral_sampling_with_too_much_noise_is_caught():
    def wrong_ancestral(denoiser, x, sigmas, noise):
        for i in range(len(sigmas) - 1):
            s, s_next = sigmas[i], sigmas[i + 1]
            denoised = denoiser(x, s)
            x = denoised + s_next / s * (x - denoised)  # should step down to s_down before adding noise
            x = x + s_next * (1 - (s_next / s) ** 2).sqrt() * noise()
        return x

    assert moment_gap(wrong_ancestral, {}) > 0.05


def test_ddim_is_euler_and_ddpm_is_euler_ancestral():
    mixture, sigmas = Mixture(), karras(12, 0.01, 20.0)
    x = mixture.sample(500, 20.0, gen())
    torch.testing.assert_close(
        ddim(mixture.denoise, x, sigmas), euler(mixture.denoise, x, sigmas), atol=1e-12, rtol=1e-12
    )

    def run(sample, **options):
        return sample(mixture.denoise, x, sigmas, noise=mixture.noise(500, gen(1)), **options)

    torch.testing.assert_close(run(ddpm), run(euler_ancestral, eta=1.0), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(run(ddim, eta=1.0), run(ddpm), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(
        dpmpp_2m_sde(mixture.denoise, x, sigmas, eta=0.0), dpmpp_2m(mixture.denoise, x, sigmas), atol=0, rtol=0
    )
    torch.testing.assert_close(
        lms(mixture.denoise, x, sigmas, order=1), euler(mixture.denoise, x, sigmas), atol=1e-12, rtol=1e-12
    )


def test_euler_on_the_flow_schedule_is_euler_on_the_flow():
    flow = Flow()

    def network(tau, time):
        return (3 * tau).sin() + time[:, None, None] / 1000

    tau = torch.randn(4, 8, 2, generator=gen(), dtype=torch.float64)
    sigmas = flow.sigmas(10)
    ours = euler(lambda x, s: flow.denoise(network, x, s), tau * (1 + sigmas[0]), sigmas)
    t = sigmas / (1 + sigmas)
    for i in range(10):
        tau = tau + (t[i + 1] - t[i]) * network(tau, (1000 * t[i]).expand(4))
    torch.testing.assert_close(ours, tau, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.5])
@pytest.mark.parametrize(("s", "s_next"), [(1.0, 0.5), (20000.0, 1500.0), (0.011, 0.01), (0.1, 0.0)])
def test_ancestral_split_keeps_the_variance(s, s_next, eta):
    down, up = ancestral_split(s, s_next, eta)
    assert down**2 + up**2 == pytest.approx(s_next**2, rel=1e-12, abs=0)
    if eta == 0:
        assert (down, up) == (s_next, 0)
    if eta == 1 and s_next > 0:
        assert down == pytest.approx(s_next**2 / s, rel=1e-6)


@pytest.mark.parametrize(("name", "options"), [case for case in both() if case[0] != "lms"])
def test_the_step_to_zero_returns_the_last_denoised_chunk(name, options):
    mixture, seen = Mixture(), []
    x = mixture.sample(50, 3.0, gen())

    def record(step, x, sigma, denoised):
        seen.append((step, float(sigma), denoised))

    out = SAMPLERS[name](
        mixture.denoise, x, karras(6, 0.01, 3.0), noise=mixture.noise(50, gen(1)), callback=record, **options
    )
    assert [step for step, *_ in seen] == list(range(6))
    torch.testing.assert_close(out, seen[-1][2], atol=0, rtol=0)


@pytest.mark.parametrize(("name", "options"), both())
def test_one_step_is_the_denoised_start(name, options):
    mixture = Mixture()
    x = mixture.sample(20, 3.0, gen())
    sigmas = karras(1, 0.01, 3.0)
    options = {k: v for k, v in options.items() if k != "s_churn"}
    out = SAMPLERS[name](mixture.denoise, x, sigmas, noise=mixture.noise(20, gen(1)), **options)
    torch.testing.assert_close(out, mixture.denoise(x, 3.0))


@pytest.mark.parametrize("sample", [dpm2, dpmpp_2s])
def test_two_stage_solvers_look_at_the_middle_in_log_sigma(sample):
    asked = []

    def denoiser(x, sigma):
        asked.append(float(sigma))
        return 0 * x

    sigmas = torch.tensor([4.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    out = sample(denoiser, torch.ones(1, 1, 1, dtype=torch.float64), sigmas[:3])
    assert asked == pytest.approx([4, 2, 1, 0.5])
    assert float(out) == pytest.approx(0.25 / 4)
    asked.clear()
    sample(denoiser, torch.ones(1, 1, 1, dtype=torch.float64), sigmas)
    assert asked == pytest.approx([4, 2, 1, 0.5, 0.25])


@pytest.mark.parametrize("name", ODE)
def test_ode_samplers_draw_no_noise(name):
    mixture = Mixture()
    x = mixture.sample(5, 3.0, gen())

    def forbidden():
        raise AssertionError("noise was drawn")

    SAMPLERS[name](mixture.denoise, x, karras(6, 0.01, 3.0), noise=forbidden, **ODE[name])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_ask_for_noise(name):
    mixture = Mixture()
    x = mixture.sample(5, 3.0, gen())
    plain = name.removesuffix("_large")
    with pytest.raises(ValueError, match=f"'{plain}' adds noise"):
        SAMPLERS[plain](mixture.denoise, x, karras(6, 0.01, 3.0), **STOCHASTIC[name])


@pytest.mark.parametrize(("name", "options"), both())
def test_a_row_does_not_depend_on_its_neighbours(name, options):
    edm = EDM(0.5, 0.01, 3.0)

    def network(tau, time):
        return (2 * tau).sin() * time[:, None, None]

    def run(seeds):
        generators = [gen(seed) for seed in seeds]
        shape = (len(seeds), 4, 2)
        x = edm.initial(shape, 3.0, generators)
        return SAMPLERS[name](
            lambda x, s: edm.denoise(network, x, s),
            x,
            edm.sigmas(7),
            noise=lambda: randn(shape, generators),
            **options,
        )

    batch = run([5, 6, 7])
    torch.testing.assert_close(batch[1:2], run([6]), atol=0, rtol=0)
    assert not torch.allclose(batch[0], batch[1])


def test_the_denoiser_is_told_the_level_in_float32_at_least():
    x = torch.ones(2, 3, 1, dtype=torch.bfloat16)

    def denoiser(x, sigma):
        assert sigma.ndim == 0
        assert sigma.dtype == torch.float32
        return 0 * x

    for sample in SAMPLERS.values():
        out = sample(denoiser, x, karras(5, 0.01, 3.0), noise=lambda: torch.zeros_like(x))
        assert out.dtype == torch.bfloat16
        assert torch.isfinite(out).all()


def test_guidance_is_affine_and_calls_one_denoiser_at_0_and_1():
    mixture = Mixture()

    def other(x, sigma):
        return 0.3 * x

    x, s = mixture.sample(50, 1.0, gen()), torch.tensor(1.0)
    assert guided(mixture.denoise, other, 1.0)(x, s).equal(mixture.denoise(x, s))
    assert guided(mixture.denoise, other, 0.0)(x, s).equal(other(x, s))
    for weight in (0.25, 1.5, 4.0):
        expected = other(x, s) + weight * (mixture.denoise(x, s) - other(x, s))
        torch.testing.assert_close(guided(mixture.denoise, other, weight)(x, s), expected)


def test_unknown_sampler_suggests_the_nearest():
    assert sampler("dpmpp_2m") is dpmpp_2m
    with pytest.raises(RobopolicyError, match="Did you mean 'dpmpp_2m'"):
        sampler("dpm++_2m")
