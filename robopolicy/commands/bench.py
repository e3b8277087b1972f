"""robopolicy bench CHECKPOINT: how long one chunk takes, and whether that meets the control period.

robopolicy bench frontier CHECKPOINT, in `frontier`, sets that against what the chunks are worth; robopolicy bench
tokenizer CHECKPOINT, in `tokenizer`, shows what CARP's tokens hold.
"""

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass
class BenchArgs:
    """Latency of one chunk by sampler steps and batch size, on this machine.

    `robopolicy bench frontier CHECKPOINT` scores samplers, steps, guidance and precision against their latency.
    `robopolicy bench tokenizer CHECKPOINT --data DATA` measures what each scale of CARP's tokenizer adds.
    """

    checkpoint: tyro.conf.Positional[Path]
    steps: tuple[int, ...] = (1, 3, 10, 100)
    """Denoiser steps to time; a policy that does not sample is timed once."""
    batch_sizes: tuple[int, ...] = (1, 50)
    repeats: int = 30
    """Timed chunks per row, after two that are not counted."""
    device: str = "cpu"
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> None:
    """Prints p50, p95 and p99 in milliseconds."""
    if arguments[:1] == ["frontier"]:
        from robopolicy.commands import frontier

        frontier.run(arguments[1:])
        return
    if arguments[:1] == ["tokenizer"]:
        from robopolicy.commands import tokenizer

        tokenizer.run(arguments[1:])
        return
    args = tyro.cli(BenchArgs, args=arguments, prog="robopolicy bench", config=(tyro.conf.FlagConversionOff,))
    import torch

    from robopolicy.training import checkpoint

    if args.threads:
        torch.set_num_threads(args.threads)
    policy, _ = checkpoint.load(args.checkpoint, args.device)
    rate = policy.features.rate_hz
    # One chunk lasts T_a control steps: a new one must be ready before the last is used up.
    budget = policy.config.n_action_steps / rate * 1e3 if rate else None
    rows = []
    for size in args.batch_sizes:
        for steps in args.steps if hasattr(policy.config, "sampler") else (1,):
            if hasattr(policy.config, "sampler"):
                policy.config.sampler.steps = steps
            rows.append({"batch": size, "steps": steps} | latency(policy, size, args.repeats))
    parameters = sum(p.numel() for p in policy.parameters())
    if args.json:
        print(json.dumps({"parameters": parameters, "chunk_budget_ms": budget, "rows": rows}, indent=1))
        return
    print(f"{parameters:,} parameters, {args.device} ({platform.machine()}, {torch.get_num_threads()} threads)")
    if budget:
        print(f"a chunk lasts {budget:.0f} ms: {policy.config.n_action_steps} actions at {rate:g} Hz")
    print(f"{'batch':>6} {'steps':>6} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9}  within a chunk")
    for row in rows:
        meets = "" if budget is None else "yes" if row["p99"] < budget else "no"
        print(f"{row['batch']:6d} {row['steps']:6d} {row['p50']:9.2f} {row['p95']:9.2f} {row['p99']:9.2f}  {meets}")


def latency(policy: Any, batch: int, repeats: int) -> dict[str, float]:
    """Percentiles in ms of `predict` for `batch` observations of plausible random content."""
    import numpy as np
    import torch

    generator = torch.Generator().manual_seed(0)
    observation = {}
    for feature in policy.features.inputs:
        shape = (batch, policy.config.n_obs_steps, *feature.shape)
        if feature.kind == "image":
            observation[feature.key] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        else:
            noise = torch.randn(shape, generator=generator).to(policy.device)
            observation[feature.key] = policy.normalizer.unnormalize(feature.key, 0.3 * noise)
    observation = {k: v.to(policy.device) for k, v in observation.items()}
    times = []
    with torch.inference_mode():
        for i in range(repeats + 2):
            begin = time.perf_counter()
            policy.predict(observation, generator)
            if policy.device.type == "cuda":
                torch.cuda.synchronize()
            if i >= 2:
                times.append((time.perf_counter() - begin) * 1e3)
    return {f"p{q}": round(float(np.percentile(times, q)), 3) for q in (50, 95, 99)}
