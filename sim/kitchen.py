"""Franka kitchen: an arm turns knobs, opens doors and moves a kettle, as a goal state asks (Gupta et al. 2019).

The simulation is FrankaKitchen-v1 of gymnasium-robotics (extra `kitchen`). Angles are radians, lengths metres.
Pictures need OpenGL without a display: they are drawn when MUJOCO_GL is egl or osmesa, and otherwise left out.
"""

import os
from importlib.metadata import version
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium import spaces

from robopolicy.errors import RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.sim.task import Observation, Task

STATE, GOAL = "observation.state", "observation.goal"
ASKED = 4
"""Elements that a drawn goal asks for, as many as each relay demonstration changes."""

_JOINTS = (*(f"panda_joint{i}" for i in range(1, 8)), "finger_joint1", "finger_joint2")
_OBJECTS = (
    *("knob_1", "bottom_right_burner", "knob_2", "bottom_left_burner"),
    *("knob_3", "top_right_burner", "knob_4", "top_left_burner", "light_switch", "light_joint"),
    *("slide_cabinet", "left_hinge_cabinet", "right_hinge_cabinet", "microwave"),
    *(f"kettle_{axis}" for axis in ("x", "y", "z", "qw", "qx", "qy", "qz")),
)
_STATE = Feature(STATE, (30,), names=_JOINTS + _OBJECTS)
_ACTION = Feature(
    "action",
    (9,),
    kind="action",
    names=_JOINTS,
    low=(-1.0,) * 9,
    high=(1.0,) * 9,
    control=Control("velocity", "absolute"),
)


class Kitchen(Task):
    """The kitchen with seven elements to change: burners, light switch, cabinets, microwave and kettle.

    The state [30] is the positions of the arm's 9 joints and of 21 joints of the kitchen, with the sensor noise of
    the environment. An action [9] is joint velocities as shares of 2 rad/s (fingers: m/s), clipped to the arm's
    limits. A goal [2, 30] is two consecutive states. It is drawn from the seed: four of the seven elements at their
    goals, all else as at the start, in both rows; `reset(options={"goal": ...})` takes one from a demonstration, as
    the published protocol does.

    An element is done from the first time that it is within 0.3 (L2) of its goal, in any order. The score is the
    share of the goal's elements that are done; an episode lasts 280 steps unless all seven are. Two numbers of the
    literature are metrics: *reward*, elements done of any kind, and *result*, those that the goal asks for (at most 4
    in a relay demonstration). An episode succeeds when all that the goal asks for is done.
    """

    name: ClassVar[str] = "kitchen"
    features = FeatureSpec((_STATE, Feature(GOAL, (2, 30), kind="goal"), _ACTION), rate_hz=12.5)
    max_steps = 280
    score_name: ClassVar[str] = "share of the goal's elements done"
    metrics: ClassVar[dict[str, str]] = {
        "reward": "elements done of any kind, 0 to 7",
        "result": "elements done that the goal asks for",
    }
    goal_source: ClassVar[str] = STATE

    def __init__(self) -> None:
        try:
            from gymnasium_robotics.envs.franka_kitchen import kitchen_env
        except ImportError as error:
            raise RobopolicyError(
                f"task 'kitchen' needs gymnasium-robotics ({error}); install robopolicy[kitchen]"
            ) from error
        self.elements: dict[str, tuple[np.ndarray, np.ndarray]] = {
            name: (np.asarray(kitchen_env.OBS_ELEMENT_INDICES[name]), np.asarray(goal, np.float64))
            for name, goal in kitchen_env.OBS_ELEMENT_GOALS.items()
        }
        """Of each element, its dimensions of the state and the values that count as done."""
        self._threshold = float(kitchen_env.BONUS_THRESH)
        self._draws = os.environ.get("MUJOCO_GL", "").lower() in ("egl", "osmesa")
        options = {"render_mode": "rgb_array", "width": 256, "height": 256} if self._draws else {}
        self.simulator = kitchen_env.KitchenEnv(terminate_on_tasks_completed=False, **options)
        high = np.full(9, 1.0, np.float32)
        self.action_space = spaces.Box(-high, high, dtype=np.float32)
        self.observation_space = cast(
            Any, spaces.Dict({f.key: spaces.Box(-np.inf, np.inf, f.shape, np.float32) for f in self.features.inputs})
        )
        self.asked: frozenset[str] = frozenset()
        """Elements that the goal of this episode asks for."""
        self.done: set[str] = set()
        """Elements done so far."""
        self._goal = np.zeros((2, 30), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode, always from the same state but for sensor noise, which `seed` fixes, as it does the goal.

        `options={"goal": [2, 30]}` asks for the elements that are done in the last row of that goal.
        """
        super().reset(seed=seed)
        raw, _ = self.simulator.reset(seed=seed)
        if options is not None and "goal" in options:
            self._goal = self._checked_goal(options["goal"])
            self.asked = frozenset(self.done_in(self._goal[-1]))
        else:
            random = np.random.default_rng(None if seed is None else [seed, 0x417C])
            self.asked = frozenset(random.choice(sorted(self.elements), ASKED, replace=False).tolist())
            self._goal = self.goal_of(self.asked)
        self.done = set()
        self._count()
        return self._observe(raw), self._info()

    def goal_of(self, asked: frozenset[str]) -> np.ndarray:
        """A goal [2, 30]: the initial state with these elements done."""
        state = np.array(self.simulator.robot_env.init_qpos, np.float64)
        for name in asked:
            where, value = self.elements[name]
            state[where] = value
        return np.tile(state, (2, 1)).astype(np.float32)

    def done_in(self, state: np.ndarray) -> set[str]:
        """Names of the elements that are done in a state [30]."""
        return {
            name
            for name, (where, value) in self.elements.items()
            if np.linalg.norm(np.asarray(state, np.float64)[where] - value) < self._threshold
        }

    def _checked_goal(self, goal: Any) -> np.ndarray:
        try:
            values = np.asarray(goal, dtype=np.float32)
        except (TypeError, ValueError):
            values = np.empty(0, np.float32)
        if values.shape != (2, 30) or not np.isfinite(values).all():
            raise RobopolicyError(f"kitchen goal: expected finite numbers [2, 30], found shape {list(values.shape)}")
        if not self.done_in(values[-1]):
            raise RobopolicyError("kitchen goal: no element is done in its last row, so it asks for nothing")
        return values

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the arm for 0.08 s at the velocities `action` [9]. Errors: a misshapen or non-finite one."""
        velocity = np.asarray(action, dtype=np.float64)
        if velocity.shape != (9,) or not np.isfinite(velocity).all():
            raise RobopolicyError(f"kitchen action: expected 9 finite numbers, found {action!r}")
        raw = self.simulator.step(velocity)[0]
        self._count()
        info = self._info()
        return self._observe(raw), self.result, len(self.done) == len(self.elements), False, info

    @property
    def result(self) -> float:
        """Share of the goal's elements that are done."""
        return len(self.done & self.asked) / len(self.asked)

    def _count(self) -> None:
        self.done |= self.done_in(self.simulator.data.qpos)

    def _info(self) -> dict[str, Any]:
        metrics = {"reward": float(len(self.done)), "result": float(len(self.done & self.asked))}
        return {"success": self.asked <= self.done, "done": sorted(self.done), "metrics": metrics}

    def _observe(self, raw: dict[str, np.ndarray]) -> Observation:
        # 9 positions and 9 velocities of the arm, then 21 positions and 20 velocities of the kitchen.
        values = raw["observation"]
        state = np.concatenate([values[:9], values[18:39]]).astype(np.float32)
        return {STATE: state, GOAL: self._goal.copy()}

    def hold_action(self, observation: Observation) -> np.ndarray:
        # The nearest that velocities come to holding: the arm creeps under its weight.
        return np.zeros(9, np.float32)

    def fingerprint(self) -> dict[str, str]:
        import mujoco

        return {"gymnasium-robotics": version("gymnasium-robotics"), "mujoco": mujoco.__version__}

    def render(self) -> np.ndarray:
        """The kitchen [256, 256, 3] uint8 RGB. Raises NotImplementedError unless MUJOCO_GL is egl or osmesa."""
        if not self._draws:
            raise NotImplementedError("kitchen pictures need MUJOCO_GL=egl or MUJOCO_GL=osmesa")
        return self.simulator.render()

    def close(self) -> None:
        self.simulator.close()
