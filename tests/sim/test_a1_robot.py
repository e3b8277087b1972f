"""sim_a1 without ROS: when its episode begins and ends, what its sensors say, and what it does without stiffness."""

from pathlib import Path

import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.sim.quadruped import kinematics
from robopolicy.sim.robots import LeggedRobot, make_robot


@pytest.fixture
def robot() -> LeggedRobot:
    found = make_robot("sim_a1")
    assert isinstance(found, LeggedRobot)
    found.reset(3)
    return found


def test_it_stands_and_the_episode_begins_with_the_first_target_that_is_not_the_gates_first(robot) -> None:
    robot.advance(1.0)
    held = robot.joint_state().position
    for _ in range(100):
        robot.command(held)
        robot.advance(0.02)
    assert robot.stream("base_state")[2] > 0.2
    robot.command(held + 0.01)
    robot.advance(19.98)
    assert robot.result is None
    robot.advance(0.02)
    result = robot.result
    assert result is not None
    assert (result.seed, result.success, result.steps) == (3, True, 1000)
    assert result.details["forward_error_m_s"] == pytest.approx(0.5, abs=0.01), "it was asked to walk and stood"
    assert result.details["distance_m"] < 0.05
    assert result.score == pytest.approx(np.exp(-0.25 / 0.25), abs=0.01)


def test_who_falls_gets_what_was_earned_until_then(robot) -> None:
    robot.advance(1.0)
    still = robot.joint_state().position
    robot.ask(np.zeros(3))
    robot.command(still)
    robot.command(still + 1e-3)
    robot.advance(2.0)
    robot.gains(np.zeros(12), np.full(12, 0.5))
    robot.advance(5.0)
    result = robot.result
    assert result is not None
    assert not result.success
    assert 100 < result.steps < 350
    assert result.score == pytest.approx(result.steps / 1000, abs=0.02), "standing was asked for"
    robot.reset(3)
    robot.advance(2.0)
    assert robot.stream("base_state")[2] > 0.2, "gains are those of the robot again"


def test_the_imu_at_rest_feels_gravity_and_the_joints_carry_the_weight(robot) -> None:
    robot.advance(3.0)
    reading, base = robot.imu(), robot.stream("base_state")
    np.testing.assert_array_equal(reading.orientation, base[3:7])
    up = kinematics.rotations(reading.orientation[None])[0].T @ [0, 0, 9.81]
    np.testing.assert_allclose(reading.linear_acceleration, up, atol=0.05)
    assert np.abs(reading.angular_velocity).max() < 0.01
    effort = robot.joint_state().effort
    assert effort is not None
    assert np.abs(effort[2::3]).min() > 1, "knees bear weight"


def test_a_falling_imu_feels_nothing(robot) -> None:
    robot.mirror(robot.joint_state().position, {"base_state": np.array([0, 0, 5.0, 1, 0, 0, 0, 0, 0, 0])})
    robot.advance(0.1)
    assert np.abs(robot.imu().linear_acceleration).max() < 1.5, "but its own legs, which still move"
    assert robot.stream("base_state")[9] == pytest.approx(-0.981, abs=0.15)


def test_the_operator_keeps_the_heading_unless_somebody_else_asks(robot) -> None:
    np.testing.assert_allclose(robot.asked(), [0.5, 0, 0])
    half = 0.2
    turned = np.array([0, 0, 0.4, np.cos(half), 0, 0, np.sin(half), 0, 0, 0])
    robot.mirror(robot.joint_state().position, {"base_state": turned})
    np.testing.assert_allclose(robot.asked(), [0.5, 0, -0.2])
    robot.ask(np.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(robot.asked(), [0.1, 0.2, 0.3])
    robot.ask(None)
    np.testing.assert_allclose(robot.asked(), [0.5, 0, -0.2])


def test_physics_that_fails_is_a_fall(robot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    robot.gains(np.full(12, 40.0), np.full(12, 1e9))
    target = robot.joint_state().position
    robot.command(target)
    robot.command(target + 0.5)
    robot.advance(1.0)
    assert robot.result is not None
    assert not robot.result.success
    for values in (robot.joint_state().position, robot.stream("base_state")):
        assert np.isfinite(values).all()
    assert not list(tmp_path.iterdir()), "MuJoCo writes no log"


def test_the_episode_also_begins_when_the_gate_lets_go(robot) -> None:
    held = robot.joint_state().position
    for kp in (40.0, 0.0):
        robot.gains(np.full(12, kp), np.full(12, 5.0))
        robot.command(held)
    robot.advance(5.0)
    assert robot.result is not None
    assert not robot.result.success


def test_gains_that_are_none_are_refused(robot) -> None:
    for kp in (np.full(11, 1.0), np.full(12, np.nan), np.full(12, -1.0)):
        with pytest.raises(RobopolicyError, match="12 gains"):
            robot.gains(kp, np.ones(12))


def test_a_picture_changes_nothing_and_a_mirror_shows_it_too(robot) -> None:
    other, mirror = make_robot("sim_a1"), make_robot("sim_a1")
    other.reset(3)
    mirror.reset(5)
    for one in (robot, other):
        one.command(one.joint_state().position + 0.1)
        one.advance(0.01)
    shown = robot.picture("side")
    mirror.mirror(robot.joint_state().position, {"base_state": robot.stream("base_state")})
    np.testing.assert_array_equal(mirror.picture("side"), shown)
    for one in (robot, other):
        one.advance(0.2)
    np.testing.assert_array_equal(robot.joint_state().position, other.joint_state().position)
    for one in (robot, mirror):
        one.close()
