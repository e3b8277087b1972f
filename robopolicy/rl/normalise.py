"""Running mean and variance of observations, which a rollout sees unchanged and which move between iterations."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

CLIP = 10.0
"""Normalised values beyond this are cut off, as in the reference implementations of PPO."""
EPS = 1e-8
CONSTANT = 1e-3
"""An input that deviates by less did not vary: it is centred and not scaled, or its first small change would count as
an extreme one."""


class RunningNormaliser(nn.Module):
    """(x - mean) / std per dimension, from all values ever added, on all processes.

    `add` collects; only `update` changes what `forward` does. Thereby all of one rollout, and the updates that
    compare with its log-probabilities, see one and the same scaling.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    _pending: Tensor

    def __init__(self, dim: int, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled
        # Double precision: counts pass 2^24, and small changes of a mean of millions of values must not be lost.
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("var", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("_pending", torch.zeros(2 * dim + 1, dtype=torch.float64), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module._refresh())
        self._refresh()

    def _refresh(self) -> None:
        self._offset, self._scale = self.offset_and_scale()

    def offset_and_scale(self) -> tuple[Tensor, Tensor]:
        """[D] and [D] float32, with which normalised = (x - offset) / scale."""
        scale = (self.var + EPS).sqrt().float()
        return self.mean.float(), torch.where(scale < CONSTANT, torch.ones_like(scale), scale)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised [..., D], within +-10; when not enabled, mean and variance stay at 0 and 1."""
        return ((x - self._offset) / self._scale).clamp_(-CLIP, CLIP)

    def add(self, x: Tensor) -> None:
        """Collects values [N, D] for the next update."""
        if self.enabled:
            # Relative to the present mean, or the difference of two large sums would lose the variance.
            centred = x.double() - self.mean
            count = centred.new_full((1,), len(x))
            self._pending += torch.cat([centred.sum(dim=0), centred.square().sum(dim=0), count])

    def update(self) -> None:
        """Merges what was added, on all processes, into mean and variance (Chan et al. 1979)."""
        if not self.enabled:
            return
        if dist.is_initialized():
            dist.all_reduce(self._pending)
        dim, new = len(self.mean), self._pending[-1]
        if new > 0:
            shift = self._pending[:dim] / new
            var = (self._pending[dim : 2 * dim] / new - shift.square()).clamp_min(0)
            total = self.count + new
            self.var = (self.var * self.count + var * new + shift.square() * self.count * new / total) / total
            self.mean = self.mean + shift * new / total
            self.count = total
            self._pending.zero_()
        self._refresh()

    def _apply(self, *args: object, **kwargs: object) -> "RunningNormaliser":
        super()._apply(*args, **kwargs)
        self._refresh()
        return self
