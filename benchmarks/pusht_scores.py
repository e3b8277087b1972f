"""PushT scores over training seeds and test seeds: train, evaluate, pool.

    python benchmarks/pusht_scores.py NAME RECIPE --data DATASET [--seeds 42 43 44] [--parallel 2] [-- OVERRIDES]

Every training seed is a run of `robopolicy train`, evaluated by `robopolicy eval` on 50 test seeds with its last
checkpoint. The interval resamples training seeds and episodes.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ledger import record

from robopolicy.evaluation.statistics import mean_over_seeds


def main() -> None:
    """Runs all seeds, `--parallel` at a time, and records the pooled score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("outputs") / "scores")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    threads = "1" if args.parallel > 1 else "0"

    def run(seed: int) -> tuple[list[float], int, float]:
        folder = args.output / f"{args.recipe}_{seed}"
        flags = ["--data.path", args.data, "--seed", str(seed), "--threads", threads, "--output", str(folder)]
        begin = time.perf_counter()
        base = [sys.executable, "-m", "robopolicy"]
        subprocess.run([*base, "train", args.recipe, *flags, *args.overrides], check=True)
        minutes = (time.perf_counter() - begin) / 60
        subprocess.run([*base, "eval", str(folder), "--threads", threads], check=True)
        (evaluation,) = folder.glob("eval_test_*")
        episodes = json.loads((evaluation / "eval_info.json").read_text())["episodes"]
        return [e["score"] for e in episodes], sum(e["success"] for e in episodes), minutes

    with ThreadPoolExecutor(args.parallel) as pool:
        results = list(pool.map(run, args.seeds))
    score = mean_over_seeds([r[0] for r in results])
    episodes = sum(len(r[0]) for r in results)
    per_seed = ", ".join(f"{sum(r[0]) / len(r[0]):.3f}" for r in results)
    extra = " ".join(["--", *args.overrides]) if args.overrides else ""
    record(
        args.name,
        f"python benchmarks/pusht_scores.py {args.name} {args.recipe} --data DATASET --seeds "
        f"{' '.join(map(str, args.seeds))} --parallel {args.parallel} {extra}".strip(),
        score.value,
        score.low,
        score.high,
        "mean maximum coverage / 0.95",
        episodes,
        seeds=f"train {args.seeds}, test 100000..{100_000 + len(results[0][0]) - 1}",
        note=f"Per training seed: {per_seed}. Success (95 % coverage) in {sum(r[1] for r in results)} of {episodes}. "
        f"Training took {', '.join(f'{r[2]:.1f}' for r in results)} min with {args.parallel} runs beside each other. "
        "Last checkpoint, no selection.",
    )


if __name__ == "__main__":
    main()
