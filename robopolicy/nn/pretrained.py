"""Weights of a pretrained ResNet-18 from a file on disk, to start image encoders from.

Known are torchvision's state dictionary (trained on ImageNet; `conv1.weight`, `layer1.0.conv1.weight`, ...) and R3M's
(Nair et al., CoRL 2022; the same names behind `module.convnet.`, in a table `r3m`). Both were trained with BatchNorm,
on pictures in 0..1 less ImageNet's mean and divided by its standard deviation (R3M: `normlayer` in `models_r3m.py`).
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robopolicy.errors import RobopolicyError, one_line
from robopolicy.nn.vision import ImageEncoder

PREFIXES = ("", "module.", "convnet.", "module.convnet.", "r3m.module.convnet.")
FLAG = "policy.vision.weights"


def load_backbones(policy: nn.Module, path: Path) -> dict[str, str]:
    """Gives every image encoder of `policy` the weights in the file, and returns its name and SHA-256.

    Errors: one line that names the file and, of a file that is no ResNet-18 with BatchNorm, the weight.
    """
    path = path.expanduser()
    encoders = [m for m in policy.modules() if isinstance(m, ImageEncoder)]
    if not encoders:
        raise RobopolicyError(f"{FLAG} {path}: this policy observes no images")
    weights = read_resnet18(path)
    for encoder in encoders:
        encoder.load_backbone(weights)
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def read_resnet18(path: Path) -> dict[str, Tensor]:
    """The weights in torchvision's names, fp32, without the classifier; each has the shape that ResNet-18's has."""
    from torchvision.models import resnet18
    from torchvision.ops import FrozenBatchNorm2d

    where = f"{FLAG} {path}"
    found = _read(path, where)
    prefix = next((p for p in PREFIXES if f"{p}conv1.weight" in found), None)
    if prefix is None:
        raise RobopolicyError(f"{where}: no weights of a ResNet-18 (conv1.weight is missing)")
    found = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    with torch.device("meta"):
        net = resnet18(weights=None, norm_layer=FrozenBatchNorm2d).state_dict()
    expected = {name: value.shape for name, value in net.items() if not name.startswith("fc.")}
    for name in expected:
        if name not in found:
            raise RobopolicyError(f"{where}: {name} is missing, which a ResNet-18 with BatchNorm has")
    for name in found:
        # ResNet-34 and 50 have all that ResNet-18 has, and more.
        if name not in expected and not name.startswith("fc.") and not name.endswith(".num_batches_tracked"):
            raise RobopolicyError(f"{where}: {name} is no part of a ResNet-18; is this another network?")
    return {name: _checked(found[name], shape, f"{where}: {name}") for name, shape in expected.items()}


def _read(path: Path, where: str) -> dict[str, Any]:
    """Names and values of the file, those of the table `r3m` when it has one."""
    if not path.is_file():
        raise RobopolicyError(f"{where}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            # Refuses every class but tensors and plain containers; nothing in the file is run.
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RobopolicyError(f"{where}: no readable table of weights ({one_line(error)})") from error
    if isinstance(found, dict) and isinstance(found.get("r3m"), dict):
        found = found["r3m"]
    if not isinstance(found, dict):
        raise RobopolicyError(f"{where}: holds {type(found).__name__}, expected a table of weights by name")
    return {name: value for name, value in found.items() if isinstance(name, str)}


def _checked(value: Any, shape: torch.Size, where: str) -> Tensor:
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
        raise RobopolicyError(f"{where} should be a dense tensor of real numbers, found {type(value).__name__}")
    if value.shape != shape:
        raise RobopolicyError(f"{where} should have shape {list(shape)}, found {list(value.shape)}")
    value = value.detach().float()
    if not torch.isfinite(value).all() or (where.endswith("running_var") and (value < 0).any()):
        raise RobopolicyError(f"{where} holds NaN, infinite values or negative variances")
    return value
