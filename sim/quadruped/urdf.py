"""The same robots as URDF, from the same numbers; URDF has no word for the inertia of rotors."""

from typing import Any

import numpy as np

from robopolicy.sim.quadruped.batch import TRUNK
from robopolicy.sim.quadruped.kinematics import rotations
from robopolicy.sim.quadruped.robots import JOINTS, Robot, compiled

TOP_SPEED = 50.0
"""rad/s: URDF demands a limit; MuJoCo's model has none, and no gait comes near."""
GEOMETRY = {"sphere": 2, "capsule": 3, "cylinder": 5, "box": 6}
"""MuJoCo's numbers of them."""


def urdf(robot: Robot) -> str:
    """URDF text; links carry the names of the joints that move them, the trunk is "trunk"."""
    model = compiled(robot)
    parts = [_link(model, TRUNK)]
    for joint in JOINTS:
        number = model.joint(joint).id
        body = int(model.jnt_bodyid[number])
        low, high = model.jnt_range[number]
        limit = model.actuator(joint).forcerange[1]
        parts.append(_link(model, body))
        parts.append(
            f"""  <joint name="{joint}" type="revolute">
    <parent link="{model.body(int(model.body_parentid[body])).name}"/>
    <child link="{model.body(body).name}"/>
    <origin xyz="{_text(model.body_pos[body])}"/>
    <axis xyz="{_text(model.jnt_axis[number])}"/>
    <limit lower="{low:.10g}" upper="{high:.10g}" effort="{limit:.10g}" velocity="{TOP_SPEED}"/>
  </joint>
"""
        )
    return f'<?xml version="1.0"?>\n<robot name="{robot.name}">\n{"".join(parts)}</robot>\n'


def _link(model: Any, body: int) -> str:
    rotation = rotations(model.body_iquat[body][None])[0]
    inertia = rotation @ np.diag(model.body_inertia[body]) @ rotation.T
    xx, xy, xz, yy, yz, zz = inertia[np.triu_indices(3)]
    shapes = "".join(_shape(model, g) for g in range(model.ngeom) if model.geom_bodyid[g] == body)
    return f"""  <link name="{model.body(body).name}">
    <inertial>
      <origin xyz="{_text(model.body_ipos[body])}"/>
      <mass value="{model.body_mass[body]:.10g}"/>
      <inertia ixx="{xx:.10g}" ixy="{xy:.10g}" ixz="{xz:.10g}" iyy="{yy:.10g}" iyz="{yz:.10g}" izz="{zz:.10g}"/>
    </inertial>
{shapes}  </link>
"""


def _shape(model: Any, geom: int) -> str:
    """The geometry as the link's visual and, where it touches the ground, its collision."""
    size, kind = model.geom_size[geom], int(model.geom_type[geom])
    if kind == GEOMETRY["box"]:
        shape = f'<box size="{_text(2 * size)}"/>'
    elif kind == GEOMETRY["sphere"]:
        shape = f'<sphere radius="{size[0]:.10g}"/>'
    else:
        word = "capsule" if kind == GEOMETRY["capsule"] else "cylinder"
        shape = f'<{word} radius="{size[0]:.10g}" length="{2 * size[1]:.10g}"/>'
    matrix = rotations(model.geom_quat[geom][None])[0]
    # URDF turns about the fixed axes x, y, z in this order.
    roll, yaw = np.arctan2(matrix[2, 1], matrix[2, 2]), np.arctan2(matrix[1, 0], matrix[0, 0])
    pitch = np.arcsin(np.clip(-matrix[2, 0], -1, 1))
    place = f'<origin xyz="{_text(model.geom_pos[geom])}" rpy="{_text((roll, pitch, yaw))}"/>'
    uses = ["visual", "collision"] if model.geom_conaffinity[geom] else ["visual"]
    return "".join(f"    <{use}>{place}<geometry>{shape}</geometry></{use}>\n" for use in uses)


def _text(values: Any) -> str:
    return " ".join(f"{v:.10g}" for v in values)
