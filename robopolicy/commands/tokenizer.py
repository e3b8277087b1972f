"""robopolicy bench tokenizer CHECKPOINT: what each scale of CARP's tokenizer adds, on demonstrations it never saw."""

import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class TokenizerArgs:
    """Decodes held-out chunks after each scale: error per dimension in the action's units, and codes used.

    Writes tokenizer.json and tokenizer.png and prints the table.
    """

    checkpoint: tyro.conf.Positional[Path]
    """A CARP checkpoint, or a run whose last checkpoint is taken."""
    data: Path
    """Demonstrations; of the ones the checkpoint was trained on, only the held-out episodes are used."""
    windows: int = 4096
    """Largest number of chunks."""
    output: Path | None = None
    """Folder; default outputs/<date>_tokenizer."""


def run(arguments: list[str]) -> None:
    """Measures, writes the folder and prints the table."""
    args = tyro.cli(TokenizerArgs, args=arguments, prog="robopolicy bench tokenizer")
    from robopolicy.commands.compose import held_out_windows
    from robopolicy.evaluation.result import write_folder
    from robopolicy.evaluation.tokenizer_report import measure
    from robopolicy.policies.carp import CarpPolicy
    from robopolicy.training import checkpoint

    if args.windows < 1:
        raise RobopolicyError(f"--windows {args.windows}: at least 1 is needed")
    output = args.output or Path("outputs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_tokenizer"
    if output.exists():
        raise RobopolicyError(f"{output}: exists already; choose another --output")
    policy, about = checkpoint.load(args.checkpoint)
    if not isinstance(policy, CarpPolicy):
        raise RobopolicyError(f"{args.checkpoint}: {type(policy).__name__} has no tokenizer, CARP has one")
    name = str(args.checkpoint)
    batch = held_out_windows(args.data, policy, about["task"], [about["provenance"]], [name], args.windows)
    report = measure(policy, batch, name)
    write_folder(output, {"tokenizer.json": report.to_json().encode(), "tokenizer.png": report.picture()})
    print(report.table())
    print(f"picture: {output / 'tokenizer.png'}")
