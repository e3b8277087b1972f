"""Rollouts in pre-allocated tensors, and generalised advantages of several value heads at once."""

from collections.abc import Mapping

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns (Schulman et al. 2016, eq. 16) of k heads, each [T, N, k].

    `rewards`, `values` and `next_values` are [T, N, k]; next_values[t] is the value of what followed step t: of the
    next observation, of the last observation of an episode that ran out of time, zero after a failure. `ended`
    [T, N] bool cuts the sum at the end of an episode of either kind.
    """
    delta = rewards + gamma * next_values - values
    carry = (gamma * lam * (~ended).to(delta.dtype)).unsqueeze(-1)
    advantages = torch.empty_like(delta)
    running = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        running = delta[t] + carry[t] * running
        advantages[t] = running
    return advantages, advantages + values


class RolloutBuffer:
    """Named tensors [T, N, ...] that are allocated once and filled step by step, and the observations that episodes
    which ran out of time ended with."""

    def __init__(
        self, steps: int, n_envs: int, shapes: Mapping[str, tuple[int, ...]], device: torch.device | str = "cpu"
    ) -> None:
        """`shapes` are those of one copy and step, without [T, N]; all are float32, flags are put as bool."""
        self.steps, self.n_envs = steps, n_envs
        self.data = {k: torch.zeros(steps, n_envs, *s, device=device) for k, s in shapes.items()}
        for flag in ("terminated", "ended", "invalid"):
            self.data[flag] = torch.zeros(steps, n_envs, dtype=torch.bool, device=device)
        self._finals: list[tuple[Tensor, Tensor]] = []

    def __getitem__(self, key: str) -> Tensor:
        return self.data[key]

    def flat(self, key: str) -> Tensor:
        """The view [T * N, ...]."""
        return self.data[key].flatten(0, 1)

    def clear(self) -> None:
        """Forgets the final observations of the last rollout; the tensors will be overwritten."""
        self._finals.clear()

    def put(self, step: int, **values: Tensor) -> None:
        """Copies values [N, ...] of one step."""
        for key, value in values.items():
            self.data[key][step].copy_(value)

    def put_final(self, step: int, copies: Tensor, observations: Tensor) -> None:
        """Keeps the last observations [K, D] of the `copies` [K] that ran out of time in this step."""
        self._finals.append((step * self.n_envs + copies, observations.clone()))

    def finals(self) -> tuple[Tensor, Tensor] | None:
        """Positions [M] in the flat views and observations [M, D] of all that ran out of time; None without any."""
        if not self._finals:
            return None
        positions, observations = zip(*self._finals, strict=True)
        return torch.cat(positions), torch.cat(observations)

    def next_values(self, values: Tensor, last: Tensor, final: Tensor | None, gamma: float) -> Tensor:
        """What followed each step, [T, N, k], from the values of all observations [T, N, k], of the observations
        after the last step [N, k] and of `finals` [M, k].

        Where the physics failed it is values / gamma, so that with a reward of zero the temporal difference vanishes
        and nothing of the failure reaches the steps before it.
        """
        following = torch.cat([values[1:], last[None]])
        following = following.masked_fill(self["terminated"].unsqueeze(-1), 0.0)
        if final is not None:
            following.flatten(0, 1)[self.finals()[0]] = final  # type: ignore[index]
        return torch.where(self["invalid"].unsqueeze(-1), values / gamma, following)
