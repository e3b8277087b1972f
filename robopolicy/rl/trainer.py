"""The loop around a game: iterations, logs, checkpoints, resume, several processes.

All randomness of an iteration is a function of (seed, iteration, process), and the state of the environment is part
of the checkpoint, so that a resumed run repeats an uninterrupted one bit for bit. With `torchrun`, every process
has its own copies of the environment, and gradients, statistics and the constraint are averaged over all.
"""

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from robopolicy.configs import to_dict
from robopolicy.errors import CheckpointError, RobopolicyError
from robopolicy.progress import progress_bar
from robopolicy.rl.actor import deployed
from robopolicy.rl.hinf import Game, GameConfig
from robopolicy.rl.nets import NetConfig
from robopolicy.rl.ppo import PPO, PPOConfig
from robopolicy.rl.vec import EnvConfig, check_environment
from robopolicy.training import checkpoint
from robopolicy.training.interrupt import StepInterrupt, whole_steps
from robopolicy.training.logs import MetricsLog
from robopolicy.training.trainer import TrainResult, mix


@dataclass
class RLConfig:
    """A reinforcement-learning run; every field can be overridden on the command line."""

    env: EnvConfig
    ppo: PPOConfig = field(default_factory=PPOConfig)
    game: GameConfig = field(default_factory=GameConfig)
    actor: NetConfig = field(default_factory=NetConfig)
    critic: NetConfig = field(default_factory=NetConfig)
    n_envs: int = 256
    """Copies of the environment, per process."""
    rollout_steps: int = 32
    """Control steps of every copy in one iteration."""
    iterations: int = 1000
    normalise: bool = True
    """Scale observations by their running mean and deviation."""
    seed: int = 42
    device: str = "cpu"
    """Where the networks are: cpu, or cuda with an environment that steps there."""
    threads: int = 1
    """CPU threads of torch; 0 leaves its default. Small networks are fastest with one."""
    log_every: int = 5
    save_every: int = 100
    keep: int = 3
    """Newest checkpoints kept."""
    output: Path | None = None
    """Folder of this run; default outputs/<date>_<recipe>."""
    wandb: bool = False
    """Also log to Weights & Biases (extra `wandb`)."""


class RLTrainer:
    """One run in one folder. `RLTrainer(config, folder).run()` trains from scratch or from `resume`."""

    def __init__(self, config: RLConfig, folder: Path) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        if min(config.n_envs, config.rollout_steps, config.iterations, config.log_every, config.save_every) < 1:
            raise RobopolicyError(
                "n-envs, rollout-steps, iterations, log-every and save-every: expected above 0, found "
                f"{config.n_envs}, {config.rollout_steps}, {config.iterations}, {config.log_every}, "
                f"{config.save_every}"
            )
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        device = config.device
        if device == "cuda" and self.world > 1:
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        self.config, self.folder = config, folder
        self.env = config.env.of_process(self.rank).make(config.n_envs, device)
        self.env.reset(mix(config.seed, self.rank))
        check_environment(self.env)
        # Equal weights on every process.
        torch.manual_seed(mix(config.seed))
        self.game = Game(
            self.env,
            config.ppo,
            config.game,
            config.actor,
            config.critic,
            config.rollout_steps,
            config.iterations,
            config.normalise,
        )
        if self.rank == 0:
            checkpoint.remove_leftovers(self.checkpoints)
        self.iteration = 0

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def run(self) -> TrainResult:
        """Trains to `config.iterations`; Ctrl-C ends it after the iteration under way, which is saved."""
        config, started = self.config, time.perf_counter()
        log = bar = None
        if self.rank == 0:
            log = MetricsLog(self.folder, self.iteration, to_dict(config) if config.wandb else None)
            bar = progress_bar(total=config.iterations, initial=self.iteration, unit="iteration", desc="train")
        samples = config.n_envs * config.rollout_steps * self.world
        counted: dict[str, float] = {}
        try:
            # Saving needs all processes, and the others may be anywhere: only alone is it done.
            with whole_steps(self.world == 1) as step_over:
                while self.iteration < config.iterations:
                    begin = time.perf_counter()
                    generator = torch.Generator(self.env.device)
                    generator.manual_seed(mix(config.seed, self.iteration, self.rank))
                    found = self.game.iterate(self.iteration, generator)
                    self.iteration += 1
                    if not math.isfinite(found["policy_loss"]):
                        raise RobopolicyError(
                            f"the loss became {found['policy_loss']} at iteration {self.iteration}; lower ppo.lr"
                        )
                    last = self.iteration == config.iterations
                    if log is not None and bar is not None:
                        bar.update()
                        for name in [n for n in found if n.startswith("count/")]:
                            counted[name] = counted.get(name, 0.0) + found[name]
                        if self.iteration % config.log_every == 0 or last:
                            found["samples_per_s"] = samples / (time.perf_counter() - begin)
                            found["samples"] = float(samples * self.iteration)
                            log.write(self.iteration, found | counted)
                            counted.clear()
                            bar.set_postfix_str(
                                f"reward {found['reward']:.3f}, cost {found['cost']:.3f}, "
                                f"force {found['force']:.1f} N, {found['samples_per_s']:.0f} samples/s",
                                refresh=False,
                            )
                    if self.iteration % config.save_every == 0 or last:
                        self._save()
                    step_over()
        except StepInterrupt:
            self._save()
            raise
        finally:
            if bar is not None:
                bar.close()
            if log is not None:
                log.close()
            self.env.close()
            if self.world > 1:
                dist.destroy_process_group()
        path = self.checkpoints / f"{self.iteration:08d}"
        return TrainResult(self.folder, path, self.iteration, time.perf_counter() - started)

    def resume(self) -> int:
        """Restores the newest checkpoint of the folder and returns its iteration; 0 when there is none yet."""
        steps = checkpoint.steps_saved(self.checkpoints)
        if not steps:
            return 0
        path = self.checkpoints / f"{steps[-1]:08d}"
        tensors, values = checkpoint.load_training(path)
        # Other processes than the first have robots of their own.
        environment = values["environment"] if self.rank else self.env.fingerprint()
        for what, found, expected in (
            ("environment", environment, values["environment"]),
            ("observations and actions", self.env.features.schema_hash(), values["schema"]),
            ("number of processes", self.world, values["processes"]),
        ):
            if found != expected:
                raise CheckpointError(f"{path}: {what}: trained with {expected}, this run has {found}")
        game = self.game
        for name, module in self._modules().items():
            prefix = f"{name}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        for name, ppo in self._learners().items():
            _restore_optimizer(ppo, tensors, f"optim.{name}.")
            ppo.set_lr(values["lr"][name])
        game.multiplier.value = values["lambda"]
        # Cloned: the state of a random generator is read from the beginning of a storage.
        mine = {k: v[self.rank].clone() for k, v in tensors.items() if k.startswith("process.")}
        game.episodes.copy_(mine.pop("process.episodes"))
        game.lasting.copy_(mine.pop("process.lasting", game.lasting))  # Older checkpoints have none.
        self.env.restore({k.removeprefix("process.env."): v for k, v in mine.items()})
        self.iteration = int(values["step"])
        return self.iteration

    def _modules(self) -> dict[str, torch.nn.Module]:
        game = self.game
        found: dict[str, torch.nn.Module] = {"actor": game.actor, "critic": game.critic}
        if game.disturber is not None:
            found["disturber"] = game.disturber
        return found | {f"normaliser.{g}": n for g, n in game.normalisers.items()}

    def _learners(self) -> dict[str, PPO]:
        found = {"actor": self.game.ppo}
        if self.game.disturber is not None:
            found["disturber"] = self.game.disturber_ppo
        return found

    def _save(self) -> None:
        """Gathers what each process alone knows, and writes the checkpoint on the first."""
        game, path = self.game, self.checkpoints / f"{self.iteration:08d}"
        own = {"process.episodes": game.episodes, "process.lasting": game.lasting}
        own |= {f"process.env.{k}": v for k, v in self.env.state().items()}
        tensors = {k: self._gather(own[k]) for k in sorted(own)}
        if self.rank or path.exists():
            return
        for name, module in self._modules().items():
            tensors |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
        for name, ppo in self._learners().items():
            tensors |= _optimizer_tensors(ppo, f"optim.{name}.")
        values = {
            "step": self.iteration,
            "lambda": game.multiplier.value,
            "lr": {name: ppo.lr for name, ppo in self._learners().items()},
            "force_cap": game.force_cap(self.iteration),
            "environment": self.env.fingerprint(),
            "schema": self.env.features.schema_hash(),
            "processes": self.world,
        }
        policy = deployed(self.env, self.config.actor, game.actor.network.state_dict(), game.normalisers["policy"])
        observation = {"observation.state": self.env.observe()["policy"][:1, None].cpu()}
        settings: Any = to_dict(self.config.env)
        provenance = {
            "seed": self.config.seed,
            "step": self.iteration,
            "environment": settings,
            "fingerprint": self.env.fingerprint(),
        }
        checkpoint.save(path, policy, settings["kind"], observation, provenance, (tensors, values))
        checkpoint.link_last(path)
        checkpoint.prune(self.checkpoints, self.config.keep, -1)

    def _gather(self, value: Tensor) -> Tensor:
        """The tensors of all processes, stacked."""
        if self.world == 1:
            return value.unsqueeze(0)
        # As bytes: not every backend gathers flags.
        mine = value.contiguous().to(self.env.device)
        flat = mine.view(torch.uint8) if mine.ndim else mine.unsqueeze(0).view(torch.uint8)
        parts = [torch.empty_like(flat) for _ in range(self.world)]
        dist.all_gather(parts, flat)
        return torch.stack([p.view(value.dtype).view(value.shape) for p in parts])


def _optimizer_tensors(ppo: PPO, prefix: str) -> dict[str, Tensor]:
    parameters = [p for group in ppo.optimizer.param_groups for p in group["params"]]
    return {
        f"{prefix}{i}.{name}": value
        for i, parameter in enumerate(parameters)
        for name, value in ppo.optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(ppo: PPO, tensors: dict[str, Tensor], prefix: str) -> None:
    parameters = [p for group in ppo.optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        own = f"{prefix}{i}."
        state = {k.removeprefix(own): v.to(parameter.device) for k, v in tensors.items() if k.startswith(own)}
        if state:
            ppo.optimizer.state[parameter] = state
