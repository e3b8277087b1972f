"""Composition of a diffusion and a flow parent on Gaussian mixtures, against the analytic composed score.

Each parent is the exact denoiser of one mixture behind the output that a network of its process would have (epsilon,
sample or v of DDPM, EDM's F, the velocity of a flow), so what is measured is composing: conversions, matched noise
levels, weights and sampling. The composed score is known in closed form at every noise level; sampled finely, without
parents, it gives what composing should give. W1 is the distance of the two samples.

    python benchmarks/gpc_mixture.py [--samples 20000] [--seeds 3]
"""

import argparse
import itertools
import sys
from pathlib import Path

import torch
from ledger import record

from robopolicy.diffusion.processes import EDM, VP, Flow, NoiseProcess
from robopolicy.diffusion.samplers import heun
from robopolicy.diffusion.schedules import karras
from robopolicy.policies.composed import compose
from robopolicy.policies.diffusion import SamplerConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "policies"))
from composition import Mixture, exact_parent, state, wasserstein

LEFT = Mixture([0.3, 0.7], [[-0.6], [0.5]], [0.02, 0.04])
RIGHT = Mixture([0.6, 0.4], [[-0.2], [0.9]], [0.05, 0.03])
DIFFUSION: dict[str, NoiseProcess] = {
    "DDPM epsilon": VP(clip=None),
    "DDPM sample": VP(prediction="sample", clip=None),
    "DDPM v": VP(prediction="v", clip=None),
    "EDM": EDM(sigma_max=80.0),
}
WEIGHTS = (0.3, 0.5, 0.7)


def analytic_samples(w: float, samples: int, seed: int) -> torch.Tensor:
    """[samples, 1, 1] by 200 Heun steps along the closed-form composed score."""

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x + sigma**2 * (w * LEFT.score(x, sigma) + (1 - w) * RIGHT.score(x, sigma))

    noise = torch.randn(samples, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return heun(denoise, 80 * noise, karras(200, 0.002, 80))


def main() -> None:
    """Prints W1 by process and weight and records the largest mean over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings, n = SamplerConfig("heun", 50, "karras"), args.samples
    found: dict[str, list[float]] = {}
    floor = []
    for w in WEIGHTS:
        wanted = [analytic_samples(w, n, 1000 + s) for s in range(args.seeds)]
        floor += [wasserstein(a, b) for a, b in itertools.pairwise(wanted)]
        for name, process in DIFFUSION.items():
            parents = [exact_parent(LEFT.denoise, process), exact_parent(RIGHT.denoise, Flow())]
            composed = compose(parents, (w, 1 - w), sampler=settings)
            with torch.inference_mode():
                chunks = [composed.predict(state(n), torch.Generator().manual_seed(s)) for s in range(args.seeds)]
            found[f"{name} + flow, w = {w}"] = [
                wasserstein(c.double(), a) for c, a in zip(chunks, wanted, strict=True)
            ]
    means = {name: sum(values) / len(values) for name, values in found.items()}
    for name, mean in means.items():
        print(f"{name:<26} {mean:.4f}")
    worst = max(means, key=lambda name: means[name])
    record(
        "gpc_mixture_w1",
        f"python benchmarks/gpc_mixture.py --samples {n} --seeds {args.seeds}",
        means[worst],
        min(found[worst]),
        max(found[worst]),
        "W1, where the mixtures spread over 0.6",
        args.seeds,
        seeds=f"noise 0..{args.seeds - 1}",
        note="One-dimensional mixtures of two Gaussians each; exact denoisers behind the networks' outputs. Largest "
        f"of {len(means)} pairs and weights, {worst}: mean over seeds, low and high are their range. {n} samples a "
        f"side; two analytic samples differ by {sum(floor) / len(floor):.4f} on average.",
        pairs=found,
    )


if __name__ == "__main__":
    main()
