"""Named reinforcement-learning runs: H-infinity locomotion, its baselines, and the plant they are tried on.

Every recipe is a function that returns a fresh `RLConfig`; the command line overrides any field of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from robopolicy.rl.hinf import GameConfig
from robopolicy.rl.nets import NetConfig
from robopolicy.rl.ppo import PPOConfig
from robopolicy.rl.trainer import RLConfig
from robopolicy.sim.plants import PointMassConfig
from robopolicy.sim.quadruped.config import CommandConfig, QuadrupedConfig
from robopolicy.sim.quadruped.rewards import RewardScales

Method = Literal["hinf", "adversary", "random", "ppo"]
METHODS: dict[Method, str] = {
    "hinf": "H-infinity: against a disturber, with a bound on the cost per newton",
    "adversary": "against a disturber, without the bound",
    "random": "PPO with random forces",
    "ppo": "PPO without forces",
}
Robot = Literal["a1", "aliengo"]


@dataclass(frozen=True)
class RLRecipe:
    """A named run and what it is for."""

    about: str
    make: Callable[[], RLConfig]
    """Returns a fresh configuration, of which any field may be changed."""


def game(method: Method, base: GameConfig) -> GameConfig:
    """The settings `base` of one of the four methods."""
    if method == "ppo":
        return replace(base, disturbance="none", constrained=False)
    if method == "random":
        return replace(base, disturbance="random", constrained=False)
    return replace(base, disturbance="learned", constrained=method == "hinf")


def _pointmass(method: Method) -> RLConfig:
    net = NetConfig(hidden=(64, 64), initial_std=0.5)
    # A slow actor and a fast disturber: the other way round, the two chase each other and end anywhere.
    disturber = PPOConfig(lr=1e-3, schedule="fixed", entropy_coef=0.02)
    return RLConfig(
        PointMassConfig(),
        PPOConfig(gamma=0.95, lr=3e-4, schedule="fixed", entropy_coef=0.003, value_clip=0.0, reward_scale=0.05),
        game(method, GameConfig(eta=0.03, curriculum=0.0, net=net, ppo=disturber)),
        net,
        NetConfig(hidden=(64, 64)),
        n_envs=256,
        rollout_steps=32,
        iterations=100,
        save_every=50,
    )


_PUSH: dict[Robot, float] = {"a1": 25.0, "aliengo": 50.0}
"""Largest force of the small recipes in N: a fifth of the weight, what the slipperiest ground still holds against."""


def _flat(robot: Robot, method: Method) -> RLConfig:
    # A walk on flat ground, which two cores learn; the published run has 4096 robots and 2000 iterations. Commands go
    # beyond the 0.5 m/s that are evaluated: where standing still pays almost as much, walking is learned late.
    commands = CommandConfig(forward=(0.0, 1.0), sideways=(-0.3, 0.3), heading=(-0.8, 0.8))
    push = _PUSH[robot]
    # 0.7 of what plain PPO loses per newton to a fresh disturber of that force: 0.0135 on the A1, of 25 N.
    base = GameConfig(eta=0.25 / push, max_force=push, curriculum=0.5, quiet_share=0.45, washout=20, by_role=True)
    if method == "random":
        # Random forces alone are survived better without either.
        base = replace(base, quiet_share=0.1, by_role=False)
    return RLConfig(
        QuadrupedConfig(robot=robot, commands=commands, rewards=RewardScales(alive=1.0, air_time=2.0)),
        # Rewards are of order 0.01 a step; values are learned much faster when they are of order 1 to 10.
        PPOConfig(reward_scale=10.0, value_clip=0.0, entropy_coef=0.0),
        game=game(method, base),
        # Little noise: with a deviation of 1 the robot learned to travel by shaking, and its mean action stood still.
        actor=NetConfig(initial_std=0.5),
        n_envs=128,
        rollout_steps=48,
        iterations=800,
        threads=1,
    )


def _paper(robot: Robot, method: Method) -> RLConfig:
    net = NetConfig(hidden=(512, 256, 128))
    return RLConfig(
        QuadrupedConfig(robot=robot, terrain="mixed"),
        game=game(method, GameConfig(net=NetConfig(hidden=(256, 128, 64), initial_std=0.5))),
        actor=net,
        critic=net,
        n_envs=4096,
        rollout_steps=100,
        iterations=2000,
        threads=0,
    )


_ROBOTS: tuple[Robot, ...] = ("a1", "aliengo")
LOCOMOTION: dict[str, RLRecipe] = {
    f"pointmass-{m}": RLRecipe(f"point mass, half a minute on one core; {text}", partial(_pointmass, m))
    for m, text in METHODS.items()
}
for _robot in _ROBOTS:
    for _method, _text in METHODS.items():
        LOCOMOTION[f"{_robot}-flat-{_method}"] = RLRecipe(
            f"flat ground, small; {_text}", partial(_flat, _robot, _method)
        )
    LOCOMOTION[f"{_robot}-hinf-paper"] = RLRecipe("paper-sized: mixed terrain", partial(_paper, _robot, "hinf"))
