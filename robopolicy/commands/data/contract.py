"""robopolicy data contract PATH [--report] [--output FILE]."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robopolicy.errors import DataError, RobopolicyError


@dataclass
class ContractArgs:
    """Drafts the contract that says which topics of a ROS 2 recording become which features.

    With --report, checks recordings against the contract they have: timing, gaps and drops of every topic in every
    episode, and why an episode is left out.
    """

    path: tyro.conf.Positional[Path]
    """A recording, or a folder of them."""
    report: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a JSON report by the existing contract instead of a draft."""
    contract: Path | None = None
    """Contract for --report; by default contract.yaml in the folder or beside the recording."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Write to this file instead of printing."""


def run(arguments: list[str]) -> None:
    """Prints or writes the draft or the report."""
    args = tyro.cli(ContractArgs, args=arguments, prog="robopolicy data contract")
    if args.contract is not None and not args.report:
        raise RobopolicyError("--contract goes with --report; without it a new contract is drafted")
    from robopolicy.datasets.contract_draft import draft_contract
    from robopolicy.datasets.rosbag_source import RosbagSource
    from robopolicy.datasets.writer import write_file

    if not args.path.exists():
        raise DataError(f"{args.path}: no such file or directory")
    if args.report:
        text = json.dumps(RosbagSource(args.path, args.contract).report(), indent=1) + "\n"
    else:
        text = draft_contract(args.path)
    if args.output is None:
        print(text, end="")
        return
    write_file(args.output, text.encode())
    print(f"written: {args.output}")
