"""The `robopolicy` command: finds the verb, runs it, and turns a user's mistake into one line and exit status 2."""

import os
import sys
from collections.abc import Callable
from importlib import import_module

from robopolicy import __version__
from robopolicy.errors import RobopolicyError, unknown

VERBS = {
    "demo": ("demo", "record demonstrations, train, evaluate, write report and video"),
    "train": ("train", "train a policy from a named recipe"),
    "eval": ("evaluate", "score a checkpoint on seeded episodes, with intervals"),
    "eval-locomotion": ("eval_locomotion", "a legged policy: tracking, pushes, terrains, a fresh adversary"),
    "compare": ("compare", "paired comparison of two evaluations"),
    "compose": ("compose", "one policy of several checkpoints, with or without a search for its weights"),
    "data": ("data", "describe, convert, check, replay, view, record and fetch datasets"),
    "import": ("import_checkpoint", "a checkpoint of robomimic (.pth) as one of ours"),
    "bench": ("bench", "latency of a checkpoint; bench frontier: score against latency"),
    "export": ("export", "an actor as one ONNX or TorchScript file, scales and normaliser inside"),
    "deploy": ("deploy", "a checkpoint on a robot, real or simulated, behind the safety gate (extra ros2)"),
    "ros": ("ros", "ros env: lets `ros2 launch robopolicy` find this installation"),
    "recipes": ("recipes", "list the recipes"),
}

MAX_MESSAGE = 1500
USAGE = "usage: robopolicy VERB ...\n\n{verbs}\n\nrobopolicy VERB --help tells more. Version {version}.\n"


def _usage() -> str:
    verbs = "\n".join(f"  {name:<16}{text}" for name, (_, text) in VERBS.items())
    return USAGE.format(verbs=verbs, version=__version__)


def _one_line(text: str) -> str:
    """Messages quote names and values from files, which may be anything."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 200]} ... {line[-200:]}"


def _leave() -> None:
    """Ends a process of a distributed run at once: threads of gloo may outlive its process group, and now and then a
    process whose work was done aborted while its interpreter was taken down, and with it the whole run."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    # pygame, which PushT draws with, would print a greeting on every import.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_usage(), end="")
            return 0
        if arguments[0] == "--version":
            print(__version__)
            return 0
        verb, *rest = arguments
        if verb not in VERBS:
            raise unknown("verb", verb, VERBS)
        run: Callable[[list[str]], None] = import_module(f"robopolicy.commands.{VERBS[verb][0]}").run
        run(rest)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            # Under torchrun or any other launcher.
            _leave()
        return 0
    except RobopolicyError as error:
        print(f"robopolicy: error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robopolicy: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output, head for instance, has gone: nothing is wrong.
        sys.stderr.close()
        return 0
    except OSError as error:
        # A full disk or a folder without permission, met where no room has a better word for it.
        where = _one_line(str(error.filename or "file system"))
        print(f"robopolicy: error: {where}: {error.strerror or error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
