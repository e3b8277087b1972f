"""A task whose scores are known by hand; importable without torch, so that spawned workers start fast."""

import itertools
import os
import signal
from typing import ClassVar

import numpy as np
from gymnasium import spaces

from robopolicy.errors import RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.sim.task import Task

STATE, GOAL = "observation.state", "observation.goal"
REACH = 0.1
FEATURES = FeatureSpec(
    (
        Feature(STATE, (1,)),
        Feature(GOAL, (1,), kind="goal"),
        Feature("observation.images.top", (6, 6, 3), "uint8", "image"),
        Feature("action", (1,), kind="action", control=Control("joint", "absolute")),
    ),
    10.0,
)


class PointTask(Task):
    """A point moves towards the commanded position by at most REACH per step; reward 1 - half the goal's distance.

    The start is uniform in [-1, 0], the goal 0.5; success and end within 0.01. Going straight takes
    ceil((0.49 - start) / 0.1) steps, and scores 1.
    """

    name = "point"
    max_steps = 25
    features = FEATURES

    def __init__(self):
        self.action_space = spaces.Box(-2, 2, (1,))
        self.x = self.goal = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(np.random.default_rng(seed).uniform(-1, 0))
        self.goal = 0.5
        return self._observe(), {"success": False}

    def step(self, action):
        self.x += float(np.clip(action[0] - self.x, -REACH, REACH))
        distance = abs(self.x - self.goal)
        success = distance < 0.01
        return self._observe(), 1.0 if success else 1 - distance / 2, success, False, {"success": success}

    def _observe(self):
        return {
            STATE: np.array([self.x], np.float32),
            GOAL: np.array([self.goal], np.float32),
            "observation.images.top": np.full((6, 6, 3), round(50 * (2 + self.x)), np.uint8),
        }

    def hold_action(self, observation):
        return observation[STATE]

    def fingerprint(self):
        return {"point": "1"}

    def render(self):
        frame = np.full((33, 47, 3), 200, np.uint8)
        frame[10:20, round(20 + 18 * self.x) : round(26 + 18 * self.x)] = (30, 60, 200)
        return frame


class MeasuredTask(PointTask):
    """Reports beside its score how near the middle, 0, the point has come: 1 - |x|, best on the way."""

    name = "measured"
    metrics: ClassVar[dict[str, str]] = {"nearness": "1 - distance to the middle"}

    def step(self, action):
        observation, reward, over, truncated, info = super().step(action)
        return observation, reward, over, truncated, info | {"metrics": {"nearness": 1 - abs(self.x)}}


class UnmeasuredTask(MeasuredTask):
    """Breaks the contract: promises a metric and does not give it."""

    name = "unmeasured"

    def step(self, action):
        observation, reward, over, truncated, info = super().step(action)
        return observation, reward, over, truncated, {"success": info["success"]}


class BlindTask(PointTask):
    name = "blind"

    def render(self):
        raise NotImplementedError


class ForgetfulTask(PointTask):
    """Breaks the contract: the initial state depends on how often reset was called."""

    name = "forgetful"
    count = itertools.count()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x += 0.001 * next(self.count)
        return self._observe(), {"success": False}


class CrashingTask(PointTask):
    def step(self, action):
        raise ZeroDivisionError("the solver exploded")


class DyingTask(PointTask):
    def step(self, action):
        os.kill(os.getpid(), signal.SIGKILL)


class UnavailableTask(PointTask):
    """Like a task whose extra is not installed in the worker."""

    def reset(self, *, seed=None, options=None):
        raise RobopolicyError("install robopolicy[extra]")


class PointExpert:
    """Goes straight to the goal; from starts below -0.7 it gives up."""

    def __init__(self, seed, noise=0.0):
        self.generator = np.random.default_rng(seed)
        self.noise = noise

    def reset(self):
        self.target = None

    def act(self, task):
        if self.target is None:
            self.target = task.goal if task.x >= -0.7 else -1.0
        return np.array([self.target + self.noise * self.generator.normal()])


def start(seed):
    return float(np.random.default_rng(seed).uniform(-1, 0))


def straight_steps(seed):
    return int(np.ceil((0.49 - start(seed)) / REACH))
