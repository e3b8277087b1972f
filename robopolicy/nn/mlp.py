"""Residual networks on flat vectors: the smallest denoiser and the trunk of the behaviour-cloning floor."""

import torch
from torch import Tensor, nn

from robopolicy.nn.embeddings import TimeMLP


class AdaLNBlock(nn.Module):
    """x + gate * MLP(LayerNorm(x) * (1 + scale) + shift), all three from the condition (Peebles & Xie 2023).

    The gate starts at zero, so that a new block is the identity.
    """

    def __init__(self, width: int, dropout: float = 0.0, expansion: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(expansion * width, width)
        )
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(cond).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class ResidualMLP(nn.Module):
    """Maps a noisy chunk [B, H, D_a], a time [B] and a condition [B, C] (or [B, T_o, F]) to [B, H, D_a]."""

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        horizon: int,
        width: int = 256,
        blocks: int = 4,
        dropout: float = 0.0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.time = nn.Sequential(TimeMLP(64, time_scale), nn.SiLU(), nn.Linear(64, width))
        self.condition = nn.Sequential(nn.Linear(cond_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.chunk_in = nn.Linear(horizon * action_dim, width)
        self.blocks = nn.ModuleList(AdaLNBlock(width, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.chunk_out = nn.Linear(width, horizon * action_dim)
        nn.init.zeros_(self.chunk_out.weight)
        nn.init.zeros_(self.chunk_out.bias)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        cond = nn.functional.silu(self.time(time) + self.condition(context.flatten(1)))
        h = self.chunk_in(x.flatten(1))
        for block in self.blocks:
            h = block(h, cond)
        return self.chunk_out(self.norm(h)).view_as(x)


class DirectMLP(nn.Module):
    """Maps a condition [B, C] (or [B, T_o, F]) straight to a chunk [B, H, D_a]: what mean-squared error can learn."""

    def __init__(self, action_dim: int, cond_dim: int, horizon: int, width: int = 256, layers: int = 3) -> None:
        super().__init__()
        self.shape = (horizon, action_dim)
        body: list[nn.Module] = [nn.Linear(cond_dim, width), nn.SiLU()]
        for _ in range(layers - 1):
            body += [nn.Linear(width, width), nn.LayerNorm(width), nn.SiLU()]
        self.body = nn.Sequential(*body, nn.Linear(width, horizon * action_dim))

    def forward(self, context: Tensor) -> Tensor:
        return torch.unflatten(self.body(context.flatten(1)), 1, self.shape)
