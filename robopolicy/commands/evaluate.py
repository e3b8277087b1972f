"""robopolicy eval CHECKPOINT: seeded episodes, intervals, report and videos."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class SamplerArgs:
    """Overrides of how a diffusion or flow policy samples; the weights stay."""

    name: str | None = None
    """Sampler; default: the checkpoint's."""
    steps: int | None = None
    """Denoiser steps; default: the checkpoint's."""
    schedule: str | None = None
    """Noise schedule; default: the checkpoint's."""


@dataclass
class EvalArgs:
    """Scores a checkpoint on seeded episodes."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint, or a run whose last checkpoint is taken."""
    episodes: int = 50
    split: Literal["test", "validation"] = "test"
    """Which range of seeds: choose settings on validation seeds, report test seeds."""
    task: str | None = None
    """Task to evaluate on; default: the one trained for."""
    output: Path | None = None
    """Folder for eval_info.json, report.html and videos; default RUN/eval_<split>_<step>."""
    overwrite: bool = False
    """Replace that folder when it exists."""
    n_envs: int | None = None
    """Environments stepped beside each other; default what the task says, such as 50, or fewer episodes."""
    workers: int = 0
    """Processes that step the environments; 0 steps them in this one."""
    videos: int = 2
    """Episodes kept as videos: the best, the worst, then the first."""
    strategy: Literal["receding", "ensemble", "realtime"] = "receding"
    """Execute T_a actions of a chunk; average all chunks at every step; or let each chunk continue the one before it
    (real-time chunking, for latency)."""
    n_action_steps: int | None = None
    """T_a; default: the checkpoint's."""
    latency_steps: int = 0
    """Control steps that pass between an observation and its chunk."""
    latency_jitter_steps: int = 0
    """Largest additional latency, drawn per chunk."""
    sampler: SamplerArgs = field(default_factory=SamplerArgs)
    device: str = "cpu"
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""


def run(arguments: list[str]) -> None:
    """Evaluates, writes the folder and prints the summary."""
    args = tyro.cli(EvalArgs, args=arguments, prog="robopolicy eval", config=(tyro.conf.FlagConversionOff,))
    print(evaluate_checkpoint(args))


def evaluate_checkpoint(args: EvalArgs) -> str:
    """Runs the evaluation of `args` and returns what to print."""
    import torch

    from robopolicy.evaluation.result import CurvePoint
    from robopolicy.evaluation.rollout import evaluate
    from robopolicy.sim.task import TEST_SEEDS, VALIDATION_SEEDS
    from robopolicy.training import checkpoint
    from robopolicy.training.logs import read_metrics

    if args.episodes < 1:
        raise RobopolicyError(f"--episodes {args.episodes}: at least 1 is needed")
    if args.threads:
        torch.set_num_threads(args.threads)
    path = checkpoint.resolve(args.checkpoint)
    run_folder = path.parent.parent
    output = args.output or run_folder / f"eval_{args.split}_{path.name}"
    if output.exists() and not args.overwrite:
        raise RobopolicyError(f"{output}: exists already; choose another --output or pass --overwrite True")
    policy, about = checkpoint.load(path, args.device)
    override_sampler(policy, args.sampler)
    first = TEST_SEEDS if args.split == "test" else VALIDATION_SEEDS
    result = evaluate(
        policy,
        args.task or about["task"],
        range(first, first + args.episodes),
        n_envs=args.n_envs,
        workers=args.workers,
        strategy=args.strategy,
        n_action_steps=args.n_action_steps,
        latency_steps=args.latency_steps,
        latency_jitter_steps=args.latency_jitter_steps,
        record_video=args.videos,
        checkpoint=str(args.checkpoint),
        provenance=about["provenance"],
    )
    curve = [
        CurvePoint(e["step"], e["eval/score"], e["eval/score_low"], e["eval/score_high"], e["eval/success"])
        for e in read_metrics(run_folder / "metrics.jsonl")
        if "eval/score" in e
    ]
    result.save(output, args.overwrite, curve)
    return f"{result.info.summary()}\nreport: {output / 'report.html'}"


def override_sampler(policy: object, args: SamplerArgs) -> None:
    """Applies the sampler overrides to a policy that samples; an error for one that does not."""
    wanted = {k: v for k, v in vars(args).items() if v is not None}
    if not wanted:
        return
    config = getattr(getattr(policy, "config", None), "sampler", None)
    if config is None:
        raise RobopolicyError(f"--sampler.{next(iter(wanted))}: this policy does not sample")
    from robopolicy.diffusion.samplers import sampler
    from robopolicy.diffusion.schedules import SCHEDULES
    from robopolicy.errors import unknown

    sampler(wanted.get("name", config.name))
    schedule = wanted.get("schedule", config.schedule)
    if schedule != "native" and schedule not in SCHEDULES:
        raise unknown("schedule", schedule, [*SCHEDULES, "native"])
    if wanted.get("steps", 1) < 1:
        raise RobopolicyError(f"--sampler.steps {wanted['steps']}: at least 1 is needed")
    for name, value in wanted.items():
        setattr(config, name, value)
