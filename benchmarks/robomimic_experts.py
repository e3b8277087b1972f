"""Success of the scripted experts of robomimic's lift, can and square, and of the replay of what they recorded.

    python benchmarks/robomimic_experts.py --task square --expert mixed [--record]

The expert plays the first 100 test seeds with the noise that recordings have. Then 100 demonstrations from the first
recording seeds are written as HDF5, and their executed actions run again from each first recorded simulator state.
"""

import argparse
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
from ledger import record as enter

from robopolicy.evaluation.record import SUCCESS, Recorder, record
from robopolicy.evaluation.replay import replay
from robopolicy.evaluation.statistics import wilson
from robopolicy.progress import progress_bar
from robopolicy.sim.task import RECORD_SEEDS, TEST_SEEDS


def main() -> None:
    """Measures one expert on one task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("lift", "can", "square"), required=True)
    parser.add_argument("--expert", choices=("proficient", "mixed"), default="proficient")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--record", action="store_true", help="write the result to the ledger")
    args = parser.parse_args()
    name = f"robomimic-{args.task}"
    seeds = range(TEST_SEEDS, TEST_SEEDS + args.episodes)
    with closing(Recorder(name, args.expert, {}, ())) as player:
        wins = [player.episode(s)[SUCCESS.key] for s in progress_bar(iterable=seeds, desc=name, unit="episode")]
    failed = [seed for seed, won in zip(seeds, wins, strict=True) if not won.any()]
    rate = wilson(args.episodes - len(failed), args.episodes)
    steps = np.array([int(won.argmax()) + 1 for won in wins if won.any()])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demos.hdf5"
        summary = record(name, args.expert, path, episodes=args.episodes, seed=RECORD_SEEDS)
        again = replay(path, name)
    print(again.summary())
    lengths = f"median {np.median(steps):.0f}, 5 % {np.quantile(steps, 0.05):.0f}, 95 % {np.quantile(steps, 0.95):.0f}"
    note = (
        f"Expert {args.expert!r} with its noise. Steps to success: {lengths}. Replay of the executed actions of "
        f"{args.episodes} demonstrations from their HDF5 file: success {again.success}, object within "
        f"{again.tolerance['object_position_m']:g} m of where it was recorded {again.reproduced}; recording them took "
        f"{summary.attempts} attempts. Failed seeds: {failed or 'none'}."
    )
    print(f"success {rate} on seeds {seeds[0]}..{seeds[-1]}. {note}")
    if args.record:
        suffix = "" if args.expert == "proficient" else f"_{args.expert}"
        enter(
            f"expert_{args.task}{suffix}_success",
            f"python benchmarks/robomimic_experts.py --task {args.task} --expert {args.expert} --record",
            rate.value,
            rate.low,
            rate.high,
            "success rate",
            args.episodes,
            seeds=f"{seeds[0]}..{seeds[-1]}",
            note=note,
            replay_success=[again.success.value, again.success.low, again.success.high],
            steps_to_success=steps.tolist(),
        )


if __name__ == "__main__":
    main()
