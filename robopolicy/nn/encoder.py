"""Observations to features: normalised states beside encoded images, one vector per observation step."""

import math

import torch
from torch import Tensor, nn

from robopolicy.diffusion.noise import randn
from robopolicy.errors import RobopolicyError
from robopolicy.features import FeatureSpec
from robopolicy.nn.normalizer import Normalizer
from robopolicy.nn.vision import ImageEncoder, VisionConfig, crop_images

SMALLEST = 32
"""Images of this side or smaller leave ResNet-18 as a single point, of which a spatial softmax knows nothing."""


class ObservationEncoder(nn.Module):
    """{key: [B, T_o, ...]} in physical units to [B, T_o, F]; F is `dim`."""

    def __init__(self, features: FeatureSpec, vision: VisionConfig, state_noise: float = 0.0) -> None:
        super().__init__()
        self.states = [f.key for f in features.inputs if f.kind in ("state", "goal")]
        self.images = [f.key for f in features.inputs if f.kind == "image"]
        if not self.states and not self.images:
            raise RobopolicyError(f"nothing to observe among the features {features.keys()}")
        self.crop = vision.crop
        for key in self.images:
            side = min(vision.crop or 10**9, *features[key].shape[:2])
            if side <= SMALLEST:
                raise RobopolicyError(
                    f"{key!r}: {side} px after cropping are too few; the encoder reduces 32 px to one point, which "
                    "has no position (policy.vision.crop)"
                )
        self.state_noise = state_noise
        names = ["shared"] if vision.share_encoder else [k.replace(".", "_") for k in self.images]
        self.cameras = nn.ModuleDict({n: ImageEncoder(vision) for n in names} if self.images else {})
        self.shared = vision.share_encoder
        sizes = [math.prod(features[k].shape) for k in self.states]
        self.dim = sum(sizes) + len(self.images) * vision.features

    def forward(
        self, observation: dict[str, Tensor], normalizer: Normalizer, generator: torch.Generator | None = None
    ) -> Tensor:
        """With a generator, states get noise and images random crops (training); without one, neither."""
        parts = [normalizer.normalize(k, observation[k]).flatten(2) for k in self.states]
        if generator is not None and self.state_noise:
            parts = [p + self.state_noise * randn(p.shape, generator, p.device) for p in parts]
        for key in self.images:
            images = observation[key]
            batch, steps = images.shape[:2]
            # Cropping before the conversion to float moves a quarter of the bytes.
            cropped = crop_images(images.flatten(0, 1), self.crop, generator)
            camera = self.cameras["shared" if self.shared else key.replace(".", "_")]
            parts.append(camera(normalizer.normalize(key, cropped)).unflatten(0, (batch, steps)))
        return torch.cat(parts, dim=-1)
