"""The transformer denoiser of Diffusion Policy (Chi et al. 2023, section III-B)."""

import torch
from torch import Tensor, nn

from robopolicy.nn.embeddings import SinusoidalEmbedding


class DiffusionTransformer(nn.Module):
    """Maps a noisy chunk [B, H, D_a], a time [B] and observation features [B, T_o, F] to [B, H, D_a].

    Memory tokens are the time and the T_o observations. As published (`causal`), the chunk is decoded with causal
    self-attention and in the cross-attention action row h sees the time and observations 0..h only. The exact
    denoiser of a row depends on all noisy rows, so without the masks modes of whole chunks are kept apart better.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        horizon: int,
        n_obs_steps: int,
        layers: int = 8,
        heads: int = 4,
        width: int = 256,
        dropout: float = 0.01,
        embedding_dropout: float = 0.0,
        time_scale: float = 1.0,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.action_in = nn.Linear(action_dim, width)
        self.observation_in = nn.Linear(cond_dim, width)
        self.time = SinusoidalEmbedding(width, time_scale)
        self.action_position = nn.Parameter(torch.empty(1, horizon, width))
        self.memory_position = nn.Parameter(torch.empty(1, 1 + n_obs_steps, width))
        self.dropout = nn.Dropout(embedding_dropout)
        self.memory = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_dim)

        rows = torch.arange(horizon)
        self.register_buffer("causal", (rows[None, :] > rows[:, None]) & causal, persistent=False)
        columns = torch.arange(1 + n_obs_steps)
        # Column 0 is the time, visible to all; column c > 0 is observation c - 1, visible from action row c - 1 on.
        self.register_buffer("memory_mask", (columns[None, :] - 1 > rows[:, None]) & causal, persistent=False)
        self.apply(_init)
        nn.init.normal_(self.action_position, std=0.02)
        nn.init.normal_(self.memory_position, std=0.02)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        tokens = torch.cat([self.time(time)[:, None].to(x.dtype), self.observation_in(context)], dim=1)
        memory = self.memory(self.dropout(tokens + self.memory_position))
        y = self.dropout(self.action_in(x) + self.action_position)
        y = self.decoder(y, memory, tgt_mask=self.causal, memory_mask=self.memory_mask)
        return self.head(self.norm(y))


def _init(module: nn.Module) -> None:
    """GPT initialisation: N(0, 0.02) matrices, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
        nn.init.zeros_(module.in_proj_bias)
