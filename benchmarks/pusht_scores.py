"""PushT scores over training seeds and test seeds: train, evaluate, pool.

    python benchmarks/pusht_scores.py NAME RECIPE --data DATASET [--seeds 42 43 44] [--parallel 2] [-- OVERRIDES]

Every training seed is a run of `robopolicy train`, evaluated by `robopolicy eval` on 50 test seeds with its last
checkpoint. The interval resamples training seeds and episodes. Runs that are complete in the output folder are not
repeated.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ledger import record

from robopolicy.evaluation.statistics import mean_over_seeds


def evaluation(folder: Path) -> dict[str, Any]:
    """What `robopolicy eval` found on the test seeds of a run."""
    (found,) = folder.glob("eval_test_*")
    return json.loads((found / "eval_info.json").read_text())  # type: ignore[no-any-return]


def scores(info: dict[str, Any]) -> list[float]:
    return [e["score"] for e in info["episodes"]]


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

    def run(seed: int) -> dict[str, Any]:
        folder = args.output / f"{args.recipe}_{seed}"
        flags = ["--data.path", args.data, "--seed", str(seed), "--threads", threads, "--output", str(folder)]
        base = [sys.executable, "-m", "robopolicy"]
        if not folder.exists():
            begin = time.perf_counter()
            subprocess.run([*base, "train", args.recipe, *flags, *args.overrides], check=True)
            (folder / "minutes.txt").write_text(f"{(time.perf_counter() - begin) / 60:.1f}")
        if not list(folder.glob("eval_test_*")):
            subprocess.run([*base, "eval", str(folder), "--threads", threads], check=True)
        return evaluation(folder)

    with ThreadPoolExecutor(args.parallel) as pool:
        results = list(pool.map(run, args.seeds))
    score = mean_over_seeds([scores(r) for r in results])
    episodes = [e for r in results for e in r["episodes"]]
    first = results[0]["seeds"]
    per_seed = ", ".join(f"{sum(scores(r)) / len(scores(r)):.3f}" for r in results)
    minutes = ", ".join((args.output / f"{args.recipe}_{s}" / "minutes.txt").read_text() for s in args.seeds)
    extra = " ".join(["--", *args.overrides]) if args.overrides else ""
    record(
        args.name,
        f"python benchmarks/pusht_scores.py {args.name} {args.recipe} --data DATASET --seeds "
        f"{' '.join(map(str, args.seeds))} --parallel {args.parallel} {extra}".strip(),
        score.value,
        score.low,
        score.high,
        f"mean {results[0]['score_name']}",
        len(episodes),
        seeds=f"train {args.seeds}, test {first['first']}..{first['last']}",
        note=f"Per training seed: {per_seed}. Success in {sum(e['success'] for e in episodes)} of {len(episodes)}. "
        f"Training took {minutes} min with {args.parallel} runs beside each other. "
        "Last checkpoint, no selection.",
    )


if __name__ == "__main__":
    main()
