"""The multi-scale action tokenizer of CARP: one small residual VQ-VAE per action dimension, all in one pass.

Nothing is shared between the D_a networks, but they have equal shapes, so every layer holds the weights of all of
them and one batched matrix product serves them together. Arrays inside are [D_a, B, time, channels].
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robopolicy.diffusion.noise import rand
from robopolicy.errors import RobopolicyError, unknown

CODE_DIM = 8
STRIDE = 4
"""Action steps behind one latent position."""
CHANNELS = (2, 4, 8)
"""Channels at full, half and quarter length."""
EMA_DECAY = 0.99
"""Of the codebook statistics when `codebook` is ema."""
DEAD = 0.03
"""A code whose average number of uses per batch falls below this is placed anew."""


@dataclass
class TokenizerConfig:
    """The tokenizer, and how it is trained before the transformer; the defaults are the published ones."""

    scales: tuple[int, ...] = (1, 2, 3, 4)
    """Latent positions of each scale; the last is horizon / 4."""
    codes: int = 512
    """Size of a codebook; every action dimension has one, shared by its scales."""
    matching: Literal["cosine", "euclidean"] = "cosine"
    """How the nearest code is found."""
    codebook: Literal["gradient", "ema"] = "gradient"
    """gradient: codes follow the loss, as published; ema: they are running means, and unused ones restart."""
    commitment: float = 0.25
    """Weight of the term that pulls latents towards their codes."""
    steps: int = 2000
    """Optimiser steps of stage 1; then the tokenizer is frozen and the transformer trains."""
    lr: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.005


class PerDimension(nn.Module):
    """D_a independent 3-tap convolutions of stride 1 or 2: [D_a, B, T, C_in] to [D_a, B, T / stride, C_out]."""

    def __init__(self, dims: int, channels_in: int, channels_out: int, stride: int = 1, taps: int = 3) -> None:
        super().__init__()
        self.stride, self.taps = stride, taps
        self.weight = nn.Parameter(torch.empty(dims, taps * channels_in, channels_out))
        self.bias = nn.Parameter(torch.zeros(dims, 1, channels_out))
        std = 0.5 * (2 / (taps * (channels_in + channels_out))) ** 0.5
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        dims, batch, length, _ = x.shape
        if self.taps == 3:
            # Stride 2 pads one zero at the end only, as published.
            x = F.pad(x, (0, 0, 1 if self.stride == 1 else 0, 1))
            x = torch.cat([x[:, :, i : i + length : self.stride] for i in range(3)], dim=-1)
        out = torch.baddbmm(self.bias, x.flatten(1, 2), self.weight)
        return out.view(dims, batch, -1, out.shape[-1])


class Upsample(nn.Module):
    """D_a transposed convolutions (3 taps, stride 2, padding 1, output padding 1): length T to 2 T."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.product = PerDimension(dims, channels, 3 * channels, taps=1)
        self.product.bias = nn.Parameter(torch.zeros(dims, 1, channels))
        nn.init.normal_(self.product.weight, std=0.5 * (2 / (6 * channels)) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        dims, batch, length, channels = x.shape
        taps = torch.bmm(x.flatten(1, 2), self.product.weight).view(dims, batch, length, 3, channels)
        following = F.pad(taps[:, :, 1:, 0], (0, 0, 0, 1))
        pairs = torch.stack([taps[:, :, :, 1], taps[:, :, :, 2] + following], dim=3)
        return pairs.flatten(2, 3) + self.product.bias[:, None]


class Norm(nn.Module):
    """GroupNorm with one group, per dimension and sample."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dims, 1, 1, channels))
        self.bias = nn.Parameter(torch.zeros(dims, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-2:], eps=1e-6) * self.gain + self.bias


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a skip connection."""

    def __init__(self, dims: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Norm(dims, channels_in),
            nn.SiLU(),
            PerDimension(dims, channels_in, channels_out),
            Norm(dims, channels_out),
            nn.SiLU(),
            PerDimension(dims, channels_out, channels_out),
        )
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else PerDimension(dims, channels_in, channels_out, taps=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


def resampling(source: int, target: int, mode: str) -> Tensor:
    """The [target, source] matrix of torch's 1-D interpolation (area, or bicubic with a = -0.75)."""
    impulses = torch.eye(source)[:, None, :, None]
    options = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(impulses, size=(target, 1), mode=mode, **options)[:, 0, :, 0].T


class MultiScaleTokenizer(nn.Module):
    """Action chunks [B, H, D_a] (normalised) to ids, one [B, scale, D_a] per scale, and back."""

    uses: Tensor
    """[D_a, codes] running uses per batch, and the running sums [D_a, codes, 8] of what they matched (`ema` only)."""
    sums: Tensor

    def __init__(self, dims: int, horizon: int, config: TokenizerConfig) -> None:
        super().__init__()
        if horizon % STRIDE:
            raise RobopolicyError(f"policy.horizon {horizon} is not a multiple of the latent stride {STRIDE}")
        self.length = horizon // STRIDE
        if not config.scales or config.scales[-1] != self.length or sorted(set(config.scales)) != list(config.scales):
            raise RobopolicyError(
                f"policy.tokenizer.scales {config.scales}: should increase and end with the latent length "
                f"{self.length} (horizon {horizon} / {STRIDE})"
            )
        if config.matching not in ("cosine", "euclidean"):
            raise unknown("tokenizer matching", config.matching, ("cosine", "euclidean"))
        if config.codebook not in ("gradient", "ema"):
            raise unknown("tokenizer codebook", config.codebook, ("gradient", "ema"))
        self.dims, self.config, self.scales = dims, config, config.scales
        small, middle, large = CHANNELS
        self.encoder = nn.Sequential(
            PerDimension(dims, 1, small),
            ResBlock(dims, small, middle),
            PerDimension(dims, middle, middle, stride=2),
            ResBlock(dims, middle, middle),
            ResBlock(dims, middle, large),
            PerDimension(dims, large, large, stride=2),
            ResBlock(dims, large, large),
            Norm(dims, large),
            nn.SiLU(),
            PerDimension(dims, large, large),
            PerDimension(dims, large, CODE_DIM),
        )
        self.decoder = nn.Sequential(
            PerDimension(dims, CODE_DIM, large),
            Norm(dims, large),
            nn.SiLU(),
            PerDimension(dims, large, large),
            ResBlock(dims, large, large),
            Upsample(dims, large),
            ResBlock(dims, large, middle),
            ResBlock(dims, middle, middle),
            Upsample(dims, middle),
            ResBlock(dims, middle, small),
            PerDimension(dims, small, 1),
        )
        self.phi = nn.ModuleList(PerDimension(dims, CODE_DIM, CODE_DIM) for _ in self.scales)
        bound = 1 / (36 * CODE_DIM**0.5)
        self.codebook = nn.Parameter(torch.empty(dims, config.codes, CODE_DIM).uniform_(-bound, bound))
        if config.codebook == "ema":
            self.codebook.requires_grad_(False)
            self.register_buffer("uses", torch.ones(dims, config.codes))
            self.register_buffer("sums", self.codebook.detach().clone())
        for n in self.scales:
            self.register_buffer(f"pool_{n}", resampling(self.length, n, "area"), persistent=False)
            self.register_buffer(f"lift_{n}", resampling(n, self.length, "bicubic"), persistent=False)

    def latent(self, actions: Tensor) -> Tensor:
        """[B, H, D_a] to [D_a, B, H / 4, 8]."""
        return self.encoder(actions.permute(2, 0, 1).unsqueeze(-1))

    def pool(self, latent: Tensor, scale: int) -> Tensor:
        """Area pooling over time to `scale` positions; the identity at the last scale."""
        return latent if scale == self.length else getattr(self, f"pool_{scale}") @ latent

    def nearest(self, vectors: Tensor) -> Tensor:
        """Ids [D_a, B, n] of the codes that match vectors [D_a, B, n, 8] best."""
        flat = vectors.flatten(1, 2)
        if self.config.matching == "cosine":
            # The length of the vector itself does not change which code is best.
            scores = flat @ F.normalize(self.codebook, dim=-1).mT
        else:
            scores = torch.baddbmm(-self.codebook.square().sum(-1).unsqueeze(1), flat, self.codebook.mT, alpha=2)
        return scores.argmax(-1).view(vectors.shape[:3])

    def residual(self, k: int, ids: Tensor) -> Tensor:
        """What the ids [D_a, B, n_k] of scale k (from 0) add to the latent: [D_a, B, H / 4, 8]."""
        scale = self.scales[k]
        rows = ids.flatten(1).unsqueeze(-1).expand(-1, -1, CODE_DIM)
        codes = self.codebook.gather(1, rows).view(*ids.shape, CODE_DIM)
        lifted = codes if scale == self.length else getattr(self, f"lift_{scale}") @ codes
        return 0.5 * lifted + 0.5 * self.phi[k](lifted)

    def quantise(self, latent: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per scale: ids [D_a, B, n_k], the sum of residuals so far, and the vectors that were matched."""
        rest, total = latent.detach(), torch.zeros_like(latent)
        ids, totals, matched = [], [], []
        for k, scale in enumerate(self.scales):
            vectors = self.pool(rest, scale)
            ids.append(self.nearest(vectors))
            added = self.residual(k, ids[-1])
            total = total + added
            rest = rest - added.detach()
            totals.append(total)
            matched.append(vectors)
        return ids, totals, matched

    @torch.no_grad()
    def encode(self, actions: Tensor) -> list[Tensor]:
        """Ids [B, n_k, D_a] of every scale for actions [B, H, D_a]."""
        return [i.permute(1, 2, 0) for i in self.quantise(self.latent(actions))[0]]

    def accumulate(self, k: int, ids: Tensor, total: Tensor | None) -> Tensor:
        """The latent after scale k (from 0) with ids [B, n_k, D_a] on top of `total` of the scales before."""
        added = self.residual(k, ids.permute(2, 0, 1))
        return added if total is None else total + added

    def next_input(self, k: int, total: Tensor) -> Tensor:
        """[B, n_k, D_a, 8]: the latent so far, pooled to the positions of scale k (from 0, at least 1)."""
        return self.pool(total, self.scales[k]).permute(1, 2, 0, 3)

    @torch.no_grad()
    def teacher_inputs(self, ids: list[Tensor]) -> list[Tensor]:
        """Inputs of the scales after the first when the transformer is told the true ids."""
        total, inputs = None, []
        for k in range(len(self.scales) - 1):
            total = self.accumulate(k, ids[k], total)
            inputs.append(self.next_input(k + 1, total))
        return inputs

    def decode(self, total: Tensor) -> Tensor:
        """A latent [D_a, B, H / 4, 8] to actions [B, H, D_a]."""
        return self.decoder(total).squeeze(-1).permute(1, 2, 0)

    def loss(self, actions: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction of [B, H, D_a] plus the codebook terms, averaged over the dimensions.

        With a generator, an `ema` codebook is updated (training); without one it is left alone.
        """
        latent = self.latent(actions)
        ids, totals, matched = self.quantise(latent)
        reconstruction = (self.decode(latent + (totals[-1] - latent).detach()) - actions).square().mean()
        terms = []
        for total in totals:
            pull = self.config.commitment * (total.detach() - latent).square().mean()
            terms.append(pull + (total - latent.detach()).square().mean())
        used = torch.zeros(self.dims, self.config.codes, dtype=torch.bool, device=actions.device)
        used.scatter_(1, torch.cat([i.flatten(1) for i in ids], 1), True)
        if generator is not None and self.config.codebook == "ema":
            self._follow(ids, matched, generator)
        metrics = {"reconstruction": reconstruction.detach(), "codes_used": used.float().mean()}
        return reconstruction + torch.stack(terms).mean(), metrics

    @torch.no_grad()
    def _follow(self, ids: list[Tensor], matched: list[Tensor], generator: torch.Generator) -> None:
        """Codes become running means of the vectors they were matched with; unused ones restart at random vectors."""
        vectors = torch.cat([m.flatten(1, 2) for m in matched], 1).float()
        flat = torch.cat([i.flatten(1) for i in ids], 1)
        counts = torch.zeros_like(self.uses).scatter_add_(1, flat, torch.ones_like(flat, dtype=self.uses.dtype))
        sums = torch.zeros_like(self.sums).scatter_add_(1, flat.unsqueeze(-1).expand_as(vectors), vectors)
        self.uses.lerp_(counts, 1 - EMA_DECAY)
        self.sums.lerp_(sums, 1 - EMA_DECAY)
        pick = (rand(self.uses.shape, generator, vectors.device) * vectors.shape[1]).long()
        fresh = vectors.gather(1, pick.unsqueeze(-1).expand_as(self.sums))
        dead = (self.uses < DEAD).unsqueeze(-1)
        self.sums.copy_(torch.where(dead, fresh, self.sums))
        self.uses.copy_(torch.where(dead.squeeze(-1), torch.ones_like(self.uses), self.uses))
        self.codebook.copy_(self.sums / self.uses.unsqueeze(-1))

    @torch.no_grad()
    def reconstruction_by_scale(self, actions: Tensor) -> Tensor:
        """[K] mean squared errors of decoding the first 1, 2, ... K scales of actions [B, H, D_a]."""
        totals = self.quantise(self.latent(actions))[1]
        return torch.stack([(self.decode(t) - actions).square().mean() for t in totals])


def offsets(scales: tuple[int, ...], dims: int) -> list[int]:
    """First token of every scale in the flat sequence, and its length at the end."""
    return [0, *itertools.accumulate(n * dims for n in scales)]
