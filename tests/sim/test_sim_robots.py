"""Simulated robots: the same physics as the tasks, whatever the slices, and targets that are reached."""

import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.sim.pusht import ENVIRONMENT, PushTState
from robopolicy.sim.robots import make_robot


def pushing(observation: dict[str, np.ndarray], step: int) -> np.ndarray:
    """Targets that run into the block and around it."""
    block = observation[ENVIRONMENT][:2]
    angle = 0.7 * step
    return np.clip(block + 40 * np.array([np.cos(angle), np.sin(angle)]), 0, 512)


@pytest.mark.parametrize(
    "slices", [(0.1,), (0.02,) * 5, (0.013, 0.007, 0.05, 0.021, 0.009), (0.0035,) * 28 + (0.002,)]
)
def test_pusht_in_slices_is_the_task(slices: tuple[float, ...]) -> None:
    task, robot = PushTState(), make_robot("sim_pusht")
    observation, _ = task.reset(seed=7)
    robot.reset(7)
    rewards = []
    for step in range(60):
        target = pushing(observation, step)
        robot.command(target)
        for dt in slices:
            robot.advance(dt)
        observation, reward, *_ = task.step(target)
        rewards.append(reward)
        np.testing.assert_allclose(robot.joint_state().position, task.agent_position, atol=1e-9)
        np.testing.assert_allclose(robot.stream("block_state"), observation[ENVIRONMENT], rtol=1e-6)
        x, y, angle = task.block_pose
        np.testing.assert_allclose(robot.stream("block_state"), [x, y, np.cos(angle), np.sin(angle)], atol=1e-9)
    assert max(rewards) > 0, "the block was to be moved over its goal for this test to say anything"
    assert robot.result is None
    assert robot.time == pytest.approx(6.0)


def test_pusht_is_scored_as_the_task_and_ends_after_300_steps() -> None:
    task, robot = PushTState(), make_robot("sim_pusht")
    observation, _ = task.reset(seed=3)
    robot.reset(3)
    rewards = []
    for step in range(300):
        target = pushing(observation, step)
        robot.command(target)
        robot.advance(0.1)
        observation, reward, *_ = task.step(target)
        rewards.append(reward)
        assert (robot.result is None) == (step < 299)
    result = robot.result
    assert result is not None
    assert (result.seed, result.success, result.steps) == (3, False, 300)
    assert result.score == task.score(np.array(rewards)) > 0
    robot.advance(1.0)
    assert robot.result is result, "what happens after the end changes nothing"
    robot.reset(4)
    assert robot.result is None


def test_an_episode_begins_with_its_first_command() -> None:
    robot = make_robot("sim_pusht")
    robot.reset(5)
    before = robot.joint_state().position
    robot.advance(45.0)
    assert robot.result is None, "nobody commanded anything yet"
    np.testing.assert_allclose(robot.joint_state().position, before, atol=1e-6)
    robot.command(before)
    robot.advance(30.0)
    assert robot.result is not None
    assert robot.result.steps == 300


def test_hold_stops_a_moving_robot_and_pictures_show_it() -> None:
    robot = make_robot("sim_pusht")
    robot.reset(1)
    start = robot.picture("camera")
    robot.command(np.array([20.0, 20.0]))
    robot.advance(0.1)
    robot.hold()
    held = robot.joint_state().position
    robot.advance(2.0)
    reading = robot.joint_state()
    assert np.abs(reading.velocity).max() < 1e-3
    np.testing.assert_allclose(reading.position, held, atol=1.0)
    assert start.shape == (96, 96, 3)
    assert start.dtype == np.uint8
    assert (robot.picture("camera") != start).any()


@pytest.mark.parametrize("name", ["sim_pusht", "sim_panda"])
def test_a_mirror_shows_the_same_picture(name: str) -> None:
    if name == "sim_panda":
        pytest.importorskip("robosuite", reason="extra robomimic")
    robot, mirror = make_robot(name), make_robot(name)
    robot.reset(3)
    mirror.reset(8)
    robot.command(robot.joint_state().position + 0.05)
    robot.advance(0.5)
    mirror.mirror(robot.joint_state().position, {stream: robot.stream(stream) for stream in robot.streams})
    for stream in robot.streams:
        np.testing.assert_allclose(mirror.stream(stream), robot.stream(stream), atol=1e-6)
    if name == "sim_pusht":
        np.testing.assert_array_equal(mirror.picture("camera"), robot.picture("camera"))
    robot.close()
    mirror.close()


def test_what_is_unknown_or_no_target_is_refused() -> None:
    with pytest.raises(RobopolicyError, match="Did you mean 'sim_pusht'"):
        make_robot("sim_pushd")
    robot = make_robot("sim_pusht")
    robot.reset(0)
    for wrong in ([1.0], [1.0, np.nan], [1.0, 2.0, 3.0]):
        with pytest.raises(RobopolicyError, match="2 finite joint targets"):
            robot.command(np.array(wrong))
    with pytest.raises(RobopolicyError, match="block_state"):
        robot.stream("block_stat")
    with pytest.raises(RobopolicyError, match="camera"):
        robot.picture("top")


def test_panda_follows_joint_targets_and_holds_against_gravity() -> None:
    pytest.importorskip("robosuite", reason="extra robomimic")
    robot = make_robot("sim_panda")
    robot.reset(0)
    start = robot.joint_state()
    assert start.names == robot.joints
    robot.advance(0.5)
    np.testing.assert_allclose(robot.joint_state().position[:7], start.position[:7], atol=1e-3)
    target = start.position + np.array([0.2, -0.1, 0.1, 0.15, -0.2, 0.1, 0.3, 0.0])
    target[7] = 0.04
    robot.command(target)
    robot.advance(1.0)
    reached = robot.joint_state()
    np.testing.assert_allclose(reached.position[:7], target[:7], atol=2e-3)
    assert reached.position[7] == pytest.approx(0.04, abs=2e-3)
    assert np.abs(reached.velocity).max() < 0.02
    # The cube rests on the table; its position and the hand's distance to it are metres in the world.
    cube = robot.stream("object_state")
    assert cube[2] == pytest.approx(0.83, abs=0.02)
    assert np.linalg.norm(cube[3:7]) == pytest.approx(1.0)
    target[7] = 0.0
    robot.command(target)
    robot.advance(1.0)
    assert robot.joint_state().position[7] == pytest.approx(0.0, abs=2e-3)
    first = robot.stream("object_state")
    robot.reset(1)
    assert not np.allclose(robot.stream("object_state"), first)
    robot.reset(0)
    np.testing.assert_allclose(robot.joint_state().position, start.position)
    robot.close()
