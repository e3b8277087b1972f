"""Quadrupeds of the Aliengo and A1 class: their numbers, and the MuJoCo model made from them.

Primitive shapes only. Dimensions, masses, torque limits, gains and default postures are those published with the
reference locomotion code; how a leg's mass is shared among its links, joint ranges and the rotors' inertia are our
decisions where the sources give totals only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.errors import RobopolicyError, unknown

LEGS = ("FL", "FR", "RL", "RR")
"""Front left, front right, rear left, rear right; x is forward, y is left."""
LINKS = ("hip", "thigh", "shank")
JOINTS = tuple(f"{leg}_{link}" for leg in LEGS for link in LINKS)
"""The order of every vector of twelve joint quantities."""
PHYSICS_DT = 0.005
"""Seconds of one physics step, in which the joint controllers act."""
SUBSTEPS = 4
"""Physics steps of one control step."""
CONTROL_DT = PHYSICS_DT * SUBSTEPS
ROTOR_INERTIA = 0.01
"""kg m^2 at the joint, of the geared motor."""
CONTACT = 1.0
"""N that count as touching the ground; on the trunk they end an episode."""
MIN_UPRIGHT = 0.4
"""Cosine of the trunk's tilt below which a robot has fallen."""
CLEARANCE = 0.01
"""m between the lowest foot and the ground at the start."""


@dataclass(frozen=True)
class Robot:
    """Numbers of one robot. SI units, radians; the three of a leg are hip, thigh, knee."""

    name: str
    trunk_size: tuple[float, float, float]
    """Full lengths of the trunk's box."""
    trunk_mass: float
    link_masses: tuple[float, float, float]
    """Of hip, thigh and shank without foot."""
    foot_mass: float
    hip_x: float
    hip_y: float
    """Where the hip joints are, from the trunk's centre."""
    hip_offset: float
    """Sideways from hip joint to thigh joint."""
    thigh_length: float
    shank_length: float
    foot_radius: float
    torque_limits: tuple[float, float, float]
    ranges: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    front_posture: tuple[float, float, float]
    """Default angles of a left front leg; right legs mirror the hip."""
    rear_posture: tuple[float, float, float]
    kp: float
    """Nm/rad."""
    kd: float
    """Nm s/rad."""
    action_scale: float
    """Radians per unit of action."""
    target_height: float
    lifted_foot: float
    """Height of a swinging foot in the base frame that the clearance reward asks for."""
    force_limit: float
    """N: the largest disturbance that training uses, 0.4 of the weight or the published value."""

    @property
    def mass(self) -> float:
        return self.trunk_mass + 4 * (sum(self.link_masses) + self.foot_mass)

    @property
    def posture(self) -> np.ndarray:
        """Default joint angles [12]."""
        rows = [self.front_posture, self.front_posture, self.rear_posture, self.rear_posture]
        angles = np.array(rows)
        angles[:, 0] *= SIDES
        return angles.reshape(12)

    @property
    def torques(self) -> np.ndarray:
        """Torque limits [12]."""
        return np.tile(self.torque_limits, 4)

    @property
    def joint_ranges(self) -> np.ndarray:
        """Lowest and highest joint angles [12, 2]."""
        return np.tile(np.array(self.ranges), (4, 1))


SIDES = np.array([1.0, -1.0, 1.0, -1.0])
"""+1 for left legs."""
ENDS = np.array([1.0, 1.0, -1.0, -1.0])
"""+1 for front legs."""

ROBOTS = {
    "aliengo": Robot(
        name="aliengo",
        trunk_size=(0.647, 0.15, 0.112),
        trunk_mass=11.64,
        link_masses=(2.0, 1.0, 0.255),
        foot_mass=0.06,
        hip_x=0.2407,
        hip_y=0.051,
        hip_offset=0.0868,
        thigh_length=0.25,
        shank_length=0.25,
        foot_radius=0.0265,
        torque_limits=(44.0, 44.0, 55.0),
        ranges=((-1.22, 1.22), (-0.52, 3.93), (-2.775, -0.646)),
        front_posture=(0.0, 0.8, -1.5),
        rear_posture=(0.0, 0.8, -1.5),
        kp=40.0,
        kd=2.0,
        action_scale=0.5,
        target_height=0.30,
        lifted_foot=-0.20,
        force_limit=100.0,
    ),
    "a1": Robot(
        name="a1",
        trunk_size=(0.267, 0.194, 0.114),
        trunk_mass=4.713,
        link_masses=(0.696, 1.013, 0.166),
        foot_mass=0.06,
        hip_x=0.183,
        hip_y=0.047,
        hip_offset=0.085,
        thigh_length=0.2,
        shank_length=0.2,
        foot_radius=0.02,
        torque_limits=(20.0, 55.0, 55.0),
        ranges=((-0.803, 0.803), (-1.047, 4.189), (-2.697, -0.916)),
        front_posture=(0.1, 0.8, -1.5),
        rear_posture=(0.1, 1.0, -1.5),
        kp=40.0,
        kd=1.0,
        action_scale=0.25,
        target_height=0.30,
        lifted_foot=-0.20,
        force_limit=50.0,
    ),
}


def robot(name: str) -> Robot:
    """The robot of this name. Raises RobopolicyError for another."""
    if name not in ROBOTS:
        raise unknown("robot", name, ROBOTS)
    return ROBOTS[name]


def _vector(values: Sequence[float]) -> str:
    return " ".join(f"{v:.10g}" for v in values)


def _leg(robot: Robot, index: int) -> str:
    leg, side, end = LEGS[index], SIDES[index], ENDS[index]
    thigh, shank, offset = robot.thigh_length, robot.shank_length, side * robot.hip_offset
    hip_mass, thigh_mass, shank_mass = robot.link_masses
    ranges = [f'range="{low:.10g} {high:.10g}"' for low, high in robot.ranges]
    return f"""
      <body name="{leg}_hip" pos="{_vector((end * robot.hip_x, side * robot.hip_y, 0))}">
        <joint name="{leg}_hip" axis="1 0 0" {ranges[0]}/>
        <geom class="body" type="cylinder" size="0.04 0.03" pos="0 {offset / 2:.10g} 0" euler="1.5707963 0 0"
          mass="{hip_mass}" material="dark"/>
        <body name="{leg}_thigh" pos="0 {offset:.10g} 0">
          <joint name="{leg}_thigh" axis="0 1 0" {ranges[1]}/>
          <geom class="solid" name="{leg}_thigh" type="capsule" size="0.02" fromto="0 0 0 0 0 {-thigh:.10g}"
            mass="{thigh_mass}" material="light"/>
          <body name="{leg}_shank" pos="0 0 {-thigh:.10g}">
            <joint name="{leg}_shank" axis="0 1 0" {ranges[2]}/>
            <geom class="solid" name="{leg}_shank" type="capsule" size="0.012"
              fromto="0 0 0 0 0 {-shank + robot.foot_radius:.10g}" mass="{shank_mass}" material="dark"/>
            <geom class="solid" name="{leg}_foot" type="sphere" size="{robot.foot_radius}"
              pos="0 0 {-shank:.10g}" mass="{robot.foot_mass}" material="foot"/>
            <site name="{leg}_foot" type="sphere" size="{1.2 * robot.foot_radius:.10g}" pos="0 0 {-shank:.10g}"/>
          </body>
        </body>
      </body>"""


def mjcf(robot: Robot, heights: tuple[int, float, float] | None = None) -> str:
    """The model as MJCF text: the robot on a plane, or on a height field.

    `heights` is (points a side, metres a side, range of heights in metres); heights count from half of the range, so
    that a field of 0.5 everywhere is level with the plane. The actuators are position servos with velocity feedback,
    clipped at the torque limits, so that the controller acts in every physics step.
    """
    if heights is None:
        asset, ground = "", '<geom name="ground" class="ground" type="plane" size="0 0 1" material="checks"/>'
    else:
        points, side, span = heights
        asset = (
            f'<hfield name="ground" nrow="{points}" ncol="{points}" '
            f'size="{side / 2:.10g} {side / 2:.10g} {span:.10g} 0.5"/>'
        )
        ground = (
            f'<geom name="ground" class="ground" type="hfield" hfield="ground" pos="0 0 {-span / 2:.10g}" '
            'material="checks"/>'
        )
    half = [s / 2 for s in robot.trunk_size]
    motors = "".join(
        f'\n    <position name="{joint}" joint="{joint}" kp="{robot.kp}" kv="{robot.kd}" '
        f'forcerange="{-limit:.10g} {limit:.10g}"/>'
        for joint, limit in zip(JOINTS, robot.torques, strict=True)
    )
    torques = "".join(f'\n    <actuatorfrc name="{joint}" actuator="{joint}"/>' for joint in JOINTS)
    feet = "".join(f'\n    <touch name="{leg}_foot" site="{leg}_foot"/>' for leg in LEGS)
    return f"""<mujoco model="{robot.name}">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{PHYSICS_DT}" integrator="Euler" solver="Newton" iterations="10" cone="pyramidal">
    <flag autoreset="disable"/>
  </option>
  <visual><headlight ambient="0.35 0.35 0.35" diffuse="0.4 0.4 0.4"/><map znear="0.02"/></visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.75 0.85 0.95" rgb2="0.95 0.97 1" width="64"
      height="384"/>
    <texture name="checks" type="2d" builtin="checker" rgb1="0.62 0.66 0.70" rgb2="0.72 0.76 0.80" width="256"
      height="256"/>
    <material name="checks" texture="checks" texrepeat="2 2" texuniform="true"/>
    <material name="trunk" rgba="0.16 0.40 0.66 1"/>
    <material name="light" rgba="0.85 0.87 0.90 1"/>
    <material name="dark" rgba="0.25 0.28 0.32 1"/>
    <material name="foot" rgba="0.80 0.35 0.15 1"/>
    {asset}
  </asset>
  <default>
    <joint type="hinge" armature="{ROTOR_INERTIA}"/>
    <default class="ground">
      <geom contype="1" conaffinity="0" priority="1" condim="3" friction="0.8 0.02 0.01"/>
    </default>
    <default class="body"><geom contype="0" conaffinity="0"/></default>
    <default class="solid"><geom contype="0" conaffinity="1" condim="3"/></default>
  </default>
  <worldbody>
    <light pos="0 0 4" dir="0 0 -1" directional="true" diffuse="0.5 0.5 0.5"/>
    {ground}
    <body name="trunk" pos="0 0 {robot.target_height}">
      <freejoint name="base"/>
      <camera name="side" mode="trackcom" pos="0.2 -1.25 0.3" xyaxes="1 0.12 0 -0.03 0.2 1"/>
      <geom name="trunk" class="solid" type="box" size="{_vector(half)}" mass="{robot.trunk_mass}" material="trunk"/>
      <geom class="body" type="box" size="0.03 {0.8 * half[1]:.10g} 0.02" pos="{half[0]:.10g} 0 0.02" mass="0"
        material="foot"/>
      <site name="trunk" type="box" size="{_vector([h + 0.02 for h in half])}" group="4"/>
{"".join(_leg(robot, i) for i in range(4))}
    </body>
  </worldbody>
  <actuator>{motors}
  </actuator>
  <sensor>
    <touch name="trunk" site="trunk"/>{feet}{torques}
  </sensor>
</mujoco>
"""


def compiled(robot: Robot, heights: tuple[int, float, float] | None = None) -> Any:
    """The compiled model (`mujoco.MjModel`), with its joints and actuators checked against `JOINTS`."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(mjcf(robot, heights))
    for kind, first, number in (("joint", 1, model.njnt), ("actuator", 0, model.nu)):
        names = tuple(getattr(model, kind)(i).name for i in range(first, number))
        if names != JOINTS:
            raise RobopolicyError(f"robot {robot.name!r}: its {kind}s are {names}, expected {JOINTS}")
    return model
