"""robopolicy data replay PATH [--task pusht] [--episodes 0 1 2] [--strict] [--json] [--output replay.json]."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robopolicy.errors import DataError, RobopolicyError


@dataclass
class ReplayArgs:
    """Executes recorded actions again in the simulator and reports how far the states come apart."""

    path: tyro.conf.Positional[Path]
    task: str | None = None
    """Registered task; by default the one that the features of the dataset fit."""
    episodes: tuple[str, ...] = ()
    """Episode numbers, or ranges such as 0:50; all by default."""
    strict: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Exit with status 2 when the simulator that recorded differs from this one."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of text."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Also write the JSON, which has every episode, to this file."""


def run(arguments: list[str]) -> None:
    """Replays and prints the outcome."""
    args = tyro.cli(ReplayArgs, args=arguments, prog="robopolicy data replay")
    if args.output is not None and args.output.exists():
        raise RobopolicyError(f"--output {args.output}: already exists; choose another name or remove it first")
    from robopolicy.datasets.writer import write_file
    from robopolicy.evaluation.replay import replay

    result = replay(args.path, args.task, args.episodes or None)
    text = json.dumps(result.to_dict(), indent=1)
    print(text if args.json else result.summary())
    if args.output is not None:
        write_file(args.output, text.encode())
        if not args.json:
            print(f"\nwritten: {args.output}")
    if args.strict and result.differences:
        succeeded = f"{sum(e.success for e in result.episodes)} of {len(result.episodes)} episodes succeed"
        raise DataError(f"{args.path}: recorded with {'; '.join(result.differences)}; {succeeded} in the replay")
