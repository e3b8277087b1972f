"""robopolicy bench frontier CHECKPOINT: score with its interval against latency, for every way to draw a chunk."""

import itertools
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class FrontierArgs:
    """Scores samplers x steps x guidance x precision of a checkpoint against their latency on this machine.

    Writes frontier.json and frontier.png and prints the table. Settings are chosen here, so the default seeds are
    those for choosing; report the chosen setting with `robopolicy eval`.
    """

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint, or a run whose last checkpoint is taken."""
    samplers: tuple[str, ...] = ()
    """Default: the checkpoint's, ddim and dpmpp_2m."""
    steps: tuple[int, ...] = (1, 3, 5, 10)
    """Denoiser steps."""
    schedules: tuple[str, ...] = ()
    """Noise schedules; default: the checkpoint's."""
    guidance: tuple[float, ...] = ()
    """Classifier-free guidance, for policies that have it; default: the checkpoint's."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Precision of the networks; bfloat16 is autocast."""
    compile: bool = False
    """Also time networks through torch.compile. They keep the score of the uncompiled ones."""
    episodes: int = 50
    """Episodes per setting."""
    split: Literal["validation", "test"] = "validation"
    task: str | None = None
    """Task to score on; default: the one trained for."""
    repeats: int = 50
    """Timed chunks per setting, for one environment, after two that are not counted."""
    output: Path | None = None
    """Folder; default outputs/<date>_frontier."""
    workers: int = 0
    """Processes that step the environments; 0 steps them in this one."""
    device: str = "cpu"
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""


def run(arguments: list[str]) -> None:
    """Measures every setting, writes the folder and prints the table."""
    args = tyro.cli(FrontierArgs, args=arguments, prog="robopolicy bench frontier")
    import torch

    from robopolicy.evaluation.frontier import Frontier
    from robopolicy.evaluation.result import write_folder
    from robopolicy.training import checkpoint

    if args.episodes < 1 or args.repeats < 1:
        raise RobopolicyError(f"--episodes {args.episodes} --repeats {args.repeats}: at least 1 is needed")
    if args.threads:
        torch.set_num_threads(args.threads)
    output = args.output or Path("outputs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_frontier"
    if output.exists():
        raise RobopolicyError(f"{output}: exists already; choose another --output")
    policy, about = checkpoint.load(args.checkpoint, args.device)
    settings = _settings(args, policy)
    rate = policy.features.rate_hz
    task = args.task or about["task"]
    points, score_name = _measure(args, policy, task, settings)
    frontier = Frontier(
        checkpoint=str(args.checkpoint),
        task=task,
        score_name=score_name,
        purpose=args.split,
        episodes=args.episodes,
        period_ms=policy.config.n_action_steps / rate * 1e3 if rate else None,
        machine={
            "device": torch.cuda.get_device_name() if policy.device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        points=points,
    )
    write_folder(output, {"frontier.json": frontier.to_json().encode(), "frontier.png": frontier.picture()})
    print(frontier.table())
    print(f"picture: {output / 'frontier.png'}")


def _settings(args: FrontierArgs, policy: Any) -> list[Any]:
    """The grid, checked as far as that is possible without running anything."""
    from robopolicy.commands.evaluate import SamplerArgs, override_sampler
    from robopolicy.evaluation.frontier import Setting

    own = getattr(policy.config, "sampler", None)
    precisions = list(itertools.product(args.dtypes, (False, True) if args.compile else (False,)))
    if own is None:
        for name in ("samplers", "schedules", "guidance"):
            if getattr(args, name):
                raise RobopolicyError(f"--{name}: this policy does not sample")
        return [Setting("none", 1, "native", None, dtype, compiled) for dtype, compiled in precisions]
    guided = hasattr(own, "guidance")
    if args.guidance and not guided:
        raise RobopolicyError("--guidance: this policy has none")
    samplers = args.samplers or tuple(dict.fromkeys((own.name, "ddim", "dpmpp_2m")))
    if getattr(policy.config, "operator", "convex") != "convex" and not args.samplers:
        samplers = (own.name,)
    guidance: tuple[float | None, ...] = args.guidance or ((own.guidance,) if guided else (None,))
    settings = [
        Setting(name, steps, schedule, guide, dtype, compiled)
        for name, steps, schedule, guide, (dtype, compiled) in itertools.product(
            samplers, args.steps, args.schedules or (own.schedule,), guidance, precisions
        )
    ]
    before = (own.name, own.steps, own.schedule)
    for setting in settings:
        override_sampler(policy, SamplerArgs(setting.sampler, setting.steps, setting.schedule))
        policy.noise_levels()
    own.name, own.steps, own.schedule = before
    return settings


def _measure(args: FrontierArgs, policy: Any, task: str, settings: list[Any]) -> tuple[list[Any], str]:
    """One point per setting, with a bar over them."""
    import torch

    from robopolicy.commands.bench import latency
    from robopolicy.evaluation.frontier import Point
    from robopolicy.evaluation.rollout import evaluate
    from robopolicy.progress import progress_bar
    from robopolicy.sim.task import TEST_SEEDS, VALIDATION_SEEDS

    first = TEST_SEEDS if args.split == "test" else VALIDATION_SEEDS
    seeds = range(first, first + args.episodes)
    scored: dict[Any, Any] = {}
    points = []
    with progress_bar(total=len(settings), desc="frontier", unit="setting") as bar:
        for s in settings:
            _apply(policy, s)
            reduced = s.dtype != "float32"
            precision: AbstractContextManager[Any] = (
                torch.autocast(policy.device.type, dtype=getattr(torch, s.dtype)) if reduced else nullcontext()
            )
            key = (s.sampler, s.steps, s.schedule, s.guidance, s.dtype)
            with precision:
                if key not in scored:
                    options: dict[str, Any] = {"record_video": 0, "pictures": 0, "progress": False}
                    scored[key] = evaluate(policy, task, seeds, workers=args.workers, **options).info
                with _compiled(policy) if s.compiled else nullcontext():
                    times = latency(policy, 1, args.repeats)
            info = scored[key]
            points.append(Point(s, info.score, info.success, **times))
            bar.set_postfix_str(f"{s.family}, {s.steps} steps: {info.score.value:.3f}, {times['p50']:.1f} ms", False)
            bar.update()
    return points, next(iter(scored.values())).score_name


def _apply(policy: Any, setting: Any) -> None:
    own = getattr(policy.config, "sampler", None)
    if own is None:
        return
    own.name, own.steps, own.schedule = setting.sampler, setting.steps, setting.schedule
    if setting.guidance is not None:
        own.guidance = setting.guidance


@contextmanager
def _compiled(policy: Any) -> Iterator[None]:
    """The networks of the policy, or of its parents, through torch.compile while the block runs."""
    import torch

    owners = [m for m in policy.modules() if isinstance(getattr(m, "network", None), torch.nn.Module)]
    if not owners:
        raise RobopolicyError("--compile: this policy has no network to compile")
    plain = [m.network for m in owners]
    try:
        for owner in owners:
            owner.network = torch.compile(owner.network)
        yield
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise RobopolicyError(f"--compile: torch.compile failed: {reason}") from error
    finally:
        for owner, network in zip(owners, plain, strict=True):
            owner.network = network
