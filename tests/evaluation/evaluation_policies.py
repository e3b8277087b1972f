"""Policies for the tasks of evaluation_fakes."""

import torch
from evaluation_fakes import FEATURES, GOAL, STATE

from robopolicy.diffusion.noise import randn
from robopolicy.nn.normalizer import Normalizer
from robopolicy.policies.base import Policy, PolicyConfig


class PointPolicy(Policy):
    """Commands the goal plus `noise` times a standard normal number, in every row."""

    def __init__(self, noise=0.0, features=FEATURES, horizon=8, n_action_steps=4, n_obs_steps=2):
        selected = features.select([STATE, GOAL, "action"])
        super().__init__(PolicyConfig(n_obs_steps, horizon, n_action_steps), selected, Normalizer(()))
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.dropout = torch.nn.Dropout(0.5)
        self.noise = noise
        self.calls = []

    def loss(self, batch, generator):
        raise NotImplementedError

    def predict(self, observation, generator):
        goal = self.dropout(observation[GOAL][:, -1:])
        self.calls.append(len(goal))
        chunk = goal.expand(-1, self.config.horizon, -1) * self.weight
        return chunk + self.noise * randn(chunk.shape, generator)
