"""robopolicy compare A B: two evaluations, paired by episode."""

from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class CompareArgs:
    """Paired comparison of two evaluations of the same task and seeds."""

    a: tyro.conf.Positional[Path]
    """Evaluation folder, or its eval_info.json."""
    b: tyro.conf.Positional[Path]
    json: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Print JSON instead of text."""


def run(arguments: list[str]) -> None:
    """Prints the difference with its interval, the exact McNemar test, and what can be concluded."""
    args = tyro.cli(CompareArgs, args=arguments, prog="robopolicy compare")
    from robopolicy.evaluation.compare import compare
    from robopolicy.evaluation.result import EvalInfo

    found = compare(EvalInfo.load(args.a), EvalInfo.load(args.b))
    print(dumps(asdict(found) | {"conclusion": found.conclusion}, indent=1) if args.json else found)
