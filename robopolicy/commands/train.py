"""robopolicy train RECIPE [--field value | field=value ...]  |  robopolicy train --resume RUN."""

import os
import time
from dataclasses import replace
from pathlib import Path

import tyro

from robopolicy.commands import train_rl
from robopolicy.configs import from_dict, to_dict
from robopolicy.errors import CheckpointError, DataError, RobopolicyError, unknown
from robopolicy.policies.base import Policy
from robopolicy.recipes import RECIPES, recipe
from robopolicy.recipes_locomotion import LOCOMOTION
from robopolicy.recipes_robomimic import LISTED, ROBOMIMIC
from robopolicy.training.checkpoint import _read_json, write_json
from robopolicy.training.config import TrainConfig
from robopolicy.training.trainer import Evaluator, Trainer, TrainResult

HELP = """usage: robopolicy train RECIPE [--field value | field=value ...]
       robopolicy train --resume RUN
       torchrun --nproc-per-node N -m robopolicy train RECIPE ...

`robopolicy train RECIPE --help` lists every field with its value in that recipe. Recipes:

{recipes}"""


def run(arguments: list[str]) -> None:
    """Trains from scratch or resumes, and says where the checkpoint is."""
    if not arguments or arguments[0] in ("-h", "--help"):
        others = {n: r.about for n, r in RECIPES.items() if n not in ROBOMIMIC}
        listed = others | LISTED | {n: r.about for n, r in LOCOMOTION.items()}
        print(HELP.format(recipes="\n".join(f"  {n:<40}{about}" for n, about in listed.items())))
        return
    if arguments[0] == "--resume" or arguments[0].startswith("--resume="):
        folder = Path(arguments[0].partition("=")[2] or (arguments[1] if len(arguments) > 1 else ""))
        if len(arguments) > (1 if "=" in arguments[0] else 2):
            raise RobopolicyError("--resume RUN takes no other flags: a resumed run keeps its configuration")
        result = resume(folder)
    else:
        name, *rest = arguments
        if name not in RECIPES and name not in LOCOMOTION:
            raise unknown("recipe", name, [*RECIPES, *LOCOMOTION])
        if name in LOCOMOTION:
            run_config = train_rl.parse(name, flags(rest))
            result = train_rl.start(run_config, run_config.output or default_output(name), name)
        else:
            config = parse(name, rest)
            result = start(config, config.output or default_output(name), name)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"trained {result.step} steps in {result.seconds:.0f} s: {result.checkpoint}")
        if "trainer" not in _read_json(result.folder / "train_config.json"):
            print(f"next: robopolicy eval {result.folder}")


def parse(name: str, arguments: list[str]) -> TrainConfig:
    """The recipe `name` with overrides; accepts `--a.b c`, `--a.b=c` and `a.b=c`."""
    default = recipe(name)
    return tyro.cli(
        TrainConfig,
        default=default,
        args=flags(arguments),
        prog=f"robopolicy train {name}",
        config=(tyro.conf.FlagConversionOff,),
    )


def flags(arguments: list[str]) -> list[str]:
    """Arguments as tyro takes them: `a.b=c` becomes `--a.b=c`."""
    return [f"--{a}" if "=" in a and not a.startswith("-") else a for a in arguments]


def default_output(name: str) -> Path:
    return Path("outputs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"


def start(config: TrainConfig, folder: Path, name: str) -> TrainResult:
    """Trains `config` in a new `folder`."""
    if int(os.environ.get("RANK", 0)) == 0 and folder.exists():
        raise RobopolicyError(f"{folder}: exists already; choose another --output, or continue it with --resume")
    data = demonstrations(config)
    trainer = Trainer(replace(config), data, folder, evaluator(config))
    # A run keeps its precision wherever it is resumed; its device it may change.
    saved = replace(config, precision=trainer.config.precision)
    if trainer.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / "train_config.json", {"recipe": name, "data": str(data.resolve()), "config": to_dict(saved)}
        )
    return _train(trainer)


def resume(folder: Path) -> TrainResult:
    """Continues the run in `folder` from its newest checkpoint, or from the start when it has none."""
    saved = folder / "train_config.json"
    if not saved.is_file():
        raise CheckpointError(f"{folder}: no run to resume (train_config.json is missing)")
    stored = _read_json(saved)
    if stored.get("trainer") == "rl":
        return train_rl.resume(folder, stored, str(saved))
    config = from_dict(TrainConfig, stored["config"], str(saved))
    trainer = Trainer(config, Path(stored["data"]), folder, evaluator(config))
    step = trainer.resume()
    if trainer.rank == 0:
        print(f"resuming {folder} at step {step} of {config.steps}")
    return _train(trainer)


def _train(trainer: Trainer) -> TrainResult:
    try:
        return trainer.run()
    except KeyboardInterrupt:
        print(f"\nstopped at step {trainer.step}; continue with: robopolicy train --resume {trainer.folder}")
        raise


def demonstrations(config: TrainConfig) -> Path:
    """The dataset to train on; without a path, scripted demonstrations, recorded once under outputs/demos."""
    if config.data.path is not None:
        from robopolicy.datasets.detect import find_dataset

        try:
            return find_dataset(config.data.path.expanduser())
        except DataError as error:
            raise RobopolicyError(f"--data.path {error}") from error
    from robopolicy.evaluation.record import record
    from robopolicy.registry import expert_class

    try:
        expert_class(config.task, "scripted")
    except RobopolicyError as error:
        raise RobopolicyError(f"--data.path is needed: {error}") from error
    path = Path("outputs") / "demos" / f"{config.task}_scripted_{config.data.scripted_episodes}"
    if int(os.environ.get("RANK", 0)) == 0 and not path.exists():
        print(f"no --data.path given: recording {config.data.scripted_episodes} scripted demonstrations to {path}")
        record(config.task, "scripted", path, config.data.scripted_episodes)
    while not path.exists():
        time.sleep(0.5)
    return path


def evaluator(config: TrainConfig) -> Evaluator | None:
    """Scores the averaged weights on validation seeds with the evaluator of `robopolicy eval`."""
    if not config.eval.every:
        return None
    from robopolicy.evaluation.rollout import evaluate
    from robopolicy.sim.task import VALIDATION_SEEDS

    seeds = list(range(VALIDATION_SEEDS, VALIDATION_SEEDS + config.eval.episodes))

    def score(policy: Policy, step: int) -> dict[str, float]:
        result = evaluate(
            policy, config.task, seeds, n_envs=config.eval.n_envs, record_video=0, pictures=0, progress=False
        )
        return {
            "eval/score": result.score.value,
            "eval/score_low": result.score.low,
            "eval/score_high": result.score.high,
            "eval/success": result.success.value,
        }

    return score
