"""Proximal policy optimisation (Schulman et al. 2017): losses as pure functions, and the loop over minibatches.

The caller prepares one flat batch of normalised observations, advantages and returns. Whatever an algorithm adds,
weighted sums of advantages for instance, happens there, so that this file stays plain PPO.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robopolicy.errors import RobopolicyError
from robopolicy.rl.nets import Critic, GaussianActor, gaussian_kl

LR_RANGE = (1e-5, 1e-2)
"""Limits of the adaptive learning rate."""


@dataclass
class PPOConfig:
    """Numbers of PPO; the defaults are those of legged locomotion."""

    gamma: float = 0.99
    lam: float = 0.95
    epochs: int = 5
    minibatches: int = 4
    clip: float = 0.2
    """Largest change of an action's probability ratio that is rewarded."""
    value_clip: float = 0.2
    """Largest rewarded change of a value in one iteration, in units of scaled returns; 0 does not clip."""
    value_coef: float = 1.0
    entropy_coef: float = 0.01
    grad_norm: float = 1.0
    """Largest gradient norm, of actor and critic each by itself; 0 does not clip."""
    lr: float = 1e-3
    critic_lr: float | None = None
    """Learning rate of the critic; by default the actor's, also where that adapts."""
    schedule: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: divided by 1.5 where the divergence from the rollout's policy is above twice kl_target, multiplied
    where it is below half of it."""
    kl_target: float = 0.01
    kl_stop: float = 0.0
    """End the update after an epoch whose mean divergence is above this; 0 never does."""
    reward_scale: float = 1.0
    """Multiplies rewards before anything learns from them, so that values are of order one."""


def policy_loss(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, negated (eq. 7), and the probability ratio, from [B] each."""
    ratio = torch.exp(log_prob - old_log_prob)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -surrogate.mean(), ratio


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Mean squared error per head [k] from [B, k] each; with `clip`, the larger of it and the error of the value
    moved by at most `clip`."""
    errors = (values - returns).square()
    if clip:
        near = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (near - returns).square())
    return errors.mean(dim=0)


def standardise(advantages: Tensor, valid: Tensor | None = None) -> Tensor:
    """Advantages [...] with mean 0 and standard deviation 1 over the valid ones of all processes."""
    chosen = (advantages if valid is None else advantages[valid]).double()
    sums = torch.stack([chosen.sum(), chosen.square().sum(), chosen.new_tensor(float(chosen.numel()))])
    if dist.is_initialized():
        dist.all_reduce(sums)
    count = sums[2].clamp_min(2)
    mean = sums[0] / count
    # The unbiased estimate, as torch.std.
    std = ((sums[1] - count * mean.square()).clamp_min(0) / (count - 1)).sqrt()
    return (advantages - mean.float()) / (std.float() + 1e-8)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes, in one message."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def process_mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


@dataclass
class Batch:
    """One rollout, flat: B samples."""

    observation: Tensor
    """[B, D], as the actor takes them."""
    action: Tensor
    """[B, A]"""
    log_prob: Tensor
    """[B], of the actions under the policy of the rollout."""
    mean: Tensor
    """[B, A], of the policy of the rollout."""
    advantage: Tensor
    """[B], as the surrogate takes them."""
    critic_observation: Tensor | None = None
    """[B, D_c]; together with values and returns [B, k], when there is a critic to train."""
    value: Tensor | None = None
    returns: Tensor | None = None

    def select(self, valid: Tensor) -> "Batch":
        """The samples where `valid` [B] is true."""
        return replace(self, **{k: v[valid] for k, v in vars(self).items() if v is not None})


class PPO:
    """An actor, perhaps a critic, and their optimisers."""

    def __init__(
        self,
        actor: GaussianActor,
        critic: Critic | None,
        config: PPOConfig,
        head_coefs: tuple[float, ...] = (),
    ) -> None:
        """`head_coefs` weighs the loss of each value head; all count 1 by default."""
        if not (0 < config.gamma <= 1 and 0 <= config.lam <= 1 and config.epochs > 0 and config.minibatches > 0):
            raise RobopolicyError(
                f"ppo: expected gamma in (0, 1], lam in [0, 1], epochs and minibatches above 0, found {config}"
            )
        self.actor, self.critic, self.config = actor, critic, config
        self.head_coefs = head_coefs
        self.networks: list[list[nn.Parameter]] = [list(actor.parameters())]
        groups = [{"params": self.networks[0], "lr": config.lr}]
        if critic is not None:
            self.networks.append(list(critic.parameters()))
            groups.append({"params": self.networks[1], "lr": config.critic_lr or config.lr})
        # The fused kernel reads every weight once instead of once per arithmetic operation.
        self.optimizer = torch.optim.Adam(groups, lr=config.lr, eps=1e-5, fused=True)
        self.lr = config.lr

    def _adapt(self, kl: float) -> None:
        low, high = LR_RANGE
        if kl > 2 * self.config.kl_target:
            self.lr = max(low, self.lr / 1.5)
        elif 0 < kl < 0.5 * self.config.kl_target:
            self.lr = min(high, self.lr * 1.5)
        self.set_lr(self.lr)

    def set_lr(self, lr: float) -> None:
        """Sets the actor's rate, and the critic's where that has none of its own."""
        self.lr = lr
        for group in self.optimizer.param_groups[: 1 if self.config.critic_lr else None]:
            group["lr"] = lr

    def update(self, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        """Epochs over shuffled minibatches; returns the means of losses, divergence and clipped share."""
        config, actor, critic = self.config, self.actor, self.critic
        old_log_std = actor.log_std.detach().clone()
        n = len(batch.action)
        totals: dict[str, Tensor] = {}
        updates = epochs = 0
        for _ in range(config.epochs):
            order = torch.randperm(n, generator=generator, device=batch.action.device)
            divergence = 0.0
            # tensor_split, unlike chunk, gives the same number of parts on every process.
            for index in order.tensor_split(config.minibatches):
                mean = actor(batch.observation[index])
                log_prob = actor.log_prob(mean, batch.action[index])
                loss, ratio = policy_loss(log_prob, batch.log_prob[index], batch.advantage[index], config.clip)
                with torch.no_grad():
                    kl = process_mean(gaussian_kl(batch.mean[index], old_log_std, mean, actor.log_std).mean())
                    clipped = ((ratio - 1).abs() > config.clip).float().mean()
                found = {"policy_loss": loss.detach(), "kl": kl, "clip_fraction": clipped}
                loss = loss - config.entropy_coef * actor.entropy()
                if critic is not None:
                    assert batch.critic_observation is not None
                    assert batch.value is not None
                    assert batch.returns is not None
                    values = critic(batch.critic_observation[index])
                    heads = value_loss(values, batch.value[index], batch.returns[index], config.value_clip)
                    found |= {f"value_loss_{i}": h for i, h in enumerate(heads.detach())}
                    if self.head_coefs:
                        heads = heads * heads.new_tensor(self.head_coefs)
                    loss = loss + config.value_coef * heads.sum()
                if config.schedule == "adaptive":
                    self._adapt(float(kl))
                divergence += float(kl) / config.minibatches
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                for parameters in self.networks:
                    average_gradients(parameters)
                    if config.grad_norm:
                        nn.utils.clip_grad_norm_(parameters, config.grad_norm)
                self.optimizer.step()
                updates += 1
                for name, value in found.items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value
            epochs += 1
            if config.kl_stop and divergence > config.kl_stop:
                break
        means = {name: float(value) / updates for name, value in totals.items()}
        return means | {"lr": self.lr, "entropy": float(actor.entropy().detach()), "epochs": float(epochs)}


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - var(error) / var(returns) per head [k], from [B, k] each; 0 where the returns do not vary."""
    variance = returns.var(dim=0)
    share = 1 - (returns - values).var(dim=0) / variance.clamp_min(1e-12)
    return torch.where(variance > 1e-12, share, torch.zeros_like(share))
