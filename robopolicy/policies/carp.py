"""CARP (Gong et al., ICCV 2025): coarse-to-fine autoregressive prediction of a whole action chunk.

Stage 1 trains a tokenizer that turns a chunk into residual token maps of 1, 2, 3 and 4 positions per action dimension
(`robopolicy.nn.vq`). Stage 2 freezes it and trains a transformer to predict all tokens of a scale at once from the
observation and the coarser scales (`robopolicy.nn.scale_transformer`). A chunk costs one pass per scale: four.

Tokens of one scale are drawn independently of each other, so a sampled chunk may take one action dimension from one
mode and another from a second one; with `top_k` 1, the default, the most likely tokens make one fixed choice.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robopolicy.diffusion.noise import Generators, randn
from robopolicy.errors import RobopolicyError
from robopolicy.features import TASK_INDEX, FeatureSpec
from robopolicy.nn.encoder import ObservationEncoder
from robopolicy.nn.normalizer import Normalizer
from robopolicy.nn.scale_transformer import Cache, ScaleTransformer
from robopolicy.nn.vision import VisionConfig
from robopolicy.nn.vq import MultiScaleTokenizer, TokenizerConfig
from robopolicy.policies.base import Batch, Metrics, Policy, PolicyConfig, Stage

STATE = "observation.state"
TASK_DIM = 3
"""Size of the task embedding of a multi-task policy."""


@dataclass
class CarpConfig(PolicyConfig):
    """CARP; the defaults are the published ones for state observations."""

    kind: ClassVar[str] = "carp"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    depth: int = 8
    """Blocks, and heads."""
    width: int = 64
    top_k: int = 1
    """1 takes the most likely token; above, one of the k most likely is drawn."""
    tasks: int = 0
    """Number of instructions of a multi-task policy, which then reads `task_index`; 0 reads none."""
    anchor: tuple[int, ...] = ()
    """Dimensions of observation.state, one for each of the action and in its unit, from whose newest values chunks are
    measured; empty codes actions as they are, as published. A chunk that starts where the robot is takes fewer codes
    and is right to fewer pixels; only for actions that are absolute positions."""
    anchor_range: float = 0.3
    """Distance from the anchor, in normalised actions, that the tokenizer sees as 1."""
    vision: VisionConfig = field(default_factory=VisionConfig)


class CarpPolicy(Policy):
    """Tokenizer and coarse-to-fine transformer."""

    Config = CarpConfig
    config: CarpConfig

    def __init__(self, config: CarpConfig, features: FeatureSpec, normalizer: Normalizer) -> None:
        super().__init__(config, features, normalizer)
        self.encoder = ObservationEncoder(features, config.vision, config.state_noise)
        cond_dim = config.n_obs_steps * self.encoder.dim
        if config.tasks:
            if TASK_INDEX not in features:
                raise RobopolicyError(f"policy.tasks {config.tasks}, but the features have no {TASK_INDEX!r}")
            self.task_embedding = nn.Embedding(config.tasks, TASK_DIM)
            cond_dim += TASK_DIM
        if config.top_k < 1 or config.top_k > config.tokenizer.codes:
            raise RobopolicyError(f"policy.top_k {config.top_k} should be within 1..{config.tokenizer.codes}")
        _check_anchor(config, features)
        self.tokenizer = MultiScaleTokenizer(self.action_dim, config.horizon, config.tokenizer)
        self.network = ScaleTransformer(
            config.tokenizer.scales,
            self.action_dim,
            cond_dim,
            config.tokenizer.codes,
            config.depth,
            config.depth,
            config.width,
        )
        self.stage = 1  # 0 trains the tokenizer, 1 the transformer.

    @property
    def first_action(self) -> int:
        return self.config.n_obs_steps - 1

    def stages(self, steps: int) -> list[Stage]:
        t = self.config.tokenizer
        if not 0 < t.steps < steps:
            raise RobopolicyError(
                f"policy.tokenizer.steps {t.steps} should be within 1..{steps - 1}, below --steps {steps}"
            )
        return [Stage(t.steps, t.lr, t.betas, t.weight_decay), Stage(steps - t.steps)]

    def _condition(self, observation: Batch, generator: torch.Generator | None = None) -> Tensor:
        features = self.encoder(observation, self.normalizer, generator).flatten(1)
        if self.config.tasks:
            features = torch.cat([features, self.task_embedding(observation[TASK_INDEX][:, -1])], dim=-1)
        return features

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        actions = self.scale(batch["action"], batch)
        if self.stage == 0:
            # In fp32 as published: cosine matching between nearly equal codes does not survive bf16.
            with torch.autocast(actions.device.type, enabled=False):
                return self.tokenizer.loss(actions, generator if self.training else None)
        with torch.autocast(actions.device.type, enabled=False):
            ids = self.tokenizer.encode(actions)
            inputs = self.tokenizer.teacher_inputs(ids)
        logits = self.network(self._condition(batch, generator if self.training else None), inputs)
        target = torch.cat([i.flatten(1) for i in ids], dim=1)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())
        return loss, {"token_accuracy": (logits.argmax(-1) == target).float().mean()}

    def scale(self, actions: Tensor, observation: Batch) -> Tensor:
        """Actions [B, H, D_a] as the tokenizer sees them: normalised, from the anchor on."""
        normalised = self.normalizer.normalize("action", actions)
        if not self.config.anchor:
            return normalised
        return (normalised - self._anchor(observation)) / self.config.anchor_range

    def unscale(self, chunk: Tensor, observation: Batch) -> Tensor:
        """The inverse of `scale`."""
        if self.config.anchor:
            chunk = chunk * self.config.anchor_range + self._anchor(observation)
        return self.normalizer.unnormalize("action", chunk)

    def _anchor(self, observation: Batch) -> Tensor:
        """Where chunks are measured from, in normalised actions [B, 1, D_a]."""
        newest = observation[STATE][:, self.config.n_obs_steps - 1, list(self.config.anchor)]
        return self.normalizer.normalize("action", newest).unsqueeze(1)

    def predict(self, observation: Batch, generator: Generators) -> Tensor:
        return self.predict_ids(observation, generator)[0]

    def predict_ids(self, observation: Batch, generator: Generators) -> tuple[Tensor, list[Tensor]]:
        """The chunk [B, H, D_a] and the ids [B, n_k, D_a] of every scale it was decoded from."""
        network, tokenizer = self.network, self.tokenizer
        condition = network.condition(self._condition(observation))
        modulations = network.modulations(condition)
        cache: Cache = []
        ids: list[Tensor] = []
        inputs = total = None
        for k, scale in enumerate(tokenizer.scales):
            logits = network.step(k, condition, inputs, modulations, cache)
            ids.append(self._pick(logits, generator).view(-1, scale, self.action_dim))
            total = tokenizer.accumulate(k, ids[-1], total)
            if k + 1 < len(tokenizer.scales):
                inputs = tokenizer.next_input(k + 1, total)
        assert total is not None
        return self.unscale(tokenizer.decode(total), observation), ids

    def _pick(self, logits: Tensor, generator: Generators) -> Tensor:
        if self.config.top_k == 1:
            return logits.argmax(-1)
        values, codes = logits.float().topk(self.config.top_k, dim=-1)
        # Gumbel noise turns the largest of logits plus noise into a draw from the softmax (Gumbel 1954).
        uniform = 0.5 * torch.erfc(randn(values.shape, generator, values.device) / 2**0.5)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-7, 1 - 1e-7)))
        return codes.gather(-1, (values + gumbel).argmax(-1, keepdim=True)).squeeze(-1)

    def golden(self, observation: Batch, generator: torch.Generator) -> Tensor:
        """Logits under fixed tokens beside a round trip through the tokenizer: no choice between near-equal codes."""
        batch = len(next(iter(observation.values())))
        first = torch.arange(self.action_dim, device=self.device) % self.config.tokenizer.codes
        ids = [first.expand(batch, n, -1) for n in self.tokenizer.scales]
        logits = self.network(self._condition(observation), self.tokenizer.teacher_inputs(ids))
        total = None
        for k, i in enumerate(ids):
            total = self.tokenizer.accumulate(k, i, total)
        assert total is not None
        chunk = 0.5 * randn((batch, self.config.horizon, self.action_dim), generator, self.device)
        latent = self.tokenizer.latent(chunk)
        parts = [logits, self.tokenizer.decode(total), latent, self.tokenizer.codebook]
        parts.append(self.normalizer.unnormalize("action", chunk))
        return torch.cat([p.float().flatten() for p in parts])


def _check_anchor(config: CarpConfig, features: FeatureSpec) -> None:
    if not config.anchor:
        return
    action, dims = features.action, config.anchor
    state = next((f for f in features if f.key == STATE), None)
    size = state.shape[0] if state is not None else 0
    if len(dims) != action.shape[0] or not all(0 <= d < size for d in dims):
        raise RobopolicyError(
            f"policy.anchor {list(dims)}: expected {action.shape[0]} dimensions of {STATE}, one for each of the "
            f"action, each within 0..{size - 1}" + ("" if size else f"; the features have no {STATE}")
        )
    if state is not None and state.units and action.units:
        units = tuple(state.units[d] for d in dims)
        if units != action.units:
            raise RobopolicyError(f"policy.anchor {list(dims)}: the state is in {units}, actions in {action.units}")
    if not config.anchor_range > 0:
        raise RobopolicyError(f"policy.anchor_range should be above 0, got {config.anchor_range}")
