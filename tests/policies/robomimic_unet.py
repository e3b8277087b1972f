"""The noise prediction network of robomimic's diffusion policy, as functions of its state dictionary.

Written from the published architecture (Chi et al. 2023, section III-A; Janner et al. 2022, appendix C) without a
layer of ours: names and shapes of the weights are robomimic's, the order of layers is spelled out below.
"""

import itertools
import math
from collections import OrderedDict

import torch
from torch import Tensor
from torch.nn import functional as F

PREFIX = "policy.noise_pred_net."


def _block_shapes(name: str, a: int, b: int, cond: int, kernel: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, channels in ((0, a), (1, b)):
        shapes |= {
            f"{name}.blocks.{i}.block.0.weight": (b, channels, kernel),
            f"{name}.blocks.{i}.block.0.bias": (b,),
            f"{name}.blocks.{i}.block.1.weight": (b,),
            f"{name}.blocks.{i}.block.1.bias": (b,),
        }
    shapes |= {f"{name}.cond_encoder.1.weight": (2 * b, cond), f"{name}.cond_encoder.1.bias": (2 * b,)}
    if a != b:
        shapes |= {f"{name}.residual_conv.weight": (b, a, 1), f"{name}.residual_conv.bias": (b,)}
    return shapes


def shapes(
    actions: int, observed: int, dims: tuple[int, ...] = (256, 512, 1024), time: int = 256, kernel: int = 5
) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights for actions of so many numbers and `observed` numbers of all observation steps."""
    cond = time + observed
    found: dict[str, tuple[int, ...]] = {}
    for i in (0, 1):
        found |= _block_shapes(f"mid_modules.{i}", dims[-1], dims[-1], cond, kernel)
    found |= {
        "diffusion_step_encoder.1.weight": (4 * time, time),
        "diffusion_step_encoder.1.bias": (4 * time,),
        "diffusion_step_encoder.3.weight": (time, 4 * time),
        "diffusion_step_encoder.3.bias": (time,),
    }
    levels = list(itertools.pairwise(dims))
    for i, (a, b) in enumerate(reversed(levels)):
        found |= _block_shapes(f"up_modules.{i}.0", 2 * b, a, cond, kernel)
        found |= _block_shapes(f"up_modules.{i}.1", a, a, cond, kernel)
        found |= {f"up_modules.{i}.2.conv.weight": (a, a, 4), f"up_modules.{i}.2.conv.bias": (a,)}
    for i, (a, b) in enumerate([(actions, dims[0]), *levels]):
        found |= _block_shapes(f"down_modules.{i}.0", a, b, cond, kernel)
        found |= _block_shapes(f"down_modules.{i}.1", b, b, cond, kernel)
        if i < len(levels):
            found |= {f"down_modules.{i}.2.conv.weight": (b, b, 3), f"down_modules.{i}.2.conv.bias": (b,)}
    return found | {
        "final_conv.0.block.0.weight": (dims[0], dims[0], kernel),
        "final_conv.0.block.0.bias": (dims[0],),
        "final_conv.0.block.1.weight": (dims[0],),
        "final_conv.0.block.1.bias": (dims[0],),
        "final_conv.1.weight": (actions, dims[0], 1),
        "final_conv.1.bias": (actions,),
    }


def random_weights(wanted: dict[str, tuple[int, ...]], seed: int) -> "OrderedDict[str, Tensor]":
    """Weights of these shapes that keep the size of what passes through, under robomimic's full names."""
    generator = torch.Generator().manual_seed(seed)
    weights = OrderedDict()
    for name, shape in wanted.items():
        value = torch.randn(shape, generator=generator)
        weights[PREFIX + name] = value / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3 * value
    return weights


def predicted_noise(weights: dict[str, Tensor], sample: Tensor, timestep: int, condition: Tensor) -> Tensor:
    """Noise in chunks [B, H, D_a] at a step of the scheduler, given observations [B, C]."""
    w = {name.removeprefix(PREFIX): value for name, value in weights.items()}

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def conv_block(name: str, x: Tensor) -> Tensor:
        x = conv(f"{name}.block.0", x, padding=w[f"{name}.block.0.weight"].shape[2] // 2)
        return F.mish(F.group_norm(x, 8, w[f"{name}.block.1.weight"], w[f"{name}.block.1.bias"]))

    def residual_block(name: str, x: Tensor) -> Tensor:
        out = conv_block(f"{name}.blocks.0", x)
        film = linear(f"{name}.cond_encoder.1", F.mish(feature))[..., None]
        out = film[:, : out.shape[1]] * out + film[:, out.shape[1] :]
        out = conv_block(f"{name}.blocks.1", out)
        return out + (conv(f"{name}.residual_conv", x) if f"{name}.residual_conv.weight" in w else x)

    half = w["diffusion_step_encoder.1.weight"].shape[1] // 2
    angles = timestep * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
    embedded = torch.cat([angles.sin(), angles.cos()])[None].to(sample.dtype)
    embedded = linear("diffusion_step_encoder.3", F.mish(linear("diffusion_step_encoder.1", embedded)))
    feature = torch.cat([embedded.expand(len(sample), -1), condition], dim=1)

    x, skips, level = sample.transpose(1, 2), [], 0
    while f"down_modules.{level}.0.blocks.0.block.0.weight" in w:
        x = residual_block(f"down_modules.{level}.1", residual_block(f"down_modules.{level}.0", x))
        skips.append(x)
        if f"down_modules.{level}.2.conv.weight" in w:
            x = conv(f"down_modules.{level}.2.conv", x, stride=2, padding=1)
        level += 1
    x = residual_block("mid_modules.1", residual_block("mid_modules.0", x))
    for i in range(level - 1):
        x = torch.cat([x, skips.pop()], dim=1)
        x = residual_block(f"up_modules.{i}.1", residual_block(f"up_modules.{i}.0", x))
        name = f"up_modules.{i}.2.conv"
        x = F.conv_transpose1d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)
    return conv("final_conv.1", conv_block("final_conv.0", x)).transpose(1, 2)
