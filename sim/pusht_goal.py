"""Goal-conditioned PushT: the goal is a whole state, drawn the way that human demonstrations end.

In the published protocol (C-BeT, VQ-BeT; Lee et al. 2024) a goal is the last frame of a demonstration and the score
is the IoU of the block with the block of that frame when the episode ends. Goals here are functions of the episode
seed and need no dataset: they are drawn from a distribution fitted to the last states of the 206 demonstrations of
pusht_cchi_v7, all of which end while the agent, in touch with one face of the block, still pushes it home.
"""

from typing import Any, ClassVar

import numpy as np

from robopolicy.errors import RobopolicyError
from robopolicy.features import Feature, FeatureSpec
from robopolicy.sim.pusht import _ACTION, _AGENT, _BLOCK, ENVIRONMENT, GOAL_POSE, STATE, PushTState, _PushT
from robopolicy.sim.task import Observation

GOAL = "observation.goal"
SUCCESS_IOU = 0.9
RADIUS = 15.0  # of the agent, px
CENTRE = 45j  # centre of gravity of the block in its own frame, px

# The block's frame is that of `block_pose`: origin in the middle of the bar's outer edge, stem along +y; complex px.
# Of each touched face: share of the demonstrations, agent at mean + spread * N(0, 1) * along within limits (of the
# coordinate along), direction of the push, mean and standard deviation of the angle beyond pi / 4 in rad.
# Left faces stand for right ones, too, as mirror images with even odds.
_FACES = (
    (62 / 206, 0 - RADIUS * 1j, 17.0, 1 + 0j, (-55.0, 55.0), 1j, 0.0, 0.049),
    (68 / 206, 0 + (120 + RADIUS) * 1j, 3.9, 1 + 0j, (-14.0, 14.0), -1j, 0.0, 0.043),
    (22 / 206, -60 - RADIUS + 17j, 6.4, 1j, (2.0, 28.0), 1 + 0j, -0.063, 0.051),
    (54 / 206, -15 - RADIUS + 65.2j, 26.6, 1j, (45.0, 119.0), 1 + 0j, 0.0, 0.066),
)
# How far the block's centre of gravity is from its place in the fixed goal: short of it along the push, and sideways.
_SHORT, _SHORT_SPREAD, _SIDE_SPREAD = 5.6, 2.0, 2.6

_STATE = Feature(
    STATE,
    (6,),
    names=_AGENT.names + _BLOCK.names,
    units=_AGENT.units + _BLOCK.units,
    low=_AGENT.low + _BLOCK.low,
    high=_AGENT.high + _BLOCK.high,
)


def draw_goal(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Agent place [2] in px and block pose [3] (x px, y px, angle rad) of a goal, as people end demonstrations."""
    shares = [face[0] for face in _FACES]
    _, mean, spread, along, (low, high), push, turn_mean, turn_spread = _FACES[random.choice(len(_FACES), p=shares)]
    part = (mean * along.conjugate()).real
    agent = mean + (np.clip(part + spread * random.normal(), low, high) - part) * along
    short = _SHORT + _SHORT_SPREAD * random.normal()
    missing = push * (-short + 1j * _SIDE_SPREAD * random.normal())
    turn = turn_mean + turn_spread * random.normal()
    if random.random() < 0.5:
        agent, missing, turn = -agent.conjugate(), -missing.conjugate(), -turn

    fixed = complex(*GOAL_POSE[:2])
    heading = np.exp(1j * GOAL_POSE[2])
    centre = fixed + (CENTRE + missing) * heading
    heading *= np.exp(1j * turn)
    origin = centre - CENTRE * heading
    at = origin + agent * heading
    return np.array([at.real, at.imag]), np.array([origin.real, origin.imag, GOAL_POSE[2] + turn])


class PushTGoal(_PushT):
    """PushT with a goal state: agent place, block place, cosine and sine of its angle, in one vector of 6.

    `observation.goal` [1, 6] is such a state, drawn from the seed by `draw_goal`. The reward of a step is the IoU of
    the block with the goal's block, the score that of the last step. A step succeeds from an IoU of 0.9. The
    episode lasts `max_steps`, or ends earlier when a policy, having moved the block, has asked the agent to stay
    where it is (within 4 px) for 2 s.
    """

    name: ClassVar[str] = "pusht-goal"
    features = FeatureSpec((_STATE, Feature(GOAL, (1, 6), kind="goal"), _ACTION), rate_hz=10.0)
    score_name: ClassVar[str] = "final IoU"
    goal_source: ClassVar[str] = STATE
    rest_steps, rest_distance = 20, 4.0

    def __init__(self) -> None:
        self.goal_pose = np.array(GOAL_POSE)
        """Block pose [3] of this episode's goal: x px, y px, angle rad."""
        self.goal_agent = np.zeros(2)
        """Agent place [2] of this episode's goal, px."""
        self._resting = 0
        self._first_pose = np.zeros(3)
        super().__init__()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts from the state that the other PushT variants have for `seed`; `options` as theirs.

        `options={"goal": [agent x, agent y, block x, block y, angle]}` asks for exactly that goal.
        """
        if options is not None and "goal" in options:
            goal = _five_numbers(options["goal"])
            self.goal_agent, self.goal_pose = goal[:2], goal[2:]
        else:
            random = np.random.default_rng(None if seed is None else [seed, 0x60A1])
            self.goal_agent, self.goal_pose = draw_goal(random)
        observation, info = super().reset(seed=seed, options=options)
        self._resting, self._first_pose = 0, self.block_pose
        return observation, self._scored(info)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As in the other variants; the reward is the IoU and an episode goes on after success."""
        before = self.agent_position
        observation, _, _, _, info = super().step(action)
        stays = np.linalg.norm(np.asarray(action, np.float64) - before) <= self.rest_distance
        moved = np.abs(self.block_pose - self._first_pose).max() > 1e-3
        self._resting = self._resting + 1 if stays and moved else 0
        info = self._scored(info)
        return observation, info["iou"], self._resting >= self.rest_steps, False, info

    @staticmethod
    def _scored(info: dict[str, Any]) -> dict[str, Any]:
        # Both shapes are the same T of area A: with coverage c they share c A and cover (2 - c) A together.
        iou = info["coverage"] / (2 - info["coverage"])
        return {"success": bool(iou >= SUCCESS_IOU), "coverage": info["coverage"], "iou": iou}

    def _coverage(self) -> float:
        # The simulator puts its own goal back whenever it is set up; it draws this one, too.
        self.simulator.goal_pose = self.goal_pose
        return super()._coverage()

    def _observe(self) -> Observation:
        goal = _vectors(self.goal_agent[None], self.goal_pose[None])
        return {STATE: _vectors(self.agent_position[None], self.block_pose[None])[0], GOAL: goal}

    def score(self, rewards: np.ndarray) -> float:
        """The IoU at the end of the episode, from its [T] rewards."""
        return float(rewards[-1]) if len(rewards) else 0.0

    def hold_action(self, observation: Observation) -> np.ndarray:
        return np.array(observation[STATE][:2], dtype=np.float32)

    @classmethod
    def adapt(cls, arrays: dict[str, np.ndarray], features: FeatureSpec) -> tuple[dict[str, np.ndarray], FeatureSpec]:
        """Recorded PushT arrays [N, ...] of any convention that `pusht` accepts, in the keys of this task.

        There is no goal among them: training takes goals from the future of an episode.
        Errors: FeatureMismatch when the state cannot be derived.
        """
        if STATE in features and features[STATE].shape == _STATE.shape:
            return arrays, features
        adapted, spec = PushTState.adapt(arrays, features)
        parts = [adapted[STATE], adapted.pop(ENVIRONMENT)]
        adapted[STATE] = np.concatenate(parts, axis=1).astype(np.float32)
        return adapted, FeatureSpec((_STATE, spec.action), spec.rate_hz)

    @classmethod
    def mirror(cls, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The recorded arrays [N, ...] as if filmed in a mirror along the axis of the fixed goal."""
        state = arrays[STATE]
        parts = {STATE: state[:, :2], ENVIRONMENT: state[:, 2:], "action": arrays["action"]}
        mirrored = PushTState.mirror(parts)
        joined = np.concatenate([mirrored[STATE], mirrored.pop(ENVIRONMENT)], axis=1)
        return mirrored | {STATE: joined.astype(np.float32)}


def _five_numbers(goal: Any) -> np.ndarray:
    try:
        values = np.asarray(goal, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (5,) or not np.isfinite(values).all():
        raise RobopolicyError(
            'pusht-goal reset option "goal": expected 5 finite numbers (agent x, agent y, block x, block y, angle), '
            f"found {goal!r}"
        )
    return values


def _vectors(agents: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """States [N, 6] float32 from agent places [N, 2] and block poses [N, 3]."""
    angle = poses[:, 2]
    return np.column_stack([agents, poses[:, :2], np.cos(angle), np.sin(angle)]).astype(np.float32)
