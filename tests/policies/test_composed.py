"""Composition of parents: the algebra, the degenerate cases, the rules, and a checkpoint like any other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from composition import ExactPolicy, Mixture, exact_parent, fitted, spec_of, state, wasserstein
from toys import MLP, SPEC, STATE, make

from robopolicy.configs import to_dict
from robopolicy.diffusion.processes import EDM, VP, Flow, NoiseProcess
from robopolicy.diffusion.samplers import euler, heun
from robopolicy.diffusion.schedules import karras
from robopolicy.errors import RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.policies.base import Policy
from robopolicy.policies.beso import BESOConfig, GPTConfig, GuidedSamplerConfig
from robopolicy.policies.composed import TERMINAL_SIGNAL, check_terminal_signal, compose
from robopolicy.policies.diffusion import DiffusionConfig, EDMConfig, SamplerConfig
from robopolicy.training import checkpoint

LEFT = Mixture([0.3, 0.7], [[-0.6], [0.5]], [0.02, 0.04])
RIGHT = Mixture([0.6, 0.4], [[-0.2], [0.9]], [0.05, 0.03])
PROCESSES: dict[str, Callable[[], NoiseProcess]] = {
    "epsilon": lambda: VP(clip=None),
    "sample": lambda: VP(prediction="sample", clip=None),
    "v": lambda: VP(prediction="v", clip=None),
    "edm": lambda: EDM(sigma_max=80.0),
    "flow": lambda: Flow(),
}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noisy(n: int, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """n pairs of a noise level and an x at it, [n, 1, 1] and [n]."""
    g = _generator(3)
    sigma = levels[torch.randint(len(levels), (n,), generator=g)]
    clean = torch.rand(n, 1, 1, generator=g, dtype=torch.float64) * 2 - 1
    return clean + sigma[:, None, None] * torch.randn(n, 1, 1, generator=g, dtype=torch.float64), sigma


@pytest.mark.parametrize("kinds", [("epsilon", "v"), ("sample", "flow"), ("epsilon", "flow"), ("edm", "flow")])
@pytest.mark.parametrize("w", [0.2, 0.5])
def test_the_composed_score_is_the_weighted_mean_of_scores_whatever_the_networks_output(
    kinds: tuple[str, str], w: float
) -> None:
    parents = [exact_parent(m.denoise, PROCESSES[k]()) for m, k in zip((LEFT, RIGHT), kinds, strict=True)]
    composed = compose(parents, (w, 1 - w))
    x, sigma = _noisy(1000, VP().levels[20:90])
    denoised = composed.denoiser(state(1000))(x, sigma)
    square = sigma[:, None, None] ** 2
    score = (denoised - x) / square
    wanted = w * LEFT.score(x, sigma[:, None, None]) + (1 - w) * RIGHT.score(x, sigma[:, None, None])
    # Scores are compared in units of the noise, where they have unit size at every level.
    assert ((score - wanted) * square.sqrt()).abs().max() < 1e-8


@pytest.mark.parametrize("kind", list(PROCESSES))
def test_conversions_to_noise_and_clean_chunks_return(kind: str) -> None:
    """Row by row of the table: network output -> D and e -> network output, 1e-10."""
    process, g = PROCESSES[kind](), _generator()
    sigma = (torch.rand(500, 1, 1, generator=g, dtype=torch.float64) * 8 - 4).exp()
    clean, noise = (torch.randn(500, 1, 1, generator=g, dtype=torch.float64) for _ in range(2))
    x = clean + sigma * noise
    c_in, c_skip, c_out = process.preconditioning(sigma)
    output = process.target(clean, noise, sigma)
    denoised = c_skip * x + c_out * output
    # What the target says of the clean chunk and the noise is what went in.
    assert (denoised - clean).abs().max() < 1e-10
    assert ((x - denoised) / sigma - noise).abs().max() < 1e-10
    assert (process.target(denoised, (x - denoised) / sigma, sigma) - output).abs().max() < 1e-10
    # The published formulas of each family, in its own (alpha, sigma) and noisy chunk tau.
    tau = c_in * x
    alpha, spread = c_in, c_in * sigma
    if kind == "epsilon":
        assert ((tau - spread * output) / alpha - clean).abs().max() < 1e-10
    if kind == "sample":
        assert ((tau - alpha * output) / spread - noise).abs().max() < 1e-10
    if kind == "v":
        assert (alpha * output + spread * tau - noise).abs().max() < 1e-10
        assert (alpha * tau - spread * output - clean).abs().max() < 1e-10
    if kind == "flow":
        assert (tau + (1 - spread) * output - noise).abs().max() < 1e-10
        assert (tau - spread * output - clean).abs().max() < 1e-10
        # The general path u = alpha' a + sigma' e with alpha' = -1, sigma' = 1, and the reversed clock u' = -u.
        assert ((alpha * output + tau) / (alpha + spread) - noise).abs().max() < 1e-10
        assert ((tau - spread * output) / (alpha + spread) - clean).abs().max() < 1e-10
        assert (tau - alpha * -output - noise).abs().max() < 1e-10


@pytest.mark.parametrize("w", [0.0, 0.3, 0.5, 1.0])
def test_equal_gaussians_compose_to_the_gaussian_between(w: float) -> None:
    variance, n = 0.05, 10_000
    means = (-0.5, 0.7)
    parents = [
        exact_parent(Mixture([1.0], [[m]], [variance]).denoise, p, sampler=SamplerConfig("heun", 40))
        for m, p in zip(means, (EDM(sigma_max=80.0), Flow()), strict=True)
    ]
    with torch.inference_mode():
        schedule = "karras" if 0 < w < 1 else "native"
        composed = compose(parents, (w, 1 - w), sampler=SamplerConfig("heun", 40, schedule))
        chunk = composed.predict(state(n), _generator()).double()
    assert abs(chunk.mean() - (w * means[0] + (1 - w) * means[1])) < 3 * (variance / n) ** 0.5
    assert chunk.var() == pytest.approx(variance, rel=0.05)


def test_composing_clean_chunks_noise_or_velocities_gives_one_trajectory() -> None:
    parents = [exact_parent(m.denoise, Flow()) for m in (LEFT, RIGHT)]
    sigmas = karras(20, 0.01, 80.0)
    start = 80.0 * torch.randn(200, 1, 1, generator=_generator(), dtype=torch.float64)
    paths = {}
    for space in ("clean", "noise", "velocity", "score"):

        def mixed(x: torch.Tensor, sigma: torch.Tensor, space: str = space) -> torch.Tensor:
            a, b = (p.denoiser(state(200))(x, sigma) for p in parents)
            if space == "clean":
                return 0.3 * a + 0.7 * b
            if space == "noise":
                return x - sigma * (0.3 * (x - a) / sigma + 0.7 * (x - b) / sigma)
            if space == "score":
                return x + sigma**2 * (0.3 * (a - x) / sigma**2 + 0.7 * (b - x) / sigma**2)
            tau = x / (1 + sigma)
            t = sigma / (1 + sigma)
            return tau - t * (0.3 * (tau - a) / t + 0.7 * (tau - b) / t)

        paths[space] = euler(mixed, start, sigmas)
    composed = compose(parents, (0.3, 0.7)).denoiser(state(200))
    for path in paths.values():
        assert (path - euler(composed, start, sigmas)).abs().max() < 1e-6


def test_clipping_happens_once_after_composing() -> None:
    """Clean chunks 2 and -0.4 with clip 1: mean .8; clipping before would give .3."""
    parents = [exact_parent(lambda x, s, c=c: torch.full_like(x, c), VP(clip=1.0)) for c in (2.0, -0.4)]
    composed = compose(parents)
    assert composed.config.clip == 1.0
    one = torch.zeros(1, 1, 1)
    assert composed.denoiser(state(1))(one, torch.tensor(0.5)).item() == pytest.approx(0.8)
    assert compose(parents, (0.9, 0.1)).denoiser(state(1))(one, torch.tensor(0.5)).item() == 1.0
    assert compose(parents, (0.9, 0.1), clip=0.0).denoiser(state(1))(one, torch.tensor(0.5)).item() > 1.7
    assert parents[0].denoiser(state(1))(one, torch.tensor(0.5)).item() == 1.0, "a parent by itself still clips"


def _random(name: str, seed: int, sampler: SamplerConfig | None = None) -> Policy:
    policy = make(name).eval()
    torch.manual_seed(seed)
    # Zero-initialised heads of a new network would hide everything.
    for parameter in policy.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if sampler is not None:
        policy.config.sampler = sampler
    return policy


def make_beso(past_actions: str) -> Policy:
    """A small BESO without a goal; its window of three steps is its chunk."""
    sizes = {"n_obs_steps": 3, "horizon": 3, "n_action_steps": 1}
    network = GPTConfig(width=16, layers=1, heads=2, attention_dropout=0.0, residual_dropout=0.0)
    sampler = GuidedSamplerConfig(past_actions=past_actions)  # type: ignore[arg-type]
    policy = checkpoint.build(to_dict(BESOConfig(**sizes, network=network, sampler=sampler)), SPEC)  # type: ignore[arg-type]
    policy.normalizer.load_state_dict(fitted(SPEC).state_dict())
    for number, parameter in enumerate(policy.network.parameters()):
        torch.nn.init.normal_(parameter, std=0.2, generator=_generator(number))
    return policy.eval()


def _random_like(parent: Policy) -> Policy:
    """A diffusion policy with the windows of `parent`."""
    config = DiffusionConfig(n_obs_steps=3, horizon=3, n_action_steps=1, network=MLP, process=EDMConfig())
    policy = checkpoint.build(to_dict(config), SPEC)
    policy.normalizer.load_state_dict(parent.normalizer.state_dict())
    return policy.eval()


OBSERVATION = {"observation.state": torch.rand(3, 2, 2, generator=_generator(9))}


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("ddpm-unet", SamplerConfig("ddpm", 100)),
        ("ddpm-x0-mlp", SamplerConfig("ddim", 20)),
        ("flow-mlp", SamplerConfig("euler", 10)),
        ("edm-mlp", SamplerConfig("heun", 5, "karras")),
    ],
)
def test_all_weight_on_one_parent_is_that_parent_bit_for_bit(name: str, sampler: SamplerConfig) -> None:
    parent, other = _random(name, 1, sampler), _random("flow-unet" if name == "flow-mlp" else "flow-mlp", 2)
    calls = {"parent": 0, "other": 0}
    parent.network.register_forward_hook(lambda *_: calls.__setitem__("parent", calls["parent"] + 1))
    other.network.register_forward_hook(lambda *_: calls.__setitem__("other", calls["other"] + 1))
    with torch.inference_mode():
        wanted = parent.predict(OBSERVATION, _generator(5))
        alone = calls["parent"]
        first = compose([parent, other], (1, 0)).predict(OBSERVATION, _generator(5))
        assert torch.equal(first, wanted)
        assert calls == {"parent": 2 * alone, "other": 0}
        second = compose([other, parent], (0, 1)).predict(OBSERVATION, [_generator(i) for i in range(3)])
        assert torch.equal(second, parent.predict(OBSERVATION, [_generator(i) for i in range(3)]))
    assert calls["other"] == 0


def test_a_single_parent_may_sample_otherwise_and_keeps_its_own_settings() -> None:
    parent, other = _random("edm-mlp", 1), _random("flow-mlp", 2)
    steps = compose([parent, other], (1, 0), sampler=SamplerConfig("heun", 3, "karras"))
    with torch.inference_mode():
        found = steps.predict(OBSERVATION, _generator())
        assert parent.config.sampler == SamplerConfig("euler", 10)
        parent.config.sampler = SamplerConfig("heun", 3, "karras")
        assert torch.equal(found, parent.predict(OBSERVATION, _generator()))


@pytest.mark.parametrize("name", ["ddpm-unet", "edm-mlp", "flow-mlp"])
@pytest.mark.parametrize("w", [0.2, 0.5])
def test_two_identical_parents_are_that_parent(name: str, w: float) -> None:
    parent = _random(name, 1)
    with torch.inference_mode():
        wanted = parent.predict(OBSERVATION, _generator(5))
        found = compose([parent, parent], (w, 1 - w)).predict(OBSERVATION, _generator(5))
    assert (found - wanted).abs().max() < 1e-6 * max(1.0, wanted.abs().max().item())


def test_order_does_not_matter_and_a_third_without_weight_is_not_there() -> None:
    a, b, c = _random("edm-mlp", 1), _random("flow-mlp", 2), _random("ddpm-unet", 3)
    sampler = SamplerConfig("euler", 10, "karras")
    with torch.inference_mode():
        two = compose([a, b], (0.3, 0.7), sampler=sampler).predict(OBSERVATION, _generator())
        swapped = compose([b, a], (0.7, 0.3), sampler=sampler).predict(OBSERVATION, _generator())
        three = compose([a, b, c], (0.3, 0.7, 0), sampler=sampler, clip=0.0).predict(OBSERVATION, _generator())
    assert torch.allclose(two, swapped, atol=1e-6)
    assert torch.equal(two, three)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.7, 0.7), "must sum to 1, their sum is 1.4"),
        ((1.5, -0.5), "must not be negative"),
        ((0.5, float("nan")), "must not be negative"),
        ((1.0,), "1 for 2 parents"),
        ((0.2, 0.3, 0.5), "3 for 2 parents"),
    ],
)
def test_weights_off_the_simplex_are_refused(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(RobopolicyError, match=message):
        compose([make("edm-mlp"), make("flow-mlp")], weights)


def test_every_parent_is_called_once_per_step_and_encodes_once_per_chunk() -> None:
    parents = [exact_parent(m.denoise, p) for m, p in zip((LEFT, RIGHT, LEFT), (EDM(), Flow(), VP()), strict=True)]
    composed = compose(parents, (0.2, 0.3, 0.5), sampler=SamplerConfig("euler", 7, "karras"))
    composed.predict(state(4), _generator())
    assert [p.counts["calls"] for p in parents] == [7, 7, 7]
    assert [p.counts["encodings"] for p in parents] == [1, 1, 1]
    composed.with_weights((0.4, 0.6, 0.0), sampler=SamplerConfig("heun", 4, "karras")).predict(state(4), _generator())
    assert [p.counts["calls"] for p in parents] == [14, 14, 7], "Heun calls twice on all steps but the last"


def _unlike(**changes: object) -> Callable[[], list[Policy]]:
    def parents() -> list[Policy]:
        a, b = (exact_parent(LEFT.denoise, EDM(), 2, 4) for _ in range(2))
        for name, value in changes.items():
            if name in ("horizon", "n_obs_steps"):
                setattr(b.config, name, value)
            elif name == "features":
                b.features = value  # type: ignore[assignment]
            elif name == "values":
                b.normalizer = fitted(spec_of(2), "min_max", value)  # type: ignore[arg-type]
            else:
                b.process = value  # type: ignore[assignment]
        return [a, b]

    return parents


DELTA, ABSOLUTE = Control("pixel_target", "delta"), Control("pixel_target", "absolute")
REFUSED: list[tuple[str, Callable[[], list[Policy]], str]] = [
    ("R1", _unlike(features=spec_of(3)), r"\[2\].*\[3\]"),
    ("R2", _unlike(values=np.array([[-1.0, -1.0], [1.0, 1.00001]])), "dimension 1"),
    ("R3", _unlike(horizon=6), "4 rows, of .* 6"),
    ("R4", lambda: [make("edm-mlp"), make("bc")], "no denoiser"),
    ("R4", _unlike(process=VP(betas="linear")), "share 0.36 of signal"),
    ("R4", _unlike(process=EDM(sigma_min=90.0, sigma_max=100.0)), "no noise level in common"),
    ("R5", _unlike(n_obs_steps=3), "row 0 .* row 2"),
    ("R5", _unlike(features=FeatureSpec(spec_of(2).features, rate_hz=20)), "10 Hz.*20 Hz"),
    (
        "R5",
        _unlike(features=FeatureSpec((Feature("observation.state", (5,)), spec_of(2).action), 10)),
        r"'observation.state' shape.*\[1\].*\[5\]",
    ),
]


@pytest.mark.parametrize(("rule", "parents", "message"), REFUSED)
def test_parents_that_mean_different_numbers_are_refused_by_rule(
    rule: str, parents: Callable[[], list[Policy]], message: str
) -> None:
    with pytest.raises(RobopolicyError, match=f"(?s)^{rule}: .*{message}"):
        compose(parents())


def test_control_modes_and_dimension_names_are_part_of_r1() -> None:
    for ours, theirs, message in (
        ({"control": ABSOLUTE}, {"control": DELTA}, "control: .*absolute.*delta"),
        ({"names": ("x", "y")}, {"names": ("y", "x")}, "names"),
    ):
        a, b = (exact_parent(LEFT.denoise, EDM(), 2) for _ in range(2))
        a.features, b.features = spec_of(2, **ours), spec_of(2, **theirs)
        with pytest.raises(RobopolicyError, match=f"^R1: .*{message}"):
            compose([a, b])


def test_a_native_schedule_that_a_parent_does_not_know_breaks_r4() -> None:
    parents = [exact_parent(LEFT.denoise, EDM(sigma_max=10.0)), exact_parent(RIGHT.denoise, Flow())]
    with pytest.raises(RobopolicyError, match=r"R4: the native schedule of parent 2 visits .*1e"):
        compose(parents, (0.4, 0.6), sampler=SamplerConfig("euler", 10))
    levels = compose(parents, (0.4, 0.6)).noise_levels()
    assert levels[0] == 10.0
    assert levels[-2] == max(p.process.sigma_min for p in parents)


def test_chunks_of_two_lengths_meet_on_the_overlap() -> None:
    offset = [0.0]
    a = exact_parent(lambda x, s: 0.1 * x, EDM(), 2, 6)
    b = exact_parent(lambda x, s: -0.3 * x + offset[0], Flow(), 2, 4)
    composed = compose([a, b], (0.25, 0.75), overlap=True)
    x, sigma = torch.randn(3, 6, 2, generator=_generator()), torch.tensor(0.7)
    found = composed.denoiser(state(3))(x, sigma)
    alone_a, alone_b = a.denoiser(state(3))(x, sigma), b.denoiser(state(3))(x[:, :4], sigma)
    assert torch.equal(found[:, 4:], alone_a[:, 4:])
    assert torch.allclose(found[:, :4], 0.25 * alone_a[:, :4] + 0.75 * alone_b, atol=1e-7)
    offset[0] = 5.0
    changed = composed.denoiser(state(3))(x, sigma)
    assert torch.equal(changed[:, 4:], found[:, 4:])
    assert not torch.allclose(changed[:, :4], found[:, :4])
    assert composed.predict(state(3), _generator()).shape == (3, 6, 2)
    assert composed.with_weights((0, 1)).config.horizon == 4
    with pytest.raises(RobopolicyError, match=r"R3: .*'or' needs equal lengths"):
        compose([a, b], overlap=True, operator="or")


def test_the_terminal_signal_is_asserted() -> None:
    """abar_T of 100 scaled-linear betas is .485, of squared-cosine ones far below the limit."""
    scaled = VP()
    betas = torch.linspace(1e-4**0.5, 0.02**0.5, 100, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)
    scaled.levels = ((1 - abar) / abar).sqrt()
    scaled.sigma_max = float(scaled.levels[-1])
    assert float(abar[-1]) == pytest.approx(0.485, abs=1e-3)
    with pytest.raises(RobopolicyError, match=r"R4: .*share 0\.4[89] of signal"):
        check_terminal_signal(scaled)
    check_terminal_signal(VP(betas="squaredcos_cap_v2"))
    assert 1 / (1 + VP().sigma_max ** 2) < TERMINAL_SIGNAL


def test_gaussian_mixtures_of_a_diffusion_and_a_flow_parent() -> None:
    """Composed samples against samples of the analytic composed score; the record is benchmarks/gpc_mixture.py."""
    n = 20_000
    parents = [exact_parent(LEFT.denoise, VP(clip=None)), exact_parent(RIGHT.denoise, Flow())]
    composed = compose(parents, (0.4, 0.6), sampler=SamplerConfig("heun", 40, "karras"))

    def analytic(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x + sigma**2 * (0.4 * LEFT.score(x, sigma) + 0.6 * RIGHT.score(x, sigma))

    with torch.inference_mode():
        found = composed.predict(state(n), _generator()).double()
        start = 80 * torch.randn(n, 1, 1, generator=_generator(1), dtype=torch.float64)
        wanted = heun(analytic, start, karras(100, 0.005, 80))
    assert wasserstein(found, wanted) <= 0.02
    # The other way round is another distribution.
    other = composed.with_weights((0.6, 0.4), sampler=SamplerConfig("heun", 40, "karras"))
    assert wasserstein(other.predict(state(n), _generator()).double().detach(), wanted) > 0.04


def test_a_composed_policy_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    camera = Feature("observation.goal_point", (3,))
    wide = FeatureSpec((STATE, camera, SPEC.action), rate_hz=10)
    a, b = _random("edm-mlp", 1), make("flow-unet", wide).eval()
    composed = compose([a, b], (0.25, 0.75))
    assert composed.features.keys() == ["observation.state", "observation.goal_point", "action"]
    observation = {"observation.state": torch.rand(1, 2, 2), "observation.goal_point": torch.rand(1, 2, 3)}
    checkpoint.save(tmp_path / "c", composed, "task", observation, {"parents": ["a", "b"]})
    loaded, about = checkpoint.load(tmp_path / "c")
    assert about["task"] == "task"
    assert loaded.config == composed.config
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in composed.state_dict().items())
    with torch.inference_mode():
        wanted = composed.predict(observation, _generator(2))
        assert torch.equal(loaded.predict(observation, _generator(2)), wanted)
        # Zero-weight parents travel too, and the golden output shows a change in any of them.
        vertex = composed.with_weights((0, 1))
        before = vertex.golden(observation, _generator())
        next(a.network.parameters()).data.add_(0.1)
        assert not torch.equal(vertex.golden(observation, _generator()), before)


def test_the_weighted_loss_trains_both_parents() -> None:
    a, b = make("edm-mlp"), make("flow-mlp")
    composed = compose([a, b], (0.25, 0.75))
    batch = OBSERVATION | {"action": torch.rand(3, 4, 2), "action_is_pad": torch.zeros(3, 4, dtype=torch.bool)}
    loss, parts = composed.loss(batch, _generator())
    assert loss.item() == pytest.approx(0.25 * parts["parent_0"].item() + 0.75 * parts["parent_1"].item())
    g = _generator()
    assert parts["parent_0"].item() == a.loss(batch, g)[0].item()
    loss.backward()
    assert all(any(p.grad is not None for p in parent.parameters()) for parent in (a, b))


@pytest.mark.parametrize("mode", ["drift", "clamp", "noised"])
def test_executed_actions_reach_parents_that_condition_on_them(mode: str) -> None:
    """BESO's context: the composition of one policy with itself is that policy, and a different past shows."""
    parent = make_beso(past_actions=mode)
    g = _generator(3)
    seen = {
        "observation.state": torch.randn(2, 3, 2, generator=g),
        "past.action": torch.rand(2, 2, 2, generator=g) - 0.5,
        "past.length": torch.tensor([3, 2]),
    }
    composed = compose([parent, parent], (0.4, 0.6))
    assert composed.uses_past_actions
    assert not compose([parent, _random_like(parent)]).uses_past_actions
    with torch.inference_mode():
        other = seen | {"past.action": -seen["past.action"]}
        found = composed.predict(seen, _generator(5))
        alone = compose([parent, parent], (1, 0)).predict(seen, _generator(5))
        assert torch.equal(alone, parent.predict(seen, _generator(5)))
        if mode != "noised":  # which draws noise once per parent
            assert torch.allclose(found, parent.predict(seen, _generator(5)), atol=1e-5)
        assert not torch.allclose(found, composed.predict(other, _generator(5)), atol=1e-4)


def test_complementary_experts_do_better_together_and_a_useless_one_only_harms() -> None:
    """A knows x, B knows y: w = .5 beats both. Where B knows nothing, every interior weight is worse than A."""
    target = torch.tensor([0.4, -0.3], dtype=torch.float64)

    def expert(bias: tuple[float, float]) -> ExactPolicy:
        mixture = Mixture([1.0], [(target + torch.tensor(bias)).tolist()], [0.01])
        return exact_parent(mixture.denoise, EDM(sigma_max=80.0), 2, sampler=SamplerConfig("euler", 30, "karras"))

    def errors(parents: list[ExactPolicy]) -> list[float]:
        whole = compose(parents)
        found = []
        for w in torch.linspace(0, 1, 11).tolist():
            chunk = whole.with_weights((w, 1 - w)).predict(state(400), _generator()).double()
            found.append(float((chunk[:, 0] - target).square().sum(-1).mean()))
        return found

    with torch.inference_mode():
        curve = errors([expert((0.0, 0.5)), expert((0.5, 0.0))])
        assert curve[5] < min(curve[0], curve[-1]) / 1.5
        assert 0 < int(np.argmin(curve)) < 10
        useless = errors([expert((0.0, 0.0)), expert((0.6, 0.6))])
    assert all(e > useless[-1] for e in useless[:-1])
