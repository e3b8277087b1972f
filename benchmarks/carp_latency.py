"""Latency of one chunk: CARP against diffusion of equal size on the same machine, in turn.

    python benchmarks/carp_latency.py [--batch 1] [--rounds 40]

PushT's state sizes, untrained weights (the arithmetic is the same). Peers: a Diffusion Policy transformer whose width
is chosen to match CARP's parameters (tokenizer included), sampled with DDPM 100 and DDIM 10 steps, and BESO's
score transformer with 3 steps.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from ledger import record

from robopolicy.configs import to_dict
from robopolicy.policies.base import Policy, PolicyConfig
from robopolicy.policies.beso import BESOConfig
from robopolicy.policies.carp import CarpConfig
from robopolicy.policies.diffusion import DiffusionConfig, SamplerConfig, TransformerConfig
from robopolicy.registry import task_class
from robopolicy.training.checkpoint import build


def make(config: PolicyConfig, task: str = "pusht") -> Policy:
    """An untrained policy on PushT's state with identity scaling."""
    torch.manual_seed(0)
    spec = task_class(task).features
    policy = build(to_dict(config), spec)
    for feature in spec:
        policy.normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "identity", feature)
    return policy.eval()


def size(policy: Policy) -> int:
    return sum(p.numel() for p in policy.parameters())


def diffusion_of_size(wanted: int) -> DiffusionConfig:
    """A 4-layer Diffusion Policy transformer with the width whose parameter count is nearest to `wanted`."""
    configs = [DiffusionConfig(network=TransformerConfig(layers=4, heads=4, width=w)) for w in range(48, 161, 8)]
    return min(configs, key=lambda c: abs(size(make(c)) - wanted))


def timed(policy: Policy, batch: int) -> Callable[[], float]:
    """A function that samples one batch of chunks and returns its seconds."""
    observation = {f.key: torch.zeros(batch, policy.config.n_obs_steps, *f.shape) for f in policy.features.inputs}

    def run() -> float:
        generators = [torch.Generator().manual_seed(i) for i in range(batch)]
        begin = time.perf_counter()
        policy.predict(observation, generators)
        return time.perf_counter() - begin

    return run


def main() -> None:
    """Times all policies in turn and records the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    carp = make(CarpConfig())
    ddpm = diffusion_of_size(size(carp))
    policies = {
        "CARP": carp,
        "DDPM 100": make(ddpm),
        "DDIM 10": make(replace(ddpm, sampler=SamplerConfig("ddim", 10))),
        "BESO 3": make(BESOConfig(), "pusht-goal"),
    }
    for name, policy in policies.items():
        print(f"{name}: {size(policy):,} parameters")
    runs = {name: timed(policy, args.batch) for name, policy in policies.items()}
    with torch.inference_mode():
        for run in runs.values():
            run()
        times = np.array([[run() for run in runs.values()] for _ in range(args.rounds)]) * 1e3
    p50, p95, p99 = (np.percentile(times, q, axis=0) for q in (50, 95, 99))
    for i, name in enumerate(runs):
        print(f"{name:<9} p50 {p50[i]:.2f} ms, p95 {p95[i]:.2f} ms, p99 {p99[i]:.2f} ms")
    suffix = "" if args.batch == 1 else f"_batch{args.batch}"
    for i, (name, label) in enumerate((("DDPM 100", "ddpm100"), ("DDIM 10", "ddim10"), ("BESO 3", "beso3")), start=1):
        ratios = times[:, i] / times[:, 0]
        rng = np.random.default_rng(0)
        medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        record(
            f"carp_vs_{label}_latency_ratio{suffix}",
            f"python benchmarks/carp_latency.py --batch {args.batch} --rounds {args.rounds}",
            float(np.median(ratios)),
            float(np.percentile(medians, 2.5)),
            float(np.percentile(medians, 97.5)),
            "times the latency of CARP",
            args.rounds,
            peer=f"{name} steps, {size(policies[name]):,} parameters",
            note=f"Batch {args.batch}, one thread. CARP ({size(carp):,} parameters) p50 {p50[0]:.2f} ms, p95 "
            f"{p95[0]:.2f}, p99 {p99[0]:.2f}; {name} p50 {p50[i]:.2f} ms, p95 {p95[i]:.2f}, p99 {p99[i]:.2f}. "
            "Median of the ratios round by round.",
        )


if __name__ == "__main__":
    main()
