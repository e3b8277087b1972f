"""What a quadruped environment is made of: commands, randomisation, noise, rewards, terrain."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from robopolicy.errors import RobopolicyError
from robopolicy.rl.vec import EnvConfig
from robopolicy.sim.quadruped.rewards import RewardScales
from robopolicy.sim.quadruped.robots import CONTROL_DT, MIN_UPRIGHT, SUBSTEPS, robot
from robopolicy.sim.quadruped.terrain import LEVELS

if TYPE_CHECKING:
    from robopolicy.sim.quadruped.env import QuadrupedEnv

HEAVIEST_FORCE = 2.0
"""Times the robot's weight: above, a force throws any policy over and nothing can be learned from it."""
PROCESS_SEEDS = 10_000_000
"""Between the seeds of two processes; above those of evaluation."""


@dataclass
class CommandConfig:
    """Commanded velocities, drawn uniformly; the robot turns towards a drawn heading."""

    forward: tuple[float, float] = (-1.0, 1.0)
    """m/s"""
    sideways: tuple[float, float] = (-1.0, 1.0)
    """m/s"""
    heading: tuple[float, float] = (-3.141592653589793, 3.141592653589793)
    """rad, in the world"""
    heading_gain: float = 0.5
    """Yaw rate per radian of heading error, 1/s."""
    max_yaw_rate: float = 2.0
    """rad/s"""
    dead_zone: float = 0.2
    """m/s: slower commands become a command to stand."""
    every_s: float = 10.0
    """Seconds after which a new command is drawn."""


@dataclass
class RandomisationConfig:
    """Differences between the N robots, drawn uniformly when the environment is made, and delays drawn every step."""

    friction: tuple[float, float] = (0.2, 1.25)
    payload: tuple[float, float] = (-1.0, 2.0)
    """kg on the trunk"""
    com_shift: float = 0.05
    """m along each axis"""
    gains: tuple[float, float] = (0.9, 1.1)
    """Factor on kp and, drawn separately, on kd."""
    action_delay: int = 3
    """Largest number of physics steps before an action takes effect; drawn for every robot and control step."""
    observation_delay: int = 0
    """Largest age, in physics steps, of what the policy sees; drawn likewise."""
    kick: float = 0.0
    """m/s: largest change of the horizontal velocity by a kick, 0 for none."""
    kick_every_s: float = 16.0

    @classmethod
    def none(cls) -> "RandomisationConfig":
        """The nominal robot on ground of friction 0.8, without delays."""
        return cls((0.8, 0.8), (0.0, 0.0), 0.0, (1.0, 1.0), 0)


@dataclass
class NoiseConfig:
    """Half widths of the uniform noise on what the policy observes."""

    rate: float = 0.2
    """rad/s"""
    gravity: float = 0.05
    joint: float = 0.01
    """rad"""
    joint_velocity: float = 1.5
    """rad/s"""

    @classmethod
    def none(cls) -> "NoiseConfig":
        return cls(0.0, 0.0, 0.0, 0.0)


@dataclass
class QuadrupedConfig(EnvConfig):
    """A batch of quadrupeds that follow velocity commands."""

    kind: ClassVar[str] = "quadruped"
    robot: Literal["aliengo", "a1"] = "aliengo"
    terrain: Literal["flat", "mixed", "slope", "rough", "stairs", "blocks"] = "flat"
    level: int | None = None
    """Fixed level of the terrain, 0 to 9; None starts at 0 and follows the curriculum."""
    episode_s: float = 20.0
    commands: CommandConfig = field(default_factory=CommandConfig)
    randomisation: RandomisationConfig = field(default_factory=RandomisationConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    rewards: RewardScales = field(default_factory=RewardScales)
    max_force: float | None = None
    """N: largest disturbance that `step` accepts; None takes the robot's."""
    joint_spread: tuple[float, float] = (0.5, 1.5)
    """Factors on the default angles at the start of an episode."""
    velocity_spread: float = 0.5
    """m/s and rad/s: largest components of the trunk's velocity at the start."""
    min_upright: float = MIN_UPRIGHT
    """Cosine of the trunk's tilt below which the robot has fallen; it also has when the trunk touches the ground."""
    staggered: bool = True
    """The first episodes end at random times, so that the robots' clocks differ."""
    backend: Literal["rollout", "loop"] = "rollout"
    threads: int | None = None
    """Physics threads; None takes one per processor."""
    seed: int = 0
    """Draws the robots' differences and the terrain; what happens is drawn by the seed of `reset`."""

    def make(self, n_envs: int, device: str = "cpu") -> "QuadrupedEnv":
        from robopolicy.sim.quadruped.env import QuadrupedEnv

        if device != "cpu":
            raise RobopolicyError(f"the quadruped's physics runs on the cpu, found device {device!r}")
        return QuadrupedEnv(self, n_envs)

    def of_process(self, rank: int) -> "QuadrupedConfig":
        """Robots and terrain of its own for every process."""
        return replace(self, seed=self.seed + PROCESS_SEEDS * rank)

    def check(self) -> None:
        """Raises RobopolicyError for values that make no sense."""
        machine = robot(self.robot)
        limit = HEAVIEST_FORCE * machine.mass * 9.81
        force = machine.force_limit if self.max_force is None else self.max_force
        if not 0 <= force <= limit:
            raise RobopolicyError(
                f"max_force is {force:g} N; expected 0 to {limit:.0f} N, {HEAVIEST_FORCE:g} times the weight of "
                f"{self.robot}: no policy stays up under more"
            )
        if self.level is not None and not 0 <= self.level < LEVELS:
            raise RobopolicyError(f"terrain level {self.level} is outside 0..{LEVELS - 1}")
        if self.level is not None and self.terrain == "flat":
            raise RobopolicyError(f"level is {self.level}, but flat ground has no levels")
        if not self.episode_s >= CONTROL_DT or not self.commands.every_s >= CONTROL_DT:
            raise RobopolicyError(
                f"episode_s and commands.every_s must be at least one control step, {CONTROL_DT} s; "
                f"got {self.episode_s} and {self.commands.every_s}"
            )
        draw = self.randomisation
        if not 0 <= draw.action_delay < SUBSTEPS or not 0 <= draw.observation_delay < SUBSTEPS:
            raise RobopolicyError(
                f"randomisation: delays are {draw.action_delay} and {draw.observation_delay} physics steps, "
                f"expected 0 to {SUBSTEPS - 1}"
            )
        if not draw.payload[0] > -0.5 * machine.trunk_mass or not draw.friction[0] > 0 or not draw.gains[0] > 0:
            raise RobopolicyError(
                f"randomisation: friction from {draw.friction[0]}, gains from {draw.gains[0]}, payload from "
                f"{draw.payload[0]} kg; expected above 0, above 0, and above minus half of the trunk's mass"
            )
        ranges = {
            "commands.forward": self.commands.forward,
            "commands.sideways": self.commands.sideways,
            "commands.heading": self.commands.heading,
            "randomisation.friction": draw.friction,
            "randomisation.payload": draw.payload,
            "randomisation.gains": draw.gains,
            "joint_spread": self.joint_spread,
        }
        for name, (low, high) in ranges.items():
            if not low <= high:
                raise RobopolicyError(f"{name} is {low} to {high}; expected the lower number first")
