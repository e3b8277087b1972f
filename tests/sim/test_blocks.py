"""The blocks task: metrics by hand, episodes as functions of the seed, and what contact does."""

import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.sim.blocks import (
    FIRST_REWARD,
    GOAL,
    GOAL_SCATTER,
    MAX_STEP,
    REACH,
    STATE,
    TARGET_JITTER,
    TARGETS,
    TOLERANCE,
    Blocks,
)

STAY = np.zeros(2)


def start(task: Blocks, block1: tuple[float, float], block2: tuple[float, float], assignment=(0, 1), seed=0) -> dict:
    """Starts with blocks at these offsets in m from target 0 and target 1, and the effector far from both."""
    task.reset(seed=seed)
    places = task.targets + np.array([block1, block2])
    state = [*places[0], 0.1, *places[1], -0.2, 0.0, -0.3, 0.0, -0.3]
    return task.reset(seed=seed, options={"state": state, "assignment": assignment})[1]


@pytest.mark.parametrize(
    ("offset1", "offset2", "assignment", "result", "reward"),
    [
        ((0.0, 0.0), (0.0, 0.0), (0, 1), 1.0, 1.0),
        ((0.0, 0.0), (0.0, 0.0), (1, 0), 0.0, 1.0),
        ((0.0, 0.0), (0.0, -0.2), (0, 1), 0.5, 0.49),
        ((0.0, 0.0), (0.0, -0.2), (1, 0), 0.0, 0.49),
        ((0.0, -0.2), (0.0, 0.0), (0, 1), 0.5, 0.49),
        ((0.0, -0.2), (0.0, -0.2), (0, 1), 0.0, 0.0),
        # 3-4-5: 0.05 m is inside, a little more is not.
        ((0.03, 0.04 - 1e-6), (0.0, -0.2), (0, 1), 0.5, 0.49),
        ((0.03, 0.0401), (0.0, -0.2), (0, 1), 0.0, 0.0),
    ],
)
def test_metrics_by_hand(offset1, offset2, assignment, result, reward) -> None:
    task = Blocks()
    info = start(task, offset1, offset2, assignment)
    assert (info["result"], info["metrics"]["reward"]) == (result, reward)
    _, step_reward, _, _, after = task.step(STAY)
    assert (step_reward, after["metrics"]["reward"]) == (result, reward)
    assert info["success"] is after["success"] is (result == 1.0)
    assert task.score(np.array([0.0, step_reward])) == result


def test_both_blocks_in_one_target_fill_one() -> None:
    task = Blocks()
    task.reset(seed=0)
    target = task.targets[0]
    for assignment, result in (((0, 1), 0.5), ((1, 0), 0.5)):
        # Side by side, each 0.035 m from the middle of the same target.
        state = [target[0] - 0.035, target[1], 0, target[0] + 0.035, target[1], 0, 0, -0.3, 0, -0.3]
        info = task.reset(seed=0, options={"state": state, "assignment": assignment})[1]
        assert info["result"] == result
        assert info["metrics"]["reward"] == FIRST_REWARD


def test_a_pair_stays_filled_after_its_block_was_pushed_out() -> None:
    task = Blocks()
    task.reset(seed=0)
    x, y = task.targets[0]
    state = [x, y - 0.04, 0, 0.2, -0.2, 0, x, y - 0.09, x, y - 0.09]
    info = task.reset(seed=0, options={"state": state, "assignment": (0, 1)})[1]
    assert info["result"] == 0.5
    # Pushed away to the front, from the back.
    state[6:] = [x, y + 0.01, x, y + 0.01]
    task.reset(seed=0, options={"state": state, "assignment": (0, 1)})
    for _ in range(8):
        _, reward, over, _, info = task.step(np.array([0.0, -0.02]))
    assert np.linalg.norm(task.block_places[0] - task.targets[0]) > 2 * TOLERANCE
    assert (reward, info["metrics"]["reward"], over) == (0.5, FIRST_REWARD, False)


def test_the_episode_ends_when_both_rest_well_inside_whatever_was_asked() -> None:
    for offset, over in ((0.015, True), (0.03, False)):
        for assignment in ((0, 1), (1, 0)):
            task = Blocks()
            start(task, (0.0, offset), (0.0, 0.0), assignment)
            assert task.step(STAY)[2] is over


def test_the_start_and_the_goal_are_functions_of_the_seed() -> None:
    one, two = Blocks(), Blocks()
    two.reset(seed=99)
    for _ in range(5):
        two.step(np.array([0.01, -0.03]))
    for seed in (3, 4):
        a, b = one.reset(seed=seed)[0], two.reset(seed=seed)[0]
        for _ in range(40):
            np.testing.assert_array_equal(a[STATE], b[STATE])
            np.testing.assert_array_equal(a[GOAL], b[GOAL])
            action = np.array([0.004, -0.02])
            a, b = one.step(action)[0], two.step(action)[0]
    assert not np.array_equal(one.reset(seed=3)[0][STATE], one.reset(seed=4)[0][STATE])


def test_goals_ask_for_both_assignments_equally_and_lie_on_the_targets() -> None:
    task, swapped = Blocks(), 0
    for seed in range(400):
        observation, _ = task.reset(seed=seed)
        goal = observation[GOAL]
        assert goal.shape == (1, 10)
        assert goal.dtype == observation[STATE].dtype == np.float32
        assert (goal[0, [2, 5, 6, 7, 8, 9]] == 0).all(), "only the dimensions of goal_dims are specified"
        places = goal[0, list(Blocks.goal_dims)].reshape(2, 2)
        # The block that target 0, on the left, is for tells the assignment.
        assert task.assignment == ((0, 1) if places[0, 0] < 0 else (1, 0))
        assert np.abs(places - task.targets[list(task.assignment)]).max() <= 2 * GOAL_SCATTER + 1e-6
        assert np.abs(task.targets - TARGETS).max() <= TARGET_JITTER
        # A goal that is reached exactly counts.
        assert np.linalg.norm(places - task.targets[list(task.assignment)], axis=1).max() < TOLERANCE
        swapped += task.assignment == (1, 0)
    assert 160 < swapped < 240


def test_the_state_shows_no_targets() -> None:
    task = Blocks()
    state, _ = task.reset(seed=8)[0][STATE], task.ask((1, 0))
    other = task._observe()
    np.testing.assert_array_equal(state, other[STATE])
    task.ask((0, 1))
    assert not np.array_equal(task._observe()[GOAL], other[GOAL])


def test_a_push_through_the_middle_moves_a_block_straight_and_it_stops_at_once() -> None:
    task = Blocks()
    task.reset(seed=0, options={"state": [0, -0.1, 0, 0.2, -0.2, 0, 0, -0.2, 0, -0.2]})
    for _ in range(10):
        task.step(np.array([0.0, 0.02]))
    task.step(STAY)
    x, y = task.block_places[0]
    # The set-point is at y = 0; the block's middle is a radius and half a side ahead, less the servo's yielding.
    assert abs(x) < 1e-4
    assert abs(y - (0.0 + 0.015 + 0.03)) < 3e-3
    before = task.block_places
    for _ in range(5):
        task.step(STAY)
    assert np.abs(task.block_places - before).max() < 2e-3
    assert np.array_equal(task.block_places[1], [0.2, -0.2])


def test_an_off_centre_push_turns_a_block() -> None:
    for side in (1, -1):
        task = Blocks()
        task.reset(seed=0, options={"state": [0, -0.1, 0, 0.2, -0.2, 0, 0.02 * side, -0.2, 0.02 * side, -0.2]})
        for _ in range(8):
            observation = task.step(np.array([0.0, 0.02]))[0]
        # Drag 10 N s/m and 0.2 N m s/rad: a force with arm 0.02 m turns by 0.02 * 10 / 0.2 = 1 rad per metre moved.
        moved = observation[STATE][1] + 0.1
        assert moved > 0.05
        assert observation[STATE][2] == pytest.approx(side * moved, rel=0.2)


def test_yaw_is_told_up_to_the_quarter_turns_that_a_square_does_not_show() -> None:
    for turns in range(-3, 4):
        state = [0, -0.1, 0.3 + turns * np.pi / 2, 0.2, -0.2, -0.7 + turns * np.pi / 2, 0, 0, 0, 0]
        observation, _ = Blocks().reset(seed=0, options={"state": state})
        np.testing.assert_allclose(observation[STATE][[2, 5]], [0.3, -0.7], atol=1e-6)


def test_blocks_stay_on_the_table_with_room_for_the_effector_behind_them() -> None:
    task = Blocks()
    task.reset(seed=0, options={"state": [0.2, 0, 0, -0.2, -0.2, 0, 0.1, 0, 0.1, 0]})
    for _ in range(60):
        observation = task.step(np.array([1.0, 0.0]))[0]
    state = observation[STATE]
    assert state[0] < REACH - 2 * 0.015 - 0.03
    assert state[8] == pytest.approx(REACH)
    assert np.isfinite(state).all()
    low, high = np.array(Blocks.features[STATE].low), np.array(Blocks.features[STATE].high)
    assert ((state >= low) & (state <= high)).all()


def test_actions_are_clipped_changes_of_the_set_point_and_zero_holds() -> None:
    task = Blocks()
    observation, _ = task.reset(seed=1)
    np.testing.assert_array_equal(task.hold_action(observation), [0, 0])
    before = observation[STATE][8:]
    after = task.step(np.array([0.5, -0.01]))[0][STATE][8:]
    np.testing.assert_allclose(after - before, [MAX_STEP, -0.01], atol=1e-7)
    held = task.step(task.hold_action(observation))[0][STATE]
    np.testing.assert_array_equal(held[8:], after)
    np.testing.assert_allclose(held[6:8], after, atol=1e-3)


@pytest.mark.parametrize("action", [np.zeros(3), np.array([np.nan, 0.0]), "north"])
def test_a_bad_action_is_refused(action) -> None:
    task = Blocks()
    task.reset(seed=0)
    with pytest.raises(RobopolicyError, match="Blocks action: expected 2 finite numbers"):
        task.step(action)


def test_a_bad_goal_or_state_is_refused() -> None:
    task = Blocks()
    with pytest.raises(RobopolicyError, match=r"\(0, 1\) or \(1, 0\), found \(0, 0\)"):
        task.reset(seed=0, options={"assignment": (0, 0)})
    with pytest.raises(RobopolicyError, match='option "state": expected 10 finite numbers'):
        task.reset(seed=0, options={"state": [0.0]})


def test_the_picture_shows_blocks_targets_and_goals() -> None:
    task = Blocks()
    task.reset(seed=0, options={"state": [-0.1, -0.1, 0, 0.1, -0.1, 0, 0, -0.3, 0, -0.3], "assignment": (0, 1)})
    picture = task.render()
    assert picture.shape == (256, 256, 3)
    assert picture.dtype == np.uint8

    def at(x: float, y: float) -> tuple:
        return tuple(picture[round((0.38 - y) * 256 / 0.76), round((x + 0.38) * 256 / 0.76)].astype(int))

    assert at(-0.1, -0.1)[0] > 180 > 120 > at(-0.1, -0.1)[2], "block 1 is red"
    assert at(0.1, -0.1)[2] > 160 > 80 > at(0.1, -0.1)[0], "block 2 is blue"
    task.ask((1, 0))
    assert (task.render() != picture).any(), "the outlines of the goal change sides"
    # Nothing but the goal changes, and that only around the targets.
    assert (task.render() == picture)[110:].all()


def test_recorded_play_is_reproduced(tmp_path):
    from robopolicy.evaluation.record import record
    from robopolicy.evaluation.replay import replay

    record("blocks", "scripted", tmp_path / "play", episodes=2, progress=False)
    done = replay(tmp_path / "play", episodes=["0:2"], progress=False)
    assert done.task == "blocks"
    assert done.reproduced.value == 1.0
    assert max(e.final["block_position_m"] for e in done.episodes) < 2e-3
