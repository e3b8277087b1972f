"""Image encoding: per-image random crops, ResNet-18 with GroupNorm, spatial softmax (Chi et al. 2023, III-B)."""

from dataclasses import dataclass

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


class ImageEncoder(nn.Module):
    """[N, 3, h, w] images in [-1, 1] to [N, features].

    BatchNorm is replaced by GroupNorm with 16 channels a group: running statistics and EMA weights do not mix.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        # Imported here: torchvision takes a second that low-dimensional policies need not spend.
        from torchvision.models import resnet18

        net = resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels))
        self.backbone = nn.Sequential(*list(net.children())[:-2])
        self.pool = SpatialSoftmax(512, config.keypoints)
        self.out = nn.Linear(2 * config.keypoints, config.features)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.relu(self.out(self.pool(self.backbone(images))))
