"""robopolicy data quality PATH [--keep 0.8 --output OUT --to FORMAT] [--plot FILE.png]."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Literal

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class QualityArgs:
    """Scores episodes by action divergence and transition diversity, and writes the best of them as a dataset."""

    path: tyro.conf.Positional[Path]
    keep: float | None = None
    """Share of the episodes to keep, the best ones."""
    by: Literal["divergence", "diversity"] = "divergence"
    """What the best are: least action divergence, or most transition diversity."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Dataset to write with the kept episodes; must not exist."""
    to: str = "episodes"
    """Format of the output."""
    plot: Path | None = None
    """Picture to write, .png or .html."""
    neighbours: int = 10
    """Neighbours that each step is compared with."""
    seed: int = 0
    """Of the choice of steps in datasets of more than 100,000."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON, which has every episode."""


def run(arguments: list[str]) -> None:
    """Prints the scores and writes what was asked for."""
    args = tyro.cli(QualityArgs, args=arguments, prog="robopolicy data quality")
    if args.output is not None and args.keep is None:
        raise RobopolicyError("--output needs --keep, the share of the episodes to write")
    if args.plot is not None and args.plot.suffix not in (".png", ".html"):
        raise RobopolicyError(f"--plot {args.plot}: expected a name that ends in .png or .html")
    for flag, path in (("--output", args.output), ("--plot", args.plot)):
        if path is not None and path.exists():
            raise RobopolicyError(f"{flag} {path}: already exists; choose another name or remove it first")
    from robopolicy.datasets.convert import write_sources
    from robopolicy.datasets.detect import open_source
    from robopolicy.datasets.pages import image_tag, page
    from robopolicy.datasets.quality import assess, format_quality, plot_png
    from robopolicy.datasets.writer import write_file

    with open_source(args.path) as source:
        quality = assess(source, args.neighbours, args.seed)
        kept = None if args.keep is None else quality.best(args.keep, args.by)
        text = format_quality(quality, args.by, kept)
        print(json.dumps(quality.to_dict() | {"kept": kept}, indent=1) if args.json else text)
        if args.plot is not None:
            picture = plot_png(quality, args.by, kept)
            if args.plot.suffix == ".html":
                title = f"Quality of {args.path.name}"
                picture = page(
                    title, f"<section>{image_tag(picture, title)}</section><pre>{escape(text)}</pre>"
                ).encode()
            write_file(args.plot, picture)
        if args.output is not None and kept is not None:
            done = write_sources([source], args.output, args.to, episodes=[kept])
            if not args.json:
                lines = [f"note: {note}" for note in done.notes]
                print(
                    "\n".join(
                        [*lines, f"{done.path}: {done.n_episodes} episodes, {done.n_steps:,} steps as {args.to}"]
                    )
                )
