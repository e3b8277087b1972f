"""robopolicy data fetch NAME [--output DIR] [--from PATH_OR_URL]  |  robopolicy data fetch --list."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class FetchArgs:
    """Downloads a published dataset of the catalog, resumed where an earlier download broke off, and checks it."""

    name: tyro.conf.Positional[str] = ""
    """Name in the catalog."""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the catalog."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder to keep datasets in; by default $ROBOPOLICY_DATASETS or ~/.cache/robopolicy/datasets."""
    source: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """The file (or a folder that holds it) on this machine, or another address of it."""


def run(arguments: list[str]) -> None:
    """Fetches, and says where the dataset is."""
    args = tyro.cli(FetchArgs, args=arguments, prog="robopolicy data fetch")
    from robopolicy.datasets.fetch import fetch, find_entry, format_catalog

    if args.list:
        print(format_catalog(args.output))
        return
    if not args.name:
        raise RobopolicyError("robopolicy data fetch needs the name of a dataset; --list shows the catalog")
    path = fetch(args.name, args.output, args.source)
    entry = find_entry(args.name)
    print(f"{path}: {entry.about}; licence: {entry.licence or 'not stated'}, see {entry.homepage}")
    if entry.dataset == ".":
        print(f"next: robopolicy data convert {path}/FILES --output DATASET")
    else:
        print(f"next: robopolicy data info {args.name if args.output is None else path}")
