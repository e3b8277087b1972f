"""robopolicy train RECIPE for the recipes of reinforcement learning."""

import os
from dataclasses import replace
from pathlib import Path

import tyro

from robopolicy.configs import from_dict, to_dict
from robopolicy.errors import RobopolicyError
from robopolicy.recipes_locomotion import LOCOMOTION
from robopolicy.registry import environment_config
from robopolicy.rl.trainer import RLConfig, RLTrainer
from robopolicy.training.checkpoint import write_json
from robopolicy.training.trainer import TrainResult


def parse(name: str, arguments: list[str]) -> RLConfig:
    """The recipe `name` with overrides, flags only."""
    return tyro.cli(
        RLConfig,
        default=LOCOMOTION[name].make(),
        args=arguments,
        prog=f"robopolicy train {name}",
        config=(tyro.conf.FlagConversionOff,),
    )


def start(config: RLConfig, folder: Path, name: str) -> TrainResult:
    """Trains `config` in a new `folder`."""
    rank = int(os.environ.get("RANK", 0))
    if rank == 0 and folder.exists():
        raise RobopolicyError(f"{folder}: exists already; choose another --output, or continue it with --resume")
    trainer = RLTrainer(replace(config), folder)
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "train_config.json", {"recipe": name, "trainer": "rl", "config": to_dict(config)})
    return _train(trainer)


def resume(folder: Path, stored: dict[str, object], where: str) -> TrainResult:
    """Continues the run in `folder`, whose train_config.json holds `stored`, from its newest checkpoint."""
    data = stored["config"]
    assert isinstance(data, dict)
    # Environments are found by kind once the module that defines them is imported.
    environment_config(str(data.get("env", {}).get("kind")))
    trainer = RLTrainer(from_dict(RLConfig, data, where), folder)
    step = trainer.resume()
    if trainer.rank == 0:
        print(f"resuming {folder} at iteration {step} of {trainer.config.iterations}")
    return _train(trainer)


def _train(trainer: RLTrainer) -> TrainResult:
    try:
        return trainer.run()
    except KeyboardInterrupt:
        print(f"\nstopped at iteration {trainer.iteration}; continue with: robopolicy train --resume {trainer.folder}")
        raise
