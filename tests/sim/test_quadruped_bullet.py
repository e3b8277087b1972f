"""The same robot in PyBullet: masses, momentum, joints and stance are those of the MuJoCo model."""

import xml.etree.ElementTree as ElementTree

import mujoco
import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.sim.quadruped.batch import Batch
from robopolicy.sim.quadruped.bullet import BulletQuadruped
from robopolicy.sim.quadruped.config import QuadrupedConfig
from robopolicy.sim.quadruped.robots import JOINTS, ROBOTS, compiled, robot
from robopolicy.sim.quadruped.urdf import urdf

pytest.importorskip("pybullet", reason="extra pybullet")
A1 = robot("a1")


@pytest.fixture
def bullet():
    found = BulletQuadruped(QuadrupedConfig(robot="a1"))
    found.reset()
    yield found
    found.close()


@pytest.mark.parametrize("name", list(ROBOTS))
def test_urdf_holds_the_same_numbers(name) -> None:
    root, model = ElementTree.fromstring(urdf(robot(name))), compiled(robot(name))
    masses = [float(m.attrib["value"]) for m in root.iter("mass")]
    assert sum(masses) == pytest.approx(robot(name).mass)
    joints = root.findall("joint")
    assert [j.attrib["name"] for j in joints] == list(JOINTS)
    for joint in joints:
        limit = joint.find("limit").attrib
        number = model.joint(joint.attrib["name"]).id
        assert [float(limit["lower"]), float(limit["upper"])] == pytest.approx(model.jnt_range[number].tolist())
        assert float(limit["effort"]) == model.actuator(joint.attrib["name"]).forcerange[1]
    for link in root.findall("link"):
        inertia = {k: float(v) for k, v in link.find("inertial/inertia").attrib.items()}
        principal = sorted(inertia[k] for k in ("ixx", "iyy", "izz"))
        np.testing.assert_allclose(principal, sorted(model.body(link.attrib["name"]).inertia), rtol=1e-6)
        assert principal[0] + principal[1] >= principal[2] * (1 - 1e-6), "a body can have this inertia"


def test_it_stands_as_mujocos_robot_does(bullet) -> None:
    batch = Batch([compiled(A1)], 4, "loop")
    state = batch.present.copy()
    state[:, 3], state[:, 8:20] = bullet.position()[2], A1.posture
    batch.place(np.arange(1), state)
    batch.targets[:] = A1.posture
    for _ in range(100):
        batch.step()
        seen = bullet.step(np.zeros(12), np.zeros(3))
    assert not bullet.fallen
    assert bullet.position()[2] == pytest.approx(batch.present[0, 3], abs=0.01)
    np.testing.assert_allclose(seen[9:21], batch.present[0, 8:20] - A1.posture, atol=0.06)
    np.testing.assert_allclose(seen[6:9], [0, 0, -1], atol=0.02)


def test_joints_swing_alike_in_free_fall(bullet) -> None:
    model = compiled(A1)
    batch = Batch([model], 4, "loop")
    state = batch.present.copy()
    state[:, 3], state[:, 8:20] = 20, A1.posture
    batch.place(np.arange(1), state)
    bullet._client.resetBasePositionAndOrientation(bullet._body, [0, 0, 20], [0, 0, 0, 1])
    action = np.where(np.arange(12) % 2, 1.0, -1.0)
    batch.targets[:] = A1.posture + A1.action_scale * action
    for _ in range(10):
        batch.step()
        seen = bullet.step(action, np.zeros(3))
        moved = batch.present[0, 8:20] - A1.posture
        np.testing.assert_allclose(seen[9:21], moved, atol=0.04)
    assert np.abs(moved).min() > 0.15


def test_forces_are_newtons_in_the_base_frame(bullet) -> None:
    client = bullet._client
    half = np.pi / 4
    client.resetBasePositionAndOrientation(bullet._body, [0, 0, 5], [0, 0, np.sin(half), np.cos(half)])
    client.setGravity(0, 0, 0)
    bullet.step(np.zeros(12), np.array([30.0, 0.0, 0.0]))
    masses = [client.getDynamicsInfo(bullet._body, i)[0] for i in range(-1, 12)]
    speeds = [client.getBaseVelocity(bullet._body)[0]]
    speeds += [client.getLinkState(bullet._body, i, computeLinkVelocity=1)[6] for i in range(12)]
    momentum = np.array(masses) @ np.array(speeds)
    np.testing.assert_allclose(momentum, [0, 30 * 0.02, 0], atol=0.01)


def test_falls_and_commands(bullet) -> None:
    bullet.command[:], bullet.heading = [0.5, -0.2], 1.0
    np.testing.assert_allclose(bullet.observe()[:3], [1.0, -0.4, 0.25 * 0.5], atol=1e-3)
    bullet._client.resetBasePositionAndOrientation(bullet._body, [0, 0, 0.06], [1, 0, 0, 0])
    bullet.step(np.zeros(12), np.zeros(3))
    assert bullet.fallen


def test_physics_that_is_no_number_any_more_is_a_fall(bullet) -> None:
    for _ in range(5):
        bullet.step(np.full(12, np.nan), np.zeros(3))
    assert bullet.fallen


def test_uneven_ground_is_refused() -> None:
    with pytest.raises(RobopolicyError, match="walks on flat ground only, found terrain 'stairs'"):
        BulletQuadruped(QuadrupedConfig(robot="a1", terrain="stairs"))


def test_quadruped_compiles_in_mujoco_from_urdf() -> None:
    model = mujoco.MjModel.from_xml_string(urdf(A1))
    assert {model.joint(i).name for i in range(model.njnt)} == set(JOINTS)
