"""robopolicy data convert PATH... --output PATH --to FORMAT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class ConvertArgs:
    """Writes one dataset, or several that agree in their features, as one dataset of another format."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Datasets of any supported format, taken in this order."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """What to write; must not exist."""
    to: str = "episodes"
    """Format: episodes, zarr, lerobot, ... An unknown name lists them."""
    keys: tuple[str, ...] = ()
    """Keys to keep; all by default."""
    contract: Path | None = None
    """ROS 2 recordings: the contract to read them by, when it is not beside them."""
    skip_bad: bool = False
    """Leave damaged episodes out and name them, instead of stopping."""
    video: bool | None = None
    """LeRobot: images as video (the default), or, when False, as lossless PNG."""
    codec: str | None = None
    """LeRobot: h264 (the default, full colour resolution), h264-yuv420p (plays everywhere) or av1."""
    fps: float | None = None
    """LeRobot: the rate in Hz, when the dataset does not say it."""


def run(arguments: list[str]) -> None:
    """Converts, and prints what was written and what was left out."""
    args = tyro.cli(ConvertArgs, args=arguments, prog="robopolicy data convert", config=(tyro.conf.FlagConversionOff,))
    if not args.paths:
        raise RobopolicyError("robopolicy data convert needs at least one dataset")
    from robopolicy.datasets.convert import convert

    options = {n: v for n in ("video", "codec", "fps") if (v := getattr(args, n)) is not None}
    done = convert(
        args.paths,
        args.output,
        args.to,
        keys=args.keys or None,
        skip_bad=args.skip_bad,
        options=options,
        contract=args.contract,
    )
    for note in done.notes:
        print(f"note: {note}")
    print(f"{done.path}: {done.n_episodes} episodes, {done.n_steps:,} steps as {args.to}")
