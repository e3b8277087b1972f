"""Inverse kinematics: a planar arm with a closed form, and robosuite's Panda where it is installed."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.kinematics import (
    ANGLE_TOLERANCE,
    POSITION_TOLERANCE,
    ArmKinematics,
    ArmModel,
    rotation_matrices,
)

pytest.importorskip("mink")
PLANAR = """
<mujoco>
  <worldbody>
    <body name="upper">
      <joint name="shoulder" type="hinge" axis="0 0 1" range="-150 150" limited="true"/>
      <geom type="capsule" size="0.02" fromto="0 0 0 0.5 0 0"/>
      <body name="lower" pos="0.5 0 0">
        <joint name="elbow" type="hinge" axis="0 0 1" range="-140 140" limited="true"/>
        <geom type="capsule" size="0.02" fromto="0 0 0 0.4 0 0"/>
        <body name="hand" pos="0.4 0 0">
          <joint name="wrist" type="hinge" axis="0 0 1" range="-170 170" limited="true"/>
          <geom type="box" size="0.02 0.02 0.02"/>
          <site name="tip" pos="0.1 0 0"/>
          <body name="finger" pos="0.05 0 0">
            <joint name="grip" type="slide" axis="0 1 0" range="0 0.04" limited="true"/>
            <geom type="box" size="0.01 0.01 0.01"/>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def planar(tmp_path_factory: pytest.TempPathFactory) -> ArmModel:
    path = tmp_path_factory.mktemp("planar") / "arm.xml"
    path.write_text(PLANAR)
    return ArmModel(str(path), "tip", ("shoulder", "elbow", "wrist"))


def _yaw(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def test_the_planar_arm_by_hand(planar: ArmModel) -> None:
    arm = ArmKinematics(planar)
    a, b, c = 0.3, 0.7, -0.4
    position, matrix = arm.forward(np.array([a, b, c]))
    expected = [
        0.5 * np.cos(a) + 0.4 * np.cos(a + b) + 0.1 * np.cos(a + b + c),
        0.5 * np.sin(a) + 0.4 * np.sin(a + b) + 0.1 * np.sin(a + b + c),
        0,
    ]
    np.testing.assert_allclose(position, expected, atol=1e-12)
    np.testing.assert_allclose(matrix, _yaw(a + b + c), atol=1e-12)
    # The law of cosines has two elbows for this pose; the one on the side of the start is found.
    for start, sign in ((np.array([0.0, 0.5, 0.0]), 1), (np.array([0.9, -0.5, 0.0]), -1)):
        found = arm.solve(position, matrix, start)
        assert found.reached
        np.testing.assert_allclose(found.joints[1], sign * b, atol=1e-3)
    np.testing.assert_allclose(arm.low, np.deg2rad([-150, -140, -170]))
    np.testing.assert_allclose(arm.high, np.deg2rad([150, 140, 170]))


def test_unreachable_poses_are_flagged_and_approached(planar: ArmModel) -> None:
    arm = ArmKinematics(planar)
    far = arm.solve(np.array([1.3, 0.0, 0.0]), np.eye(3), np.array([0.3, -0.4, 0.2]))
    assert not far.reached
    # Stretched out it is 0.3 m short, a little more where it also turns as asked.
    assert far.position_error == pytest.approx(0.3, abs=0.03)
    tilted = arm.solve(np.array([0.6, 0.2, 0.0]), np.diag([1.0, -1.0, -1.0]), np.array([0.3, 0.4, 0.2]))
    assert not tilted.reached
    assert tilted.angle_error > 1.0
    assert (far.joints >= arm.low).all()
    assert (far.joints <= arm.high).all()
    # Behind a joint limit: the elbow would need 155 degrees.
    folded = arm.forward(np.array([0.2, np.deg2rad(155), 0.1]))
    beyond = arm.solve(*folded, np.array([0.2, 2.0, 0.1]))
    assert not beyond.reached
    assert beyond.joints[1] <= np.deg2rad(140) + 1e-9


def test_base_and_tool_change_what_a_pose_means(planar: ArmModel) -> None:
    plain = ArmKinematics(planar)
    half = np.sqrt(0.5)
    moved = ArmKinematics(
        replace(planar, base_position=(1.0, 2.0, 3.0), base_quaternion=(half, 0, 0, half), tool_position=(0, 0, 0.2))
    )
    q = np.array([0.3, 0.7, -0.4])
    position, matrix = plain.forward(q)
    placed, turned = moved.forward(q)
    np.testing.assert_allclose(placed, [1 - position[1], 2 + position[0], 3.2], atol=1e-12)
    np.testing.assert_allclose(turned, _yaw(np.pi / 2) @ matrix, atol=1e-12)
    found = moved.solve(placed, turned, q + 0.2)
    assert found.reached
    np.testing.assert_allclose(found.joints, q, atol=2e-3)


def test_other_joints_of_the_model_stay(planar: ArmModel) -> None:
    arm = ArmKinematics(replace(planar, frame="finger", frame_type="body"))
    # Sideways by what the finger's own slide could do: the arm has to do it.
    position, matrix = arm.forward(np.array([0.3, 0.7, -0.4]))
    found = arm.solve(position + 0.02 * matrix[:, 1], matrix, np.array([0.3, 0.7, -0.4]))
    assert found.reached
    assert np.abs(found.joints - [0.3, 0.7, -0.4]).max() > 0.01


def test_wrong_names_and_files_are_refused(planar: ArmModel, tmp_path: Path) -> None:
    with pytest.raises(RobopolicyError, match=r"unknown joint of arm.xml: 'elbo'. Did you mean 'elbow'"):
        ArmKinematics(replace(planar, joints=("shoulder", "elbo")))
    with pytest.raises(RobopolicyError, match=r"unknown site of arm.xml: 'tipp'. Did you mean 'tip'"):
        ArmKinematics(replace(planar, frame="tipp"))
    with pytest.raises(RobopolicyError, match="no such MuJoCo model"):
        ArmKinematics(replace(planar, mjcf=str(tmp_path / "none.xml")))
    (tmp_path / "bad.xml").write_text("<mujoco><worldbody><body></worldbody></mujoco>")
    with pytest.raises(RobopolicyError, match=r"bad.xml: not a MuJoCo model"):
        ArmKinematics(replace(planar, mjcf=str(tmp_path / "bad.xml")))
    with pytest.raises(RobopolicyError, match="unit quaternion"):
        ArmKinematics(replace(planar, base_quaternion=(0.0, 0.0, 0.0, 0.0)))


def test_rotations() -> None:
    turn = _yaw(0.5)
    half = (np.cos(0.25), 0, 0, np.sin(0.25))
    for values, name in (([*turn[0], *turn[1]], "rot6d"), (half, "quat_wxyz"), ([0, 0, 0.5], "axis_angle")):
        np.testing.assert_allclose(rotation_matrices(np.array([values]), name)[0], turn, atol=1e-12)
    with pytest.raises(RobopolicyError, match=r"unknown rotation representation 'rot6'. Did you mean 'rot6d'"):
        rotation_matrices(np.zeros((1, 6)), "rot6")


PANDA_HOME = np.array([0.0, 0.2, 0.0, -2.2, 0.0, 2.4, 0.8])


@pytest.fixture(scope="module")
def panda() -> ArmKinematics:
    spec = importlib.util.find_spec("robosuite")
    if spec is None or spec.origin is None:
        pytest.skip("robosuite, which has the Panda's model, is not installed")
    path = Path(spec.origin).parent / "models/assets/robots/panda/robot.xml"
    return ArmKinematics(ArmModel(str(path), "right_hand", tuple(f"joint{i}" for i in range(1, 8)), "body"))


def test_the_panda_reaches_random_poses_to_a_millimetre_and_half_a_degree(panda: ArmKinematics) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        q = PANDA_HOME + rng.uniform(-0.5, 0.5, 7)
        position, matrix = panda.forward(q)
        found = panda.solve(position, matrix, PANDA_HOME)
        assert found.reached
        reached, turned = panda.forward(found.joints)
        assert np.linalg.norm(reached - position) <= POSITION_TOLERANCE
        assert np.arccos(np.clip((np.trace(turned.T @ matrix) - 1) / 2, -1, 1)) <= ANGLE_TOLERANCE
        assert (found.joints >= panda.low).all()
        assert (found.joints <= panda.high).all()
    assert not panda.solve(np.array([1.5, 0.0, 0.5]), np.eye(3), PANDA_HOME).reached


def test_a_straight_line_gives_small_steps_of_the_joints(panda: ArmKinematics) -> None:
    position, matrix = panda.forward(PANDA_HOME)
    line = position + np.linspace(0, 1, 16)[:, None] * np.array([0.05, -0.15, 0.1])
    found = panda.chunk(line, np.repeat(matrix[None], 16, axis=0), PANDA_HOME)
    assert all(s.reached for s in found)
    steps = np.diff(np.array([PANDA_HOME, *(s.joints for s in found)]), axis=0)
    assert np.abs(steps).max() < 0.1
