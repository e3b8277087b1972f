"""robopolicy data doctor PATH [--json] [--strict] [--no-images]."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robopolicy.errors import DataError


@dataclass
class DoctorArgs:
    """Looks for damage, bad recordings and a wrongly declared action space; exit status 2 when there are errors."""

    path: tyro.conf.Positional[Path]
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON, which lists every finding."""
    strict: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Exit with status 2 on warnings, too."""
    images: bool = True
    """Look at the cameras as well, which decodes all of them."""


def run(arguments: list[str]) -> None:
    """Prints the findings."""
    args = tyro.cli(DoctorArgs, args=arguments, prog="robopolicy data doctor")
    from robopolicy.datasets.doctor import diagnose, format_diagnosis

    found = diagnose(args.path, images=args.images)
    print(json.dumps(found.to_dict(), indent=1) if args.json else format_diagnosis(found))
    errors, warnings = found.count("error"), found.count("warning")
    if errors or (args.strict and warnings):
        raise DataError(f"{args.path}: the doctor found {errors} errors and {warnings} warnings")
