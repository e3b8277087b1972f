"""Survival against force and tracking of trained quadrupeds: H-infinity against PPO with random forces and plain PPO.

python benchmarks/quadruped_survival.py --hinf RUN [RUN ...] --random RUN [...] --ppo RUN [...]

Every method has one run per training seed, all of equal samples; robots, directions and moments are the same for all
and drawn by --seed. Records `quadruped_survival_auc_hinf`, `_random`, `_ppo` (mean survival over the strengths of
sudden and continuous pushes) and `quadruped_tracking_error` (of H-infinity at 0.5 m/s). Intervals cover training seeds
and episodes. What is earned of the task reward without any push is printed and kept beside.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from ledger import record

from robopolicy.commands.eval_locomotion import locomotion_policy
from robopolicy.evaluation.locomotion import Locomotion, Protocol, measure
from robopolicy.evaluation.statistics import bootstrap_mean, mean_over_seeds

METHODS = ("hinf", "random", "ppo")


def areas(found: Locomotion) -> np.ndarray:
    """Mean survival of every robot [N] over the strengths of both kinds of push."""
    parts = []
    for points in (found.sudden, found.continuous):
        strengths = np.array([p.value for p in points])
        parts.append(
            np.trapezoid(np.array([p.survived for p in points], float), strengths, axis=0) / np.ptp(strengths)
        )
    return np.mean(parts, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for method in METHODS:
        parser.add_argument(f"--{method}", type=Path, nargs="*", default=[])
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--speed", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0, help="draws the robots and the pushes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    protocol = Protocol(options.episodes, options.speed, terrains=(), seed=options.seed, adversary_iterations=0)
    for method in METHODS:
        runs: list[Path] = getattr(options, method)
        if not runs:
            continue
        results = []
        for run in runs:
            policy, config, _ = locomotion_policy(run)
            config.threads = options.threads
            results.append(measure(config, policy.raw, protocol))
        area = mean_over_seeds(np.stack([areas(r) for r in results]))
        errors = [r.forward_error for r in results]
        earned = [r.task_reward for r in results]
        print(f"{method}: area {area}; forward error {', '.join(str(e) for e in errors)} m/s")
        print(f"{method}: task reward earned without pushes {', '.join(str(e) for e in earned)}")
        if options.no_record:
            continue
        command = f"python benchmarks/quadruped_survival.py --{method} RUNS --episodes {options.episodes} "
        command += f"--seed {options.seed}"
        curves = {
            kind: [[(p.value, p.survival.value) for p in getattr(r, kind)] for r in results]
            for kind in ("sudden", "continuous")
        }
        about = {"seeds": len(runs), "note": __doc__.splitlines()[0]}
        record(
            f"quadruped_survival_auc_{method}",
            command,
            area.value,
            area.low,
            area.high,
            "mean survival over pushes",
            options.episodes,
            **about,
            curves=curves,
            forward_errors=[e.value for e in errors],
            task_rewards=[e.value for e in earned],
        )
        if method == "hinf":
            worst = bootstrap_mean([e.value for e in errors])
            record("quadruped_tracking_error", command, worst.value, worst.low, worst.high, "m/s", len(runs), **about)


if __name__ == "__main__":
    main()
