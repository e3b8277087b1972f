"""CARP's tokenizer: reconstruction error per scale while it trains, and all dimensions at once against one by one.

    python benchmarks/carp_tokenizer.py [--dims 10]

The curves are a Gaussian process (length scale 12 of 16 steps, variance .142), 256 per step. The published modules,
AdamW at 3e-4, reach .0147, .0036 and .0023 with all four scales after 300, 1000 and 2000 steps on smooth curves of
that variance. The ratio is the time of `dims` tokenizers of one dimension, one after another, over the time of one
tokenizer of `dims` dimensions, the same number of steps on the same curves, in turn. One dimension alone is timed as
the published code writes it, with torch's convolutions and group norms (checked to be the same function), and with
our own layers.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from ledger import record
from torch import nn

from robopolicy.nn.vq import MultiScaleTokenizer, Norm, PerDimension, ResBlock, TokenizerConfig

STEPS = (300, 1000, 2000)
BATCH, TIMED, ROUNDS = 256, 10, 7
VARIANTS = (("gradient", 3e-3), ("gradient", 3e-4), ("ema", 3e-3))


def curves(batch: int, dims: int, generator: torch.Generator) -> torch.Tensor:
    """[batch, 16, dims] smooth curves of variance .142."""
    t = torch.arange(16.0)
    covariance = torch.exp(-0.5 * ((t[:, None] - t) / 12) ** 2) + 1e-4 * torch.eye(16)
    noise = torch.randn(batch, dims, 16, generator=generator)
    return 0.142**0.5 * (noise @ torch.linalg.cholesky(covariance).T).permute(0, 2, 1)


class Down(nn.Conv1d):
    """Three taps, stride 2, one zero at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1)))


class Skip(nn.Module):
    """A block beside its skip connection."""

    def __init__(self, body: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.body, self.skip = body, skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.skip(x)


def published(layer: nn.Module) -> nn.Module:
    """A layer of ours for one dimension in torch's own layers [B, C, T], with the same weights."""
    if isinstance(layer, nn.Sequential):
        return nn.Sequential(*map(published, layer))
    if isinstance(layer, ResBlock):
        return Skip(published(layer.body), published(layer.skip))
    if isinstance(layer, Norm):
        norm = nn.GroupNorm(1, layer.gain.numel(), eps=1e-6)
        norm.weight.data, norm.bias.data = layer.gain.data.flatten(), layer.bias.data.flatten()
        return norm
    if isinstance(layer, PerDimension):
        weight = layer.weight.data[0].view(layer.taps, -1, layer.weight.shape[-1])
        taps, c_in, c_out = weight.shape
        if layer.stride == 0.5:
            conv: Any = nn.ConvTranspose1d(c_in, c_out, taps, stride=2, padding=1, output_padding=1)
            conv.weight.data = weight.permute(1, 2, 0).clone()
        else:
            conv = Down(c_in, c_out, taps, 2) if layer.stride == 2 else nn.Conv1d(c_in, c_out, taps, 1, taps // 2)
            conv.weight.data = weight.permute(2, 1, 0).clone()
        conv.bias.data = layer.bias.data.flatten()
        return conv
    return layer


class Published(MultiScaleTokenizer):
    """One dimension in torch's own layers."""

    def __init__(self) -> None:
        super().__init__(1, 16, TokenizerConfig())
        self.encoder, self.decoder = published(self.encoder), published(self.decoder)
        self.phi = nn.ModuleList(map(published, self.phi))

    def latent(self, actions: torch.Tensor) -> torch.Tensor:
        return self.encoder(actions.mT).mT.unsqueeze(0)

    def residual(self, k: int, ids: torch.Tensor) -> torch.Tensor:
        codes = self.codebook[0, ids[0]]
        lifted = codes if k == len(self.scales) - 1 else self._resampled(codes[None], f"lift_{self.scales[k]}")[0]
        return (0.5 * lifted + 0.5 * self.phi[k](lifted.mT).mT).unsqueeze(0)

    def decode(self, total: torch.Tensor) -> torch.Tensor:
        return self.decoder(total[0].mT).mT


class Training:
    """One tokenizer and its optimiser."""

    def __init__(self, dims: int, codebook: str = "gradient", published: bool = False, lr: float = 3e-4) -> None:
        torch.manual_seed(0)
        config = TokenizerConfig(codebook=codebook)  # type: ignore[arg-type]
        self.tokenizer = Published() if published else MultiScaleTokenizer(dims, 16, config)
        trained = [p for p in self.tokenizer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.5, 0.9), weight_decay=0.005, fused=True)
        self.generator = torch.Generator().manual_seed(0)

    def step(self, actions: torch.Tensor) -> None:
        loss, _ = self.tokenizer.loss(actions, self.generator)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def errors(dims: int, codebook: str, lr: float) -> dict[int, list[float]]:
    """Mean squared error of the first 1..4 scales at each of STEPS, averaged over the dimensions."""
    training, found = Training(dims, codebook, lr=lr), {}
    held_out = curves(4096, dims, torch.Generator().manual_seed(1))
    data = torch.Generator().manual_seed(2)
    for step in range(1, STEPS[-1] + 1):
        training.step(curves(BATCH, dims, data))
        if step in STEPS:
            found[step] = training.tokenizer.reconstruction_by_scale(held_out).tolist()
            print(codebook, lr, step, [round(e, 4) for e in found[step]], flush=True)
    return found


def ratios(dims: int, batch: int) -> dict[str, list[float]]:
    """Time one by one over time together, once per round, for both ways to write one dimension."""
    together = Training(dims)
    alone = {
        "published": [Training(1, published=True) for _ in range(dims)],
        "ours": [Training(1) for _ in range(dims)],
    }
    data = curves(batch, dims, torch.Generator().manual_seed(3))
    losses = [t[0].tokenizer.loss(data[..., :1])[0].item() for t in alone.values()]
    if abs(losses[0] - losses[1]) > 1e-5:
        raise SystemExit(f"the two ways to write one dimension differ: {losses}")
    found: dict[str, list[float]] = {name: [] for name in alone}
    for turn in range(ROUNDS + 1):
        begin = time.perf_counter()
        for _ in range(TIMED):
            together.step(data)
        ours = time.perf_counter() - begin
        for name, trainings in alone.items():
            begin = time.perf_counter()
            for d, training in enumerate(trainings):
                for _ in range(TIMED):
                    training.step(data[..., d : d + 1])
            if turn:
                found[name].append((time.perf_counter() - begin) / ours)
    return found


def main() -> None:
    """Measures both and records them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, default=10)
    args = parser.parse_args()
    command = f"python benchmarks/carp_tokenizer.py --dims {args.dims}"
    for batch, suffix in ((BATCH, ""), (64, "_batch64")):
        found = {name: sorted(values) for name, values in ratios(args.dims, batch).items()}
        peer, own = found["published"], found["ours"]
        record(
            f"carp_tokenizer_parallel_ratio{suffix}",
            command,
            statistics.median(peer),
            peer[0],
            peer[-1],
            "times as fast",
            len(peer),
            peer=f"one dimension in torch's convolutions and group norms, {args.dims} times",
            note=f"Batch {batch}, {torch.get_num_threads()} threads; median, lowest and highest of {len(peer)} rounds."
            " "
            f"Against our own layers with one dimension, {args.dims} times: {statistics.median(own):.2f} "
            f"[{own[0]:.2f}, {own[-1]:.2f}].",
        )
    tables = {(codebook, lr): errors(args.dims, codebook, lr) for codebook, lr in VARIANTS}

    def table(variant: tuple[str, float]) -> str:
        rows = tables[variant]
        return "; ".join(f"{s} steps: {', '.join(f'{e:.4f}' for e in rows[s])}" for s in STEPS)

    for variant, name in zip(VARIANTS, ("", "_published_rate", "_ema"), strict=True):
        last = tables[variant][STEPS[-1]][-1]
        record(
            f"carp_tokenizer_error{name}",
            command,
            last,
            last,
            last,
            "mean squared error",
            4096 * args.dims,
            seeds="0",
            note=f"Codebook {variant[0]}, AdamW at {variant[1]:g}. Error of the first 1, 2, 3, 4 scales on held-out "
            f"curves: {table(variant)}. Published modules at 3e-4, four scales: .0147, .0036, .0023 on smooth curves "
            "of the same variance.",
        )


if __name__ == "__main__":
    main()
