"""Score of one recipe minus that of another, paired by training seed and test episode.

    python benchmarks/pusht_scores.py carp_pusht_state_score pusht-carp --data DATASET --output RUNS
    python benchmarks/pusht_scores.py pusht_small_again pusht-small --data DATASET --output RUNS
    python benchmarks/pusht_gap.py carp_pusht_gap pusht-carp pusht-small --runs RUNS

Reads the evaluations that `pusht_scores.py` left. Both recipes ran with the same training seeds and met the same
initial states; the interval resamples training seeds and episodes.
"""

import argparse
from pathlib import Path

import numpy as np
from ledger import record
from pusht_scores import evaluation, scores

from robopolicy.evaluation.statistics import mean_over_seeds


def main() -> None:
    """Pairs the episodes and records the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("recipe")
    parser.add_argument("peer")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    args = parser.parse_args()
    found = {
        recipe: [evaluation(args.runs / f"{recipe}_{seed}") for seed in args.seeds]
        for recipe in (args.recipe, args.peer)
    }
    ours, theirs = (np.array([scores(info) for info in found[r]]) for r in (args.recipe, args.peer))
    if any(a["seeds"] != b["seeds"] for a, b in zip(*found.values(), strict=True)):
        raise SystemExit("the two recipes were evaluated on different episodes")
    gap = mean_over_seeds(ours - theirs)
    seeds = found[args.recipe][0]["seeds"]
    record(
        args.name,
        f"python benchmarks/pusht_gap.py {args.name} {args.recipe} {args.peer} --runs RUNS "
        f"--seeds {' '.join(map(str, args.seeds))}",
        gap.value,
        gap.low,
        gap.high,
        f"difference in mean {found[args.recipe][0]['score_name']}",
        ours.size,
        seeds=f"train {args.seeds}, test {seeds['first']}..{seeds['last']}",
        peer=args.peer,
        note=f"{args.recipe} per training seed: {', '.join(f'{v:.3f}' for v in ours.mean(axis=1))}; "
        f"{args.peer}: {', '.join(f'{v:.3f}' for v in theirs.mean(axis=1))}.",
    )


if __name__ == "__main__":
    main()
