"""Replay of the 206 human PushT demonstrations in this release's simulator.

    python benchmarks/pusht_replay.py --data PUSHT_ZARR [--copy PUSHT_LEROBOT]

Every episode starts from its recorded state and executes the recorded actions open loop; it counts when the block
ends within 5 px of where it was recorded. With `--copy`, a copy in another format must hold the same actions.
"""

import argparse
from pathlib import Path

import numpy as np
from ledger import record

from robopolicy.datasets.detect import open_source
from robopolicy.evaluation.replay import replay


def main() -> None:
    """Replays all episodes and records the rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--copy", type=Path)
    args = parser.parse_args()
    same = ""
    if args.copy is not None:
        with open_source(args.data) as first, open_source(args.copy) as second:
            actions = [source.columns(["action"])["action"] for source in (first, second)]
            if not (np.array_equal(*actions) and np.array_equal(first.episode_ends, second.episode_ends)):
                raise SystemExit(f"{args.copy}: actions differ from those of {args.data}")
            same = f" The {second.format} copy holds bit-identical actions."
    result = replay(args.data)
    position, angle = (
        np.array([e.final[name] for e in result.episodes]) for name in ("block_position_px", "block_angle_rad")
    )
    rate = result.reproduced
    record(
        "pusht_replay_rate",
        "python benchmarks/pusht_replay.py --data PUSHT_ZARR" + (" --copy PUSHT_LEROBOT" if args.copy else ""),
        rate.value,
        rate.low,
        rate.high,
        "share of episodes whose block ends within 5 px",
        len(result.episodes),
        note=f"Human demonstrations pusht_cchi_v7 in task {result.task!r}, open loop. Final position error: median "
        f"{np.median(position):.2g} px, largest {position.max():.2g} px (episode {position.argmax()}); final angle "
        f"error: largest {angle.max():.2g} rad. Simulator "
        f"{', '.join(f'{k} {now}' for k, (_, now) in result.fingerprints.items())}.{same}",
        final_position_px=[round(float(v), 4) for v in position],
    )


if __name__ == "__main__":
    main()
