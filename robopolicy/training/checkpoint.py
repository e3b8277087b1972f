"""Checkpoints: a directory of JSON and safetensors that is whole or absent, and that cannot lie.

    config.json          format version, policy name and configuration, task, schema hash
    features.json        every input and output (`FeatureSpec`)
    model.safetensors    EMA weights and normaliser
    golden.safetensors   one stored input and the output it gave
    provenance.json      data hash, versions, seeds, and the SHA-256 of the four files above
    training/            what resume needs: raw weights, optimiser state, step

A checkpoint is written under a temporary name, synced and renamed. Loading checks the version, the hashes, the
schema and the golden output. Nothing is ever unpickled.
"""

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from robopolicy import __version__
from robopolicy.configs import from_dict, to_dict
from robopolicy.errors import CheckpointError
from robopolicy.features import FeatureSpec
from robopolicy.nn.normalizer import Normalizer
from robopolicy.policies.base import Policy
from robopolicy.registry import policy_class

FORMAT_VERSION = 1
FILES = ("config.json", "features.json", "model.safetensors", "golden.safetensors")
GOLDEN_SEED = 0
GOLDEN_TOLERANCE = 1e-3
"""Largest golden deviation, relative to the largest stored output: kernels differ between machines by far less."""


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for item in sorted(temporary.rglob("*"), reverse=True):
            _sync(item)
        _sync(temporary)
        if path.exists():
            raise CheckpointError(f"{path}: exists already; not overwritten")
        os.rename(temporary, path)
        _sync(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno == errno.ENOSPC:
            raise CheckpointError(f"{path}: disk full while saving; nothing was changed") from error
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # safetensors reports a failed write as its own exception, with the operating system's words in it.
        if isinstance(error, SafetensorError):
            why = "disk full while saving" if "No space left" in str(error) else f"cannot be written ({error})"
            raise CheckpointError(f"{path}: {why}; nothing was changed") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error})") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    found = {"robopolicy": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "diffusers", "gym-pusht", "pymunk", "mujoco", "robosuite"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _golden_output(policy: Policy, observation: dict[str, Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(GOLDEN_SEED)
    policy.eval()
    with torch.inference_mode():
        moved = {k: v.to(policy.device) for k, v in observation.items()}
        return policy.golden(moved, generator).float().cpu().clone()


def save(
    path: Path,
    policy: Policy,
    task: str,
    observation: dict[str, Tensor],
    provenance: dict[str, Any],
    training: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
) -> None:
    """Writes `policy` to the directory `path`.

    `observation` is one real input, {key: [1, T_o, ...]}, kept with the output it gives. `training` is the
    (tensors, plain values) of the trainer's state.
    """
    with replaced_directory(path) as folder:
        config = {
            "format_version": FORMAT_VERSION,
            "policy": to_dict(policy.config),
            "task": task,
            "schema": policy.features.schema_hash(),
        }
        write_json(folder / "config.json", config)
        write_json(folder / "features.json", policy.features.to_dict())
        state = {k: v.detach().cpu().contiguous() for k, v in policy.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        golden = {f"input.{k}": v.cpu().contiguous() for k, v in observation.items()}
        save_file(golden | {"output": _golden_output(policy, observation)}, folder / "golden.safetensors")
        hashes = {name: _digest(folder / name) for name in FILES}
        write_json(folder / "provenance.json", provenance | {"versions": versions(), "sha256": hashes})
        if training is not None:
            (folder / "training").mkdir()
            tensors, values = training
            cpu = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            save_file(cpu, folder / "training" / "state.safetensors")
            write_json(folder / "training" / "state.json", values)


def link_last(path: Path) -> None:
    """Points the link `last`, beside the checkpoint `path`, at it."""
    temporary = path.parent / f".last.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.name)
    os.replace(temporary, path.parent / "last")


def steps_saved(checkpoints: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())


def remove_leftovers(checkpoints: Path) -> None:
    """Removes what a killed process left half-written or half-removed; nothing of it was ever a checkpoint."""
    for path in [*checkpoints.glob(".*.tmp"), *checkpoints.glob(".*.old")]:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


def prune(checkpoints: Path, keep: int, best: int) -> None:
    """Removes all but the newest `keep` checkpoints and the one of step `best`."""
    for step in steps_saved(checkpoints)[:-keep]:
        if step != best:
            path = checkpoints / f"{step:08d}"
            # Renamed first: a kill in the middle must not leave half a checkpoint under a checkpoint's name.
            doomed = checkpoints / f".{path.name}.{os.getpid()}.old"
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def resolve(path: str | Path) -> Path:
    """The checkpoint meant by `path`: a checkpoint, or a run whose last one is taken."""
    path = Path(path)
    for candidate in (path, path / "last", path / "checkpoints" / "last"):
        if (candidate / "config.json").is_file():
            return candidate.resolve()
    steps = steps_saved(path / "checkpoints")
    if steps:
        return (path / "checkpoints" / f"{steps[-1]:08d}").resolve()
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint or run")
    raise CheckpointError(f"{path}: neither a checkpoint (config.json is missing) nor a run with checkpoints")


def load(path: str | Path, device: str = "cpu", golden: bool = True) -> tuple[Policy, dict[str, Any]]:
    """The policy in evaluation mode and {"task", "provenance", "path"}; `CheckpointError` when anything is off."""
    path = resolve(path)
    config = _read_json(path / "config.json")
    found = config.get("format_version")
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {found}, this robopolicy {__version__} reads up to {FORMAT_VERSION}"
        )
    provenance = _read_json(path / "provenance.json")
    for name in FILES:
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: missing")
        if _digest(path / name) != provenance.get("sha256", {}).get(name):
            raise CheckpointError(f"{path / name}: altered since it was saved (SHA-256 differs from provenance.json)")
    features = FeatureSpec.from_dict(_read_json(path / "features.json"))
    if features.schema_hash() != config["schema"]:
        raise CheckpointError(f"{path}: features.json does not match the schema hash in config.json")
    policy = build(config["policy"], features, str(path / "config.json"))
    try:
        policy.load_state_dict(_read_tensors(path / "model.safetensors"))
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise CheckpointError(f"{path / 'model.safetensors'}: does not fit its config.json ({lines})") from error
    policy.normalizer.check()
    policy.to(device).eval()
    if golden:
        _check_golden(policy, path)
    return policy, {"task": config["task"], "provenance": provenance, "path": str(path)}


def build(policy: dict[str, Any], features: FeatureSpec, where: str = "config") -> Policy:
    """An untrained policy with an unfitted normaliser from its stored configuration."""
    cls = policy_class(policy["kind"])
    for parent in policy.get("parents", ()):
        # Configurations are found by kind once the module that defines them is imported.
        policy_class(parent["kind"])
    config = from_dict(cls.Config, policy, where)
    return cls(config, features, Normalizer(features.features))


def _check_golden(policy: Policy, path: Path) -> None:
    stored = _read_tensors(path / "golden.safetensors")
    expected = stored.pop("output")
    actual = _golden_output(policy, {k.removeprefix("input."): v for k, v in stored.items()})
    deviation = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not deviation <= GOLDEN_TOLERANCE:
        raise CheckpointError(
            f"{path}: the golden output differs by {deviation:.2g} (relative; at most {GOLDEN_TOLERANCE:g}): "
            "weights and code do not belong together"
        )


def stored_observation(path: str | Path) -> dict[str, Tensor]:
    """The real input {key: [1, T_o, ...]} kept with the checkpoint at `path`."""
    stored = _read_tensors(resolve(path) / "golden.safetensors")
    return {k.removeprefix("input."): v for k, v in stored.items() if k != "output"}


def load_training(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trainer's state stored in the checkpoint `path`."""
    return _read_tensors(path / "training" / "state.safetensors"), _read_json(path / "training" / "state.json")
