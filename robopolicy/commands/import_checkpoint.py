"""robopolicy import FILE.pth OUTPUT: a checkpoint of robomimic as one of ours."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from robopolicy.errors import RobopolicyError


@dataclass
class ImportArgs:
    """Converts a checkpoint of robomimic on states into a run: BC or BC-RNN, with or without GMM (robomimic 0.2 and
    0.3), or a diffusion policy (0.5).

    The file is read without running anything in it, and without robomimic. The run can be evaluated like any other.
    """

    file: tyro.conf.Positional[Path]
    """The .pth file."""
    output: tyro.conf.Positional[Path]
    """Folder of the new run."""
    task: str | None = None
    """Task to evaluate on; default: the one of ours that the checkpoint was trained for."""


def run(arguments: list[str]) -> None:
    """Converts, and says what to do next."""
    args = tyro.cli(ImportArgs, args=arguments, prog="robopolicy import")
    import torch

    from robopolicy.registry import task_class
    from robopolicy.training import checkpoint
    from robopolicy.training.robomimic import load_robomimic

    if args.output.exists():
        raise RobopolicyError(f"{args.output}: exists already; choose another folder")
    policy, known, about = load_robomimic(args.file)
    task = args.task or known
    if task is None:
        raise RobopolicyError(
            f"{args.file}: was trained on {about['env_metadata'].get('env_name')!r}, which no task of ours is known "
            "for; name one with --task"
        )
    task_class(task)
    # The file holds no observation; one draw from what the policy was scaled for serves the golden output as well.
    generator = torch.Generator().manual_seed(0)
    steps = policy.config.n_obs_steps
    observation = {
        f.key: policy.normalizer.unnormalize(f.key, torch.randn(1, steps, *f.shape, generator=generator))
        for f in policy.features.inputs
    }
    with checkpoint.replaced_directory(args.output) as folder:
        path = folder / "checkpoints" / "00000000"
        checkpoint.save(path, policy, task, observation, {"imported": str(args.file), "robomimic": about})
        checkpoint.link_last(path)
    print(f"imported {args.file} as {_description(policy.config)}: {args.output}")
    if older := _older_robosuite(policy, about["env_metadata"]):
        print(
            f"warning: trained on robosuite {older}, which orders the numbers of `object` differently from the 1.5 of "
            "our tasks (docs/robomimic.md); unless its data were read in the order of 1.5, evaluations mean nothing"
        )
    print(f"next: robopolicy eval {args.output}")


def _older_robosuite(policy: Any, env: dict[str, Any]) -> str | None:
    """The version of robosuite before 1.5 that a policy with `object` among its inputs was trained on."""
    version = str(env.get("env_version"))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if env.get("type") != 1 or numbers is None or "observation.object" not in policy.features:
        return None
    return version if tuple(map(int, numbers.groups())) < (1, 5) else None


def _description(config: Any) -> str:
    if config.kind == "diffusion":
        chunk = f"chunks of {config.horizon}, {config.n_action_steps} executed"
        return f"diffusion ({config.network.kind}, {config.sampler.steps} steps of {config.sampler.name}, {chunk})"
    return f"{config.kind} ({config.cell}, {config.head})"
