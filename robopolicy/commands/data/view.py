"""robopolicy data view PATH [--episode N] [--output FILE.html|FILE.png] [--rerun FILE.rrd]."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class ViewArgs:
    """Shows one episode: frames of every camera, curves of states and actions, the instruction."""

    path: tyro.conf.Positional[Path]
    episode: int = 0
    frames: int = 8
    """Frames per camera, evenly spaced."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """HTML page or PNG sheet to write, by its ending; <name>_view.html by default."""
    rerun: Path | None = None
    """Recording (.rrd) to write for the rerun viewer instead, with every frame; needs the extra viz."""


def run(arguments: list[str]) -> None:
    """Writes the page, the sheet or the recording, and says where."""
    args = tyro.cli(ViewArgs, args=arguments, prog="robopolicy data view", config=(tyro.conf.FlagConversionOff,))
    if args.rerun is not None and args.rerun.suffix != ".rrd":
        raise RobopolicyError(f"--rerun {args.rerun}: expected a name that ends in .rrd")
    output = args.output
    if output is None and args.rerun is None:
        output = Path(f"{args.path.resolve().name}_view.html")
    if output is not None and output.suffix not in (".html", ".png"):
        raise RobopolicyError(f"--output {output}: expected a name that ends in .html or .png")
    for path in (output, args.rerun):
        if path is not None and path.exists():
            raise RobopolicyError(f"{path}: already exists; choose another name or remove it first")
    from robopolicy.datasets.detect import open_source
    from robopolicy.datasets.recording import write_recording
    from robopolicy.datasets.view import build_page, build_sheet, collect
    from robopolicy.datasets.writer import write_file

    with open_source(args.path) as source:
        if output is not None:
            view = collect(source, args.episode, args.frames)
            write_file(output, build_sheet(view) if output.suffix == ".png" else build_page(view).encode())
            print(output)
        if args.rerun is not None:
            write_recording(source, args.episode, args.rerun)
            print(args.rerun)
