"""Success of every method on robomimic tasks, trained on scripted demonstrations.

    python benchmarks/robomimic_success.py [--tasks lift can] [--methods dp flow beso carp bcrnn] [--output RUNS]
    python benchmarks/robomimic_success.py --tasks square [--expert proficient]

Experts are proficient for lift and can and mixed for square, the task that tells methods apart. For every task
`robopolicy data record` writes 200 demonstrations, each method's recipe trains on them, and `robopolicy eval` scores
its last checkpoint on 50 test seeds. What is complete in the output folder is not repeated.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from ledger import record

METHODS = ("dp", "flow", "beso", "carp", "bcrnn")
EXPERTS = {"lift": "proficient", "can": "proficient", "square": "mixed"}


def processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Runs what is missing, one after the other, and records every success rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=("lift", "can", "square"), default=["lift", "can"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--expert", choices=("proficient", "mixed"), help="instead of the task's own")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=0, help="training steps; 0 takes those of the recipes")
    parser.add_argument("--workers", type=int, default=1, help="processes that step the environments")
    parser.add_argument("--output", type=Path, default=Path("outputs") / "robomimic")
    args = parser.parse_args()
    base = [sys.executable, "-m", "robopolicy"]
    for task in args.tasks:
        expert = args.expert or EXPERTS[task]
        other = "" if expert == EXPERTS[task] else f"_{expert}"
        data = args.output / f"{task}_{expert}.hdf5"
        if not data.exists():
            options = ["--task", f"robomimic-{task}", "--expert", expert, "--output", str(data)]
            subprocess.run([*base, "data", "record", *options, "--workers", str(args.workers)], check=True)
        for method in args.methods:
            run = args.output / f"{task}-{method}_{expert}_{args.seed}"
            spent = run / "training_time.txt"
            if not spent.exists():
                options = ["--data.path", str(data), "--seed", str(args.seed), "--output", str(run)]
                options += ["--steps", str(args.steps)] if args.steps else []
                begin, busy = time.perf_counter(), processor_seconds()
                subprocess.run([*base, "train", f"{task}-{method}", *options], check=True)
                wall, busy = time.perf_counter() - begin, processor_seconds() - busy
                spent.write_text(f"{wall / 60:.1f} min beside other work, {busy / 60:.1f} min of one processor")
            if not list(run.glob("eval_test_*")):
                subprocess.run([*base, "eval", str(run), "--workers", str(args.workers)], check=True)
            (found,) = run.glob("eval_test_*")
            info = json.loads((found / "eval_info.json").read_text())
            success, steps = info["success"], [e["steps"] for e in info["episodes"] if e["success"]]
            record(
                f"{task}_state_{method}{other}_success",
                f"python benchmarks/robomimic_success.py --tasks {task} --methods {method}"
                + (f" --expert {expert}" if other else "")
                + (f" --steps {args.steps}" if args.steps else ""),
                success["rate"],
                success["low"],
                success["high"],
                "success rate",
                len(info["episodes"]),
                seeds=f"train {args.seed}, test {info['seeds']['first']}..{info['seeds']['last']}",
                note=f"200 scripted {expert} demonstrations, last checkpoint (step {int(found.name[-8:])}), no "
                f"selection. Training took {spent.read_text()}. Mean steps to success "
                f"{sum(steps) / max(len(steps), 1):.0f}.",
            )


if __name__ == "__main__":
    main()
