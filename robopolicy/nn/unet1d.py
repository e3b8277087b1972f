"""The 1-D convolutional U-Net of Diffusion Policy with FiLM conditioning (Chi et al. 2023, section III-A)."""

import itertools
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from robopolicy.nn.embeddings import TimeMLP

GEMM_LENGTH = 4
"""Up to this length a wide convolution is faster on a CPU as one matrix product (1.7x at 2048 channels)."""


class Conv1d(nn.Conv1d):
    """nn.Conv1d of stride 1 that runs short, wide inputs on a CPU as one matrix product over unfolded windows."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.shape[-1] > GEMM_LENGTH or self.kernel_size[0] == 1:
            return super().forward(x)
        windows = nn.functional.pad(x, (int(self.padding[0]),) * 2).unfold(2, self.kernel_size[0], 1)
        rows = rearrange(windows, "batch channels length window -> batch length (channels window)")
        out = nn.functional.linear(rows, self.weight.flatten(1), self.bias)
        return rearrange(out, "batch length channels -> batch channels length")


class ConvBlock(nn.Sequential):
    """Conv1d, GroupNorm, Mish; [B, C_in, H] to [B, C_out, H]."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, groups: int) -> None:
        super().__init__(
            Conv1d(channels_in, channels_out, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(groups, channels_out),
            nn.Mish(),
        )


class FiLMResidualBlock(nn.Module):
    """Two ConvBlocks with a per-channel scale and bias from the condition between them (Perez et al. 2018)."""

    def __init__(self, channels_in: int, channels_out: int, cond_dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels_in, channels_out, kernel_size, groups)
        self.second = ConvBlock(channels_out, channels_out, kernel_size, groups)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * channels_out))
        same = channels_in == channels_out
        self.residual = nn.Identity() if same else nn.Conv1d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, bias = self.film(cond).unsqueeze(-1).chunk(2, dim=1)
        out = torch.addcmul(bias, scale, self.first(x))
        return self.second(out) + self.residual(x)


class ConditionalUnet1D(nn.Module):
    """Maps a noisy chunk [B, H, D_a], a time [B] and a condition [B, C] to [B, H, D_a].

    H must be divisible by 2^(levels - 1): the chunk is halved between levels.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        down_dims: tuple[int, ...] = (256, 512, 1024),
        time_dim: int = 256,
        kernel_size: int = 5,
        groups: int = 8,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.time = TimeMLP(time_dim, time_scale)
        cond = time_dim + cond_dim

        def block(channels_in: int, channels_out: int) -> FiLMResidualBlock:
            return FiLMResidualBlock(channels_in, channels_out, cond, kernel_size, groups)

        sizes = [action_dim, *down_dims]
        self.down = nn.ModuleList()
        for level, (a, b) in enumerate(itertools.pairwise(sizes)):
            last = level == len(down_dims) - 1
            halve = nn.Identity() if last else nn.Conv1d(b, b, 3, stride=2, padding=1)
            self.down.append(nn.ModuleList([block(a, b), block(b, b), halve]))
        self.middle = nn.ModuleList([block(sizes[-1], sizes[-1]), block(sizes[-1], sizes[-1])])
        self.up = nn.ModuleList()
        for a, b in zip(reversed(sizes[1:-1]), reversed(sizes[2:]), strict=True):
            double = nn.ConvTranspose1d(a, a, 4, stride=2, padding=1)
            self.up.append(nn.ModuleList([block(2 * b, a), block(a, a), double]))
        self.head = nn.Sequential(
            ConvBlock(down_dims[0], down_dims[0], kernel_size, groups), nn.Conv1d(down_dims[0], action_dim, 1)
        )

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """`context` is [B, C], or [B, T_o, F], which is flattened."""
        cond = torch.cat([self.time(time), context.flatten(1)], dim=-1)
        x = rearrange(x, "batch horizon dim -> batch dim horizon")
        skips: list[Tensor] = []
        for level in self.down:
            first, second, halve = cast(nn.ModuleList, level)
            x = second(first(x, cond), cond)
            skips.append(x)
            x = halve(x)
        for block in self.middle:
            x = block(x, cond)
        for level in self.up:
            first, second, double = cast(nn.ModuleList, level)
            x = torch.cat([x, skips.pop()], dim=1)
            x = double(second(first(x, cond), cond))
        return rearrange(self.head(x), "batch dim horizon -> batch horizon dim")
