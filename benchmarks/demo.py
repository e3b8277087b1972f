"""`make demo` in a fresh clone with a fresh virtual environment: its score, and how long all of it took.

python benchmarks/demo.py
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

from ledger import HERE, record


def main() -> None:
    """Clones the committed state, runs the README's first command, and records the score of its report."""
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "robopolicy"
        subprocess.run(["git", "clone", "--quiet", str(HERE.parent), str(clone)], check=True)
        begin = time.perf_counter()
        subprocess.run(["make", "install"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        installed = time.perf_counter()
        subprocess.run(["make", "demo"], cwd=clone, check=True)
        end = time.perf_counter()
        (file,) = clone.glob("outputs/*_demo/eval_test_*/eval_info.json")
        info = json.loads(file.read_text())
        (HERE.parent / "outputs").mkdir(exist_ok=True)
        kept = HERE.parent / "outputs" / "demo_report.html"
        kept.write_bytes((file.parent / "report.html").read_bytes())
    score = info["score"]
    record(
        "pusht_demo_score",
        "python benchmarks/demo.py",
        score["mean"],
        score["low"],
        score["high"],
        "mean maximum coverage / 0.95",
        info["seeds"]["count"],
        seeds=f"train 42, test {info['seeds']['first']}..{info['seeds']['last']}",
        note=f"`make demo` in a fresh clone: {(installed - begin) / 60:.1f} min to download and install, "
        f"{(end - installed) / 60:.1f} min for the rest. Success (95 % coverage) in {info['success']['successes']} of "
        f"{info['seeds']['count']}. Last checkpoint, no selection.",
    )


if __name__ == "__main__":
    main()
