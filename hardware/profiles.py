"""Robot profiles: joints, limits, rates, topics and time limits of one robot, in one YAML file.

    name: my_arm
    kind: manipulator
    rate_hz: 50
    joints:
    - {name: a, low: -2, high: 2, velocity: 1, acceleration: 4, jerk: 80, home: 0, tracking_error: 0.2, jump: 0.4}
    command: {adapter: forward_position, topic: forward_position_controller/commands}
    stop_time_s: 0.6

Those that come with the package are in the folder beside this file, the numbers with their sources.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robopolicy.configs import from_dict
from robopolicy.datasets.untrusted import parse_yaml, read_text
from robopolicy.errors import RobopolicyError, unknown
from robopolicy.hardware.limiter import MotionLimits
from robopolicy.hardware.safety import Forward, GateConfig, Workspace

FOLDER = Path(__file__).parent / "profiles"
MAX_BYTES = 1 << 20
KINDS = ("manipulator", "quadruped", "planar")
CARTESIAN = ("twist", "pose")
Adapter = Literal["joint_trajectory", "forward_position", "forward_velocity", "twist", "pose", "joint_gains"]


@dataclass(frozen=True)
class Joint:
    """One joint; radians or metres (pixels in PushT) and seconds."""

    name: str
    low: float
    high: float
    velocity: float
    acceleration: float
    jerk: float
    home: float
    tracking_error: float
    """Largest distance of the measured position from what was sent; .inf for a gripper that holds things."""
    jump: float
    """Largest distance of a target from the measured position."""


@dataclass(frozen=True)
class Command:
    """Where set-points go and as what; see `robopolicy.hardware.ros.adapters`."""

    adapter: Adapter
    topic: str
    frame: str = ""
    """Frame of Cartesian commands, which need `geometry`."""
    lead_s: float = 0.0
    """joint_trajectory: when a point is to be reached, from its sending on; 0 means one control period."""
    gain: float = 2.0
    """forward_velocity: share of the distance to the set-point that is made up per second."""


@dataclass(frozen=True)
class Gripper:
    """Which of the joints is a gripper: its targets are never averaged or interpolated."""

    joint: str
    command: Command | None = None
    """Where it is commanded apart from the other joints; without it, together with them."""


@dataclass(frozen=True)
class Margins:
    """How far inside the limits of the joints the gate stays."""

    position: float = 0.0
    """Radians or metres from both ends, but for the gripper, which has to close."""
    velocity: float = 1.0
    """Share of the limit, as the next two."""
    acceleration: float = 1.0
    jerk: float = 1.0


@dataclass(frozen=True)
class Timeouts:
    """Seconds."""

    command: float = 0.5
    """Without a target for so long the gate stops the robot; chunks of older observations are refused."""
    observation: float = 0.1
    """Without joint states for so long the gate stops the robot; older ones are refused."""
    chunk: float = 2.0
    """A chunk is followed at most so long after its observation: no robot moves blind for longer."""
    overrun: float = 0.1
    """Between two control periods of the gate; later ones are a fault of the gate itself."""


@dataclass(frozen=True)
class Geometry:
    """A MuJoCo model of the robot, for Cartesian commands and the workspace."""

    mjcf: str
    """File; a relative path starts at the profile's folder."""
    frame: str = ""
    """Site or body whose pose is commanded."""
    points: tuple[str, ...] = ()
    """Sites or bodies that must stay in the workspace; without them, `frame`."""


@dataclass(frozen=True)
class Box:
    """Workspace in metres, in the frame of the model's world."""

    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Gains:
    """Joint controllers in the motors: torque = kp (target - position) - kd velocity."""

    kp: float
    """Nm/rad."""
    kd: float
    """Nm s/rad."""
    damping: float
    """kd with kp = 0 that lets the robot sink softly."""


@dataclass(frozen=True)
class RobotProfile:
    """What the nodes know of a robot. Raises RobopolicyError where its parts do not fit together."""

    name: str
    joints: tuple[Joint, ...]
    rate_hz: float
    """Control rate of the gate."""
    command: Command
    stop_time_s: float
    """Time within which the set-points stand still after any fault."""
    kind: Literal["manipulator", "quadruped", "planar"] = "manipulator"
    joint_states: str = "joint_states"
    gripper: Gripper | None = None
    margins: Margins = Margins()
    timeouts: Timeouts = Timeouts()
    interpolation: Literal["hold", "hermite"] = "hermite"
    """Between the rows of a chunk: hold keeps the row of the present step, as simulated tasks do."""
    blend_s: float = 0.0
    """Linear cross-fade between one chunk and the next; 0 replaces at once."""
    hold: Literal["hold", "damp"] = "hold"
    """After a fault: hold the set-point, or (with gains) let the robot sink softly."""
    geometry: Geometry | None = None
    workspace: Box | None = None
    gains: Gains | None = None
    simulated: bool = False
    """Whether its clock may run faster than real time."""
    source: Path = field(default=Path(), repr=False)
    """The file it was read from."""

    def __post_init__(self) -> None:
        where = f"profile {self.name}"
        names = [j.name for j in self.joints]
        if not names or len(set(names)) != len(names):
            raise RobopolicyError(f"{where}: joints need names that differ, found {names}")
        for name in ("command", "observation", "chunk", "overrun"):
            _above_zero(f"{where}: timeouts.{name}", getattr(self.timeouts, name))
        for name in ("velocity", "acceleration", "jerk"):
            share = getattr(self.margins, name)
            if not 0 < share <= 1:
                raise RobopolicyError(f"{where}: margins.{name} is a share of the limit, found {share}")
        _above_zero(f"{where}: stop_time_s", self.stop_time_s)
        if not self.blend_s >= 0:
            raise RobopolicyError(f"{where}: blend_s should not be negative, is {self.blend_s}")
        if self.margins.position < 0 or min(self.command.lead_s, self.command.gain) < 0:
            raise RobopolicyError(f"{where}: margins.position, command.lead_s and .gain should not be negative")
        if self.gripper is not None and self.gripper.joint not in names:
            raise unknown(f"gripper joint in {where}:", self.gripper.joint, names)
        self._check_commands(where)
        if self.gains is not None:
            for name in ("kp", "kd"):
                if not 0 <= (gain := getattr(self.gains, name)) < np.inf:
                    raise RobopolicyError(f"{where}: gains.{name} should be finite and not negative, is {gain}")
            _above_zero(f"{where}: gains.damping", self.gains.damping)
        try:
            config = self.gate_config()
        except RobopolicyError as error:
            raise RobopolicyError(f"{where}: {error}") from error
        for joint, low, high in zip(self.joints, config.limits.low, config.limits.high, strict=True):
            if not low <= joint.home <= high:
                raise RobopolicyError(f"{where}: home of {joint.name} is {joint.home}, outside {low:.4g}..{high:.4g}")
        if self.stop_time_s < (needed := longest_stop(config)):
            raise RobopolicyError(f"{where}: stop_time_s is {self.stop_time_s}, the limits allow {needed:.3f} at best")

    def _check_commands(self, where: str) -> None:
        commands = [self.command] + ([self.gripper.command] if self.gripper and self.gripper.command else [])
        for command in commands:
            if not command.topic:
                raise RobopolicyError(f"{where}: a command needs a topic")
            if command.adapter in CARTESIAN and (self.geometry is None or not self.geometry.frame):
                raise RobopolicyError(f"{where}: adapter {command.adapter} needs geometry with mjcf and frame")
            if command.adapter == "joint_gains" and self.gains is None:
                raise RobopolicyError(f"{where}: adapter joint_gains needs gains")
        if self.gripper and self.gripper.command and self.gripper.command.adapter in (*CARTESIAN, "joint_gains"):
            raise RobopolicyError(f"{where}: a gripper takes no {self.gripper.command.adapter} commands")
        if self.hold == "damp" and self.command.adapter != "joint_gains":
            raise RobopolicyError(f"{where}: hold: damp needs the adapter joint_gains, found {self.command.adapter}")
        if self.workspace is not None:
            if self.geometry is None or not (self.geometry.points or self.geometry.frame):
                raise RobopolicyError(f"{where}: a workspace needs geometry with mjcf and points")
            if len(self.workspace.low) != 3 or len(self.workspace.high) != 3:
                raise RobopolicyError(f"{where}: workspace.low and .high need three numbers each")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Joint names in the order of every array of this robot."""
        return tuple(j.name for j in self.joints)

    @cached_property
    def home(self) -> np.ndarray:
        """[n]"""
        return np.array([j.home for j in self.joints])

    @cached_property
    def blended(self) -> np.ndarray:
        """Joints whose targets may be averaged and interpolated, bool [n]: all but the gripper."""
        return np.array([self.gripper is None or j.name != self.gripper.joint for j in self.joints])

    def gate_config(self, speed: float = 1.0, forward: Forward | None = None) -> GateConfig:
        """Limits and time limits of the safety gate.

        `speed` is a further share of velocity, acceleration and jerk, for the first motions of a robot. `forward`
        gives the points that must stay in the workspace; without it the workspace is not watched.
        """
        if not 0 < speed <= 1:
            raise RobopolicyError(f"speed is a share of the limits, above 0 and at most 1, found {speed}")
        column = {
            name: np.array([getattr(j, name) for j in self.joints]) for name in Joint.__annotations__ if name != "name"
        }
        inside, margins = self.margins.position * self.blended, self.margins
        limits = MotionLimits(
            column["low"] + inside,
            column["high"] - inside,
            column["velocity"] * margins.velocity * speed,
            column["acceleration"] * margins.acceleration * speed,
            column["jerk"] * margins.jerk * speed,
        )
        box = self.workspace
        return GateConfig(
            limits,
            self.rate_hz,
            tracking_error=column["tracking_error"],
            jump=column["jump"],
            command_timeout=self.timeouts.command,
            observation_timeout=self.timeouts.observation,
            overrun_periods=self.timeouts.overrun * self.rate_hz,
            workspace=Workspace(np.array(box.low), np.array(box.high), forward) if box and forward else None,
        )


def longest_stop(config: GateConfig) -> float:
    """Seconds in which the set-points come to rest from any state: take back acceleration, brake, take it back."""
    limits, period = config.limits, 1 / config.rate_hz
    times = limits.velocity / limits.acceleration + 2 * limits.acceleration / limits.jerk
    # Each of the three parts ends at a tick, and a fault is found one tick after what caused it.
    return float(times.max()) + 4 * period


def _above_zero(what: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise RobopolicyError(f"{what} must be above 0, is {value}")


def profile_names() -> list[str]:
    """Of those that come with the package."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def load_profile(name: str | Path) -> RobotProfile:
    """A profile that comes with the package, by name, or any YAML file, by path.

    RobopolicyError naming the file and field for anything unknown, missing or inconsistent.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in profile_names():
            raise unknown("robot", str(name), profile_names())
        path = FOLDER / f"{name}.yaml"
    return parse_profile(read_text(path, MAX_BYTES), path)


def parse_profile(text: str, path: Path) -> RobotProfile:
    """A profile in YAML; `path` is where it comes from, for errors and for the files that it names."""
    data: Any = parse_yaml(text, path)
    if not isinstance(data, dict):
        raise RobopolicyError(f"{path}: expected a table with name, joints, rate_hz and command")
    data = {str(k): v for k, v in data.items()}
    # from_dict would take `kind` for the variant of a configuration.
    kind = data.pop("kind", "manipulator")
    if kind not in KINDS:
        raise unknown(f"kind in {path}:", str(kind), KINDS)
    if "source" in data:
        raise unknown(f"field in {path}:", "source", set(RobotProfile.__dataclass_fields__) - {"source"})
    try:
        profile: RobotProfile = from_dict(RobotProfile, data, str(path))
    except RobopolicyError as error:
        raise error if str(path) in str(error) else RobopolicyError(f"{path}: {error}") from error
    return replace(profile, kind=kind, source=path)
