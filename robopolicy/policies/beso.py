"""BESO (Reuss et al., RSS 2023): goal-conditioned score-based diffusion, sampled in three steps.

A preconditioned denoiser (Karras et al. 2022) learns from unsegmented play which actions lead from the present
observations to a goal, where goals are later observations of the same episode. The network is a GPT over
[noise level, goal, state, action, state, action, ...] that denoises all actions of the window; one action is executed
per control step, and those already executed are given back as context. Steps, sampler, schedule and guidance are
chosen after training. With `VPConfig` as its process the same network is a DDPM, for comparisons at equal size.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.diffusion.noise import Generators, rand, randn
from robopolicy.diffusion.processes import EDM, NoiseProcess
from robopolicy.diffusion.samplers import guided, sampler
from robopolicy.diffusion.schedules import schedule
from robopolicy.diffusion.sigma import LogLogistic, LogNormal, LogUniform, SigmaDistribution, Uniform
from robopolicy.errors import FeatureMismatch, RobopolicyError, unknown
from robopolicy.features import Feature, FeatureSpec
from robopolicy.nn.encoder import ObservationEncoder
from robopolicy.nn.mlp import ResidualMLP
from robopolicy.nn.normalizer import Normalizer
from robopolicy.policies.base import Batch, GoalConditioned, Metrics, NormalizationConfig, chunk_error
from robopolicy.policies.diffusion import (
    Denoiser,
    DiffusionConfig,
    DiffusionPolicy,
    MLPConfig,
    NetworkConfig,
    ProcessConfig,
    SamplerConfig,
)


@dataclass
class GPTConfig(NetworkConfig):
    """The published block-push network; the kitchen's is width 360, 6 layers, 6 heads, dropout 0.3 and 0."""

    kind: ClassVar[str] = "gpt"
    width: int = 240
    layers: int = 4
    heads: int = 12
    attention_dropout: float = 0.05
    residual_dropout: float = 0.05
    embedding_dropout: float = 0.0
    causal: bool = True
    """Tokens see earlier ones only, as published. The denoiser of one row of a chunk depends on all noisy rows, so
    chunks (horizon above n_obs_steps) keep their modes apart better without."""


@dataclass
class BESOProcessConfig(ProcessConfig):
    """Preconditioned denoiser on a short range of noise levels; block-push was trained from 0.05 on."""

    kind: ClassVar[str] = "beso"
    sigma_data: float = 0.5
    """Standard deviation of the normalised actions."""
    sigma_min: float = 0.005
    sigma_max: float = 1.0
    levels: Literal["log_logistic", "log_normal", "log_uniform", "uniform"] = "log_logistic"
    """Distribution of the noise level while training; log_logistic has the median sigma_data, as published."""

    def build(self) -> NoiseProcess:
        low, high = self.sigma_min, self.sigma_max
        if not 0 < low < high:
            raise RobopolicyError(f"noise levels must satisfy 0 < sigma_min < sigma_max, are {low} and {high}")
        distributions: dict[str, SigmaDistribution] = {
            "log_logistic": LogLogistic(self.sigma_data, low, high),
            "log_normal": LogNormal(),
            "log_uniform": LogUniform(low, high),
            "uniform": Uniform(low, high),
        }
        if self.levels not in distributions:
            raise unknown("distribution of noise levels", self.levels, distributions)
        return EDM(self.sigma_data, low, high, training=distributions[self.levels])


@dataclass
class GuidedSamplerConfig(SamplerConfig):
    """How the trained denoiser becomes an action; all of it is free to change after training."""

    name: str = "ddim"
    steps: int = 3
    schedule: str = "linear"
    sigma_min: float = 0.0
    """Smallest positive noise level visited; 0 takes the process's. The published block-push results use 0.1."""
    sigma_max: float = 0.0
    """First noise level; 0 takes the process's."""
    rho: float = 7.0
    """Exponent of the schedule "karras"; 5 in BESO's published configurations."""
    guidance: float = 1.0
    """Classifier-free guidance: 1 follows the goal, 0 ignores it, above 1 exaggerates it (needs goal_dropout)."""
    past_actions: Literal["drift", "clamp", "noised"] = "drift"
    """What happens to executed actions while the next one is sampled. drift: they start clean and are denoised along
    with it, as published; clamp: reset to their clean values before every evaluation; noised: reset to their clean
    values plus noise of the present level, which is what the network is trained on."""


@dataclass
class BESOConfig(DiffusionConfig, GoalConditioned):
    """The published block-push policy; a horizon above n_obs_steps adds a chunk of future actions."""

    kind: ClassVar[str] = "beso"
    n_obs_steps: int = 5
    horizon: int = 5
    n_action_steps: int = 1
    normalization: NormalizationConfig = field(default_factory=lambda: NormalizationConfig("mean_std", "min_max"))
    network: NetworkConfig = field(default_factory=GPTConfig)
    process: ProcessConfig = field(default_factory=BESOProcessConfig)
    sampler: GuidedSamplerConfig = field(default_factory=GuidedSamplerConfig)
    goal_dropout: float = 0.0
    """Probability of zeroing the goal while training: 0 is C-BESO, 0.1 CFG-BESO."""
    goal_dropout_mode: Literal["per_sample", "elementwise"] = "per_sample"
    """per_sample zeroes whole goals, which is what guidance needs; elementwise zeroes single numbers, as the published
    code does, so that hardly any goal ever vanishes."""
    last_action_only: bool = False
    """Take the loss on the newest action only, not on all of the window."""


class _Block(nn.Module):
    """Pre-norm transformer block with self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.attention_dropout, self.causal = config.heads, config.attention_dropout, config.causal
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


class ScoreTransformer(nn.Module):
    """Maps noisy actions [B, w, D_a], a time [B], states [B, w, F] and a goal [B, G, S] to [B, w, D_a].

    Tokens are [time, g_1..g_G, s_1, a_1, ..., s_w, a_w], each seeing itself and those before it (`causal`), so that
    the outputs for a shorter window (w <= T_o) are exactly the first ones for a longer one. Further actions, up to
    the horizon, follow without states. A state and its action share one position, the time has none. With `goal_dim`
    None states and goals share one projection, as published for state observations.
    """

    def __init__(
        self, config: GPTConfig, action_dim: int, state_dim: int, goal_steps: int, goal_dim: int | None, horizon: int
    ) -> None:
        super().__init__()
        if config.width % config.heads:
            raise RobopolicyError(f"width {config.width} does not divide into {config.heads} heads")
        self.goal_steps = goal_steps
        self.state_in = nn.Linear(state_dim, config.width)
        self.separate_goal = nn.Linear(goal_dim, config.width) if goal_dim is not None else None
        self.action_in = nn.Linear(action_dim, config.width)
        self.time_in = nn.Linear(1, config.width)
        # The last position is never used; it is part of the published parameter count.
        self.position = nn.Parameter(torch.empty(1, goal_steps + horizon + 1, config.width))
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.Sequential(*(_Block(config) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, action_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.position, std=0.02)

    @property
    def goal_in(self) -> nn.Linear:
        """The projection of goals."""
        return self.separate_goal or self.state_in

    def forward(self, x: Tensor, time: Tensor, states: Tensor, goal: Tensor | None = None) -> Tensor:
        seen, goals = states.shape[1], self.goal_steps
        steps = self.position[:, goals : goals + x.shape[1]]
        actions = self.action_in(x) + steps
        pairs = torch.stack([self.state_in(states) + steps[:, :seen], actions[:, :seen]], dim=2).flatten(1, 2)
        tokens = [self.time_in(time[:, None, None].to(x.dtype)), pairs, actions[:, seen:]]
        if goal is not None:
            tokens.insert(1, self.goal_in(goal) + self.position[:, :goals])
        y = self.norm(self.blocks(self.dropout(torch.cat(tokens, dim=1))))[:, 1 + goals :]
        return self.head(torch.cat([y[:, 1 : 2 * seen : 2], y[:, 2 * seen :]], dim=1))


class ScoreMLP(nn.Module):
    """The same map by a residual MLP on the flattened window: the small network for two CPU cores."""

    def __init__(
        self, config: MLPConfig, action_dim: int, state_dim: int, n_obs_steps: int, goal_size: int, horizon: int
    ) -> None:
        super().__init__()
        condition = n_obs_steps * state_dim + goal_size
        self.body = ResidualMLP(action_dim, condition, horizon, config.width, config.blocks, config.dropout, 100.0)

    def forward(self, x: Tensor, time: Tensor, states: Tensor, goal: Tensor | None = None) -> Tensor:
        seen = states.flatten(1)
        return self.body(x, time, seen if goal is None else torch.cat([seen, goal.flatten(1)], dim=1))


class BESOPolicy(DiffusionPolicy):
    """Encoder, noise process and score transformer; the goal is `observation.goal` [B, T_o, G, S], or absent.

    In the paper's case, causal with H = T_o, an episode begins with a window of one step, which grows to T_o.
    """

    Config = BESOConfig
    config: BESOConfig
    uses_past_actions = True
    action_bounds: Tensor
    goal_mask: Tensor

    def __init__(self, config: BESOConfig, features: FeatureSpec, normalizer: Normalizer) -> None:
        goals = features.of_kind("goal")
        if len(goals) > 1 or any(len(g.shape) != 2 for g in goals):
            found = [f"{g.key} {list(g.shape)}" for g in goals]
            raise FeatureMismatch(f"BESO takes one goal of shape [G, S], the features have {', '.join(found)}")
        if config.horizon < config.n_obs_steps:
            raise RobopolicyError(
                f"BESO predicts the actions of its whole window: horizon must be at least n_obs_steps "
                f"{config.n_obs_steps}, is {config.horizon}"
            )
        if config.sampler.past_actions not in ("drift", "clamp", "noised"):
            raise unknown("past_actions", config.sampler.past_actions, ("drift", "clamp", "noised"))
        self._goal_feature: Feature | None = goals[0] if goals else None
        super().__init__(config, features, normalizer)
        # Unbounded until fitted, in scaled units.
        bounds = torch.tensor([-torch.inf, torch.inf])[:, None].repeat(1, self.action_dim)
        self.register_buffer("action_bounds", bounds)
        self.register_buffer("goal_mask", self._make_goal_mask(config), persistent=False)
        self.noise_levels()

    def _make_encoder(self, config: DiffusionConfig, features: FeatureSpec) -> ObservationEncoder:
        observed = FeatureSpec(tuple(f for f in features if f.kind != "goal"), features.rate_hz)
        return super()._make_encoder(config, observed)

    def _make_network(self, config: DiffusionConfig) -> nn.Module:
        assert isinstance(config, BESOConfig)
        net, goal = config.network, self._goal_feature
        steps, goal_dim = goal.shape if goal else (0, None)
        if isinstance(net, MLPConfig):
            size = steps * (goal_dim or 0)
            return ScoreMLP(net, self.action_dim, self.encoder.dim, config.n_obs_steps, size, config.horizon)
        if not isinstance(net, GPTConfig):
            raise RobopolicyError(f"BESO's network is 'gpt' or 'mlp', found {getattr(net, 'kind', net)!r}")
        if self.encoder.states == [config.goal_source] and not self.encoder.images:
            goal_dim = None
        return ScoreTransformer(net, self.action_dim, self.encoder.dim, steps, goal_dim, config.horizon)

    def _make_goal_mask(self, config: BESOConfig) -> Tensor:
        size = self._goal_feature.shape[1] if self._goal_feature else 0
        if not config.goal_dims or not size:
            return torch.ones(size)
        if not set(config.goal_dims) <= set(range(size)):
            raise RobopolicyError(f"goal_dims must be within 0..{size - 1}, are {list(config.goal_dims)}")
        mask = torch.zeros(size)
        mask[list(config.goal_dims)] = 1.0
        return mask

    @property
    def whole_windows(self) -> bool:
        net = self.config.network
        return self.config.horizon == self.config.n_obs_steps and isinstance(net, GPTConfig) and net.causal

    def fit(self, actions: np.ndarray) -> None:
        """Sampled actions are clipped to 1.1 times the range of the scaled training actions."""
        scaled = self.normalizer.normalize("action", torch.from_numpy(np.asarray(actions, np.float32)))
        low, high = scaled.amin(dim=0), scaled.amax(dim=0)
        # A tenth of the magnitude outwards: the published product would tighten a positive lower bound.
        self.action_bounds.copy_(torch.stack([low - 0.1 * low.abs(), high + 0.1 * high.abs()]))

    def _denoise(self, x: Tensor, time: Tensor, states: Tensor, goal: Tensor | None) -> Tensor:
        # The affine embedding wants a time of order one: EDM's ln(sigma)/4 as it is, DDPM's 0..100 divided by 100.
        return self.network(x, time * (self.process.time_scale / 100), states, goal)

    def _goal(self, batch: Batch) -> Tensor | None:
        """Scaled goal [B, G, S]; zero in masked dimensions and where there is no goal."""
        if self._goal_feature is None:
            return None
        key = self._goal_feature.key
        goal = self.normalizer.normalize(key, batch[key][:, -1]) * self.goal_mask
        if "goal_is_pad" in batch:
            goal = goal.masked_fill(batch["goal_is_pad"][:, None, None], 0.0)
        return goal

    def drop_goals(self, goal: Tensor, generator: torch.Generator) -> Tensor:
        """Zeroes goals [B, G, S], or their elements, with probability `goal_dropout`."""
        whole = self.config.goal_dropout_mode == "per_sample"
        shape = (len(goal), 1, 1) if whole else goal.shape
        return goal * (rand(shape, generator, goal.device) >= self.config.goal_dropout)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        states = self.encoder(batch, self.normalizer, generator if self.training else None)
        goal = self._goal(batch)
        if goal is not None and self.training and self.config.goal_dropout:
            goal = self.drop_goals(goal, generator)
        clean = self.normalizer.normalize("action", batch["action"])
        sample = self.process.training_sample(clean, generator)
        output = self._denoise(sample.input, sample.time, states, goal)
        rows = slice(self.first_action if self.config.last_action_only else 0, None)
        is_pad = batch["action_is_pad"][:, rows]
        return chunk_error(output[:, rows], sample.target[:, rows], is_pad, self.config.mask_padding), {}

    def denoiser(self, observation: Batch) -> Denoiser:
        """D(x, sigma) of a window of actions [B, H, D_a] in normalised units, guided towards the goal.

        Early in an episode the rows before its first observation repeat the first row after it.
        """
        states, goal = self.encoder(observation, self.normalizer), self._goal(observation)
        absent = self._absent(observation)
        if absent is not None:
            # The observations made come first, where a causal network neither sees nor needs the rest.
            rows = torch.arange(self.config.n_obs_steps, device=states.device)
            first, back = (rows + absent).clamp(max=len(rows) - 1), (rows - absent).clamp(min=0)
            states = _take(states, first)

        def towards(goal: Tensor | None) -> Denoiser:
            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                x = x if absent is None else _take(x, first)
                denoised = self.process.denoise(lambda u, t: self._denoise(u, t, states, goal), x, sigma)
                return denoised if absent is None else _take(denoised, back)

            return denoise

        if goal is None:
            return towards(None)
        return guided(towards(goal), towards(torch.zeros_like(goal)), self.config.sampler.guidance)

    def _absent(self, observation: Batch) -> Tensor | None:
        """[B, 1] observations of the window not yet made; None when there are none, or when histories are padded."""
        if "past.length" not in observation or not self.whole_windows:
            return None
        absent = (self.config.n_obs_steps - observation["past.length"]).to(self.device)
        return absent[:, None] if int(absent.max()) > 0 else None

    def noise_levels(self) -> Tensor:
        """The [steps + 1] noise levels an action is sampled along, ending in 0."""
        config = self.config.sampler
        if config.schedule != "native":
            low, high = config.sigma_min or self.process.sigma_min, config.sigma_max or self.process.sigma_max
            options = {"rho": config.rho} if config.schedule == "karras" else {}
            return schedule(config.schedule, config.steps, low, high, **options)
        if config.sigma_min or config.sigma_max:
            raise RobopolicyError("schedule 'native' has its own noise levels: leave sigma_min and sigma_max at 0")
        return self.process.sigmas(config.steps)

    def predict(self, observation: Batch, generator: Generators) -> Tensor:
        batch = len(next(iter(observation.values())))
        shape = (batch, self.config.horizon, self.action_dim)
        sigmas = self.noise_levels()
        x = self.process.initial(shape, float(sigmas[0]), generator, self.device)
        denoiser = self.sampled(observation).denoiser(observation)
        if "past.action" in observation:
            x, denoiser = self.with_past(observation, x, denoiser, generator)
        denoiser = self.continued(observation, denoiser)
        sample = sampler(self.config.sampler.name)
        chunk = sample(denoiser, x, sigmas, noise=lambda: randn(shape, generator, self.device))
        chunk = torch.minimum(torch.maximum(chunk, self.action_bounds[0]), self.action_bounds[1])
        return self.normalizer.unnormalize("action", chunk)

    def with_past(
        self, observation: Batch, x: Tensor, denoiser: Denoiser, generator: Generators
    ) -> tuple[Tensor, Denoiser]:
        """The start x with the executed actions in their rows, and a denoiser that keeps them there when asked to."""
        first, mode = self.first_action, self.config.sampler.past_actions
        rows = torch.arange(x.shape[1], device=x.device)
        executed = (rows < first) & (rows > first - observation["past.length"][:, None])
        past = torch.zeros_like(x)
        past[:, :first] = self.normalizer.normalize("action", observation["past.action"])
        mask = executed[..., None]
        if mode == "drift":
            return torch.where(mask, past, x), denoiser
        noise = randn(x.shape, generator, x.device) if mode == "noised" else torch.zeros_like(x)
        return x, lambda x, sigma: denoiser(torch.where(mask, past + sigma * noise, x), sigma)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [B, w] of x [B, w, D]."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
