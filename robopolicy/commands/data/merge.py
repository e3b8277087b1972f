"""robopolicy data merge PATH... --output PATH."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class MergeArgs:
    """Writes several datasets that agree in their features as one, in the format of the first."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Datasets of any supported format, taken in this order."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """What to write; must not exist."""


def run(arguments: list[str]) -> None:
    """What `data convert` does to the format of the first dataset."""
    args = tyro.cli(MergeArgs, args=arguments, prog="robopolicy data merge", config=(tyro.conf.FlagConversionOff,))
    if len(args.paths) < 2:
        raise RobopolicyError("robopolicy data merge needs two datasets or more")
    from robopolicy.commands.data import convert
    from robopolicy.datasets.detect import open_source

    with open_source(args.paths[0]) as first:
        to = first.format
    convert.run([*map(str, args.paths), "--output", str(args.output), "--to", to])
