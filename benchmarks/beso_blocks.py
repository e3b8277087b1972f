"""BESO on two-block play: goals followed, goals ignored, goals shuffled, few steps and many.

    robopolicy data record --task blocks --output PLAY --episodes 2500 --workers 2
    for s in 42 43 44: robopolicy train blocks-beso-cfg --data.path PLAY --seed $s --output RUNS/blocks_$s
    python benchmarks/beso_blocks.py RUNS/blocks_42 RUNS/blocks_43 RUNS/blocks_44 [--many RUNS/blocks_42]

Every run is evaluated on the same test seeds. Result counts only what the goal asked, reward whatever was filled.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ledger import record

from robopolicy.evaluation.result import EvalInfo
from robopolicy.evaluation.rollout import evaluate
from robopolicy.evaluation.statistics import mean_over_seeds, paired_bootstrap
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


def run(policy: Any, task: Any, episodes: int, **sampler: Any) -> EvalInfo:
    """Evaluates with some settings of the sampler changed, and puts them back."""
    before = {name: getattr(policy.config.sampler, name) for name in sampler}
    for name, value in sampler.items():
        setattr(policy.config.sampler, name, value)
    seeds = range(TEST_SEEDS, TEST_SEEDS + episodes)
    info = evaluate(policy, task, seeds, n_envs=50, record_video=0, pictures=0).info
    for name, value in before.items():
        setattr(policy.config.sampler, name, value)
    print(f"{task if isinstance(task, str) else task.__name__} {sampler}: {info.score} {info.metrics}", flush=True)
    return info


def scores(info: EvalInfo) -> list[float]:
    return [e.score for e in info.episodes]


def main() -> None:
    """Evaluates all runs and records the pooled numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--many", type=Path, nargs="*", default=[], help="runs to sample with 50 steps as well")
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[EvalInfo]] = {"goal": [], "blind": [], "shuffled": []}
    differences: list[str] = []
    seeds, steps = [], []
    for path in args.runs:
        policy, about = checkpoint.load(path)
        seeds.append(about["provenance"]["seed"])
        steps.append(about["provenance"]["step"])
        settings = {"name": "ddim", "steps": STEPS}
        found["goal"].append(run(policy, "blocks", args.episodes, **settings, guidance=1.0))
        found["blind"].append(run(policy, "blocks", args.episodes, **settings, guidance=0.0))
        found["shuffled"].append(run(policy, ShuffledGoals, args.episodes, **settings, guidance=1.0))
        if path in args.many:
            many = run(policy, "blocks", args.episodes, name="ddim", steps=50, guidance=1.0)
            gap = paired_bootstrap(scores(many), scores(found["goal"][-1]))
            differences.append(f"training seed {seeds[-1]}: {many.score}, paired difference to {STEPS} steps {gap}")
    command = "python benchmarks/beso_blocks.py " + " ".join(f"RUNS/blocks_{s}" for s in seeds)
    where = f"train {seeds}, test {TEST_SEEDS}..{TEST_SEEDS + args.episodes - 1}"
    n = args.episodes * len(args.runs)

    def pooled(name: str, values: list[list[float]], unit: str, note: str) -> None:
        mean = mean_over_seeds(values)
        per_seed = ", ".join(f"{np.mean(v):.3f}" for v in values)
        text = f"{STEPS}-step DDIM. Per training seed: {per_seed}. {note}".strip()
        record(name, command, mean.value, mean.low, mean.high, unit, n, seeds=where, note=text)

    trained = f"blocks-beso-cfg, {steps[0]} training steps, last checkpoint, no selection."
    many_note = f" 50 steps: {'; '.join(differences)}." if differences else ""
    result, reward = "result", "reward"
    pooled("beso_blocks_result", [scores(i) for i in found["goal"]], result, trained + many_note)
    metric = [[e.metrics["reward"] for e in i.episodes] for i in found["goal"]]
    pooled("beso_blocks_reward", metric, reward, trained)
    blind_reward = np.mean([e.metrics["reward"] for i in found["blind"] for e in i.episodes])
    note = f"Guidance 0: the goal is not seen; reward {blind_reward:.3f}."
    pooled("beso_blocks_goal_blind", [scores(i) for i in found["blind"]], result, note)
    note = "The goal shown is drawn without regard to the one that counts."
    pooled("beso_blocks_shuffled", [scores(i) for i in found["shuffled"]], result, note)


if __name__ == "__main__":
    main()
