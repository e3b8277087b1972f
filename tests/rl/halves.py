"""One update of PPO on the part of a batch that belongs to this process; as a script, with a process group."""

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor

from robopolicy.rl.nets import Critic, GaussianActor, NetConfig
from robopolicy.rl.normalise import RunningNormaliser
from robopolicy.rl.ppo import PPO, Batch, PPOConfig, standardise


def updated(rank: int, world: int) -> Tensor:
    """All weights, the running statistics, divergence and rate after three epochs of one minibatch each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = NetConfig(hidden=(8,))
    actor, critic = GaussianActor(3, 2, net), Critic(3, 2, net)
    generator = torch.Generator().manual_seed(1)

    def part(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).chunk(world)[rank]

    x, action, advantage, value, returns = part(32, 3), part(32, 2), part(32), part(32, 2), part(32, 2)
    normaliser = RunningNormaliser(3)
    normaliser.add(x)
    normaliser.update()
    x = normaliser(x)
    with torch.no_grad():
        mean = actor(x)
        log_prob = actor.log_prob(mean, action)
    batch = Batch(x, action, log_prob, mean, standardise(advantage), x, value, returns)
    # In one minibatch the order of the samples does not matter, and halves must make the same step as the whole.
    found = PPO(actor, critic, PPOConfig(epochs=3, minibatches=1)).update(batch, torch.Generator().manual_seed(0))
    weights = [p.detach().flatten() for p in [*actor.parameters(), *critic.parameters()]]
    return torch.cat([*weights, normaliser.mean, normaliser.var, torch.tensor([found["kl"], found["lr"]])])


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.save(updated(dist.get_rank(), dist.get_world_size()), f"{sys.argv[1]}/{dist.get_rank()}.pt")
    dist.destroy_process_group()
    # Threads of gloo may outlive the group and abort the interpreter's end.
    os._exit(0)
