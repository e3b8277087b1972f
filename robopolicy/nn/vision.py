"""Image encoding: per-image random crops, ResNet-18 with GroupNorm, spatial softmax (Chi et al. 2023, III-B).

From a file of pretrained weights (`robopolicy.nn.pretrained`) the ResNet keeps its BatchNorm, frozen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from robopolicy.errors import RobopolicyError


@dataclass
class VisionConfig:
    """How images become features."""

    crop: int = 84
    """Side of the square crop in pixels: random while training, centred otherwise; 0 keeps the whole image."""
    keypoints: int = 32
    """Feature maps, and so expected image positions, of the spatial softmax."""
    features: int = 64
    """Size of one camera's output."""
    share_encoder: bool = False
    """One ResNet for all cameras instead of one each."""
    weights: Path | None = None
    """File of a pretrained ResNet-18, torchvision's or R3M's, as .pth, .pt or .safetensors; read once, when a run
    starts. Its BatchNorm is kept, with statistics, scales and shifts frozen; its other weights are trained on."""


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in 0..1: torchvision's models and R3M's were trained on pictures scaled by them."""


def crop_images(images: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Square crops [N, size, size, C] of [N, height, width, C]: centred, or at random per image with a generator."""
    n, height, width, _ = images.shape
    if size == 0 or (height, width) == (size, size):
        return images
    if size > min(height, width):
        raise RobopolicyError(f"crop {size} does not fit images of {height}x{width}; lower policy.vision.crop")
    if generator is None:
        y, x = (height - size) // 2, (width - size) // 2
        return images[:, y : y + size, x : x + size]
    top, left = (
        torch.randint(0, free + 1, (n,), generator=generator, device=generator.device).to(images.device)
        for free in (height - size, width - size)
    )
    span = torch.arange(size, device=images.device)
    rows, columns = top[:, None] + span, left[:, None] + span
    index = torch.arange(n, device=images.device)[:, None, None]
    return images[index, rows[:, :, None], columns[:, None, :]]


class SpatialSoftmax(nn.Module):
    """[N, C, h, w] to [N, 2 K]: the expected (x, y) in [-1, 1] of K softmax-normalised maps (Finn et al. 2016)."""

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, keypoints, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        height, width = maps.shape[-2:]
        attention = rearrange(rearrange(maps, "n k h w -> n k (h w)").softmax(-1), "n k (h w) -> n k h w", h=height)
        xs = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
        ys = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
        return torch.cat([(attention.sum(-2) * xs).sum(-1), (attention.sum(-1) * ys).sum(-1)], dim=-1)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // 16, channels)


class ImageEncoder(nn.Module):
    """[N, 3, h, w] images in [-1, 1] to [N, features].

    From scratch BatchNorm is replaced by GroupNorm with 16 channels a group: running statistics and EMA weights do not
    mix. Pretrained features are worth nothing without the statistics they were trained with, so these are kept, as
    constants, and images are scaled as in that training. Reading the file is not up to the encoder: a policy that was
    saved has all of it in its own weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        # Imported here: torchvision takes a second that low-dimensional policies need not spend.
        from torchvision.models import resnet18
        from torchvision.ops import FrozenBatchNorm2d

        self.pretrained = config.weights is not None
        norm: Callable[..., nn.Module] = FrozenBatchNorm2d if self.pretrained else _group_norm
        net = resnet18(weights=None, norm_layer=norm)
        layers = list(net.named_children())[:-2]
        self._place = {name: str(i) for i, (name, _) in enumerate(layers)}
        self.backbone = nn.Sequential(*(layer for _, layer in layers))
        if self.pretrained:
            for name, buffer in self.backbone.named_buffers():
                if name.endswith("running_var"):
                    # Using a backbone that was never loaded can not pass unnoticed.
                    buffer.fill_(float("nan"))
            for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
                self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.pool = SpatialSoftmax(512, config.keypoints)
        self.out = nn.Linear(2 * config.keypoints, config.features)

    def load_backbone(self, weights: dict[str, Tensor]) -> None:
        """Takes weights in torchvision's names, all of ResNet-18's but the classifier's."""
        placed = {}
        for name, value in weights.items():
            layer, _, rest = name.partition(".")
            placed[f"{self._place[layer]}.{rest}"] = value
        self.backbone.load_state_dict(placed)

    def maps(self, images: Tensor) -> Tensor:
        """The feature maps [N, 512, h / 32, w / 32] of images [N, 3, h, w] in [-1, 1]."""
        if self.pretrained:
            images = ((images + 1) / 2 - self.mean) / self.std
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.relu(self.out(self.pool(self.maps(images))))
