"""The training loop of every policy.

All randomness of a step is a function of (seed, step, part of the batch), so that a resumed run repeats an
uninterrupted one bit for bit, and two processes repeat one that accumulates two micro-batches.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from robopolicy.configs import to_dict
from robopolicy.errors import CheckpointError, RobopolicyError
from robopolicy.nn.pretrained import load_backbones
from robopolicy.policies.base import Batch, Metrics, Policy
from robopolicy.progress import progress_bar
from robopolicy.training import checkpoint
from robopolicy.training.config import OptimConfig, TrainConfig
from robopolicy.training.data import Batches, TrainingData, load_data, observation_of, validation_batch
from robopolicy.training.ema import ema_decay, ema_update
from robopolicy.training.interrupt import StepInterrupt, whole_steps
from robopolicy.training.logs import MetricsLog

Evaluator = Callable[[Policy, int], dict[str, float]]
"""Scores a policy at a step; the values are logged, and "eval/score" chooses the best checkpoint."""

VALIDATION_WINDOWS = 512
ACTION_ERROR_WINDOWS = 128
UNDECAYED = ("bias", "gain", "codebook", "log_scale")
"""Names of parameters that are vectors or tables whatever their number of axes."""


def mix(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several small integers."""
    words = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Rate of optimiser step `step` (from 0): linear warm-up, then half a cosine down to zero at `steps`, or what
    else `config.decay` says, counted from step 0.
    """
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.decay == "step":
        return config.lr * 0.99 ** (step // 100)
    if config.decay == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(policy: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; matrices and, if asked, vectors decay."""
    named = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]

    def decays(name: str, parameter: Tensor) -> bool:
        matrix = parameter.ndim >= 2 and "position" not in name and name.split(".")[-1] not in UNDECAYED
        return config.decay_vectors or matrix

    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": config.weight_decay, "decays": True},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0, "decays": False},
    ]
    # The fused kernel reads every weight once instead of once per arithmetic operation.
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


class _LossModule(nn.Module):
    """`forward` is the loss, which is what DistributedDataParallel wraps."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        return self.policy.loss(batch, generator)


def computes_bf16(device: str) -> bool:
    """Whether bf16 is faster than fp32 there; a CPU without the instructions emulates it, slowly."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


@dataclass
class TrainResult:
    """Where a run ended."""

    folder: Path
    checkpoint: Path
    step: int
    seconds: float


class Trainer:
    """One run in one folder. `Trainer(config, data_path, folder).run()` trains from scratch or from `resume`."""

    def __init__(self, config: TrainConfig, data_path: Path, folder: Path, evaluator: Evaluator | None = None) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if config.device == "auto":
            config.device = "cuda" if torch.cuda.is_available() else "cpu"
        if config.device == "cuda" and self.world > 1:
            config.device = f"cuda:{os.environ['LOCAL_RANK']}"
        if config.precision == "auto":
            config.precision = "bf16" if computes_bf16(config.device) else "fp32"
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if config.device.startswith("cuda") else "gloo")
        self.config, self.folder, self.evaluator = config, folder, evaluator
        self.data: TrainingData = load_data(config, data_path)
        torch.manual_seed(mix(config.seed))
        self.policy = checkpoint.build(to_dict(config.policy), self.data.features)
        self.data.fit(self.policy)
        vision = getattr(self.policy.config, "vision", None)
        # A run that goes on from a checkpoint has these weights from there, and needs the file no more.
        if vision is not None and vision.weights is not None and not checkpoint.steps_saved(self.checkpoints):
            self.data.provenance["pretrained"] = load_backbones(self.policy, vision.weights)
        self.policy.to(config.device)
        self.average = deepcopy(self.policy).requires_grad_(False).eval()
        self.optimizer = make_optimizer(self.policy, config.optim)
        self.stages = self.policy.stages(config.steps)
        if self.rank == 0:
            checkpoint.remove_leftovers(self.checkpoints)
        self.step = 0
        self.best: dict[str, float] = {}

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def resume(self) -> int:
        """Restores the newest checkpoint of the folder and returns its step; 0 when there is none yet."""
        steps = checkpoint.steps_saved(self.checkpoints)
        if not steps:
            return 0
        path = self.checkpoints / f"{steps[-1]:08d}"
        tensors, values = checkpoint.load_training(path)
        average, about = checkpoint.load(path, self.config.device, golden=False)
        if values["dataset_hash"] != self.data.provenance["dataset_hash"]:
            raise CheckpointError(
                f"{path}: trained on data {values['dataset_hash']}, {self.data.provenance['dataset']} has "
                f"{self.data.provenance['dataset_hash']}"
            )
        if "pretrained" in about["provenance"]:
            self.data.provenance["pretrained"] = about["provenance"]["pretrained"]
        self.average.load_state_dict(average.state_dict())
        self.policy.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for name, parameter in self.policy.named_parameters():
            state = {s: tensors.get(f"optim.{s}.{name}") for s in ("step", "exp_avg", "exp_avg_sq")}
            if state["step"] is not None:
                self.optimizer.state[parameter] = {
                    s: t.to(parameter.device) for s, t in state.items() if t is not None
                }
        self.step, self.best = int(values["step"]), values["best"]
        return self.step

    def run(self) -> TrainResult:
        """Trains to `config.steps`; Ctrl-C ends it after the step under way, which is saved."""
        config, started = self.config, time.perf_counter()
        loss_module: nn.Module = _LossModule(self.policy)
        if self.world > 1:
            loss_module = nn.parallel.DistributedDataParallel(
                loss_module, broadcast_buffers=False, find_unused_parameters=len(self.stages) > 1
            )
        batches = Batches(self.data, self.policy, config, self.rank, self.world)
        held_out = validation_batch(self.data, self.average, VALIDATION_WINDOWS, config.seed)
        log = bar = None
        if self.rank == 0:
            log = MetricsLog(self.folder, self.step, to_dict(config) if config.wandb else None)
            bar = progress_bar(total=config.steps, initial=self.step, unit="step", desc="train")
        since, waited, window = time.perf_counter(), 0.0, self.step
        try:
            with whole_steps(self.world == 1) as step_over:
                while self.step < config.steps:
                    before = time.perf_counter()
                    parts = batches(self.step)
                    waited += time.perf_counter() - before
                    values = self._step(loss_module, parts)
                    self.step += 1
                    if bar is not None and log is not None:
                        bar.update()
                        if self.step % config.log_every == 0 or self.step == config.steps:
                            elapsed = time.perf_counter() - since
                            numbers = {k: float(v) for k, v in values.items()}
                            numbers["samples_per_s"] = (self.step - window) * config.batch_size / elapsed
                            numbers["data_share"] = waited / elapsed
                            if not math.isfinite(numbers["loss"]):
                                raise RobopolicyError(
                                    f"the loss became {numbers['loss']} at step {self.step}; lower optim.lr or set "
                                    "optim.clip-norm"
                                )
                            log.write(self.step, numbers)
                            bar.set_postfix_str(
                                f"loss {numbers['loss']:.4f}, {numbers['samples_per_s']:.0f} samples/s, "
                                f"data {numbers['data_share']:.0%}",
                                refresh=False,
                            )
                            since, waited, window = time.perf_counter(), 0.0, self.step
                        paused = time.perf_counter()
                        self._periodic(log, bar, held_out, parts[0][1])
                        since += time.perf_counter() - paused
                    step_over()
        except StepInterrupt:
            self._save(parts[0][1])
            raise
        finally:
            batches.close()
            if bar is not None:
                bar.close()
            if log is not None:
                log.close()
            if self.world > 1:
                dist.destroy_process_group()
        last = self.checkpoints / f"{self.step:08d}"
        return TrainResult(self.folder, last, self.step, time.perf_counter() - started)

    def _step(self, loss_module: nn.Module, parts: list[tuple[int, Batch]]) -> dict[str, Any]:
        config, device = self.config, torch.device(self.config.device)
        within = self._enter_stage()
        self.policy.train()
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Any] = {}
        for i, (part, batch) in enumerate(parts):
            generator = torch.Generator().manual_seed(mix(config.seed, self.step, part))
            # Dropout layers have no generator argument; they read the global one.
            torch.manual_seed(mix(config.seed, self.step, part, 1))
            waits = isinstance(loss_module, nn.parallel.DistributedDataParallel) and i < len(parts) - 1
            with loss_module.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    loss, metrics = loss_module(batch, generator)
                (loss / len(parts)).backward()
            for name, value in ({"loss": loss.detach()} | metrics).items():
                total[name] = total.get(name, 0.0) + value / len(parts)
        clip = config.optim.clip_norm or math.inf
        logged = (self.step + 1) % config.log_every == 0
        if config.optim.clip_norm or logged:
            total["grad_norm"] = nn.utils.clip_grad_norm_(self.policy.parameters(), clip)
        self.optimizer.step()
        ema_update(self.average, self.policy, ema_decay(config.ema, within + 1))
        total["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.world > 1 and logged:
            for name in ("loss", *metrics):
                mean = torch.as_tensor(total[name]).clone()
                dist.all_reduce(mean)
                total[name] = mean / self.world
        return total

    def _enter_stage(self) -> int:
        """Puts policies and optimiser into the stage of the present step; returns the step within that stage."""
        number, within = 0, self.step
        while within >= self.stages[number].steps:
            within -= self.stages[number].steps
            number += 1
        if within == 0 and number:
            # What the earlier stage trained goes on as it ended; the average starts anew.
            self.average.load_state_dict(self.policy.state_dict())
        self.policy.stage = self.average.stage = number
        stage, optim = self.stages[number], self.config.optim
        optim = replace(optim, lr=optim.lr if stage.lr is None else stage.lr)
        decay = optim.weight_decay if stage.weight_decay is None else stage.weight_decay
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(optim, within, stage.steps)
            group["betas"] = stage.betas or optim.betas
            group["weight_decay"] = decay if group["decays"] else 0.0
        return within

    def _periodic(self, log: MetricsLog, bar: Any, held_out: Batch | None, batch: Batch) -> None:
        """Validation, evaluation and checkpoints, each when it is due; on the first process only."""
        config, last = self.config, self.step == self.config.steps
        if held_out is not None and (self.step % config.validate_every == 0 or last):
            log.write(self.step, self._validate(held_out))
        if self.evaluator is not None and config.eval.every and (self.step % config.eval.every == 0 or last):
            bar.set_postfix_str("evaluating")
            values = self.evaluator(self.average, self.step)
            log.write(self.step, values)
            if values["eval/score"] >= self.best.get("score", -math.inf):
                self.best = {"step": self.step, "score": values["eval/score"]}
                if self.step % config.save_every and not last:
                    self._save(batch)
        if self.step % config.save_every == 0 or last:
            self._save(batch)

    @torch.inference_mode()
    def _validate(self, held_out: Batch) -> dict[str, float]:
        """Loss of the averaged weights on held-out windows, with the same noise every time, and action error."""
        loss, _ = self.average.loss(held_out, torch.Generator().manual_seed(0))
        few = {k: v[:ACTION_ERROR_WINDOWS] for k, v in held_out.items()}
        chunk = self.average.predict(observation_of(few), torch.Generator().manual_seed(0))
        normalize = self.average.normalizer.normalize
        error = (normalize("action", chunk) - normalize("action", few["action"])).square().mean(dim=-1)
        real = ~few["action_is_pad"]
        return {"val_loss": float(loss), "val_action_mse": float(error[real].mean())}

    def _save(self, batch: Batch) -> None:
        path = self.checkpoints / f"{self.step:08d}"
        if path.exists():
            return
        tensors = {f"model.{k}": v for k, v in self.policy.state_dict().items()}
        for name, parameter in self.policy.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optim.{key}.{name}"] = value
        values = {"step": self.step, "best": self.best, "dataset_hash": self.data.provenance["dataset_hash"]}
        provenance = self.data.provenance | {"seed": self.config.seed, "step": self.step}
        golden = {k: v[:1].cpu() for k, v in observation_of(batch).items()}
        checkpoint.save(path, self.average, self.config.task, golden, provenance, (tensors, values))
        checkpoint.link_last(path)
        checkpoint.prune(self.checkpoints, self.config.keep, int(self.best.get("step", -1)))
