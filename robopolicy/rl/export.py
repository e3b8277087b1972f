"""An actor as one file for machines without robopolicy: numbers with units in, numbers with units out.

The file takes one vector x [B, D] and gives one vector y [B, A], float32; scales, normaliser and default posture are
inside. For a quadruped x is, in SI units: command (forward, sideways, yaw rate), angular velocity and the direction of
gravity in the base frame, joint angles, joint velocities, and the previous y; y are target angles for the joints'
controllers. The JSON beside the file, which is also inside it, names every number with its unit, and the gains.
"""

import io
import json
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.errors import RobopolicyError
from robopolicy.rl.actor import ActorPolicy
from robopolicy.rl.normalise import CLIP

OPSET = 17
TOLERANCE = 1e-4
"""Largest difference between a written file and the policy, relative to the largest output."""


@dataclass(frozen=True)
class Physical:
    """How the numbers with units become the observation that the policy was trained on: (x - shift) * factor."""

    shift: Tensor
    """[D]"""
    factor: Tensor
    """[D]"""
    names: tuple[str, ...]
    units: tuple[str, ...]


class Exported(nn.Module):
    """y [B, A] of x [B, D]: the whole computation of the file."""

    def __init__(self, layers: nn.Sequential, shift: Tensor, factor: Tensor, clip: float, offset: Tensor,
                 scale: Tensor) -> None:  # fmt: skip
        super().__init__()
        self.layers, self.clip = layers, clip
        for name, value in (("shift", shift), ("factor", factor), ("offset", offset), ("scale", scale)):
            self.register_buffer(name, value.float())

    shift: Tensor
    factor: Tensor
    offset: Tensor
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        seen = ((x - self.shift) * self.factor).clamp(-self.clip, self.clip)
        y: Tensor = self.layers(seen) * self.scale + self.offset
        return y


def exported(policy: ActorPolicy, physical: Physical) -> Exported:
    """The computation of an `ActorPolicy`, with the normaliser folded into one shift and one factor."""
    state = policy.state_dict()
    mean, width = (state[f"normalizer.{part}_observation_state"].double() for part in ("offset", "scale"))
    # ((x - shift) * factor - mean) / width as one difference and one product.
    shift = physical.shift.double() + mean / physical.factor.double()
    factor = physical.factor.double() / width
    offset, scale = (state[f"normalizer.{part}_action"] for part in ("offset", "scale"))
    return Exported(policy.network, shift, factor, CLIP, offset, scale).eval()


def torchscript(module: Exported, about: dict[str, Any]) -> bytes:
    """A TorchScript archive; `about` travels in it as about.json."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch calls TorchScript deprecated; robots in C++ still read it.
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.freeze(torch.jit.trace(module, torch.zeros(1, len(module.shift))))
        torch.jit.save(traced, buffer, _extra_files={"about.json": json.dumps(about)})
    return buffer.getvalue()


def onnx_file(module: Exported, about: dict[str, Any]) -> bytes:
    """An ONNX model of plain operators (Sub, Mul, Clip, Gemm, activations, Add); needs the extra `onnx`."""
    onnx = _onnx()
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    constants: dict[str, np.ndarray] = {}
    nodes: list[Any] = []
    current = "x"

    def constant(name: str, value: Any) -> str:
        constants[name] = np.asarray(value, np.float32)
        return name

    def add(operator: str, *inputs: str, **attributes: Any) -> None:
        nonlocal current
        output = f"v{len(nodes)}"
        nodes.append(helper.make_node(operator, [current, *inputs], [output], **attributes))
        current = output

    add("Sub", constant("shift", module.shift))
    add("Mul", constant("factor", module.factor))
    add("Clip", constant("lowest", -module.clip), constant("highest", module.clip))
    for i, layer in enumerate(module.layers):
        if isinstance(layer, nn.Linear):
            weight, bias = constant(f"weight{i}", layer.weight.detach()), constant(f"bias{i}", layer.bias.detach())
            add("Gemm", weight, bias, transB=1)
        elif type(layer) in (nn.ELU, nn.Tanh, nn.ReLU):
            add({nn.ELU: "Elu", nn.Tanh: "Tanh", nn.ReLU: "Relu"}[type(layer)])
        else:
            raise RobopolicyError(f"cannot export a layer {type(layer).__name__} to ONNX")
    add("Mul", constant("scale", module.scale))
    add("Add", constant("offset", module.offset))
    nodes[-1].output[0] = "y"
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "robopolicy_actor",
        [helper.make_tensor_value_info("x", float32, ["batch", len(module.shift)])],
        [helper.make_tensor_value_info("y", float32, ["batch", len(module.offset)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    helper.set_model_props(model, {"about": json.dumps(about)})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def check(data: bytes, form: str, inputs: Tensor, outputs: Tensor) -> float:
    """Runs the file on `inputs` [B, D] and returns its largest difference to `outputs` [B, A], relative to their
    largest.

    Raises RobopolicyError when it is above 1e-4.
    """
    expected = outputs.numpy()
    if form == "onnx":
        _onnx()
        from onnx.reference import ReferenceEvaluator

        result: Any = ReferenceEvaluator(data).run(None, {"x": inputs.numpy()})
        found = result[0]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            found = torch.jit.load(io.BytesIO(data))(inputs).detach().numpy()
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise RobopolicyError(f"the {form} file differs from the policy by {difference:.1e} of the largest output")
    return difference


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise RobopolicyError("onnx is not installed; install the extra: pip install 'robopolicy[onnx]'") from error
    return onnx
