"""A legged actor with random weights, as a training would store it, and the environment it belongs to."""

from pathlib import Path

import torch

from robopolicy.rl.actor import ActorPolicy, deployed
from robopolicy.rl.nets import GaussianActor, NetConfig
from robopolicy.rl.normalise import RunningNormaliser
from robopolicy.sim.quadruped.config import CommandConfig, NoiseConfig, QuadrupedConfig, RandomisationConfig
from robopolicy.sim.quadruped.env import QuadrupedEnv
from robopolicy.training import checkpoint


def make_env(robot: str = "a1", velocity: tuple[float, float] = (0.5, 0.0)) -> QuadrupedEnv:
    """One nominal robot that is asked to walk at this velocity, forward and sideways, without turning."""
    forward, sideways = velocity
    commands = CommandConfig((forward,) * 2, (sideways,) * 2, heading_gain=0.0, dead_zone=0.0)
    config = QuadrupedConfig(
        robot=robot,  # type: ignore[arg-type]
        commands=commands,
        randomisation=RandomisationConfig.none(),
        noise=NoiseConfig.none(),
        staggered=False,
        backend="loop",
    )
    env = config.make(1)
    env.reset(0)
    return env


def make_actor(env: QuadrupedEnv, gain: float = 0.3, lean: float = 0.0) -> ActorPolicy:
    """Random weights, the last ones of size `gain`, and a normaliser that has seen something.

    `lean` turns the front thighs backwards, in units of action: with 4 the robot falls on its nose.
    """
    torch.manual_seed(1)
    net = NetConfig(hidden=(16, 16))
    network = GaussianActor(45, 12, net).network
    torch.nn.init.normal_(network[-1].weight, std=gain)
    network[-1].bias.data[[1, 4]] += lean
    normaliser = RunningNormaliser(45)
    normaliser.add(torch.randn(200, 45) * 0.7 + 0.2)
    normaliser.update()
    return deployed(env, net, network.state_dict(), normaliser)


def save_actor(folder: Path, robot: str = "a1", **options: float) -> Path:
    """A checkpoint of it."""
    env = make_env(robot)
    observation = {"observation.state": env.observe()["policy"][:1, None].clone()}
    provenance = {"fingerprint": env.fingerprint()}
    checkpoint.save(folder, make_actor(env, **options), "quadruped", observation, provenance)
    return folder
