"""robopolicy data info PATH | record --task pusht --expert scripted --output PATH."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from robopolicy.errors import RobopolicyError, unknown

USAGE = """usage: robopolicy data info PATH [--json True]
       robopolicy data record --output PATH [--task pusht] [--expert scripted] [--episodes 200]

info    prints format, episodes, steps, rate, and ranges and NaNs of every key
record  writes demonstrations of a scripted expert as an episode store"""


@dataclass
class InfoArgs:
    """Describes a dataset of any supported format."""

    path: tyro.conf.Positional[Path]
    json: bool = False
    """Print JSON instead of a table."""


@dataclass
class RecordArgs:
    """Writes demonstrations of a scripted expert as an episode store."""

    output: Path
    """Folder to write; must not exist."""
    task: str = "pusht"
    expert: str = "scripted"
    episodes: int = 200
    seed: int = 0
    """Seed of the first episode; the next ones count up."""
    noise: float | None = None
    """Standard deviation of the noise on the expert's actions, in the task's units; default: the expert's own."""
    keep_failures: bool = False
    """Keep episodes that did not succeed."""
    workers: int = 0
    """Processes to record with; 0 records in this one."""


def run(arguments: list[str]) -> None:
    """Dispatches to info or record."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    verb, *rest = arguments
    off = (tyro.conf.FlagConversionOff,)
    if verb == "info":
        from robopolicy.datasets.info import describe, format_info

        info_args = tyro.cli(InfoArgs, args=rest, prog="robopolicy data info", config=off)
        info = describe(info_args.path)
        print(json.dumps(info.to_dict(), indent=1) if info_args.json else format_info(info))
    elif verb == "record":
        args = tyro.cli(RecordArgs, args=rest, prog="robopolicy data record", config=off)
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
        )
    else:
        raise unknown("verb of 'robopolicy data'", verb, ["info", "record"])
