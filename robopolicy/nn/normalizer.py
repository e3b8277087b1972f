"""Scaling of observations and actions, fitted once on the training split and stored with the weights."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.errors import CheckpointError, DataError, RobopolicyError
from robopolicy.features import Feature

Mode = Literal["min_max", "mean_std", "bounds", "identity", "pose"]
MODES: tuple[str, ...] = ("min_max", "mean_std", "bounds", "identity", "pose")
CONSTANT = 1e-4
"""A dimension whose range (or standard deviation) is below this is constant: it is shifted to 0, not scaled."""


class Normalizer(nn.Module):
    """Per-dimension affine maps, y = (x - offset) / scale, for all keys but images (which map 0..255 to [-1, 1]).

    `min_max` maps the observed range to [-1, 1]; `mean_std` to zero mean and unit variance; `bounds` maps the
    feature's declared low..high to [-1, 1]; `identity` keeps the values; `pose` is min_max for the positions of end
    effectors, dimensions named x, y and z, and identity for the rotations and grippers beside them, which have a scale
    of their own (Chi et al. 2023, for robomimic's absolute actions). The offsets and scales are buffers, so
    they travel in model.safetensors and moving them to a device needs no care.
    """

    def __init__(self, features: tuple[Feature, ...]) -> None:
        super().__init__()
        self._names = {f.key: f.key.replace(".", "_") for f in features if f.kind not in ("image", "language")}
        self._images = {f.key for f in features if f.kind == "image"}
        for feature in features:
            if feature.key in self._names:
                # NaN, so that using an unfitted normaliser can never pass unnoticed.
                nan = torch.full(feature.shape, float("nan"))
                self.register_buffer(f"offset_{self._names[feature.key]}", nan)
                self.register_buffer(f"scale_{self._names[feature.key]}", nan.clone())

    def _get(self, key: str) -> tuple[Tensor, Tensor]:
        if key not in self._names:
            raise RobopolicyError(f"the normaliser has no key {key!r}; it has {sorted(self._names)}")
        name = self._names[key]
        return getattr(self, f"offset_{name}"), getattr(self, f"scale_{name}")

    def fit(self, key: str, values: np.ndarray, mode: Mode, feature: Feature) -> None:
        """Sets offset and scale of `key` from its training values [N, ...]."""
        offset, scale = self._get(key)
        data = np.asarray(values, dtype=np.float64)
        if not np.isfinite(data).all():
            raise DataError(f"cannot fit the normaliser: {key!r} holds NaN or infinite values")
        if mode == "identity":
            centre, width = np.zeros(feature.shape), np.ones(feature.shape)
        elif mode == "bounds":
            if not feature.low or not feature.high:
                raise RobopolicyError(f"normalisation 'bounds' needs low and high for {key!r}, its feature has none")
            low, high = (np.reshape(v, feature.shape) for v in (feature.low, feature.high))
            centre, width = (high + low) / 2, (high - low) / 2
        elif mode in ("min_max", "pose"):
            low, high = data.min(axis=0), data.max(axis=0)
            centre, width = (high + low) / 2, (high - low) / 2
            if mode == "pose":
                positions = _positions(feature)
                centre, width = np.where(positions, centre, 0.0), np.where(positions, width, 1.0)
        else:
            centre, width = data.mean(axis=0), data.std(axis=0)
        width = np.where(width < CONSTANT / 2, 1.0, width)
        offset.copy_(torch.as_tensor(centre, dtype=torch.float32))
        scale.copy_(torch.as_tensor(width, dtype=torch.float32))

    def normalize(self, key: str, value: Tensor) -> Tensor:
        """Normalised floats; images [..., height, width, C] uint8 become [..., C, height, width] in [-1, 1]."""
        if key in self._images:
            return value.movedim(-1, -3).float().mul(2 / 255).sub(1)
        offset, scale = self._get(key)
        return (value.float() - offset) / scale

    def unnormalize(self, key: str, value: Tensor) -> Tensor:
        offset, scale = self._get(key)
        return value * scale + offset

    def check(self) -> None:
        """Raises when any key has no statistics."""
        for key, name in self._names.items():
            if not torch.isfinite(getattr(self, f"scale_{name}")).all():
                raise CheckpointError(f"normalisation statistics for {key!r} are missing (not finite)")


def _positions(feature: Feature) -> np.ndarray:
    """Which dimensions are positions: those named x, y and z, of several arms robot0_x and so on."""
    found = np.array([name.split("_")[-1] in ("x", "y", "z") for name in feature.names])
    if not found.any():
        raise RobopolicyError(f"normalisation 'pose' needs dimensions named x, y and z, {feature.key!r} has none")
    return found.reshape(feature.shape)
