"""The coarse-to-fine transformer of CARP: all tokens of a scale at once, given every coarser scale.

Tokens are ordered by scale, then time, then action dimension (dimension fastest). Attention is block-causal by scale,
queries and keys have unit length, and the condition modulates every block (AdaLN; Peebles & Xie 2023).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robopolicy.nn.vq import CODE_DIM, offsets

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values [B, heads, tokens so far, C / heads] of every block."""
MAX_SCALE = math.log(100.0)
DROP_PATH = 0.1
"""Rate of the last block of a 24-block network; proportionally less in shallower ones."""


def inverse_norm(x: Tensor) -> Tensor:
    """1 / |x| over the last axis, kept as an axis of size 1."""
    return (x.square().sum(-1, keepdim=True) + 1e-12).rsqrt()


class Attention(nn.Module):
    """Self-attention with unit-length queries and keys and a learned temperature per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(4.0)))
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q = q * (inverse_norm(q) * self.log_scale.clamp(max=MAX_SCALE).exp())
        k = k * inverse_norm(k)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        # Written out: with tens of tokens the fused kernels of torch cost a CPU several times as much.
        scores = q @ k.mT
        if mask is not None:
            # Scores in half precision stay so: most of the time of a training step is spent on passing over them.
            scores = scores + mask.to(scores.dtype)
        y = scores.softmax(-1).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).flatten(2)), k, v


class Block(nn.Module):
    """x += g1 Attn(LN(x) (1 + s1) + b1); x += g2 FFN(LN(x) (1 + s2) + b2)."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.drop = drop

    def _path(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop
        return x * kept / (1 - self.drop)

    def forward(
        self, x: Tensor, modulation: Tensor, mask: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        g1, g2, s1, s2, b1, b2 = modulation.unsqueeze(1).chunk(6, dim=-1)
        shape = x.shape[-1:]
        y, k, v = self.attention(torch.addcmul(b1, F.layer_norm(x, shape, eps=1e-6), 1 + s1), mask, past)
        x = x + self._path(g1 * y)
        y = self.ffn(torch.addcmul(b2, F.layer_norm(x, shape, eps=1e-6), 1 + s2))
        return x + self._path(g2 * y), (k, v)


class ScaleTransformer(nn.Module):
    """Logits over the codes of every token, from an observation vector [B, F] and the scales before."""

    mask: Tensor

    def __init__(
        self, scales: tuple[int, ...], dims: int, cond_dim: int, codes: int, depth: int, heads: int, width: int
    ) -> None:
        super().__init__()
        self.scales, self.dims, self.depth = scales, dims, depth
        self.offsets = offsets(scales, dims)
        length = self.offsets[-1]
        self.condition = nn.Linear(cond_dim, width)
        self.word = nn.Linear(CODE_DIM, width)
        self.start_position = nn.Parameter(torch.empty(scales[0] * dims, width))
        self.position = nn.Parameter(torch.empty(length, width))
        self.scale_embedding = nn.Embedding(len(scales), width)
        rates = [DROP_PATH * depth / 24 * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, rate) for rate in rates)
        # One product makes the modulations of all blocks: the condition is the same for all of them and all scales.
        self.modulate = nn.Linear(width, 6 * width * depth)
        self.modulate_head = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, codes)
        numbers = torch.repeat_interleave(torch.arange(len(scales)), torch.tensor(scales) * dims)
        hidden = numbers[:, None] < numbers[None, :]
        self.register_buffer("mask", torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf), persistent=False)
        self._initialise(width)

    def _initialise(self, width: int) -> None:
        std = (1 / (3 * width)) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.start_position, self.position):
            nn.init.trunc_normal_(table, std=std, a=-2 * std, b=2 * std)
        with torch.no_grad():
            self.head.weight.mul_(0.02)
            self.modulate_head.weight.mul_(0.5)
            gates = self.modulate.weight.view(self.depth, 6, width, width)
            gates[:, :2].mul_(1e-3)
            gates[:, 2:].mul_(0.5)
            for block in self.blocks:
                block.attention.out.weight.div_((2 * self.depth) ** 0.5)  # type: ignore[union-attr, operator]
                block.ffn[-1].weight.div_((2 * self.depth) ** 0.5)  # type: ignore[union-attr, index]

    def modulations(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """([depth, B, 6 C], [B, 2 C]) of the embedded condition [B, C]; constant over the scales of a chunk."""
        c = F.silu(condition)
        return self.modulate(c).unflatten(-1, (self.depth, -1)).movedim(1, 0), self.modulate_head(c)

    def tokens(self, k: int, condition: Tensor, inputs: Tensor | None) -> Tensor:
        """Tokens [B, n_k D_a, C] of scale k: from the condition at k = 0, else from inputs [B, n_k, D_a, 8]."""
        x = condition.unsqueeze(1) + self.start_position if inputs is None else self.word(inputs.flatten(1, 2))
        place = slice(self.offsets[k], self.offsets[k + 1])
        return x + self.position[place] + self.scale_embedding.weight[k]

    def logits(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.unsqueeze(1).chunk(2, dim=-1)
        return self.head(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale))

    def forward(self, observation: Tensor, inputs: list[Tensor]) -> Tensor:
        """[B, L, V] for all scales at once, told the inputs [B, n_k, D_a, 8] of the scales after the first."""
        condition = self.condition(observation)
        blocks, head = self.modulations(condition)
        parts = [None, *inputs]
        x = torch.cat([self.tokens(k, condition, part) for k, part in enumerate(parts)], dim=1)
        for block, modulation in zip(self.blocks, blocks, strict=True):
            x, _ = block(x, modulation, self.mask)
        return self.logits(x, head)

    def step(
        self, k: int, condition: Tensor, inputs: Tensor | None, modulations: tuple[Tensor, Tensor], cache: Cache
    ) -> Tensor:
        """[B, n_k D_a, V] of scale k; `cache` is empty at k = 0 and is extended in place."""
        x = self.tokens(k, condition, inputs)
        for i, block in enumerate(self.blocks):
            x, kept = block(x, modulations[0][i], past=cache[i] if k else None)
            cache[i : i + 1] = [kept]
        return self.logits(x, modulations[1])
