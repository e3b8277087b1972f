"""One checkpoint of PushT through the whole ROS 2 graph and in plain evaluation, on the same episodes.

    python benchmarks/ros_score.py CHECKPOINT [--episodes 30] [--time-scale 1] [--check] [--record]

The graph is that of `robopolicy deploy`: simulated robot, safety gate, policy and recorder as processes over DDS. Its
simulation runs on its own clock, so that inference and transport take the time that they take. What is recorded on the
way is converted afterwards.

With --check, as the continuous integration runs it, the exit status is 1 if more than a tenth of the episodes is
missing from the recordings, which is what a machine that stalls costs, or the graph is clearly worse: the whole
interval of the paired difference below -0.05. Two runs that do not differ at all would leave each other's intervals by
chance in one of six cases, which is why that alone is printed and not an error.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ledger import record

from robopolicy.datasets.detect import open_source
from robopolicy.evaluation.statistics import bootstrap_mean, paired_bootstrap
from robopolicy.sim.task import TEST_SEEDS

MARGIN = 0.05
"""How much lower the graph may score, surely, before --check fails."""
RECORDED = 0.9
"""Share of the episodes whose recordings must be whole for --check."""
ROBOPOLICY = [sys.executable, "-m", "robopolicy"]


def through_graph(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The outcome of every episode, as `robopolicy deploy` writes them."""
    output = folder / "graph.json"
    command = [*ROBOPOLICY, "deploy", str(args.checkpoint), "--robot", "sim_pusht", "--episodes", str(args.episodes)]
    command += ["--time-scale", str(args.time_scale), "--record", str(folder / "bags"), "--output", str(output)]
    subprocess.run(command, check=True)
    return json.loads(output.read_text())  # type: ignore[no-any-return]


def plainly(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The same episodes by `robopolicy eval`."""
    command = [*ROBOPOLICY, "eval", str(args.checkpoint), "--episodes", str(args.episodes), "--threads", "1"]
    subprocess.run([*command, "--videos", "0", "--output", str(folder / "eval")], check=True)
    return json.loads((folder / "eval" / "eval_info.json").read_text())["episodes"]  # type: ignore[no-any-return]


def main() -> None:
    """Runs both, prints the scores and the paired difference, and records it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--keep", type=Path, help="folder for the recordings and both results")
    parser.add_argument(
        "--check", action="store_true", help="fail if the graph is clearly worse or its records are not whole"
    )
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        plain, graph = plainly(args, folder), through_graph(args, folder)
        with open_source(folder / "bags") as recorded:
            episodes, skipped = recorded.n_episodes, list(recorded.notes)
    assert [e["seed"] for e in plain] == [e["seed"] for e in graph]
    a, b = [e["score"] for e in plain], [e["score"] for e in graph]
    difference, score, reached = paired_bootstrap(a, b), bootstrap_mean(a), bootstrap_mean(b)
    inside = score.low <= reached.value <= score.high
    faults = [e["seed"] for e in graph if e["faults"]]
    print(f"plain {score}, graph {reached}, graph - plain {difference}")
    print(f"the graph's mean is {'inside' if inside else 'OUTSIDE'} the interval of plain evaluation")
    print(f"episodes with faults of the gate: {faults}; {episodes} of {len(graph)} recordings are usable {skipped}")
    if args.record:
        record(
            "ros2_score_gap",
            f"python benchmarks/ros_score.py CHECKPOINT --episodes {args.episodes} --time-scale {args.time_scale:g} "
            "--record",
            difference.value,
            difference.low,
            difference.high,
            "score through the graph minus plain evaluation, paired",
            len(graph),
            seeds=f"{TEST_SEEDS}..{TEST_SEEDS + args.episodes - 1}",
            peer="robopolicy eval",
            note=f"Plain {score}, through the graph {reached}; the mean of the graph is "
            f"{'inside' if inside else 'outside'} the interval of plain evaluation. Time scale {args.time_scale:g}. "
            f"Faults of the gate in {len(faults)} episodes. {episodes} of {len(graph)} recorded episodes convert.",
            plain_scores=a,
            graph_scores=b,
        )
    if args.check and (episodes < RECORDED * len(graph) or difference.high < -MARGIN):
        sys.exit(f"failed: {episodes} of {len(graph)} episodes recorded, graph - plain at most {difference.high:.3f}")


if __name__ == "__main__":
    main()
