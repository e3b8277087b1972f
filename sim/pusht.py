"""PushT: a round agent pushes a T-shaped block onto its goal pose (Florence et al. 2021, Chi et al. 2023).

The simulation is gym-pusht's, so coverages are comparable with published ones. Lengths are pixels of a
512 x 512 window whose y axis points down; angles are radians. Three variants differ in what is observed.
"""

import os
from dataclasses import replace
from importlib.metadata import version
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium import spaces

from robopolicy.errors import FeatureMismatch, RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.sim.task import Observation, Task

STATE, ENVIRONMENT, TOP_IMAGE = "observation.state", "observation.environment_state", "observation.images.top"
SUCCESS_COVERAGE = 0.95
SIZE = 512.0
GOAL_POSE = (256.0, 256.0, np.pi / 4)

# Nine points on the block, in the frame of `block.position` and `block.angle`. Recovered from the 25,650 frames
# of the human dataset pusht_cchi_v7, which stores these keypoints beside the block's pose: undoing the pose gives
# the same points in every frame where the block is at rest (residual below 1e-4 px; while it moves, the recorded
# keypoints lag the recorded pose by one 10 ms physics step). No offset to the centre of gravity enters.
KEYPOINTS = np.array(
    [
        (9.269787, 90.040974),
        (-60.983472, -1.186730),
        (60.912755, -1.393363),
        (-0.270504, 25.543625),
        (-14.064927, 122.815854),
        (39.002738, 32.857404),
        (-39.966414, 32.729655),
        (-16.824344, 62.863179),
        (23.541461, -1.700288),
    ]
)

_AGENT = Feature(STATE, (2,), names=("agent_x", "agent_y"), units=("px", "px"), low=(0.0, 0.0), high=(SIZE, SIZE))
# The agent is kinematic and can press the block some way through the walls.
_BLOCK_LOW, _BLOCK_HIGH = -128.0, SIZE + 128.0
_BLOCK = Feature(
    ENVIRONMENT,
    (4,),
    names=("block_x", "block_y", "block_cos", "block_sin"),
    units=("px", "px", "1", "1"),
    low=(_BLOCK_LOW, _BLOCK_LOW, -1.0, -1.0),
    high=(_BLOCK_HIGH, _BLOCK_HIGH, 1.0, 1.0),
)
_KEYPOINTS = Feature(
    ENVIRONMENT,
    (18,),
    names=tuple(f"keypoint_{i}_{axis}" for i in range(9) for axis in "xy"),
    units=("px",) * 18,
    low=(_BLOCK_LOW,) * 18,
    high=(_BLOCK_HIGH,) * 18,
)
_IMAGE = Feature(TOP_IMAGE, (96, 96, 3), "uint8", "image")
_ACTION = Feature(
    "action",
    (2,),
    kind="action",
    names=("target_x", "target_y"),
    units=("px", "px"),
    low=(0.0, 0.0),
    high=(SIZE, SIZE),
    control=Control("pixel_target", "absolute", frame="image"),
)


def keypoints(pose: np.ndarray) -> np.ndarray:
    """The nine block keypoints [..., 9, 2] in px for block poses [..., 3] of (x px, y px, angle rad)."""
    pose = np.asarray(pose, dtype=np.float64)
    cos, sin = np.cos(pose[..., 2, None]), np.sin(pose[..., 2, None])
    x, y = KEYPOINTS[:, 0], KEYPOINTS[:, 1]
    return np.stack([pose[..., 0, None] + cos * x - sin * y, pose[..., 1, None] + sin * x + cos * y], axis=-1)


def pose_from_keypoints(points: np.ndarray) -> np.ndarray:
    """Block poses [..., 3] that fit nine keypoints [..., 9, 2] best in the least-squares sense (2-D Procrustes)."""
    points = np.asarray(points, dtype=np.float64)
    centre, local_centre = points.mean(axis=-2), KEYPOINTS.mean(axis=0)
    world, local = points - centre[..., None, :], KEYPOINTS - local_centre
    dot = (local * world).sum(axis=(-2, -1))
    cross = (local[:, 0] * world[..., 1] - local[:, 1] * world[..., 0]).sum(axis=-1)
    angle = np.arctan2(cross, dot)
    cos, sin = np.cos(angle), np.sin(angle)
    x = centre[..., 0] - (cos * local_centre[0] - sin * local_centre[1])
    y = centre[..., 1] - (sin * local_centre[0] + cos * local_centre[1])
    return np.stack([x, y, angle], axis=-1)


def _new_simulator() -> Any:
    # pygame greets on standard output when it is imported, so the import waits until a simulator is needed.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from gym_pusht.envs.pusht import PushTEnv

    return PushTEnv(obs_type="pixels", render_mode="rgb_array", visualization_width=384, visualization_height=384)


def _space(feature: Feature) -> spaces.Box:
    if feature.kind == "image":
        return spaces.Box(0, 255, feature.shape, np.uint8)
    return spaces.Box(np.array(feature.low, np.float32), np.array(feature.high, np.float32), dtype=np.float32)


class _PushT(Task):
    """What the variants share: physics, reward and success; a variant adds its inputs.

    The reward of a step is coverage / 0.95 clipped to [0, 1], where coverage is the share of the goal area under
    the block; the score of an episode is its largest reward. An episode succeeds and ends above 0.95 coverage.
    """

    features: FeatureSpec
    score_name = "maximum coverage / 0.95, clipped"
    max_steps = 300
    replay_tolerance: ClassVar[dict[str, float]] = {"block_position_px": 5.0}

    def __init__(self) -> None:
        self.simulator = _new_simulator()
        self.observation_space = cast(Any, spaces.Dict({f.key: _space(f) for f in self.features.inputs}))
        self.action_space = _space(self.features.action)
        self._goal_geometry: Any = None
        self._shapes: list[Any] = []

    @property
    def agent_position(self) -> np.ndarray:
        """True agent position [2] in px."""
        return np.array(self.simulator.agent.position)

    @property
    def agent_velocity(self) -> np.ndarray:
        """True agent velocity [2] in px/s."""
        return np.array(self.simulator.agent.velocity)

    @property
    def block_pose(self) -> np.ndarray:
        """True block pose [3]: x px, y px, angle rad (not wrapped)."""
        block = self.simulator.block
        return np.array([*block.position, block.angle])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode from gym-pusht's own initial state for `seed`.

        `options={"state": [agent x, agent y, block x, block y, angle]}` starts from exactly that state instead.
        """
        super().reset(seed=seed)
        # One physics step is part of gym-pusht's reset, and so of the published initial states.
        self.simulator.reset(seed=seed)
        self.simulator._last_action = None
        if options is not None and "state" in options:
            self._set_state(options["state"])
        self._goal_geometry = None
        coverage = self._coverage()
        return self._observe(), {"success": coverage > SUCCESS_COVERAGE, "coverage": coverage}

    def _set_state(self, state: Any) -> None:
        try:
            values = np.asarray(state, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape != (5,) or not np.isfinite(values).all():
            raise RobopolicyError(
                'PushT reset option "state": expected 5 finite numbers (agent x, agent y, block x, block y, angle), '
                f"found {state!r}"
            )
        # A new space forgets contacts of the state drawn for the seed.
        self.simulator._setup()
        agent, block = self.simulator.agent, self.simulator.block
        agent.position = (float(values[0]), float(values[1]))
        # Turning moves a body whose centre of gravity is off its origin, so the angle comes before the position.
        block.angle = float(values[4])
        block.position = (float(values[2]), float(values[3]))
        for body in (agent, block):
            self.simulator.space.reindex_shapes_for_body(body)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the agent towards the pixel target `action` [2] for 0.1 s. Errors: a misshapen or non-finite one."""
        target = np.asarray(action, dtype=np.float64)
        if target.shape != (2,) or not np.isfinite(target).all():
            raise RobopolicyError(f"PushT action: expected 2 finite numbers in px, found {action!r}")
        simulator = self.simulator
        self.advance(target, int(1 / (simulator.dt * simulator.control_hz)))
        reward, success, coverage = self.assess()
        return self._observe(), reward, success, False, {"success": success, "coverage": coverage}

    def advance(self, target: np.ndarray, steps: int) -> None:
        """Moves the agent towards `target` [2] px for `steps` physics steps of 0.01 s; ten are a control step."""
        simulator = self.simulator
        space, agent, dt = simulator.space, simulator.agent, simulator.dt
        k_p, k_v = simulator.k_p, simulator.k_v
        target_x, target_y = target.tolist()
        # The operations of gym-pusht's own loop in the same order, on floats: bit-identical and faster.
        for _ in range(steps):
            (x, y), (vx, vy) = agent.position, agent.velocity
            ax = k_p * (target_x - x) + k_v * (0 - vx)
            ay = k_p * (target_y - y) + k_v * (0 - vy)
            agent.velocity = (vx + ax * dt, vy + ay * dt)
            space.step(dt)
        simulator._last_action = target

    def assess(self) -> tuple[float, bool, float]:
        """Reward, success and coverage of the goal as things are now."""
        coverage = self._coverage()
        return min(max(coverage / SUCCESS_COVERAGE, 0.0), 1.0), coverage > SUCCESS_COVERAGE, coverage

    def _coverage(self) -> float:
        from gym_pusht.envs.pusht import pymunk_to_shapely

        simulator = self.simulator
        if self._goal_geometry is None:
            # pymunk keeps a body's shapes in a set; in a fixed order their areas add up to the same last digit.
            self._shapes = sorted(simulator.block.shapes, key=lambda s: [tuple(v) for v in s.get_vertices()])
            goal = simulator.get_goal_pose_body(simulator.goal_pose)
            self._goal_geometry = pymunk_to_shapely(goal, self._shapes)
        block = pymunk_to_shapely(simulator.block, self._shapes)
        return float(self._goal_geometry.intersection(block).area / self._goal_geometry.area)

    def _observe(self) -> Observation:
        return {STATE: np.array(self.simulator.agent.position, dtype=np.float32)} | self._observe_scene()

    def _observe_scene(self) -> Observation:
        raise NotImplementedError

    def _observe_block(self) -> Observation:
        block = self.simulator.block
        x, y = block.position
        return {ENVIRONMENT: np.array([x, y, np.cos(block.angle), np.sin(block.angle)], dtype=np.float32)}

    def hold_action(self, observation: Observation) -> np.ndarray:
        return np.array(observation[STATE], dtype=np.float32)

    def restore(self, arrays: dict[str, np.ndarray], attributes: dict[str, Any] | None = None) -> Observation:
        """Starts from the first of recorded agent positions and block poses, agent and block at rest."""
        first = {key: array[:1] for key, array in arrays.items()}
        pose = _recorded_pose(first)
        if STATE not in first or pose is None:
            raise RobopolicyError(f"task {self.name!r} cannot restore recorded states: no pose of agent and block")
        return self.reset(seed=0, options={"state": [*first[STATE][0, :2], *pose[0]]})[0]

    @classmethod
    def state_error(cls, recorded: Observation, reached: Observation) -> dict[str, float]:
        """Distance of the block's position in px and of its angle in rad, and of the agent's position in px."""
        poses = [_recorded_pose({k: np.asarray(v)[None] for k, v in o.items()}) for o in (recorded, reached)]
        difference = np.subtract(*(cast(np.ndarray, pose)[0] for pose in poses))
        agent = np.subtract(recorded[STATE][:2], reached[STATE][:2], dtype=np.float64)
        return {
            "block_position_px": float(np.hypot(*difference[:2])),
            "block_angle_rad": float(abs((difference[2] + np.pi) % (2 * np.pi) - np.pi)),
            "agent_position_px": float(np.hypot(*agent)),
        }

    def render(self) -> np.ndarray:
        """The scene [384, 384, 3] uint8 RGB: goal green, block grey, agent blue, last target a red cross."""
        return self.simulator.render()

    def fingerprint(self) -> dict[str, str]:
        import pymunk
        import shapely  # type: ignore[import-untyped]

        return {
            "gym-pusht": version("gym-pusht"),
            "pymunk": pymunk.version,
            "chipmunk": pymunk.chipmunk_version,
            "shapely": shapely.__version__,
            "geos": shapely.geos_version_string,
        }

    @classmethod
    def mirror(cls, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The recorded arrays [N, ...] of this variant as if filmed in a mirror along the axis of the goal.

        The reflection in x + y = 512 maps window, goal and block onto themselves, so what it makes of a
        demonstration is another one. Errors: images, which would have to be copied.
        """
        if any(f.kind == "image" for f in cls.features):
            raise RobopolicyError(f"task {cls.name!r}: data.mirror reflects states and keypoints, not images")
        mirrored = {key: _mirrored_points(arrays[key]) for key in (STATE, "action")}
        pose = _mirrored_poses(cast(np.ndarray, _recorded_pose({ENVIRONMENT: arrays[ENVIRONMENT]})))
        wanted = cls.features[ENVIRONMENT]
        return mirrored | {ENVIRONMENT: _from_pose(wanted, pose)}

    @classmethod
    def adapt(cls, arrays: dict[str, np.ndarray], features: FeatureSpec) -> tuple[dict[str, np.ndarray], FeatureSpec]:
        """Recorded PushT arrays [N, ...] in the keys of this variant.

        Accepted are the variants' own keys, the Diffusion Policy replay buffer (`observation.state` [N, 5] of agent
        xy, block xy and angle; `observation.keypoint` [N, 9, 2]; one camera) and LeRobot's names. Poses and
        keypoints are derived from each other where needed. Images are handed on as they are, so memory maps stay
        on disk. Arrays that `features` does not describe (rewards, indices) pass through.
        Errors: FeatureMismatch when an input of this variant cannot be derived.
        """
        adapted = {key: array for key, array in arrays.items() if key not in features}
        specs = []
        for wanted in cls.features:
            found = features[wanted.key] if wanted.key in arrays and wanted.key in features else None
            if found is not None and found.shape == wanted.shape and found.dtype == wanted.dtype:
                adapted[wanted.key] = arrays[wanted.key]
                specs.append(_completed(found, wanted))
                continue
            array = _derive(wanted, arrays)
            if array is None:
                have = ", ".join(f"{k!r} {list(a.shape[1:])} {a.dtype}" for k, a in arrays.items()) or "nothing"
                raise FeatureMismatch(
                    f"task {cls.name!r} needs {wanted.key!r} {list(wanted.shape)} {wanted.dtype}, "
                    f"which cannot be derived from {have}"
                )
            adapted[wanted.key] = array
            specs.append(wanted)
        return adapted, FeatureSpec(tuple(specs), features.rate_hz or cls.features.rate_hz)


def _mirrored_points(points: np.ndarray) -> np.ndarray:
    """Points [..., 2] in px reflected in the line x + y = 512, the axis of the goal and a diagonal of the window."""
    return SIZE - points[..., ::-1]


def _mirrored_poses(poses: np.ndarray) -> np.ndarray:
    """Block poses [..., 3] of the reflected scene; the T is its own mirror image, so angle a becomes pi / 2 - a."""
    return np.concatenate([_mirrored_points(poses[..., :2]), np.pi / 2 - poses[..., 2:]], axis=-1)


def _completed(found: Feature, wanted: Feature) -> Feature:
    """`found` with what its source does not say taken from `wanted`."""
    # LeRobot's PushT calls agent coordinates motors, which says nothing.
    names = () if any(name.startswith("motor_") for name in found.names) else found.names
    return replace(
        found,
        kind=wanted.kind,
        names=names or wanted.names,
        units=found.units or wanted.units,
        low=found.low or wanted.low,
        high=found.high or wanted.high,
        control=found.control or wanted.control,
    )


def _recorded_pose(arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    """Block poses [N, 3] from whichever recorded array holds them, else None."""
    state, environment = arrays.get(STATE), arrays.get(ENVIRONMENT)
    if state is not None and state.shape[1:] == (5,):
        return np.asarray(state[:, 2:5], dtype=np.float64)
    if environment is not None and environment.shape[1:] == (4,):
        block = np.asarray(environment, dtype=np.float64)
        return np.column_stack([block[:, :2], np.arctan2(block[:, 3], block[:, 2])])
    for points in (environment, arrays.get("observation.keypoint")):
        if points is not None and points.shape[1:] in ((18,), (9, 2)):
            return pose_from_keypoints(np.reshape(points, (-1, 9, 2)))
    return None


def _from_pose(wanted: Feature, pose: np.ndarray) -> np.ndarray:
    """The block's part of an observation [N, 18 or 4] float32 from its poses [N, 3]."""
    if wanted.shape == (18,):
        return keypoints(pose).reshape(-1, 18).astype(np.float32)
    return np.column_stack([pose[:, :2], np.cos(pose[:, 2]), np.sin(pose[:, 2])]).astype(np.float32)


def _derive(wanted: Feature, arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    """The array [N, ...] of one feature from recorded arrays in another convention, or None."""
    if wanted.kind == "image":
        pictures = [a for k, a in arrays.items() if k.startswith("observation.image") and a.shape[1:] == wanted.shape]
        return pictures[0] if len(pictures) == 1 and pictures[0].dtype == wanted.dtype else None
    if wanted.key == ENVIRONMENT:
        pose = _recorded_pose(arrays)
        if pose is None:
            return None
        return _from_pose(wanted, pose)
    recorded = arrays.get(wanted.key)
    if recorded is None or recorded.ndim != 2:
        return None
    # The agent comes first in the five numbers of a replay buffer.
    widths = (2, 5) if wanted.key == STATE else (2,)
    return np.asarray(recorded[:, :2], dtype=np.float32) if recorded.shape[1] in widths else None


class PushTState(_PushT):
    """PushT observed as the agent's position and the block's pose."""

    name: ClassVar[str] = "pusht"
    features = FeatureSpec((_AGENT, _BLOCK, _ACTION), rate_hz=10.0)

    def _observe_scene(self) -> Observation:
        return self._observe_block()


class PushTKeypoints(_PushT):
    """PushT observed as the agent's position and nine points on the block."""

    name: ClassVar[str] = "pusht-keypoints"
    features = FeatureSpec((_AGENT, _KEYPOINTS, _ACTION), rate_hz=10.0)

    def _observe_scene(self) -> Observation:
        return {ENVIRONMENT: keypoints(self.block_pose).astype(np.float32).reshape(18)}


class PushTImage(_PushT):
    """PushT observed as the agent's position and a picture of the scene from above."""

    name: ClassVar[str] = "pusht-image"
    features = FeatureSpec((_AGENT, _IMAGE, _ACTION), rate_hz=10.0)

    def _observe_scene(self) -> Observation:
        return {TOP_IMAGE: self.simulator.get_obs()}

    def fingerprint(self) -> dict[str, str]:
        import cv2
        import pygame

        return super().fingerprint() | {"pygame": pygame.version.ver, "opencv": cv2.__version__}


class PushTStateImage(PushTImage):
    """PushT observed in both ways: agent, block pose and picture, as compositions of state and image policies need."""

    name: ClassVar[str] = "pusht-state-image"
    features = FeatureSpec((_AGENT, _BLOCK, _IMAGE, _ACTION), rate_hz=10.0)

    def _observe_scene(self) -> Observation:
        return self._observe_block() | super()._observe_scene()
