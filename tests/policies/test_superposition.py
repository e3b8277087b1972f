"""AND and OR: exact equalities along the run, and what they do to distributions whose answer is known."""

import math

import pytest
import torch
from composition import Mixture, exact_parent, state
from toys import make

from robopolicy.diffusion.processes import EDM, VP, Flow
from robopolicy.diffusion.samplers import ddpm
from robopolicy.diffusion.schedules import karras
from robopolicy.errors import RobopolicyError
from robopolicy.policies.composed import compose
from robopolicy.policies.diffusion import SamplerConfig
from robopolicy.policies.superposition import log_density_step, mix_and, mix_or, superpose


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


ONE = Mixture([1.0], [[-1.0, 0.4]], [0.08])
TWO = Mixture([0.5, 0.5], [[1.0, 0.2], [0.6, -0.9]], [0.05, 0.1])
THREE = Mixture([1.0], [[0.1, 0.8]], [0.2])


@pytest.mark.parametrize("count", [2, 3])
def test_and_keeps_log_densities_equal_along_the_run(count: int) -> None:
    denoisers = [m.denoise for m in (ONE, TWO, THREE)[:count]]
    steps, seen = 40, []
    noise = (_normal(64, 1, 2, seed=i) for i in range(100))
    x = 80 * _normal(64, 1, 2, seed=99)
    superpose(
        denoisers, x, karras(steps, 0.01, 80), lambda: next(noise), mix_and, watch=lambda i, k, q: seen.append((k, q))
    )
    assert len(seen) == steps
    for k, log_q in seen[:-1]:  # the step to 0 has no noise and takes the mean
        assert (log_q - log_q[-1]).abs().max() < 1e-6 * steps
        assert (k.sum(0) - 1).abs().max() < 1e-9
    assert (seen[-1][0] - 1 / count).abs().max() < 1e-6 if count == 2 else True
    # Without the mixing they drift apart.
    fixed: list[torch.Tensor] = []
    superpose(
        denoisers,
        x,
        karras(steps, 0.01, 80),
        lambda: _normal(64, 1, 2, seed=7),
        mix_or(0.0, [1 / count] * count),
        watch=lambda i, k, q: fixed.append(q),
    )
    assert (fixed[-2][0] - fixed[-2][1]).abs().max() > 1e-2


def test_the_closed_form_for_two_parents_is_the_published_k() -> None:
    """k = [D <d, e1 + e2> + <d, dy_ind>] / (2 D |d|^2) with dy_ind = -2 D e2 + n, and dy without noise along d."""
    eps, n = _normal(2, 50, 4, 3), _normal(50, 4, 3, seed=1)
    s, step = 1.7, 0.3
    n = math.sqrt(2 * s * step) * n
    k = mix_and(eps, step, n, torch.zeros(2, 50, dtype=torch.float64))
    d = eps[0] - eps[1]

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).flatten(1).sum(-1)

    independent = -2 * step * eps[1] + n
    published = (step * dot(d, eps[0] + eps[1]) + dot(d, independent)) / (2 * step * dot(d, d))
    assert (k[0] - published).abs().max() < 1e-10
    assert (k[0] - (0.5 + dot(d, n) / (2 * step * dot(d, d)))).abs().max() < 1e-10
    assert (k[0] + k[1] - 1).abs().max() < 1e-12
    moved = -2 * step * (eps[1] + k[0][:, None, None] * d) + n
    without = n - (dot(d, n) / dot(d, d))[:, None, None] * d
    assert (moved - (-step * (eps[0] + eps[1]) + without)).abs().max() < 1e-12
    change = log_density_step(eps, moved, step, s)
    assert (change[0] - change[1]).abs().max() < 1e-10


def test_log_density_step_by_hand() -> None:
    """dlog q = -(D / s) |e|^2 - <e, dx> / s with e = (1, 2), dx = (3, -1), D = .5, s = 2: -1.25 - .5."""
    eps = torch.tensor([[[[1.0, 2.0]]]])
    assert log_density_step(eps, torch.tensor([[[3.0, -1.0]]]), 0.5, 2.0).item() == pytest.approx(-1.75)


def test_the_tracked_density_is_the_density() -> None:
    """Over a fine run log q changes by the log density of the noised mixture, up to the discretisation."""
    changes = []
    for steps in (250, 1000):
        x, g = ONE.means[0] + (80**2 + 0.08) ** 0.5 * _normal(200, 1, 2), _generator(1)
        levels, tracked, path = karras(steps, 0.05, 80), [], [x]

        def record(x: torch.Tensor, sigma: torch.Tensor, path: list[torch.Tensor] = path) -> torch.Tensor:
            path.append(x)
            return ONE.denoise(x, sigma)

        superpose(
            [record],
            x,
            levels[:-1],
            lambda g=g: torch.randn(200, 1, 2, generator=g, dtype=torch.float64),  # type: ignore[misc]
            mix_or(1.0, [1.0]),
            watch=lambda i, k, q, tracked=tracked: tracked.append(q[0]),  # type: ignore[misc]
        )
        # From the first level to the one before last: the last x is not seen by the denoiser.
        exact = (ONE.log_density(path[-1], levels[-3]) - ONE.log_density(path[1], levels[0]))[:, 0]
        changes.append((tracked[-2] - exact).abs().mean().item())
    # Half an order per path, of a change by about 11.
    assert changes[1] < 0.6 * changes[0]
    assert changes[1] < 0.4


def test_or_with_a_large_temperature_follows_the_likelier_parent_and_none_at_zero() -> None:
    log_q = torch.tensor([[0.0, -3.0], [-1.0, 2.0]], dtype=torch.float64)
    eps = torch.zeros(2, 2, 1, 1)
    assert mix_or(100.0, [0.5, 0.5])(eps, 0.1, eps[0], log_q).round(decimals=6).tolist() == [[1, 0], [0, 1]]
    assert mix_or(0.0, [0.5, 0.5])(eps, 0.1, eps[0], log_q).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert mix_or(0.0, [0.25, 0.75])(eps, 0.1, eps[0], log_q)[:, 0].tolist() == pytest.approx([0.25, 0.75])
    assert mix_or(1.0, [0.5, 0.5])(eps, 0.1, eps[0], log_q)[0, 0].item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_identical_parents_under_and_are_the_ancestral_sampler() -> None:
    parent = make("edm-mlp").eval()
    for parameter in parent.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=_generator(4))
    parent.config.sampler = SamplerConfig("ddpm", 10)
    observation = {"observation.state": torch.rand(3, 2, 2, generator=_generator())}
    with torch.inference_mode():
        wanted = parent.predict(observation, _generator(1))
        found = compose([parent, parent], operator="and").predict(observation, _generator(1))
    assert torch.isfinite(found).all()
    assert torch.allclose(found, wanted, atol=1e-6)


def test_and_is_the_even_mean_but_for_the_noise_along_one_direction() -> None:
    """The control of GPC section 6: with 160 numbers a chunk AND and w = .5 under the same sampler are close."""
    denoisers = [lambda x, s: 0.9 * x / (1 + s), lambda x, s: 0.8 * x / (1 + s) + 0.1]
    x, levels = 10 * _normal(200, 16, 10), karras(30, 0.02, 10)

    def run(mixing: object) -> torch.Tensor:
        g = _generator(5)
        draw = lambda: torch.randn(200, 16, 10, generator=g, dtype=torch.float64)  # noqa: E731
        return superpose(denoisers, x, levels, draw, mixing)  # type: ignore[arg-type]

    even, both = run(mix_or(0.0, [0.5, 0.5])), run(mix_and)
    g = _generator(5)
    reference = ddpm(
        lambda x, s: 0.5 * denoisers[0](x, s) + 0.5 * denoisers[1](x, s),
        x,
        levels,
        noise=lambda: torch.randn(200, 16, 10, generator=g, dtype=torch.float64),
    )
    assert (even - reference).abs().max() < 1e-9
    assert 0 < (both - even).square().mean().sqrt() < 0.1 * even.std()


def test_or_keeps_both_modes_the_mean_goes_between_and_and_lands_on_equal_density() -> None:
    left, right = (Mixture([1.0], [[m, 0.0]], [0.01]) for m in (-0.6, 0.6))
    parents = [
        exact_parent(m.denoise, p, 2, sampler=SamplerConfig("ddpm", 60, "karras"))
        for m, p in zip((left, right), (EDM(sigma_max=80.0), EDM(sigma_max=80.0)), strict=True)
    ]
    whole = compose(parents)
    with torch.inference_mode():
        samples = {
            name: whole.with_weights((0.5, 0.5), name).predict(state(500), _generator())[:, 0].double()
            for name in ("convex", "or", "and")
        }
    on_left, on_right = ((samples["or"][:, 0] - m).abs() < 0.35 for m in (-0.6, 0.6))
    assert on_left.double().mean() > 0.3
    assert on_right.double().mean() > 0.3
    assert (on_left | on_right).double().mean() > 0.95
    assert samples["convex"][:, 0].abs().max() < 0.6
    # On the set of equal density, x = 0, and spread along it.
    assert samples["and"][:, 0].abs().max() < 0.1
    assert samples["and"][:, 1].std() == pytest.approx(0.1, rel=0.15)
    assert samples["convex"][:, 0].std() > 3 * samples["and"][:, 0].std()


def test_operators_accept_mixed_parents_and_refuse_what_they_do_not_take() -> None:
    parents = [exact_parent(ONE.denoise, VP(clip=None), 2), exact_parent(TWO.denoise, Flow(), 2)]
    for operator in ("or", "and"):
        composed = compose(parents, operator=operator)
        assert composed.config.sampler.name == "ddpm"
        chunk = composed.predict(state(8), [_generator(i) for i in range(8)])
        assert torch.isfinite(chunk).all()
        alone = composed.predict({k: v[3:4] for k, v in state(8).items()}, [_generator(3)])
        assert torch.allclose(chunk[3], alone[0], atol=1e-4), "a row does not depend on its neighbours"
        with pytest.raises(RobopolicyError, match="must be 'ddpm', is 'euler'"):
            compose(parents, operator=operator, sampler=SamplerConfig("euler", 10, "karras"))
    with pytest.raises(RobopolicyError, match="takes equal weights"):
        compose(parents, (0.3, 0.7), "and")
    with pytest.raises(RobopolicyError, match="Did you mean 'and'"):
        compose(parents, operator="amd")  # type: ignore[arg-type]
