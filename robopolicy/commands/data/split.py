"""robopolicy data split PATH (--fractions F... | --episodes RANGE... | --masks NAME...) --output PATH..."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class SplitArgs:
    """Writes parts of a dataset as datasets of their own. Give one of --fractions, --episodes and --masks."""

    path: tyro.conf.Positional[Path]
    """Dataset of any supported format."""
    output: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-o"])]
    """What to write, one name per part; must not exist."""
    fractions: tuple[float, ...] = ()
    """Shares of the episodes, drawn at random and disjoint, such as 0.9 0.1."""
    episodes: tuple[str, ...] = ()
    """Episode numbers, such as 0:50 50: or 3,5,8."""
    masks: tuple[str, ...] = ()
    """Subsets that the dataset names itself, such as robomimic's train valid."""
    seed: int = 0
    """Of the draw for --fractions."""
    to: str | None = None
    """Format; default: that of the dataset."""


def run(arguments: list[str]) -> None:
    """Splits, and prints what was written."""
    args = tyro.cli(SplitArgs, args=arguments, prog="robopolicy data split", config=(tyro.conf.FlagConversionOff,))
    from robopolicy.datasets.split import split

    done = split(
        args.path,
        args.output,
        fractions=args.fractions,
        episodes=args.episodes,
        masks=args.masks,
        seed=args.seed,
        to=args.to,
    )
    for note in dict.fromkeys(note for part in done for note in part.notes):
        print(f"note: {note}")
    for part in done:
        print(f"{part.path}: {part.n_episodes} episodes, {part.n_steps:,} steps")
