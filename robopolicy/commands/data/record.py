"""robopolicy data record --output PATH [--task pusht] [--expert scripted] [--episodes 200]."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class RecordArgs:
    """Writes demonstrations of a scripted expert as a dataset."""

    output: Path
    """What to write; must not exist."""
    task: str = "pusht"
    expert: str = "scripted"
    """Name of a scripted expert of the task; robomimic tasks have proficient (or scripted) and mixed."""
    to: str | None = None
    """Format; by default robomimic for a name that ends in .hdf5, else episodes, our own store."""
    episodes: int = 200
    seed: int = 0
    """Seed of the first episode; the next ones count up."""
    noise: float | None = None
    """Standard deviation of the noise on the expert's actions, in the task's units; default: the expert's own. What
    was meant is recorded as the action, what was done as action.executed; in a robomimic file they are
    actions_intended and actions."""
    keep_failures: bool = False
    """Keep episodes that did not succeed."""
    workers: int = 0
    """Processes to record with; 0 records in this one."""


def run(arguments: list[str]) -> None:
    """Records the episodes."""
    args = tyro.cli(RecordArgs, args=arguments, prog="robopolicy data record", config=(tyro.conf.FlagConversionOff,))
    if args.episodes < 1:
        raise RobopolicyError(f"--episodes {args.episodes}: at least 1 is needed")
    from robopolicy.evaluation.record import record

    record(
        args.task,
        args.expert,
        args.output,
        episodes=args.episodes,
        seed=args.seed,
        keep_failures=args.keep_failures,
        expert_options=None if args.noise is None else {"noise": args.noise},
        workers=args.workers,
        format=args.to,
    )
