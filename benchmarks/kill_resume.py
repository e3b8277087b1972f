"""Kill a training run with SIGKILL at random moments, resume it each time, compare with an uninterrupted run.

    python benchmarks/kill_resume.py --data DATASET [--kills 20] [--steps 1500]

After every kill all checkpoints on disk are loaded, with hashes and golden output. At the end weights, averaged
weights and optimiser state are compared bit for bit.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from ledger import record
from safetensors.torch import load_file

from robopolicy.evaluation.statistics import wilson
from robopolicy.training import checkpoint


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "robopolicy", "train", *arguments]


def _state(run: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.resolve(run)
    return load_file(path / "model.safetensors") | load_file(path / "training" / "state.safetensors")


def main() -> None:
    """Runs the experiment and records the share of kills that left everything whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        whole, cut = Path(temporary) / "whole", Path(temporary) / "cut"
        flags = ["pusht-small", "--data.path", args.data, "--steps", str(args.steps), "--save-every", "20"]
        flags += ["--validate-every", "500", "--keep", "2"]
        subprocess.run(_command(*flags, "--output", str(whole)), check=True, stderr=subprocess.DEVNULL)
        rng, readable, in_save = random.Random(args.seed), 0, 0
        for kill in range(args.kills):
            resume = ["--resume", str(cut)] if (cut / "train_config.json").exists() else [*flags, "--output", str(cut)]
            process = subprocess.Popen(_command(*resume), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # Imports take about four seconds; the kill falls into loading, training or saving.
            time.sleep(rng.uniform(3.5, 9.0))
            if process.poll() is not None:
                raise SystemExit("the run ended before it was killed; raise --steps")
            process.send_signal(signal.SIGKILL)
            process.wait()
            left = list((cut / "checkpoints").glob(".*.tmp")) if (cut / "checkpoints").exists() else []
            in_save += bool(left)
            steps = checkpoint.steps_saved(cut / "checkpoints")
            for step in steps:
                checkpoint.load(cut / "checkpoints" / f"{step:08d}")
            readable += 1
            print(f"kill {kill + 1}: {'during a save, ' if left else ''}steps on disk {steps}", flush=True)
            if cut.exists() and not (cut / "train_config.json").exists():
                cut.rmdir()
        subprocess.run(_command("--resume", str(cut)), check=True, stderr=subprocess.DEVNULL)
        ours, theirs = _state(cut), _state(whole)
        different = [k for k in theirs if not torch.equal(ours[k], theirs[k])]
        equal = ours.keys() == theirs.keys() and not different
        share = wilson(readable if equal else 0, args.kills)
        record(
            "kill_resume_bitwise",
            f"python benchmarks/kill_resume.py --data DATASET --kills {args.kills} --steps {args.steps}",
            share.value,
            share.low,
            share.high,
            "share of kills survived bit for bit",
            args.kills,
            seeds=args.seed,
            note=f"One run of pusht-small, {args.steps} steps, killed {args.kills} times, {in_save} of them while a "
            f"checkpoint was being written. {len(theirs)} tensors compared, {len(different)} differ.",
        )


if __name__ == "__main__":
    main()
