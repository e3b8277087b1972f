"""Damages small datasets of every format in 40 ways each and counts how often reading them stays orderly.

    python benchmarks/corrupt_inputs.py [--each 40] [--only FORMAT ...] [--seed 0] [--record]

Every mutant is converted and described by the command line in a process of its own, within 20 s and 4 GiB. An outcome
is one of: a clear error of one line that names a file of the dataset; contents equal to the original; a repair or
omission that is noted; changed values where the format has no checksum (undetectable, counted by itself); or a
failure: a traceback, a hang, a crash, anything written outside the output folder, an unclear error, or silent loss.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "datasets"))

from corpus import Attempts, contents, corpus, file_name, judge, protected, snapshot
from ledger import record
from mutations import mutate, prepare_outside

from robopolicy.evaluation.statistics import wilson
from robopolicy.progress import progress_bar

CLASSES = ("error", "equal", "noted", "undetectable", "FAILED")


def main() -> None:
    """Runs all mutations and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=40, help="mutations of every dataset")
    parser.add_argument("--only", nargs="*", default=[], help="datasets of the corpus; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--record", action="store_true", help="write the ledger entry")
    args = parser.parse_args()
    table: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as temporary, Attempts() as attempts:
        os.environ["ROBOPOLICY_CACHE"] = str(Path(temporary) / "out" / "cache")
        chosen = {n: w for n, w in corpus().items() if not args.only or n in args.only}
        with progress_bar(total=len(chosen) * args.each, unit="mutant") as bar:
            for variant, write in chosen.items():
                (Path(temporary) / "good" / variant).mkdir(parents=True)
                good = write(Path(temporary) / "good" / variant / file_name(variant))
                original = contents(good)
                table[variant] = Counter()
                for number in range(args.each):
                    folder = Path(temporary) / "work"
                    prepare_outside(folder)
                    dataset = folder / file_name(variant)
                    (shutil.copytree if good.is_dir() else shutil.copy2)(good, dataset)
                    kind, text = mutate(dataset, args.seed + number)
                    before = snapshot(folder)
                    result = attempts(dataset, folder / "out")
                    outcome, why = judge(result, original, dataset, protected(variant, kind))
                    if snapshot(folder) != before:
                        outcome, why = "FAILED", "something outside the output folder was changed"
                    table[variant][outcome] += 1
                    if outcome == "FAILED" or args.verbose:
                        print(f"{variant} {args.seed + number} {outcome}: {kind}: {text}\n    {why}", flush=True)
                    shutil.rmtree(folder)
                    bar.update(1)
    width = max(map(len, table))
    print(f"{'':<{width}}  " + "  ".join(f"{c:>12}" for c in CLASSES))
    for variant, counts in table.items():
        print(f"{variant:<{width}}  " + "  ".join(f"{counts[c]:>12}" for c in CLASSES))
    total: Counter[str] = sum(table.values(), Counter())
    n, failed = total.total(), total["FAILED"]
    print(f"{n - failed} of {n} survived; {dict(total)}")
    if args.record:
        interval = wilson(n - failed, n)
        record(
            "corrupt_inputs_survived",
            f"python benchmarks/corrupt_inputs.py --each {args.each} --seed {args.seed} --record",
            (n - failed) / n,
            interval.low,
            interval.high,
            "share of damaged datasets handled",
            n,
            seeds=f"{args.seed}..{args.seed + args.each - 1} for each of {len(table)} datasets",
            note=f"Clear errors {total['error']}, contents equal {total['equal']}, noted {total['noted']}, changed "
            f"values that no checksum of the format covers {total['undetectable']}, failures {failed}. Names with "
            "-plain are files as other software writes them.",
            outcomes={variant: dict(counts) for variant, counts in table.items()},
        )


if __name__ == "__main__":
    main()
