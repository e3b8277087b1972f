"""Blocks: a round effector pushes two square blocks onto two targets; which block goes where is the goal.

A planar port to MuJoCo of the two-block task that goal-conditioned play data is published for (Florence et al.
2021; Shafiullah et al. 2022, "multimodal block push"; Reuss et al. 2023). As there, the state does not show the
targets, of which there are two at places that hardly vary, so a policy that does not see the goal can fill both and
still do what was asked only half of the time. Lengths are metres on a table of 0.7 m x 0.7 m with its origin in the
middle, angles are radians; yaw is told modulo a quarter turn, which squares do not show. Easier than there: blocks
start on either side, slide overdamped (viscous drag, hardly any inertia), so they rest as soon as nothing pushes them,
turn slowly and do not slip on the effector, so that a push need not be balanced at 10 Hz.
"""

import hashlib
from typing import Any, ClassVar, cast

import cv2
import numpy as np
from gymnasium import spaces

from robopolicy.errors import RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.sim.task import Observation, Task

STATE, GOAL = "observation.state", "observation.goal"
TARGETS = np.array([[-0.12, 0.18], [0.12, 0.18]])
"""Places of the targets, m; those of an episode are off by at most `TARGET_JITTER` per coordinate."""
TARGET_JITTER = 0.01
TOLERANCE = 0.05
"""Largest distance in m between the middles of a block and of the target that it fills."""
REST_TOLERANCE = 0.02
"""The episode ends when both blocks lie this near to different targets: nothing is left to improve."""
START = np.array([[-0.12, -0.12], [0.12, -0.12]])
START_SPREAD = 0.04
"""Blocks start at most this far per coordinate from `START`, m."""
GOAL_SCATTER = 0.006
"""Standard deviation per coordinate in m of a goal about the targets, that of where demonstrations leave blocks."""
BLOCK_HALF, EFFECTOR_RADIUS = 0.03, 0.015
REACH, BLOCK_REACH = 0.35, 0.27
"""Largest |x| and |y| of the effector and of blocks; the effector always finds room behind a block."""
MAX_STEP = 0.03
"""Largest change of the effector's target per control step and coordinate, m."""
FIRST_REWARD, SECOND_REWARD = 0.49, 0.51
PHYSICS_STEPS = 20

_BLOCK = """
    <body name="block{0}">
      <inertial pos="0 0 0" mass="0.2" diaginertia="1.2e-4 1.2e-4 1.2e-4"/>
      <joint name="block{0}_x" type="slide" axis="1 0 0" damping="10" limited="true" range="-0.27 0.27"/>
      <joint name="block{0}_y" type="slide" axis="0 1 0" damping="10" limited="true" range="-0.27 0.27"/>
      <joint name="block{0}_yaw" type="hinge" axis="0 0 1" damping="0.2"/>
      <geom type="box" size="0.03 0.03 0.02"/>
    </body>"""
MJCF = f"""<mujoco model="blocks">
  <option timestep="0.005" gravity="0 0 0" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <default><geom condim="3" friction="1 0 0" solref="0.01 1" density="0"/></default>
  <worldbody>{_BLOCK.format(1)}{_BLOCK.format(2)}
    <body name="effector">
      <inertial pos="0 0 0" mass="1" diaginertia="1e-3 1e-3 1e-3"/>
      <joint name="effector_x" type="slide" axis="1 0 0"/>
      <joint name="effector_y" type="slide" axis="0 1 0"/>
      <geom type="cylinder" size="0.015 0.03"/>
    </body>
  </worldbody>
  <actuator>
    <position joint="effector_x" kp="900" kv="60" forcerange="-30 30"/>
    <position joint="effector_y" kp="900" kv="60" forcerange="-30 30"/>
  </actuator>
</mujoco>
"""

_LIMITS = (BLOCK_REACH + 0.01, BLOCK_REACH + 0.01, np.pi / 4) * 2 + (REACH + 0.01,) * 2 + (REACH,) * 2
_STATE = Feature(
    STATE,
    (10,),
    names=(
        *(f"block{i}_{c}" for i in (1, 2) for c in ("x", "y", "yaw")),
        *("effector_x", "effector_y", "effector_target_x", "effector_target_y"),
    ),
    units=("m", "m", "rad") * 2 + ("m",) * 4,
    low=tuple(-v for v in _LIMITS),
    high=_LIMITS,
)
_GOAL = Feature(GOAL, (1, 10), kind="goal")
_ACTION = Feature(
    "action",
    (2,),
    kind="action",
    names=("delta_x", "delta_y"),
    units=("m", "m"),
    low=(-MAX_STEP, -MAX_STEP),
    high=(MAX_STEP, MAX_STEP),
    control=Control("end_effector_pose", "delta", frame="world"),
)
# RGB
_FLOOR, _TABLE, _GRID, _SHADOW = (214, 219, 226), (244, 241, 234), (232, 228, 219), (200, 196, 188)
_TARGET, _TARGET_EDGE = (230, 232, 236), (176, 184, 194)
_BLOCKS, _BLOCK_EDGES = ((214, 84, 60), (44, 110, 190)), ((160, 63, 45), (33, 82, 142))
_EFFECTOR, _EFFECTOR_TOP, _SET_POINT = (52, 58, 66), (120, 128, 138), (240, 170, 40)
_SCALE = 1024 / 0.76  # px per m before the picture is reduced


def _box(feature: Feature) -> spaces.Box:
    if not feature.low:
        return spaces.Box(-np.inf, np.inf, feature.shape, np.float32)
    return spaces.Box(np.array(feature.low, np.float32), np.array(feature.high, np.float32), dtype=np.float32)


class Blocks(Task):
    """Two blocks, two targets and a goal that says which block goes into which target.

    An action [2] changes the set-point of the effector, which a force-limited servo follows, by at most 0.03 m per
    coordinate in 0.1 s. `observation.goal` [1, 10] is a state of which only the places of the two blocks count
    (`goal_dims`, the others are 0): the targets of the episode, give or take `GOAL_SCATTER`.

    A pair of block and target counts as filled from the first time that their middles are within 0.05 m, whatever
    happens later, as in the published environment. Two numbers are reported. *Result*, the score, is the share of
    the two pairs asked for by the goal that are filled; it is also the reward of a step, so far. *Reward*, a metric,
    ignores the goal: 0.49 for the first target filled by any block and 0.51 more for both by different blocks.
    An episode succeeds when its result is 1 and ends when both blocks rest well inside different targets.

    The published goals come from demonstrations whose two targets may be mirrored, and are then swapped. Here a goal
    is written in the target places of its own episode, so no layout can disagree with it.
    """

    name: ClassVar[str] = "blocks"
    features = FeatureSpec((_STATE, _GOAL, _ACTION), rate_hz=10.0)
    max_steps = 300
    score_name: ClassVar[str] = "result: share of the goal's block-target pairs filled"
    metrics: ClassVar[dict[str, str]] = {"reward": "0.49 for any target filled, 0.51 more for both, whatever the goal"}
    goal_source: ClassVar[str] = STATE
    replay_tolerance: ClassVar[dict[str, float]] = {"block_position_m": 0.01}
    goal_dims: ClassVar[tuple[int, ...] | None] = (0, 1, 3, 4)

    def __init__(self) -> None:
        import mujoco

        self._step_physics = mujoco.mj_step
        self._forward, self._reset_data = mujoco.mj_forward, mujoco.mj_resetData
        self.model = mujoco.MjModel.from_xml_string(MJCF)
        self.data = mujoco.MjData(self.model)
        self.observation_space = cast(Any, spaces.Dict({f.key: _box(f) for f in self.features.inputs}))
        self.action_space = _box(self.features.action)
        self.targets = TARGETS.copy()
        """Places [2, 2] in m of this episode's targets."""
        self.assignment = (0, 1)
        """The target that the goal asks for, of each block."""
        self.filled = np.zeros((2, 2), dtype=bool)
        """Whether block i has been in target j so far."""
        self._goal = np.zeros((1, 10), np.float32)
        self._set_point = np.zeros(2)
        self._scatter = np.zeros((2, 2))

    @property
    def block_places(self) -> np.ndarray:
        """Middles [2, 2] of the blocks in m."""
        return self.data.qpos[[[0, 1], [3, 4]]].copy()

    @property
    def effector_place(self) -> np.ndarray:
        """Middle [2] of the effector in m."""
        return self.data.qpos[6:8].copy()

    @property
    def effector_target(self) -> np.ndarray:
        """Set-point [2] of the effector in m."""
        return self._set_point.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode of `seed`: blocks near the front, targets at the back, the effector between them.

        Block 1 starts on the left. Start, targets and goal are drawn from the seed alone, the goal with even odds.
        Options: `{"state": [10 numbers]}` starts from that state instead, `{"assignment": (1, 0)}` asks for that.
        """
        super().reset(seed=seed)
        options = options or {}
        random = np.random.default_rng(self.np_random.integers(2**63) if seed is None else [seed, 0xB10C])
        places = START + random.uniform(-START_SPREAD, START_SPREAD, (2, 2))
        yaws = random.uniform(-np.pi / 4, np.pi / 4, 2)
        effector = np.array([0.0, 0.05]) + random.uniform(-0.02, 0.02, 2)
        self.targets = TARGETS + random.uniform(-TARGET_JITTER, TARGET_JITTER, (2, 2))
        self._scatter = np.clip(random.normal(0.0, GOAL_SCATTER, (2, 2)), -2 * GOAL_SCATTER, 2 * GOAL_SCATTER)
        drawn = (0, 1) if random.random() < 0.5 else (1, 0)

        state = np.array([*places[0], yaws[0], *places[1], yaws[1], *effector, *effector])
        if "state" in options:
            state = _checked(options["state"], 10, 'Blocks reset option "state"')
        self._reset_data(self.model, self.data)
        self.data.qpos[:], self._set_point = state[:8], state[8:].copy()
        self.data.ctrl[:] = self._set_point
        self._forward(self.model, self.data)
        self.filled[:] = False
        self._count()
        self.ask(options.get("assignment", drawn))
        return self._observe(), self._info()

    def ask(self, assignment: Any) -> None:
        """Replaces the goal of this episode: block i is to go into target `assignment[i]`, (0, 1) or (1, 0)."""
        if tuple(assignment) not in ((0, 1), (1, 0)):
            raise RobopolicyError(f"Blocks goal: expected the assignment (0, 1) or (1, 0), found {assignment!r}")
        self.assignment = cast(tuple[int, int], tuple(int(t) for t in assignment))
        goal = np.zeros((1, 10), np.float32)
        wanted = (self.targets + self._scatter)[list(self.assignment)]
        goal[0, [0, 1, 3, 4]] = wanted.reshape(4)
        self._goal = goal

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the effector's set-point by `action` [2] m, clipped, for 0.1 s. Errors: a misshapen or NaN one."""
        change = _checked(action, 2, "Blocks action")
        moved = self._set_point + np.clip(change, -MAX_STEP, MAX_STEP)
        self._set_point = np.clip(moved, -REACH, REACH)
        self.data.ctrl[:] = self._set_point
        self._step_physics(self.model, self.data, nstep=PHYSICS_STEPS)
        near = self._count() <= REST_TOLERANCE
        over = bool((near[0, 0] and near[1, 1]) or (near[0, 1] and near[1, 0]))
        info = self._info()
        return self._observe(), info["result"], over, False, info

    def _count(self) -> np.ndarray:
        """Distances [2, 2] in m of blocks to targets, after noting which pairs they fill."""
        distance = np.linalg.norm(self.block_places[:, None] - self.targets, axis=-1)
        self.filled |= distance <= TOLERANCE
        return distance

    def _info(self) -> dict[str, Any]:
        f = self.filled
        asked = float(np.mean([f[block, target] for block, target in enumerate(self.assignment)]))
        both = (f[0, 0] and f[1, 1]) or (f[0, 1] and f[1, 0])
        reward = FIRST_REWARD * f.any() + SECOND_REWARD * both
        return {"success": asked == 1.0, "result": asked, "metrics": {"reward": float(reward)}}

    def _observe(self) -> Observation:
        state = np.concatenate([self.data.qpos, self._set_point])
        state[[2, 5]] = (state[[2, 5]] + np.pi / 4) % (np.pi / 2) - np.pi / 4
        return {STATE: state.astype(np.float32), GOAL: self._goal.copy()}

    def hold_action(self, observation: Observation) -> np.ndarray:
        return np.zeros(2, np.float32)

    def restore(self, arrays: dict[str, np.ndarray], attributes: dict[str, Any] | None = None) -> Observation:
        """Starts from the first recorded state, at rest; targets and goal are those of seed 0."""
        return self.reset(seed=0, options={"state": np.asarray(arrays[STATE][0], np.float64)})[0]

    @classmethod
    def state_error(cls, recorded: Observation, reached: Observation) -> dict[str, float]:
        """Distance of the farther block from where it was, and of the effector, in m."""
        apart = np.subtract(recorded[STATE], reached[STATE], dtype=np.float64)
        return {
            "block_position_m": float(max(np.hypot(*apart[0:2]), np.hypot(*apart[3:5]))),
            "effector_position_m": float(np.hypot(*apart[6:8])),
        }

    def fingerprint(self) -> dict[str, str]:
        import mujoco

        numbers: list[Any] = [
            TARGETS,
            TARGET_JITTER,
            TOLERANCE,
            REST_TOLERANCE,
            START,
            START_SPREAD,
            GOAL_SCATTER,
            MAX_STEP,
        ]
        layout = np.concatenate([np.ravel(n) for n in numbers]).astype("<f8").tobytes()
        return {
            "mujoco": mujoco.__version__,
            "blocks.xml": hashlib.sha256(MJCF.encode()).hexdigest()[:16],
            "blocks layout": hashlib.sha256(layout).hexdigest()[:16],
        }

    def render(self) -> np.ndarray:
        """The table from above [256, 256, 3] uint8 RGB; the goal's blocks are outlined in their colours."""
        scene = np.full((1024, 1024, 3), _FLOOR, np.uint8)
        cv2.rectangle(scene, _pixel((-REACH, REACH)), _pixel((REACH, -REACH)), _TABLE, -1)
        for line in np.arange(-0.3, 0.31, 0.1):
            cv2.line(scene, _pixel((line, -REACH)), _pixel((line, REACH)), _GRID, 3)
            cv2.line(scene, _pixel((-REACH, line)), _pixel((REACH, line)), _GRID, 3)
        for place in self.targets:
            cv2.fillPoly(scene, [_square(place, 0.0, 0.06)], _TARGET, cv2.LINE_AA)
            cv2.polylines(scene, [_square(place, 0.0, 0.06)], True, _TARGET_EDGE, 7, cv2.LINE_AA)
        for block, colour in enumerate(_BLOCKS):
            place = self._goal[0, 3 * block : 3 * block + 2]
            cv2.polylines(scene, [_square(place, 0.0, BLOCK_HALF)], True, colour, 5, cv2.LINE_AA)
        for block, place in enumerate(self.block_places):
            yaw = float(self.data.qpos[3 * block + 2])
            outline, shadow = _square(place, yaw, BLOCK_HALF), place + np.array([0.004, -0.004])
            cv2.fillPoly(scene, [_square(shadow, yaw, BLOCK_HALF)], _SHADOW, cv2.LINE_AA)
            cv2.fillPoly(scene, [outline], _BLOCKS[block], cv2.LINE_AA)
            cv2.polylines(scene, [outline], True, _BLOCK_EDGES[block], 5, cv2.LINE_AA)
        radius = round(EFFECTOR_RADIUS * _SCALE)
        cv2.circle(scene, _pixel(self.effector_place), radius, _EFFECTOR, -1, cv2.LINE_AA)
        cv2.circle(scene, _pixel(self.effector_place), radius // 2, _EFFECTOR_TOP, -1, cv2.LINE_AA)
        cv2.drawMarker(scene, _pixel(self._set_point), _SET_POINT, cv2.MARKER_CROSS, 30, 6, cv2.LINE_AA)
        return cv2.resize(scene, (256, 256), interpolation=cv2.INTER_AREA)


def _pixel(place: Any) -> tuple[int, int]:
    return round((float(place[0]) + 0.38) * _SCALE), round((0.38 - float(place[1])) * _SCALE)


def _square(place: np.ndarray, yaw: float, half: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]]) @ [[cos, sin], [-sin, cos]]
    return np.array([_pixel(np.asarray(place) + c) for c in corners], np.int32)


def _checked(values: Any, size: int, what: str) -> np.ndarray:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (size,) or not np.isfinite(numbers).all():
        raise RobopolicyError(f"{what}: expected {size} finite numbers in m, found {values!r}")
    return numbers
