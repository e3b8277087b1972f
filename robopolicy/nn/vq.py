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
SCORES = 5 * 2**17
"""Scores of vectors against codes that are computed at a time on a CPU."""
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
    """D_a independent convolutions over time: [D_a, B, T, C_in] to [D_a, B, T', C_out], with 1 tap or 3.

    stride 1 keeps the length T. 2 halves it and pads one zero at the end only, as published. 0.5 doubles it: a
    transposed convolution (stride 2, padding 1, output padding 1).
    """

    taken: Tensor

    def __init__(
        self, dims: int, channels_in: int, channels_out: int, length: int, stride: float = 1, taps: int = 3
    ) -> None:
        super().__init__()
        self.stride, self.taps = stride, taps
        self.weight = nn.Parameter(torch.empty(dims, taps * channels_in, channels_out))
        self.bias = nn.Parameter(torch.zeros(dims, 1, channels_out))
        std = 0.5 * (2 / (taps * (channels_in + channels_out))) ** 0.5
        nn.init.normal_(self.weight, std=std)
        before, after = torch.arange(length)[:, None], torch.arange(int(length / stride))
        tap = after + 1 - 2 * before if stride == 0.5 else before - int(stride) * after + (1 if stride == 1 else 0)
        taken = torch.stack([tap == k for k in range(taps)]).float()
        self.register_buffer("taken", taken, persistent=False)
        """[taps, T, T'] whether a step comes into another through a tap."""

    def forward(self, x: Tensor) -> Tensor:
        dims, batch, length, channels = x.shape
        if self.taps == 1:
            return torch.baddbmm(self.bias, x.flatten(1, 2), self.weight).view(dims, batch, length, -1)
        # With a few steps and channels, one product with the whole banded matrix costs less than moving the steps
        # of every window into place.
        weight = self.weight.view(dims, self.taps, channels, -1)
        matrix = torch.einsum("dkio,kts->dtiso", weight, self.taken).flatten(3).flatten(1, 2)
        bias = self.bias.repeat(1, 1, self.taken.shape[2])
        return torch.baddbmm(bias, x.flatten(2), matrix).view(dims, batch, self.taken.shape[2], -1)


class Norm(nn.Module):
    """GroupNorm with one group, per dimension and sample."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dims, 1, 1, channels))
        self.bias = nn.Parameter(torch.zeros(dims, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-2:], eps=1e-6), self.gain)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a skip connection."""

    def __init__(self, dims: int, channels_in: int, channels_out: int, length: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Norm(dims, channels_in),
            nn.SiLU(),
            PerDimension(dims, channels_in, channels_out, length),
            Norm(dims, channels_out),
            nn.SiLU(),
            PerDimension(dims, channels_out, channels_out, length),
        )
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else PerDimension(dims, channels_in, channels_out, length, taps=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


def resampling(source: int, target: int, mode: str) -> Tensor:
    """The [target, source] matrix of torch's 1-D interpolation (area, or bicubic with a = -0.75)."""
    impulses = torch.eye(source)[:, None, :, None]
    options = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(impulses, size=(target, 1), mode=mode, **options)[:, 0, :, 0].T


def best(scores: Tensor, lanes: int = 32) -> Tensor:
    """argmax over the last axis. Maxima are vectorised on a CPU, their places are not: most is done by maxima."""
    count = scores.shape[-1]
    if scores.device.type != "cpu" or count % lanes or count <= lanes:
        return scores.argmax(-1)
    rows = scores.unflatten(-1, (-1, lanes))
    lane = rows.amax(-2).argmax(-1, keepdim=True)
    row = rows.gather(-1, lane.unsqueeze(-2).expand(*lane.shape[:-1], count // lanes, 1)).squeeze(-1).argmax(-1)
    return row * lanes + lane.squeeze(-1)


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
        (small, middle, large), half, quarter = CHANNELS, horizon // 2, self.length
        self.encoder = nn.Sequential(
            PerDimension(dims, 1, small, horizon),
            ResBlock(dims, small, middle, horizon),
            PerDimension(dims, middle, middle, horizon, stride=2),
            ResBlock(dims, middle, middle, half),
            ResBlock(dims, middle, large, half),
            PerDimension(dims, large, large, half, stride=2),
            ResBlock(dims, large, large, quarter),
            Norm(dims, large),
            nn.SiLU(),
            PerDimension(dims, large, large, quarter),
            PerDimension(dims, large, CODE_DIM, quarter),
        )
        self.decoder = nn.Sequential(
            PerDimension(dims, CODE_DIM, large, quarter),
            Norm(dims, large),
            nn.SiLU(),
            PerDimension(dims, large, large, quarter),
            ResBlock(dims, large, large, quarter),
            PerDimension(dims, large, large, quarter, stride=0.5),
            ResBlock(dims, large, middle, half),
            ResBlock(dims, middle, middle, half),
            PerDimension(dims, middle, middle, half, stride=0.5),
            ResBlock(dims, middle, small, horizon),
            PerDimension(dims, small, 1, horizon),
        )
        self.phi = nn.ModuleList(PerDimension(dims, CODE_DIM, CODE_DIM, quarter) for _ in self.scales)
        bound = 1 / (36 * CODE_DIM**0.5)
        self.codebook = nn.Parameter(torch.empty(dims, config.codes, CODE_DIM).uniform_(-bound, bound))
        if config.codebook == "ema":
            self.codebook.requires_grad_(False)
            self.register_buffer("uses", torch.ones(dims, config.codes))
            self.register_buffer("sums", self.codebook.detach().clone())
        for n in self.scales:
            # Applied from the right to time and channels as one axis: one product instead of one per chunk.
            for name, matrix in (
                ("pool", resampling(self.length, n, "area")),
                ("lift", resampling(n, self.length, "bicubic")),
            ):
                self.register_buffer(
                    f"{name}_{n}", torch.kron(matrix.T.contiguous(), torch.eye(CODE_DIM)), persistent=False
                )

    def latent(self, actions: Tensor) -> Tensor:
        """[B, H, D_a] to [D_a, B, H / 4, 8]."""
        return self.encoder(actions.permute(2, 0, 1).unsqueeze(-1))

    def pool(self, latent: Tensor, scale: int) -> Tensor:
        """Area pooling over time to `scale` positions; the identity at the last scale."""
        return latent if scale == self.length else self._resampled(latent, f"pool_{scale}")

    def _resampled(self, x: Tensor, name: str) -> Tensor:
        return (x.flatten(2) @ getattr(self, name)).unflatten(-1, (-1, CODE_DIM))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Ids [D_a, B, n] of the codes that match vectors [D_a, B, n, 8] best."""
        flat, codes = vectors.flatten(1, 2), self.codebook.detach()
        # A CPU finds the best of scores that are still in its cache.
        rows = max(1, SCORES // (self.dims * self.config.codes)) if flat.device.type == "cpu" else flat.shape[1]
        if self.config.matching == "cosine":
            # The length of the vector itself does not change which code is best.
            table = F.normalize(codes, dim=-1).mT.contiguous()
            found = [best(torch.bmm(part, table)) for part in flat.split(rows, 1)]
        else:
            table, bias = codes.mT.contiguous(), -codes.square().sum(-1).unsqueeze(1)
            found = [best(torch.baddbmm(bias, part, table, alpha=2)) for part in flat.split(rows, 1)]
        return torch.cat(found, 1).view(vectors.shape[:3])

    def residual(self, k: int, ids: Tensor) -> Tensor:
        """What the ids [D_a, B, n_k] of scale k (from 0) add to the latent: [D_a, B, H / 4, 8]."""
        scale = self.scales[k]
        rows = ids.flatten(1).unsqueeze(-1).expand(-1, -1, CODE_DIM)
        codes = self.codebook.gather(1, rows).view(*ids.shape, CODE_DIM)
        lifted = codes if scale == self.length else self._resampled(codes, f"lift_{scale}")
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
