"""Survival of one policy in PyBullet against MuJoCo: the nominal robot under the same sudden pushes.

python benchmarks/pybullet_gap.py RUN --episodes 100

Needs the extra `pybullet`. Records `pybullet_survival_gap_points`: survival in MuJoCo minus survival in PyBullet, in
points of a hundred, without pushes; `points` has every strength. Positive: PyBullet's robot falls more often.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from ledger import record

from robopolicy.commands.eval_locomotion import locomotion_policy
from robopolicy.evaluation.locomotion import Point, Protocol, in_both_simulators
from robopolicy.evaluation.statistics import paired_bootstrap


def gap(mujoco: Point, bullet: Point) -> dict[str, float]:
    """Difference in points with its interval; episodes are paired by posture and push."""
    found = paired_bootstrap(np.array(bullet.survived, float), np.array(mujoco.survived, float))
    return {
        "strength_n": mujoco.value,
        "mujoco": mujoco.survival.value,
        "pybullet": bullet.survival.value,
        "gap_points": 100 * found.value,
        "low": 100 * found.low,
        "high": 100 * found.high,
        "error_mujoco": mujoco.forward_error.value,
        "error_pybullet": bullet.forward_error.value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--speed", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy, config, _ = locomotion_policy(options.run)
    protocol = Protocol(speed=options.speed, seed=options.seed, bullet_episodes=options.episodes)
    found = in_both_simulators(config, policy.raw, protocol)
    points = [gap(a, b) for a, b in zip(found["mujoco"], found["pybullet"], strict=True)]
    for p in points:
        print(
            f"{p['strength_n']:4.0f} N: MuJoCo {p['mujoco']:.2f}, PyBullet {p['pybullet']:.2f}, "
            f"gap {p['gap_points']:.0f} [{p['low']:.0f}, {p['high']:.0f}] points; forward error "
            f"{p['error_mujoco']:.3f} and {p['error_pybullet']:.3f} m/s"
        )
    if not options.no_record:
        calm = points[0]
        record(
            "pybullet_survival_gap_points",
            f"python benchmarks/pybullet_gap.py RUN --episodes {options.episodes} --speed {options.speed:g}",
            calm["gap_points"],
            calm["low"],
            calm["high"],
            "points of survival, MuJoCo minus PyBullet, flat ground, no push",
            options.episodes,
            seeds=[options.seed],
            peer="PyBullet",
            note=__doc__.splitlines()[0],
            points=points,
        )


if __name__ == "__main__":
    main()
