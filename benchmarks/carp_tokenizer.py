"""CARP's tokenizer: reconstruction error per scale while it trains, and all dimensions at once against one by one.

    python benchmarks/carp_tokenizer.py [--dims 10]

The curves are a Gaussian process (length scale 12 of 16 steps, variance .142), 256 per step, AdamW at 3e-4. The
published modules reach .0147, .0036 and .0023 with all four scales after 300, 1000 and 2000 steps on smooth curves of
that variance. The ratio is the time of `dims` tokenizers of one dimension, one after another, over the time of one
tokenizer of `dims` dimensions, the same number of steps on the same curves, in turn.
"""

import argparse
import statistics
import time

import torch
from ledger import record

from robopolicy.nn.vq import MultiScaleTokenizer, TokenizerConfig

STEPS = (300, 1000, 2000)
BATCH, TIMED, ROUNDS = 256, 30, 7


def curves(batch: int, dims: int, generator: torch.Generator) -> torch.Tensor:
    """[batch, 16, dims] smooth curves of variance .142."""
    t = torch.arange(16.0)
    covariance = torch.exp(-0.5 * ((t[:, None] - t) / 12) ** 2) + 1e-4 * torch.eye(16)
    noise = torch.randn(batch, dims, 16, generator=generator)
    return 0.142**0.5 * (noise @ torch.linalg.cholesky(covariance).T).permute(0, 2, 1)


class Training:
    """One tokenizer and its optimiser."""

    def __init__(self, dims: int, codebook: str = "gradient") -> None:
        torch.manual_seed(0)
        self.tokenizer = MultiScaleTokenizer(dims, 16, TokenizerConfig(codebook=codebook))  # type: ignore[arg-type]
        trained = [p for p in self.tokenizer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=3e-4, betas=(0.5, 0.9), weight_decay=0.005, fused=True)
        self.generator = torch.Generator().manual_seed(0)

    def step(self, actions: torch.Tensor) -> None:
        loss, _ = self.tokenizer.loss(actions, self.generator)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def errors(dims: int, codebook: str) -> dict[int, list[float]]:
    """Mean squared error of the first 1..4 scales at each of STEPS, averaged over the dimensions."""
    training, found = Training(dims, codebook), {}
    held_out = curves(4096, dims, torch.Generator().manual_seed(1))
    data = torch.Generator().manual_seed(2)
    for step in range(1, STEPS[-1] + 1):
        training.step(curves(BATCH, dims, data))
        if step in STEPS:
            found[step] = training.tokenizer.reconstruction_by_scale(held_out).tolist()
            print(codebook, step, [round(e, 4) for e in found[step]], flush=True)
    return found


def ratio(dims: int) -> list[float]:
    """Time one by one over time together, once per round."""
    together, alone = Training(dims), [Training(1) for _ in range(dims)]
    batch = curves(BATCH, dims, torch.Generator().manual_seed(3))
    found = []
    for turn in range(ROUNDS + 1):
        begin = time.perf_counter()
        for _ in range(TIMED):
            together.step(batch)
        middle = time.perf_counter()
        for d, training in enumerate(alone):
            for _ in range(TIMED):
                training.step(batch[..., d : d + 1])
        end = time.perf_counter()
        if turn:
            found.append((end - middle) / (middle - begin))
    return found


def main() -> None:
    """Measures both and records them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, default=10)
    args = parser.parse_args()
    command = f"python benchmarks/carp_tokenizer.py --dims {args.dims}"
    ratios = sorted(ratio(args.dims))
    record(
        "carp_tokenizer_parallel_ratio",
        command,
        statistics.median(ratios),
        ratios[0],
        ratios[-1],
        "times as fast",
        len(ratios),
        peer=f"the same tokenizer with one dimension, {args.dims} times",
        note=f"Batch {BATCH}, {torch.get_num_threads()} threads; median, lowest and highest of {len(ratios)} rounds.",
    )
    published, ema = errors(args.dims, "gradient"), errors(args.dims, "ema")
    table = "; ".join(f"{s} steps: {', '.join(f'{e:.4f}' for e in published[s])}" for s in STEPS)
    last = published[STEPS[-1]][-1]
    record(
        "carp_tokenizer_error",
        command,
        last,
        last,
        last,
        "mean squared error",
        4096 * args.dims,
        seeds="0",
        note=f"Error of the first 1, 2, 3, 4 scales on held-out curves: {table}. With codebook ema, "
        f"{STEPS[-1]} steps: {', '.join(f'{e:.4f}' for e in ema[STEPS[-1]])}. Published modules, four scales: "
        ".0147, .0036, .0023 on smooth curves of the same variance.",
    )


if __name__ == "__main__":
    main()
