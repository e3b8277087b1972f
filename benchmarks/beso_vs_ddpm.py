"""BESO with three steps against the same network as a DDPM with a hundred: latency and score on two-block play.

    robopolicy data record --task blocks --output PLAY --episodes 2500 --workers 2
    robopolicy train blocks-beso-cfg --data.path PLAY --seed 42 --output RUNS/beso
    robopolicy train blocks-ddpm --data.path PLAY --seed 42 --output RUNS/ddpm
    python benchmarks/beso_vs_ddpm.py RUNS/beso RUNS/ddpm --record

Latency: one chunk for one robot, in turn, one thread. Score: the same test seeds for both, compared as pairs.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from beso_blocks import STEPS, run
from ledger import record

from robopolicy.commands.bench import latency
from robopolicy.evaluation.statistics import bootstrap_mean, mcnemar_exact, paired_bootstrap
from robopolicy.sim.task import TEST_SEEDS
from robopolicy.training import checkpoint


def main() -> None:
    """Times both, evaluates both, and records the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beso", type=Path)
    parser.add_argument("ddpm", type=Path)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    policies = [checkpoint.load(path)[0] for path in (args.beso, args.ddpm)]
    beso, ddpm = (
        run(path, policy, variant, args.episodes)["result"]
        for path, policy, variant in zip((args.beso, args.ddpm), policies, ("goal", "ddpm100"), strict=True)
    )
    gap = paired_bootstrap(ddpm, beso)
    only_beso, only_ddpm, p = mcnemar_exact(np.array(beso) > 0.5, np.array(ddpm) > 0.5)
    few, hundred = (policy.config.sampler for policy in policies)
    few.steps, few.name, few.guidance = STEPS, "ddim", 1.0
    times = np.array([[latency(policy, 1, 10)["p50"] for policy in policies] for _ in range(args.rounds)])
    ratios = times[:, 1] / times[:, 0]
    resampled = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), (2.5, 97.5))
    sizes = [sum(p.numel() for p in policy.parameters()) for policy in policies]
    text = (
        f"One chunk, batch 1, one thread: {few.name} {STEPS} steps p50 {np.median(times[:, 0]):.2f} ms, "
        f"{hundred.name} {hundred.steps} steps {np.median(times[:, 1]):.1f} ms; "
        f"{sizes[0]:,} and {sizes[1]:,} parameters. "
        f"Result on {args.episodes} test episodes: BESO {bootstrap_mean(beso)}, DDPM {bootstrap_mean(ddpm)}, "
        f"BESO minus DDPM {gap} (paired; McNemar {only_beso} to {only_ddpm}, p {p:.2g})."
    )
    print(f"{np.median(ratios):.1f} [{low:.1f}, {high:.1f}]. {text}")
    if args.record:
        record(
            "beso_vs_ddpm100_latency_ratio",
            f"python benchmarks/beso_vs_ddpm.py RUNS/beso RUNS/ddpm --episodes {args.episodes} --record",
            float(np.median(ratios)),
            float(low),
            float(high),
            "times the latency of 3-step BESO",
            args.rounds,
            seeds=f"train 42, test {TEST_SEEDS}..{TEST_SEEDS + args.episodes - 1}",
            peer=f"the same network as a DDPM, {hundred.steps} steps",
            note=text,
        )


if __name__ == "__main__":
    main()
