"""Scripted experts for robomimic's lift, can and square.

A rule looks at the gripper and the object and names the pose that the gripper should go to and whether it should
close. It has no memory: what comes next depends on what is observed now and on the style drawn for the episode, so a
policy that sees a step or two can follow it. Approaches and placements are funnels (the nearer to the axis, the
lower), so that phases blend into each other and an error on the way is mended by the rule that made the way.

Metres and radians in the world, whose z points up. The yaw of a gripper that points down is 0 when its fingers open
along y.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from robopolicy.sim.robosuite_env import matrix_to_rot6d

POSITION_UNIT, ROTATION_UNIT = 0.05, 0.5  # m and rad of an action of 1
DOWNWARD = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])  # rotation of the grip site at yaw 0
GAIN = 1.5  # of the goal's distance near it, against the static errors of the controller
OPEN = 0.072  # distance between the fingers from which they count as open, m
SQUEEZE = 0.004  # by which they may be further apart than the object is wide and still hold it, m
AT_GRASP, AROUND = 0.008, 0.025  # from the grasp point: where fingers begin to close, and are around the object, m
YAW_TOLERANCE = 0.12  # at which fingers close, rad
WAY_PER_RADIAN = 0.06  # m of lateral error that a radian of yaw error counts as
TURN_SPEED = 0.7  # share of the largest rotation that is used
CARE = 0.2  # least share of the noise that is added to small motions
FAR = 0.10  # m of horizontal way that are weighed against a vertical one, whatever is left of it
BEND_FROM, BEND_OVER = 0.05, 0.10  # distance in m from which ways bend, and over which they bend more and more

CUBE_WIDTH, CUBE_TOP = 0.044, 0.92  # of the largest cube, and height to which it is lifted, m
CAN_WIDTH, CAN_PLACE, CAN_GRASP = 0.051, np.array([0.148, 0.33]), 0.01
CAN_CARRY, CAN_CLEAR, CAN_RELEASE = 0.99, 0.965, 0.92  # heights of the can: in transit, above walls, let go, m
NUT_WIDTH, NUT_HANDLE, PEG = 0.032, 0.064, np.array([0.23, 0.10])
NUT_YAWS = np.array([np.pi, np.pi / 2, -np.pi / 2])  # on the peg: with the handle beyond it the arm is too short
NUT_DETOURS = np.array([0.0, 0.85, 0.85])  # rad of turning that placing the handle at the arm's side is worth
NUT_CARRY, NUT_CLEAR, NUT_LOW, NUT_RELEASE = 0.99, 0.965, 0.88, 0.91  # heights of the nut, m
NUT_THREADED = 0.018, 0.95  # distance from the peg's axis and height, both below, at which the nut is around it, m
TABLE_NUT = 0.83  # height of the nut on the table, m


@dataclass(frozen=True)
class Style:
    """How one episode is played. The default is the proficient one."""

    speed: float = 1.0
    """Share of the controller's largest step."""
    hover: float = 0.08
    """Height in m above the grasp from which the gripper descends once it is over it."""
    yaw: float = 0.0
    """Of the equivalent grasps, the one nearest to the middle of this yaw and the gripper's is taken, rad."""
    bend: float = 0.0
    """Angle in rad by which far ways turn to the left."""
    carry: float = 0.0
    """Additional height in m on the way to the place."""
    hesitation: float = 0.0
    """Share of the speed given up just before grasping and placing."""

    @classmethod
    def draw(cls, random: np.random.Generator) -> "Style":
        """A style of mixed demonstrations."""
        return cls(
            speed=float(random.choice([0.5, 0.7, 1.0])),
            hover=float(random.uniform(0.06, 0.12)),
            yaw=float(random.choice([-0.5, 0.0, 0.6])),
            bend=float(random.choice([-0.8, 0.0, 0.8])),
            carry=float(random.choice([0.0, 0.05])),
            hesitation=float(random.choice([0.0, 0.6])),
        )


@dataclass(frozen=True)
class View:
    """What a rule sees."""

    position: np.ndarray
    """Of the grip site [3]."""
    rotation: np.ndarray
    """Of the grip site [3, 3]."""
    width: float
    """Distance between the fingers."""
    thing: np.ndarray
    """Position [3] of the object."""
    thing_yaw: float

    @property
    def yaw(self) -> float:
        """Of the gripper."""
        turned = self.rotation @ DOWNWARD.T
        return float(np.arctan2(turned[1, 0] - turned[0, 1], turned[0, 0] + turned[1, 1]))


@dataclass(frozen=True)
class Goal:
    """Where a rule wants the gripper."""

    position: np.ndarray
    yaw: float
    close: bool
    speed: float
    """Share of the controller's largest step."""


Rule = Callable[[View, Style], Goal]


def lift(view: View, style: Style) -> Goal:
    """Grasps the cube by two of its sides and raises it."""
    yaw = _nearest(view.thing_yaw, np.pi / 2, (style.yaw + view.yaw) / 2)
    if _holds(view, view.thing, CUBE_WIDTH):
        return Goal(np.array([*view.position[:2], CUBE_TOP + style.carry]), yaw, True, style.speed)
    return _grasp(view, view.thing, yaw, style)


def can(view: View, style: Style) -> Goal:
    """Carries the can over the walls and lets it go just above the floor of its compartment."""
    grasp = view.thing + np.array([0, 0, CAN_GRASP])
    way = CAN_PLACE - view.thing[:2]
    distance = float(np.hypot(*way))
    if distance < 0.03 and view.thing[2] < CAN_RELEASE:
        return _let_go(view, style, CAN_WIDTH, view.yaw)
    if not _holds(view, grasp, CAN_WIDTH):
        return _grasp(view, grasp, style.yaw, style)
    height = CAN_RELEASE - 0.02 + (CAN_CARRY + style.carry - CAN_RELEASE + 0.02) * _ramp(distance, 0.015, 0.06)
    free = _ramp(view.thing[2], CAN_CLEAR - 0.025, CAN_CLEAR) if distance > 0.06 else 1.0
    move = np.array([*(free * _bent(way, style.bend)), height - view.thing[2]])
    return Goal(view.position + move, style.yaw, True, _hesitant(style, distance, 0.06))


def square(view: View, style: Style) -> Goal:
    """Takes the nut by its handle, turns it and threads it onto the peg."""
    along = np.array([np.cos(view.thing_yaw), np.sin(view.thing_yaw)])
    grasp = view.thing + np.array([*(NUT_HANDLE * along), 0])
    way = PEG - view.thing[:2]
    distance = float(np.hypot(*way))
    threaded = distance < NUT_THREADED[0] and view.thing[2] < NUT_THREADED[1]
    if threaded and view.thing[2] < NUT_RELEASE:
        return _let_go(view, style, NUT_WIDTH, view.yaw)
    if not _holds(view, grasp, NUT_WIDTH):
        return _grasp(view, grasp, _nearest(view.thing_yaw, np.pi, (style.yaw + view.yaw) / 2), style)
    turns = _wrap(NUT_YAWS - view.thing_yaw)
    turn = float(turns[(np.abs(turns) + NUT_DETOURS).argmin()])
    # The nut turns about the gripper that holds it: reckon with where it will be once turned.
    way = PEG - view.position[:2] - _turned(view.thing[:2] - view.position[:2], turn)
    error = float(np.hypot(*way)) + WAY_PER_RADIAN * abs(turn)
    height = NUT_LOW + (NUT_CARRY + style.carry - NUT_LOW) * _ramp(0.0 if threaded else error, 0.004, 0.012)
    lifted = _ramp(view.thing[2], TABLE_NUT + 0.005, TABLE_NUT + 0.03)
    outside = _ramp(distance, 0.10, 0.15)
    free = lifted * max(outside, _ramp(view.thing[2], NUT_CLEAR - 0.02, NUT_CLEAR), 1 - _ramp(distance, 0.01, 0.015))
    move = np.array([*(free * _bent(way, style.bend)), height - view.thing[2]])
    return Goal(view.position + move, view.yaw + turn, True, _hesitant(style, error, 0.05))


def _grasp(view: View, point: np.ndarray, yaw: float, style: Style) -> Goal:
    """Comes to the grasp point from above with open fingers, and closes them there."""
    way = point - view.position
    lateral, turn = float(np.hypot(*way[:2])), abs(float(_wrap(np.array(yaw - view.yaw))))
    there = lateral < AT_GRASP and abs(way[2]) < AT_GRASP and turn < YAW_TOLERANCE
    closing = view.width < OPEN and lateral < 2 * AT_GRASP and abs(way[2]) < AROUND
    if there or closing:
        return Goal(point, yaw, True, style.speed)
    above = style.hover * _ramp(lateral + WAY_PER_RADIAN * turn, 0.008, 0.04)
    target = view.position + np.array([*_bent(way[:2], style.bend), way[2] + above])
    return Goal(target, yaw, False, _hesitant(style, float(np.linalg.norm(way)), style.hover))


def _let_go(view: View, style: Style, width: float, yaw: float) -> Goal:
    """Opens the fingers, then rises."""
    rise = 0.10 * _ramp(view.width, width + 0.012, width + 0.022)
    return Goal(view.position + np.array([0, 0, rise]), yaw, False, style.speed)


def _holds(view: View, grasp: np.ndarray, width: float) -> bool:
    return view.width < width + SQUEEZE and bool(np.linalg.norm(grasp - view.position) < AROUND)


def _hesitant(style: Style, distance: float, within: float) -> float:
    return style.speed * (1 - style.hesitation * (1 - _ramp(distance, 0.8 * within, 1.2 * within)))


def _bent(way: np.ndarray, angle: float) -> np.ndarray:
    """A horizontal way [2], cut to `FAR`, turned to the left by `angle` if it is long, and not at all if short."""
    length = float(np.hypot(*way))
    turn = angle * _ramp(length, BEND_FROM, BEND_FROM + BEND_OVER)
    return _turned(way * min(1.0, FAR / max(length, 1e-9)), turn)


def _turned(way: np.ndarray, angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ way


def _ramp(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, linear between."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


def _wrap(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _nearest(angle: float, period: float, centre: float) -> float:
    """The angle nearest to `centre` of those that differ from `angle` by multiples of `period`."""
    return centre + (angle - centre + period / 2) % period - period / 2


class ProficientExpert:
    """Plays lift, can or square from the observed state; create one, `reset` it before each episode, then `act`.

    `noise` is the standard deviation of a perturbation of the motion, as a share of its size, correlated over
    `NOISE_STEPS` steps so that it leads away from the way. `intended` is the action without it: recorded as what
    should be learned, it teaches to mend errors without teaching the errors (DART, Laskey et al. 2017).
    """

    OBJECTS: ClassVar[dict[str, tuple[str, Rule]]] = {
        "Lift": ("cube", lift),
        "PickPlaceCan": ("Can", can),
        "NutAssemblySquare": ("SquareNut", square),
    }
    NOISE_STEPS: ClassVar[float] = 5.0
    acts_after_success: ClassVar[bool] = True
    """Recordings go on with the rule where they would hold still."""

    def __init__(self, seed: int = 0, noise: float = 0.1) -> None:
        self.generator = np.random.default_rng(seed)
        self.noise, self.style = noise, Style()
        self.intended = np.zeros(7, np.float32)
        self._disturbance = np.zeros(6)

    def reset(self) -> None:
        """Begins an episode."""
        self._disturbance = np.zeros(6)

    def act(self, task: Any) -> np.ndarray:
        """The next action of `task`, delta [7] or absolute [10], for its present observation."""
        name, rule = self.OBJECTS[task.scene.env_name]
        view = observe(task.env._get_observations(), name)
        motion, gripper = motion_to(rule(view, self.style), view)
        keep = np.exp(-1 / self.NOISE_STEPS)
        fresh = self.generator.normal(0.0, self.noise, 6)
        self._disturbance = keep * self._disturbance + np.sqrt(1 - keep**2) * fresh
        self.intended = encode(motion, gripper, view, task.absolute)
        # Small motions are made with care.
        size = max(float(np.linalg.norm(motion[:3])), CARE)
        return encode(np.clip(motion + size * self._disturbance, -1, 1), gripper, view, task.absolute)


class MixedExpert(ProficientExpert):
    """Plays every episode in another style."""

    def reset(self) -> None:
        super().reset()
        self.style = Style.draw(self.generator)


def observe(raw: dict[str, np.ndarray], name: str) -> View:
    """What robosuite observes of the gripper and the object of this name."""
    from scipy.spatial.transform import Rotation

    thing = Rotation.from_quat(raw[f"{name}_quat"]).as_matrix()
    return View(
        np.asarray(raw["robot0_eef_pos"], np.float64),
        Rotation.from_quat(raw["robot0_eef_quat_site"]).as_matrix(),
        float(raw["robot0_gripper_qpos"][0] - raw["robot0_gripper_qpos"][1]),
        np.asarray(raw[f"{name}_pos"], np.float64),
        float(np.arctan2(thing[1, 0], thing[0, 0])),
    )


def motion_to(goal: Goal, view: View) -> tuple[np.ndarray, float]:
    """Changes of position and rotation [6] as shares of the largest ones, and the gripper's command."""
    from scipy.spatial.transform import Rotation

    way = GAIN * (goal.position - view.position) / POSITION_UNIT
    way *= min(1.0, goal.speed / max(float(np.linalg.norm(way)), 1e-9))
    wanted = Rotation.from_euler("z", goal.yaw).as_matrix() @ DOWNWARD
    turn = GAIN * Rotation.from_matrix(wanted @ view.rotation.T).as_rotvec() / ROTATION_UNIT
    turn *= min(1.0, TURN_SPEED * goal.speed / max(float(np.linalg.norm(turn)), 1e-9))
    return np.concatenate([way, turn]), 1.0 if goal.close else -1.0


def encode(motion: np.ndarray, gripper: float, view: View, absolute: bool) -> np.ndarray:
    """The action of a task: `motion` itself [7], or the pose that the controller would make of it [10]."""
    from scipy.spatial.transform import Rotation

    if not absolute:
        return np.append(motion, gripper).astype(np.float32)
    position = view.position + POSITION_UNIT * motion[:3]
    rotation = Rotation.from_rotvec(ROTATION_UNIT * motion[3:]).as_matrix() @ view.rotation
    return np.concatenate([position, matrix_to_rot6d(rotation), [gripper]]).astype(np.float32)
