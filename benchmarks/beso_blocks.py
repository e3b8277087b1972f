"""BESO on two-block play: goals followed, goals ignored, goals shuffled, few steps and many.

    robopolicy data record --task blocks --output PLAY --episodes 2500 --workers 2
    for s in 42 43 44: robopolicy train blocks-beso-cfg --data.path PLAY --seed $s --output RUNS/blocks_$s
    python benchmarks/beso_blocks.py --record RUNS/blocks_42 RUNS/blocks_43 RUNS/blocks_44 --many RUNS/blocks_42

Every run is evaluated on the same test seeds. Result counts only what the goal asked, reward whatever was filled.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ledger import record

from robopolicy.evaluation.rollout import evaluate
from robopolicy.evaluation.statistics import bootstrap_mean, mean_over_seeds
from robopolicy.sim.blocks import Blocks
from robopolicy.sim.task import TEST_SEEDS
from robopolicy.training import checkpoint

STEPS = 3


class ShuffledGoals(Blocks):
    """Shows a goal that was drawn without regard to the one that counts."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        counts = self.assignment
        drawn = np.random.default_rng([seed or 0, 1]).random() < 0.5
        self.ask((0, 1) if drawn else (1, 0))
        # What is shown stays; what counts is as before.
        self.assignment = counts
        return self._observe(), self._info()


def run(folder: Path, policy: Any, variant: str, episodes: int) -> dict[str, list[float]]:
    """Scores and rewards of one variant on test seeds; kept beside the run, and read from there when they exist."""
    file = folder / f"blocks_{variant}_{episodes}.json"
    if not file.exists():
        sampler = policy.config.sampler
        if variant != "ddpm100":  # That one is sampled as its recipe says.
            sampler.name, sampler.steps = "ddim", 50 if variant == "many" else STEPS
            sampler.guidance = 0.0 if variant == "blind" else 1.0
        task: Any = ShuffledGoals if variant == "shuffled" else "blocks"
        seeds = range(TEST_SEEDS, TEST_SEEDS + episodes)
        info = evaluate(policy, task, seeds, n_envs=50, record_video=0, pictures=0).info
        found = {"result": [e.score for e in info.episodes], "reward": [e.metrics["reward"] for e in info.episodes]}
        file.write_text(json.dumps(found))
    values = json.loads(file.read_text())
    print(f"{folder} {variant}: {', '.join(f'{k} {bootstrap_mean(v)}' for k, v in values.items())}", flush=True)
    return values  # type: ignore[no-any-return]


def main() -> None:
    """Evaluates all runs and records the pooled numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--many", type=Path, nargs="*", default=[], help="runs to sample with 50 steps as well")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--many-episodes", type=int, default=50, help="the first of them, for 50 steps")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, list[float]]]] = {"goal": [], "blind": [], "shuffled": []}
    seeds, steps = [], []
    gaps: dict[int, np.ndarray] = {}
    for path in args.runs:
        policy, about = checkpoint.load(path)
        seeds.append(about["provenance"]["seed"])
        steps.append(about["provenance"]["step"])
        for variant, values in found.items():
            values.append(run(path, policy, variant, args.episodes))
        if path in args.many:
            many = run(path, policy, "many", args.many_episodes)["result"]
            gaps[seeds[-1]] = np.subtract(found["goal"][-1]["result"][: args.many_episodes], many)
    if not args.record:
        return
    command = "python benchmarks/beso_blocks.py --record " + " ".join(f"RUNS/blocks_{s}" for s in seeds)
    where = f"train {seeds}, test {TEST_SEEDS}..{TEST_SEEDS + args.episodes - 1}"

    def pooled(name: str, variant: str, kind: str, note: str) -> None:
        values = [v[kind] for v in found[variant]]
        mean = mean_over_seeds(values)
        per_seed = ", ".join(f"{np.mean(v):.3f}" for v in values)
        text = f"{STEPS}-step DDIM. Per training seed: {per_seed}. {note}"
        n = args.episodes * len(args.runs)
        record(name, command, mean.value, mean.low, mean.high, kind, n, seeds=where, note=text)

    trained = f"blocks-beso-cfg, {steps[0]} training steps, last checkpoint, no selection."
    pooled("beso_blocks_result", "goal", "result", trained)
    pooled("beso_blocks_reward", "goal", "reward", trained)
    reward = np.mean([v["reward"] for v in found["blind"]])
    pooled("beso_blocks_goal_blind", "blind", "result", f"Guidance 0: the goal is not seen; reward {reward:.3f}.")
    reward = np.mean([v["reward"] for v in found["shuffled"]])
    note = f"The goal shown is drawn without regard to the one that counts; reward {reward:.3f}."
    pooled("beso_blocks_shuffled", "shuffled", "result", note)
    if gaps:
        gap = mean_over_seeds(list(gaps.values()))
        record(
            "beso_blocks_few_minus_many",
            f"{command} --many {' '.join(f'RUNS/blocks_{s}' for s in gaps)} --many-episodes {args.many_episodes}",
            gap.value,
            gap.low,
            gap.high,
            "difference in result",
            args.many_episodes * len(gaps),
            seeds=f"train {list(gaps)}, test {TEST_SEEDS}..{TEST_SEEDS + args.many_episodes - 1}",
            peer="50 steps",
            note=f"{STEPS} minus 50 steps of DDIM, the same checkpoints and episodes, paired. Per training seed: "
            f"{', '.join(f'{g.mean():.3f}' for g in gaps.values())}.",
        )


if __name__ == "__main__":
    main()
