"""General Policy Composition (Cao et al., ICLR 2026): several trained policies denoise one chunk together.

At every sampler step each parent says what clean chunk D_i(x, sigma) it expects behind the same noisy chunk, and the
sampler follows their weighted mean. Parents of any process (epsilon, sample or v of DDPM, EDM, flow) agree on what x
and sigma mean: all denoisers live in the frame x = a + sigma e, where equal sigma is equal signal-to-noise ratio.
Means of D_i are means of scores, of noise predictions and of velocities alike. Instead of a fixed mean, the operators
`or` and `and` mix by the parents' likelihoods (see `superposition`).

Composing needs parents that mean the same numbers. Refused are parents that break one of these rules:

R1  one action space: same dimensions in the same order, same frame and control mode;
R2  one action normaliser: noise is isotropic in one scaling only;
R3  one chunk length, or `overlap`: rows beyond a shorter chunk are left to the longer ones;
R4  a common noise level at every step: a range all parents were trained on, which begins in pure noise;
R5  the same observation time: equal rates, equal position of the present within a chunk, equal meaning of inputs.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robopolicy.diffusion.inpainting import inpainting
from robopolicy.diffusion.noise import Generators, randn
from robopolicy.diffusion.processes import VP, NoiseProcess
from robopolicy.diffusion.samplers import Denoiser, sampler
from robopolicy.diffusion.schedules import schedule
from robopolicy.errors import RobopolicyError, unknown
from robopolicy.features import ACTION, FeatureSpec
from robopolicy.nn.normalizer import Normalizer
from robopolicy.policies.base import Batch, Metrics, Policy, PolicyConfig
from robopolicy.policies.diffusion import SamplerConfig, unclipped
from robopolicy.policies.superposition import mix_and, mix_or, superpose
from robopolicy.registry import policy_class

Operator = Literal["convex", "and", "or"]
OPERATORS: tuple[str, ...] = ("convex", "and", "or")
SAME_SCALE = 1e-6
"""Largest difference of two action normalisers, relative to their scale (R2)."""
TERMINAL_SIGNAL = 1e-3
"""Largest share of signal, abar = 1 / (1 + sigma_max^2), that the noisiest level of a VP process may keep (R4)."""


@dataclass
class ComposedConfig(PolicyConfig):
    """What is composed; the parents' weights are in the same checkpoint."""

    kind: ClassVar[str] = "composed"
    parents: tuple[PolicyConfig, ...] = ()
    inputs: tuple[tuple[str, ...], ...] = ()
    """Observation keys of each parent, in its own order."""
    weights: tuple[float, ...] = ()
    """Shares of the parents, not negative, with sum 1."""
    operator: Operator = "convex"
    temperature: float = 1.0
    """T of the operator `or`: 0 keeps the weights, large values choose the likeliest parent."""
    overlap: bool = False
    """Allow chunks of different lengths (R3)."""
    clip: float = 0.0
    """Composed clean chunks are clipped to this magnitude (normalised units) while sampling; 0 does not clip. The
    parents' own clips are off: clipping before averaging would give another answer."""
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig("euler", 10, "karras"))
    """A named schedule spans the noise levels that all parents know; `native` is that of the heaviest parent. The
    operators `and` and `or` step by ancestral sampling, `ddpm`."""


class ComposedPolicy(Policy):
    """N parents and their weights. With all weight on one parent, that parent samples by itself, bit for bit.

    Parents are submodules, so the policy saves, loads and moves like any other. Parents without weight are never
    called. Each parent encodes its own observations, with its own normaliser, once per chunk.
    """

    Config = ComposedConfig
    config: ComposedConfig

    def __init__(
        self,
        config: ComposedConfig,
        features: FeatureSpec,
        normalizer: Normalizer,
        parents: Sequence[Policy] | None = None,
    ) -> None:
        """`parents` None builds untrained ones from their configurations."""
        super().__init__(config, features, normalizer)
        if parents is None:
            parents = [
                _build(c, features.select([*k, ACTION])) for c, k in zip(config.parents, config.inputs, strict=True)
            ]
        check_weights(config.weights, len(parents), config.operator)
        self.parents = nn.ModuleList(parents)
        self.active = [i for i, w in enumerate(config.weights) if w > 0]
        """Numbers of the parents with weight."""
        # Executed actions are given back to parents that condition on them, if all of them do.
        uses_past = all(parents[i].uses_past_actions for i in self.active)
        self.uses_past_actions = uses_past  # type: ignore[misc]
        if len(self.active) > 1:
            sampler(config.sampler.name)
            _check_ancestral(config)
            self.noise_levels()

    def _parent(self, i: int) -> Any:
        return self.parents[i]

    def row_shares(self) -> Tensor:
        """[N active, H, 1] float64: weight of each parent in each row of a chunk."""
        shares = torch.zeros(len(self.active), self.config.horizon, 1, dtype=torch.float64)
        for row, i in enumerate(self.active):
            shares[row, : self._parent(i).config.horizon] = self.config.weights[i]
        # Rows that all parents cover keep the weights as they are given.
        covered = shares.sum(0)
        return torch.where((covered - 1).abs() < 1e-9, shares, shares / covered)

    @property
    def first_action(self) -> int:
        return int(self._parent(self.active[0]).first_action)

    @property
    def driver(self) -> int:
        """Number of the heaviest parent, whose native schedule and initial noise are used."""
        return max(self.active, key=lambda i: self.config.weights[i])

    def with_weights(
        self, weights: Sequence[float], operator: Operator | None = None, sampler: SamplerConfig | None = None
    ) -> "ComposedPolicy":
        """The same parents (not copies) in other shares; `sampler` None chooses as `compose` does."""
        parents = [self._parent(i) for i in range(len(self.parents))]
        return _assemble(parents, tuple(weights), operator or self.config.operator, self.config, sampler)

    def observation_of(self, i: int, observation: Batch) -> Batch:
        """What parent i sees of a batch: its own keys, and as many of the newest steps as it was trained with."""
        steps = self.config.parents[i].n_obs_steps
        seen = {k: observation[k][:, -steps:] for k in self.config.inputs[i]}
        if self.uses_past_actions and "past.action" in observation:
            seen |= {k: observation[k] for k in ("past.action", "past.length")}
        return seen | {
            k: v[:, : self.config.parents[i].horizon] for k, v in observation.items() if k.startswith("prefix.")
        }

    @property
    def inpaints(self) -> bool:
        if len(self.active) == 1:
            return bool(self._parent(self.active[0]).inpaints)
        return self.config.operator == "convex"

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Weighted mean of the parents' own losses, to train them together."""
        total, metrics = torch.zeros((), device=self.device), {}
        for i in self.active:
            rows = self.config.parents[i].horizon
            chunk = {k: batch[k][:, :rows] for k in (ACTION, "action_is_pad")}
            loss, _ = self._parent(i).loss(self.observation_of(i, batch) | chunk, generator)
            total = total + self.config.weights[i] * loss
            metrics[f"parent_{i}"] = loss.detach()
        return total, metrics

    def denoisers(self, observation: Batch) -> list[Denoiser]:
        """The active parents' D(x, sigma), not clipped, each for the rows of x [B, H, D_a] that it covers."""

        def within(denoise: Denoiser, horizon: int) -> Denoiser:
            return lambda x, sigma: denoise(x[:, :horizon], sigma)

        return [
            within(
                unclipped(self._parent(i)).denoiser(self.observation_of(i, observation)),
                self.config.parents[i].horizon,
            )
            for i in self.active
        ]

    def denoiser(self, observation: Batch) -> Denoiser:
        """The convex composition of the parents' D(x, sigma) in normalised units, clipped once."""
        return self._mean(self.denoisers(observation), self.config.clip)

    def _mean(self, each: Sequence[Denoiser], clip: float = 0.0) -> Denoiser:
        shares = self.row_shares()

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            total = torch.zeros_like(x)
            for d, share in zip(each, shares.to(x.device, x.dtype), strict=True):
                clean = d(x, sigma)
                total[:, : clean.shape[1]] += share[: clean.shape[1]] * clean
            return total.clamp(-clip, clip) if clip else total

        return denoise

    def _continued(self, observation: Batch, each: Sequence[Denoiser]) -> Denoiser:
        if "prefix.action" not in observation:
            return self._mean(each, self.config.clip)
        prefix = self._parent(self.active[0]).normalizer.normalize(ACTION, observation["prefix.action"])
        return inpainting(self._mean(each), prefix, observation["prefix.weight"], self.config.clip or None)

    def noise_levels(self) -> Tensor:
        """The [steps + 1] noise levels a chunk is sampled along, ending in 0; levels some parent lacks break R4."""
        config, processes = self.config.sampler, [self._parent(i).process for i in self.active]
        low, high = max(p.sigma_min for p in processes), min(p.sigma_max for p in processes)
        if config.schedule != "native":
            return schedule(config.schedule, config.steps, low, high)
        sigmas: Tensor = self._parent(self.driver).process.sigmas(config.steps)
        if float(sigmas[0]) > high * (1 + 1e-6) or float(sigmas[-2]) < low * (1 - 1e-6):
            raise RobopolicyError(
                f"R4: the native schedule of parent {self.driver + 1} visits noise levels "
                f"{float(sigmas[-2]):.3g}..{float(sigmas[0]):.3g}, all parents know {low:.3g}..{high:.3g} only; "
                "name a schedule, such as karras"
            )
        return sigmas

    def _initial(self, shape: Sequence[int], sigma: float, generator: Generators) -> Tensor:
        processes: list[NoiseProcess] = [self._parent(i).process for i in self.active]
        if len({type(p) for p in processes}) == 1:
            return processes[0].initial(shape, sigma, generator, self.device)
        return sigma * randn(shape, generator, self.device)

    def predict(self, observation: Batch, generator: Generators) -> Tensor:
        if len(self.active) == 1:
            (i,) = self.active
            with _sampled_by(self._parent(i), self.config.sampler) as only:
                return only.predict(self.observation_of(i, observation), generator)
        config, sigmas = self.config, self.noise_levels()
        shape = (len(next(iter(observation.values()))), config.horizon, self.action_dim)
        x, each = self._initial(shape, float(sigmas[0]), generator), self.denoisers(observation)
        if "past.action" in observation and self.uses_past_actions:
            for row, i in enumerate(self.active):
                x, each[row] = self._parent(i).with_past(self.observation_of(i, observation), x, each[row], generator)

        def noise() -> Tensor:
            return randn(shape, generator, self.device)

        if config.operator == "convex":
            chunk = sampler(config.sampler.name)(self._continued(observation, each), x, sigmas, noise=noise)
        else:
            _check_ancestral(config)
            shares = [config.weights[i] for i in self.active]
            mixing = mix_and if config.operator == "and" else mix_or(config.temperature, shares)
            chunk = superpose(each, x, sigmas, noise, mixing, config.clip)
        return self._parent(self.active[0]).normalizer.unnormalize(ACTION, chunk)

    def golden(self, observation: Batch, generator: torch.Generator) -> Tensor:
        """The golden outputs of all parents, with weight or without, one after the other."""
        each = [
            self._parent(i).golden(self.observation_of(i, observation), generator) for i in range(len(self.parents))
        ]
        return torch.cat(each, dim=1)


def compose(
    parents: Sequence[Policy],
    weights: Sequence[float] | None = None,
    operator: Operator = "convex",
    *,
    names: Sequence[str] | None = None,
    overlap: bool = False,
    temperature: float = 1.0,
    clip: float | None = None,
    sampler: SamplerConfig | None = None,
) -> ComposedPolicy:
    """Composes trained `parents`, which stay as they are and become parts of the result.

    `weights` None shares equally. `sampler` None takes that of the heaviest parent where all parents have one noise
    process, otherwise Euler steps, as many as the slowest parent takes, over Karras levels of the range they share.
    `clip` None takes the tightest of the parents' own. `names` stand for the parents in errors. RobopolicyError
    names the rule (R1..R5) that the parents break, or what is wrong with the weights.
    """
    labels = list(names) if names else [f"parent {i + 1} ({p.config.kind})" for i, p in enumerate(parents)]  # type: ignore[attr-defined]
    if len(parents) < 2:
        raise RobopolicyError(f"composing needs at least two parents, got {len(parents)}")
    # One module cannot be two parts of a checkpoint.
    distinct = [p if p not in parents[:i] else copy.deepcopy(p) for i, p in enumerate(parents)]
    check_rules(distinct, labels, overlap, operator)
    share = tuple(float(w) for w in weights) if weights is not None else (1 / len(parents),) * len(parents)
    clips = [float(c) for p in distinct if (c := getattr(p.process, "clip", None))]
    options = ComposedConfig(
        temperature=temperature,
        overlap=overlap,
        clip=min(clips, default=0.0) if clip is None else clip,
    )
    return _assemble(distinct, share, operator, options, sampler)


def _assemble(
    parents: Sequence[Any],
    weights: tuple[float, ...],
    operator: Operator,
    options: ComposedConfig,
    sampler: SamplerConfig | None = None,
) -> ComposedPolicy:
    check_weights(weights, len(parents), operator)
    active = [p for p, w in zip(parents, weights, strict=True) if w > 0]
    heaviest = parents[max(range(len(parents)), key=lambda i: weights[i])]
    # A chunk is as long as its longest parent; no parent is asked to act beyond what it was trained to execute.
    config = ComposedConfig(
        n_obs_steps=max(p.config.n_obs_steps for p in active),
        horizon=max(p.config.horizon for p in active),
        n_action_steps=min(p.config.n_action_steps for p in active),
        normalization=replace(heaviest.config.normalization),
        parents=tuple(p.config for p in parents),
        inputs=tuple(tuple(f.key for f in p.features.inputs) for p in parents),
        weights=weights,
        operator=operator,
        temperature=options.temperature,
        overlap=options.overlap,
        clip=options.clip,
        sampler=replace(sampler) if sampler else _default_sampler(active, heaviest, operator),
    )
    features = union([p.features for p in parents])
    normalizer = Normalizer(features.features)
    state = {k: v for p in reversed(parents) for k, v in p.normalizer.state_dict().items()}
    normalizer.load_state_dict(state)
    composed = ComposedPolicy(config, features, normalizer, parents)
    composed.to(parents[0].device).train(parents[0].training)
    return composed


def _default_sampler(active: Sequence[Any], heaviest: Any, operator: Operator) -> SamplerConfig:
    settings: list[SamplerConfig] = [p.config.sampler for p in active]
    ranges = {(type(p.process), p.process.sigma_min, p.process.sigma_max) for p in active}
    if len(ranges) == 1:
        own = heaviest.config.sampler
        chosen = SamplerConfig(own.name, own.steps, own.schedule)
    else:
        chosen = SamplerConfig("euler", max(s.steps for s in settings), "karras")
    return replace(chosen, name="ddpm") if operator != "convex" and len(active) > 1 else chosen


def _build(config: Any, features: FeatureSpec) -> Policy:
    built: Policy = policy_class(config.kind)(config, features, Normalizer(features.features))
    return built


@contextmanager
def _sampled_by(parent: Any, settings: SamplerConfig) -> Iterator[Any]:
    """The parent, sampling with these settings while the block runs."""
    names = [f.name for f in fields(SamplerConfig)]
    own = {name: getattr(parent.config.sampler, name) for name in names}
    try:
        for name in names:
            setattr(parent.config.sampler, name, getattr(settings, name))
        yield parent
    finally:
        for name, value in own.items():
            setattr(parent.config.sampler, name, value)


def union(specs: Sequence[FeatureSpec]) -> FeatureSpec:
    """The inputs of all `specs`, each key once, and the first one's action."""
    inputs = {f.key: f for spec in reversed(specs) for f in reversed(spec.inputs)}
    order = [f.key for spec in specs for f in spec.inputs]
    ordered = sorted(inputs.values(), key=lambda f: order.index(f.key))
    return FeatureSpec((*ordered, specs[0].action), specs[0].rate_hz)


def check_weights(weights: Sequence[float], count: int, operator: str = "convex") -> None:
    """Raises unless `weights` are `count` numbers on the simplex, and equal for the operator `and`."""
    text = " ".join(f"{w:g}" for w in weights)
    if operator not in OPERATORS:
        raise unknown("operator", operator, OPERATORS)
    if len(weights) != count:
        raise RobopolicyError(f"weights {text}: {len(weights)} for {count} parents")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or abs(sum(weights) - 1) > 1e-6:
        raise RobopolicyError(f"weights {text}: must not be negative and must sum to 1, their sum is {sum(weights):g}")
    positive = [w for w in weights if w > 0]
    if operator == "and" and max(positive) - min(positive) > 1e-9:
        raise RobopolicyError(f"weights {text}: the operator 'and' makes the parents equal, it takes equal weights")


def _check_ancestral(config: ComposedConfig) -> None:
    if config.operator != "convex" and config.sampler.name != "ddpm":
        raise RobopolicyError(
            f"the operator {config.operator!r} steps by ancestral sampling: sampler must be 'ddpm', is "
            f"{config.sampler.name!r}"
        )


def check_rules(parents: Sequence[Any], names: Sequence[str], overlap: bool, operator: str = "convex") -> None:
    """Raises RobopolicyError, which names the rule, unless all `parents` can be composed with the first one."""
    for parent, name in zip(parents, names, strict=True):
        if not hasattr(parent, "denoiser") or not hasattr(parent, "process"):
            raise RobopolicyError(f"R4: {name} has no denoiser and noise process of its own: nothing to compose")
        check_terminal_signal(parent.process, name)
    first, ours = parents[0], names[0]
    for parent, theirs in zip(parents[1:], names[1:], strict=True):
        actions = [FeatureSpec((p.features.action,)) for p in (first, parent)]
        if lines := actions[0].compare(actions[1], ours, theirs):
            raise RobopolicyError(f"R1: different action spaces: {'; '.join(lines)}")
        _check_scale(first, parent, ours, theirs)
        if first.config.horizon != parent.config.horizon:
            lengths = f"chunks of {ours} have {first.config.horizon} rows, of {theirs} {parent.config.horizon}"
            if not overlap:
                raise RobopolicyError(f"R3: {lengths}; allow it with overlap, the rest is left to the longer one")
            if operator != "convex":
                raise RobopolicyError(f"R3: {lengths}; the operator {operator!r} needs equal lengths")
        if first.first_action != parent.first_action:
            raise RobopolicyError(
                f"R5: the present is row {first.first_action} of the chunks of {ours}, row {parent.first_action} of "
                f"{theirs}"
            )
        shared = [f.key for f in first.features.inputs if f.key in parent.features]
        specs = [replace(p.features.select(shared), rate_hz=p.features.rate_hz) for p in (first, parent)]
        if lines := specs[0].compare(specs[1], ours, theirs):
            raise RobopolicyError(f"R5: different observations: {'; '.join(lines)}")
    low, high = max(p.process.sigma_min for p in parents), min(p.process.sigma_max for p in parents)
    if low >= high:
        ranges = ", ".join(
            f"{n} {p.process.sigma_min:.3g}..{p.process.sigma_max:.3g}" for n, p in zip(names, parents, strict=True)
        )
        raise RobopolicyError(f"R4: the parents have no noise level in common: {ranges}")


def _check_scale(first: Any, other: Any, ours: str, theirs: str) -> None:
    """R2: both map -1, 0 and 1 to the same physical actions."""
    size = first.features.action.shape
    points = torch.tensor([-1.0, 0.0, 1.0]).view(3, *(1,) * len(size)).expand(3, *size)
    a, b = (p.normalizer.unnormalize(ACTION, points.to(p.device)).double().cpu() for p in (first, other))
    width = (a[2] - a[0]).abs() / 2
    worst = ((a - b).abs() / width).amax(0).flatten()
    if float(worst.max()) > SAME_SCALE:
        d = int(worst.argmax())
        limits = [f"{float(v[0].flatten()[d]):g}..{float(v[2].flatten()[d]):g}" for v in (a, b)]
        raise RobopolicyError(
            f"R2: different action normalisers: -1..1 means {limits[0]} in dimension {d} for {ours}, {limits[1]} for "
            f"{theirs}; train one with the other's policy.normalization.action and data"
        )


def check_terminal_signal(process: NoiseProcess, name: str = "the process") -> None:
    """R4: sampling starts in pure noise, so a VP process must have been trained up to it (GPC section 6)."""
    left = 1 / (1 + process.sigma_max**2)
    if isinstance(process, VP) and left >= TERMINAL_SIGNAL:
        raise RobopolicyError(
            f"R4: the noisiest level of {name} keeps a share {left:.2g} of signal (abar), at most "
            f"{TERMINAL_SIGNAL:g} may be left where sampling starts; its betas need more steps or another schedule"
        )
