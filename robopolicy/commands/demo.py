"""robopolicy demo: the whole chain on PushT in minutes, from nothing but this package."""

import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class DemoArgs:
    """Records scripted PushT demonstrations, trains flow matching, evaluates it on 50 test seeds."""

    output: Path | None = None
    """Folder of the run; default outputs/<date>_demo."""
    demonstrations: int = 400
    steps: int = 9000
    """Optimiser steps."""
    episodes: int = 50
    """Test episodes."""
    seed: int = 42


def run(arguments: list[str]) -> None:
    """Runs record, train and eval, each as its own verb would."""
    args = tyro.cli(DemoArgs, args=arguments, prog="robopolicy demo")
    from robopolicy.commands.evaluate import EvalArgs, evaluate_checkpoint
    from robopolicy.commands.train import default_output, start
    from robopolicy.evaluation.record import record
    from robopolicy.recipes import recipe

    begin = time.perf_counter()
    folder = args.output or default_output("demo")
    if folder.exists():
        raise RobopolicyError(f"{folder}: exists already; choose another --output")
    print(f"1/3  {args.demonstrations} scripted PushT demonstrations")
    data = folder.parent / f"{folder.name}_data"
    record("pusht", "scripted", data, episodes=args.demonstrations)
    print(f"2/3  training pusht-small-flow for {args.steps} steps")
    config = recipe("pusht-small-flow")
    config.steps, config.seed, config.data.path = args.steps, args.seed, data
    config.eval.every, config.save_every, config.validate_every = args.steps // 4, args.steps // 4, args.steps // 4
    start(config, folder, "pusht-small-flow")
    print(f"3/3  {args.episodes} test episodes")
    print(evaluate_checkpoint(EvalArgs(folder, args.episodes)))
    print(f"finished in {(time.perf_counter() - begin) / 60:.1f} min")
    print(f"try: robopolicy bench {folder}")
