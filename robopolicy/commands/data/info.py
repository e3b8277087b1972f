"""robopolicy data info PATH."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass
class InfoArgs:
    """Describes a dataset of any supported format."""

    path: tyro.conf.Positional[Path]
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> None:
    """Prints the summary."""
    from robopolicy.datasets.info import describe, format_info

    args = tyro.cli(InfoArgs, args=arguments, prog="robopolicy data info", config=(tyro.conf.FlagConversionOff,))
    info = describe(args.path)
    print(json.dumps(info.to_dict(), indent=1) if args.json else format_info(info))
