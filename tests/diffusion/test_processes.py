import math

import pytest
import torch
from oracles import Mixture

from robopolicy.diffusion.processes import EDM, VP, Flow
from robopolicy.diffusion.sigma import LogLogistic
from robopolicy.errors import RobopolicyError

PREDICTIONS = ("epsilon", "sample", "v")
PROCESSES = {
    "edm": EDM(0.5),
    **{f"vp_{p}": VP(100, "squaredcos_cap_v2", p, None) for p in PREDICTIONS},
    "vp_linear": VP(1000, "linear", "v", None),
    "flow": Flow(),
    "flow_logit": Flow("logit_normal"),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def recovery_error(process, batch=256):
    """How far D is from the clean chunk when the network returns exactly what it is trained to return."""
    clean = 0.5 * torch.randn(batch, 4, 2, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(batch, 4, 2, generator=generator(2), dtype=torch.float64)
    sigma = process.training_sigmas(batch, generator(3), torch.device("cpu")).double()
    x = clean + sigma.view(-1, 1, 1) * noise
    target = process.target(clean, noise, sigma.view(-1, 1, 1))
    return float((process.denoise(lambda *_: target, x, sigma) - clean).abs().max())


@pytest.mark.parametrize(
    ("sigma", "skip", "out", "scale", "time"),
    [
        (0.05, 0.990099010, 0.049751859, 1.990074381, -0.748933068),
        (0.5, 0.5, 0.353553391, 1.414213562, -0.173286795),
        (1.0, 0.2, 0.447213595, 0.894427191, 0.0),
    ],
)
def test_edm_preconditioning_values(sigma, skip, out, scale, time):
    s = torch.tensor(sigma, dtype=torch.float64)
    c_in, c_skip, c_out = EDM(0.5).preconditioning(s)
    assert float(c_in) == pytest.approx(scale, abs=1e-6)
    assert float(c_skip) == pytest.approx(skip, abs=1e-6)
    assert float(c_out) == pytest.approx(out, abs=1e-6)
    assert float(EDM(0.5).time(s)) == pytest.approx(time, abs=1e-6)
    assert float(EDM(0.5).loss_weight(s)) == pytest.approx((sigma**2 + 0.25) / (sigma * 0.5) ** 2, rel=1e-6)


def test_edm_limits():
    edm, x = EDM(0.5), torch.randn(3, 4, 2, generator=generator(), dtype=torch.float64)

    def network(tau, time):
        return torch.ones_like(tau)

    gaps = [float((edm.denoise(network, x, s) - x).abs().max()) for s in (1e-2, 1e-3, 1e-4)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.1)
    torch.testing.assert_close(edm.denoise(network, x, 1e6), torch.full_like(x, 0.5), atol=1e-5, rtol=0)


def test_edm_targets_and_inputs_have_unit_variance_at_every_level():
    edm = EDM(0.5, training=LogLogistic(0.5, 0.005, 1.0))
    sample = edm.training_sample(0.5 * torch.randn(60_000, 2, 2, generator=generator(1)), generator(2))
    order = sample.sigma.argsort()
    for rows in order.chunk(6):
        assert float(sample.target[rows].var()) == pytest.approx(1, abs=0.02)
        assert float(sample.input[rows].var()) == pytest.approx(1, abs=0.02)
    assert float(sample.target.square().mean()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", PROCESSES)
def test_loss_on_the_output_is_the_weighted_loss_on_the_clean_chunk(name):
    process = PROCESSES[name]
    clean = 0.5 * torch.randn(64, 4, 2, generator=generator(1), dtype=torch.float64)
    sample = process.training_sample(clean, generator(2))
    sigma = sample.sigma.double()
    c_in = process.preconditioning(sigma)[0].view(-1, 1, 1)
    output = torch.randn(64, 4, 2, generator=generator(3), dtype=torch.float64)
    denoised = process.denoise(lambda *_: output, sample.input / c_in, sigma)
    weighted = process.loss_weight(sigma).view(-1, 1, 1) * (denoised - clean) ** 2
    torch.testing.assert_close(weighted, (output - sample.target) ** 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_perfect_outputs_give_the_clean_chunk(name):
    assert recovery_error(PROCESSES[name]) < 1e-11


def test_a_process_that_forgets_to_divide_by_alpha_is_caught():
    class Wrong(VP):
        def preconditioning(self, sigma):
            alpha, skip, out = super().preconditioning(sigma)
            return alpha, alpha * skip, alpha * out

    assert recovery_error(Wrong(100, "squaredcos_cap_v2", "epsilon", None)) > 0.1


def exact_network(name, process, mixture):
    """The network output that belongs to the mixture's exact score, by the textbook conversion of each family."""

    def network(tau, time):
        if name == "edm":
            sigma = (4 * time).exp()
            x = tau * (sigma**2 + 0.25).sqrt()[:, None, None]
        elif name.startswith("flow"):
            sigma = time / 1000 / (1 - time / 1000)
            x = tau * (1 + sigma)[:, None, None]
        else:
            sigma = process.levels[time.long()]
            x = tau * (1 + sigma**2).sqrt()[:, None, None]
        sigma = sigma[:, None, None]
        clean = mixture.denoise(x, sigma)
        noise = (x - clean) / sigma
        if name == "edm":
            skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
            return (clean - skip * x) / out
        if name.startswith("flow"):
            return noise - clean
        alpha = 1 / (1 + sigma**2).sqrt()
        return {"epsilon": noise, "sample": clean, "v": alpha * noise - alpha * sigma * clean}[process.prediction]

    return network


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("step", [2, 30, 60, 90])
def test_all_processes_agree_on_the_denoiser_of_a_mixture(name, step):
    process, mixture = PROCESSES[name], Mixture()
    sigma = process.levels[step] if isinstance(process, VP) else PROCESSES["vp_v"].levels[step]
    x = mixture.sample(200, float(sigma), generator())
    denoised = process.denoise(exact_network(name, process, mixture), x, sigma)
    torch.testing.assert_close(denoised, mixture.denoise(x, sigma), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_one_level_per_row_equals_one_level_at_a_time(name):
    process = PROCESSES[name]

    def network(tau, time):
        assert time.shape == (3,)
        assert time.is_floating_point()
        return tau.sin() + time[:, None, None]

    x, sigma = torch.randn(3, 4, 2, generator=generator()), torch.tensor([0.1, 0.7, 3.0])
    together = process.denoise(network, x, sigma)
    for row in range(3):
        torch.testing.assert_close(together[row], process.denoise(network, x, sigma[row])[row])


@pytest.mark.parametrize("betas", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize("steps", [2, 50, 100, 1000])
def test_vp_tables_are_those_of_diffusers(betas, steps):
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    abar = DDPMScheduler(steps, beta_schedule=betas).alphas_cumprod.double()
    torch.testing.assert_close(VP(steps, betas).levels, ((1 - abar) / abar).sqrt(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 33, 100])
def test_vp_timesteps_are_those_of_diffusers(spacing, n):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    process, theirs = VP(100, spacing=spacing), DDIMScheduler(100, timestep_spacing=spacing)
    theirs.set_timesteps(n)
    expected = theirs.timesteps
    if spacing == "linspace" and n == 1:
        expected = torch.tensor([0])
    assert process.timesteps(n).tolist() == expected.tolist()
    sigmas = process.sigmas(n)
    assert sigmas.shape == (n + 1,)
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0


@pytest.mark.parametrize("betas", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize("steps", [2, 100, 1000])
def test_vp_time_is_whole_on_the_grid_and_linear_in_log_snr_between(betas, steps):
    process = VP(steps, betas)
    assert process.time(process.levels.float()).tolist() == list(range(steps))
    low, high = process.levels[:-1], process.levels[1:]
    between = (0.75 * low.log() + 0.25 * high.log()).exp()
    expected = torch.arange(steps - 1, dtype=torch.float64) + 0.25
    torch.testing.assert_close(process.time(between), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(process.time(between.float()).double(), expected, atol=5e-3, rtol=0)
    assert float(process.time(torch.tensor(1e-6))) == 0
    assert float(process.time(torch.tensor(1e9))) == steps - 1


def test_vp_noising_is_that_of_diffusers_and_steps_are_uniform():
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    process = VP(100)
    sample = process.training_sample(torch.randn(20_000, 2, 1, generator=generator(1)), generator(2))
    steps = sample.time.long()
    assert torch.equal(steps.float(), sample.time)
    theirs = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2")
    clean = torch.randn(20_000, 2, 1, generator=generator(1))
    torch.testing.assert_close(sample.input, theirs.add_noise(clean, sample.target, steps), atol=1e-6, rtol=0)
    counts = torch.bincount(steps, minlength=100).double()
    assert float(((counts - 200) ** 2 / 200).sum()) < 149.4  # chi-square, 99 degrees of freedom, p = 0.0008


def test_vp_clip_limits_the_denoised_chunk():
    x = torch.tensor([[[-5.0], [0.2], [5.0]]])
    process = VP(100, prediction="sample", clip=0.7)
    denoised = process.denoise(lambda tau, time: x, x, 1.0)
    assert denoised.flatten().tolist() == pytest.approx([-0.7, 0.2, 0.7])


def test_start_of_sampling_matches_each_process():
    shape = (20_000, 2, 1)
    e = torch.randn(shape, generator=generator())
    torch.testing.assert_close(EDM().initial(shape, 80.0, generator()), 80 * e)
    torch.testing.assert_close(VP().initial(shape, 3.0, generator()), math.sqrt(10) * e)
    torch.testing.assert_close(Flow().initial(shape, 9.0, generator()), e / (1 - 0.9))


def test_flow_clock_and_schedule():
    flow = Flow()
    assert float(flow.time(torch.tensor(3.0))) == pytest.approx(750)
    sigmas = flow.sigmas(10)
    t = sigmas / (1 + sigmas)
    torch.testing.assert_close(t, flow.t_max * torch.linspace(1, 0, 11, dtype=torch.float64))
    assert sigmas[0] == pytest.approx(flow.sigma_max)


def test_flow_training_times():
    from scipy import stats

    def times(process):
        sigma = process.training_sigmas(20_000, generator(), torch.device("cpu")).double()
        return (sigma / (1 + sigma)).numpy()

    uniform, logit = times(Flow()), times(Flow("logit_normal", 0.3, 0.8))
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert uniform.max() <= 0.9999 + 1e-6
    assert stats.kstest(logit, lambda t: stats.norm(0.3, 0.8).cdf(stats.logistic.ppf(t))).pvalue > 0.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(betas="squaredcos"), "Did you mean 'squaredcos_cap_v2'"),
        (lambda: VP(prediction="epsilom"), "Did you mean 'epsilon'"),
        (lambda: VP(spacing="leadin"), "Did you mean 'leading'"),
        (lambda: VP(1), "train_steps must be at least 2"),
        (lambda: VP(100).sigmas(101), r"1\.\.100.*found 101"),
        (lambda: Flow().sigmas(0), "at least 1"),
        (lambda: Flow("logitnormal"), "Did you mean 'logit_normal'"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(RobopolicyError, match=message):
        make()


@pytest.mark.parametrize("name", ["edm", "vp_epsilon", "vp_linear"])
def test_native_schedule_spans_the_ends_of_the_process(name):
    process = PROCESSES[name]
    sigmas = process.sigmas(getattr(process, "train_steps", 40))
    assert float(sigmas[0]) == process.sigma_max
    assert float(sigmas[-2]) == process.sigma_min
