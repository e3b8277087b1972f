"""robopolicy export RUN --format onnx | torchscript: an actor as one file, with its scales and normaliser inside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from robopolicy.errors import RobopolicyError

SUFFIX = {"onnx": ".onnx", "torchscript": ".pt"}


@dataclass
class ExportArgs:
    """Writes a policy trained by reinforcement learning as one file that needs no robopolicy, and a JSON beside it.

    The file is run once and compared with the policy before it is kept.
    """

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint of reinforcement learning, or a run whose last checkpoint is taken."""
    format: Literal["onnx", "torchscript"] = "onnx"
    """onnx needs the extra `onnx`."""
    output: Path | None = None
    """File; default <robot or task>.onnx or .pt in the working directory."""


def run(arguments: list[str]) -> None:
    """Writes the file and says how far it is from the policy."""
    args = tyro.cli(ExportArgs, args=arguments, prog="robopolicy export")
    import json

    import torch

    from robopolicy.rl.actor import ActorPolicy
    from robopolicy.rl.export import check, exported, onnx_file, torchscript
    from robopolicy.training import checkpoint

    policy, about = checkpoint.load(args.checkpoint)
    if not isinstance(policy, ActorPolicy):
        name = type(policy).__name__
        raise RobopolicyError(f"{args.checkpoint}: a checkpoint of {name}; only an actor (ActorPolicy) is exported")
    settings = about["provenance"].get("environment") or {}
    name = settings.get("robot", about["task"])
    output = args.output or Path(f"{name}{SUFFIX[args.format]}")
    beside = output.with_suffix(".json")
    if output == beside:
        raise RobopolicyError(
            f"--output {output}: the description goes there; expected another ending, as .onnx or .pt"
        )
    for path in (output, beside):
        if path.exists():
            raise RobopolicyError(f"{path}: exists already; choose another --output")
    physical, description = describe(policy, settings)
    description["checkpoint"] = {k: about["provenance"].get(k) for k in ("sha256", "versions", "step")}
    module = exported(policy, physical)
    data = (onnx_file if args.format == "onnx" else torchscript)(module, description)
    draws = torch.randn(64, len(physical.shift), generator=torch.Generator().manual_seed(0))
    inputs = physical.shift + 3 * draws / physical.factor
    observation = (inputs.float() - physical.shift) * physical.factor
    with torch.inference_mode():
        expected = policy.predict({"observation.state": observation[:, None]}, torch.Generator())[:, 0]
    difference = check(data, args.format, inputs.float(), expected)
    _write(output, data)
    _write(beside, (json.dumps(description, indent=1) + "\n").encode())
    print(f"{output}: {len(data) / 1024:.0f} KiB, differs from the policy by {difference:.1e} of the largest output")
    print(f"{beside}: names, units and gains")


def describe(policy: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """How inputs with units become observations, and the description that travels with the file."""
    import torch

    from robopolicy.rl.export import Physical

    action = policy.features.action
    description: dict[str, Any] = {
        "rate_hz": policy.features.rate_hz,
        "outputs": {"names": action.names, "units": action.units, "low": action.low, "high": action.high},
    }
    if settings.get("kind") == "quadruped":
        from robopolicy.sim.quadruped.observation import UNITS, physical
        from robopolicy.sim.quadruped.robots import robot

        machine = robot(settings["robot"])
        shift, factor, names = physical(machine)
        found = Physical(torch.tensor(shift), torch.tensor(factor), names, UNITS)
        description |= {
            "robot": machine.name,
            "kp_nm_per_rad": machine.kp,
            "kd_nm_s_per_rad": machine.kd,
            "torque_limits_nm": machine.torques.tolist(),
            "default_posture_rad": machine.posture.tolist(),
            "first_previous_target": "the default posture",
        }
    else:
        state = policy.features["observation.state"]
        size = state.shape[0]
        found = Physical(torch.zeros(size), torch.ones(size), state.names, state.units)
    return found, description | {"inputs": {"names": found.names, "units": found.units}}


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    import os

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
