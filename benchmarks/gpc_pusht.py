"""Does composing two PushT policies help? A diffusion and a flow parent, and the honest protocol.

    python benchmarks/gpc_pusht.py --data DATASET [--episodes 200] [--search-episodes 200] [--steps N]
    python benchmarks/gpc_pusht.py --data DATASET --parents RUN_A RUN_B

Trains `pusht-small` (EDM) and `pusht-small-flow` on the same demonstrations, with one action normaliser, which
composing needs, and one split; or takes two runs. Then `robopolicy compose --search`: weights chosen on validation
seeds, frozen, and everything measured again on test seeds. Recorded is the paired difference of the chosen weights
minus the parent that validation seeds call better, whatever it is.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ledger import record

COMMAND = [sys.executable, "-m", "robopolicy"]


def train(args: argparse.Namespace) -> list[Path]:
    """The two parents, one after the other; runs that exist already are used as they are."""
    common = ["--data.path", str(args.data), "--data.validation-fraction", "0.05", "--seed", str(args.seed)]
    common += ["--threads", str(args.threads)]
    if args.steps:
        common += ["--steps", str(args.steps)]
    runs = {
        "diffusion": ["pusht-small"],
        "flow": ["pusht-small-flow", "--policy.normalization.action", "bounds", "--data.mirror", "True"],
    }
    for name, recipe in runs.items():
        folder = args.output / name
        if not (folder / "checkpoints" / "last").exists():
            subprocess.run([*COMMAND, "train", *recipe, *common, "--output", str(folder)], check=True)
    return [args.output / name for name in runs]


def describe(found: dict[str, Any]) -> str:
    """Scores and success rates on test seeds of everything that was chosen beforehand, and of the leaked best."""
    roles = {
        "equal weights": [1 / len(found["parents"])] * len(found["parents"]),
        "chosen": found["chosen"]["weights"],
        "leaked best": found["leaked_best"]["weights"] if found["leaked_best"] else None,
    }
    parts = []
    for point in found["test"]:
        if point["control"]:
            continue
        names = [name for name, weights in roles.items() if weights == point["weights"]]
        if names or 1.0 in point["weights"] or point["label"].startswith("closed form"):
            s, r = point["score"], point["success"]
            role = f" ({', '.join(names)})" if names else ""
            interval = f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"
            parts.append(f"{point['label']}{role} {interval}, success {r['value']:.3f}")
    return "; ".join(parts)


def main() -> None:
    """Trains or takes parents, searches, and records the gain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--parents", type=Path, nargs=2)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--search-episodes", type=int, default=200)
    parser.add_argument("--grid", type=float, nargs="+", default=[i / 10 for i in range(11)])
    parser.add_argument("--steps", type=int, default=0, help="training steps; 0 takes those of the recipes")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs") / "gpc_pusht")
    args = parser.parse_args()
    begin = time.perf_counter()
    parents = args.parents or train(args)
    trained = (time.perf_counter() - begin) / 60
    search = args.output / "search"
    grid = [f"{g:g}" for g in args.grid]
    options = ["--episodes", str(args.episodes), "--search-episodes", str(args.search_episodes), "--grid", *grid]
    options += ["--data", str(args.data), "--threads", str(args.threads), "--workers", str(args.workers)]
    subprocess.run(
        [*COMMAND, "compose", *map(str, parents), "--search", *options, "--output", str(search)], check=True
    )
    minutes = (time.perf_counter() - begin) / 60 - trained
    found = json.loads((search / "search.json").read_text())
    gain = found["gain"] or {"difference": {"value": 0.0, "low": 0.0, "high": 0.0}, "p_success": 1.0}
    difference, closed = gain["difference"], found["closed_form"]
    validation, test = found["seeds"]["validation"], found["seeds"]["test"]
    record(
        "gpc_pusht_gain",
        f"python benchmarks/gpc_pusht.py --data DATASET --episodes {args.episodes} --search-episodes "
        f"{args.search_episodes}" + (f" --steps {args.steps}" if args.steps else ""),
        difference["value"],
        difference["low"],
        difference["high"],
        "mean paired difference of maximum coverage / 0.95",
        len(test),
        seeds=f"train {args.seed}, validation {validation[0]}..{validation[-1]}, test {test[0]}..{test[-1]}",
        peer=f"{found['better_parent']['label']}, the parent that validation seeds call better",
        note=f"{found['verdict']} McNemar p on success {gain['p_success']:.3g}. On test seeds: {describe(found)}. "
        f"Closed form from {closed['windows']} windows of held-out demonstrations: weights "
        f"{', '.join(f'{w:.2f}' for w in closed['overall'])}. Parents: {', '.join(found['parents'])}. Training took "
        f"{trained:.1f} min, the search {minutes:.1f} min.",
    )


if __name__ == "__main__":
    main()
