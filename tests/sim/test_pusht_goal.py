"""Goal-conditioned PushT: IoU by hand, goals like the ends of demonstrations, and recorded data in its keys."""

from pathlib import Path

import numpy as np
import pytest

from robopolicy import registry
from robopolicy.errors import RobopolicyError
from robopolicy.features import Feature, FeatureSpec
from robopolicy.sim.pusht import ENVIRONMENT, GOAL_POSE, STATE, PushTState
from robopolicy.sim.pusht_expert import block_distance
from robopolicy.sim.pusht_goal import GOAL, PushTGoal, draw_goal

HUMAN = Path(__file__).parents[2].parent / "shared/data/pusht_human/pusht_cchi_v7_replay.zarr"
# The bar is 120 x 30, the stem 30 x 90 below it.
AREA = 120 * 30 + 30 * 90


def placed(block: tuple[float, float, float], goal: tuple[float, float, float]) -> tuple[PushTGoal, dict]:
    task = PushTGoal()
    return task, task.reset(seed=0, options={"state": [30, 30, *block], "goal": [60, 60, *goal]})[1]


@pytest.mark.parametrize(
    ("block", "goal", "intersection"),
    [
        ((200, 200, 0.3), (200, 200, 0.3), AREA),
        ((200, 200, 0.3), (200, 200, 0.3 - 2 * np.pi), AREA),
        # Along the bar by 10: bar and stem each keep all but 10 of their width.
        ((210, 200, 0.0), (200, 200, 0.0), (120 - 10) * 30 + (30 - 10) * 90),
        # Along the stem by 10: the bars share 20 rows and the stems 80, and the goal's bar takes in the block's stem
        # nowhere, but the block's bar overlaps the first 10 rows of the goal's stem.
        ((200, 210, 0.0), (200, 200, 0.0), 120 * 20 + 30 * 80 + 30 * 10),
        # Half a turn about the middle of the bar's edge: the two lie on different sides of that edge.
        ((200, 200, np.pi), (200, 200, 0.0), 0),
        ((100, 200, 0.0), (400, 200, 0.0), 0),
    ],
)
def test_iou_by_hand(block, goal, intersection) -> None:
    task, info = placed(block, goal)
    assert info["iou"] == pytest.approx(intersection / (2 * AREA - intersection), abs=2e-6)
    assert info["success"] is (info["iou"] >= 0.9)
    assert task.step(np.array([30.0, 30.0]))[1] == pytest.approx(info["iou"], abs=1e-5)


def test_the_score_is_that_of_the_last_step() -> None:
    task = PushTGoal()
    assert task.score(np.array([0.2, 0.9, 0.4])) == 0.4
    assert task.score(np.array([])) == 0.0


def test_goals_are_states_drawn_from_the_seed_alone() -> None:
    one, two = PushTGoal(), PushTGoal()
    two.reset(seed=50)
    two.step(np.array([100.0, 100.0]))
    goals = []
    for seed in range(5):
        a, b = one.reset(seed=seed)[0], two.reset(seed=seed)[0]
        np.testing.assert_array_equal(a[GOAL], b[GOAL])
        np.testing.assert_array_equal(a[STATE], b[STATE])
        assert a[GOAL].shape == (1, 6)
        assert a[GOAL].dtype == a[STATE].dtype == np.float32
        agent, pose = one.goal_agent, one.goal_pose
        np.testing.assert_allclose(a[GOAL][0], [*agent, *pose[:2], np.cos(pose[2]), np.sin(pose[2])], rtol=1e-6)
        goals.append(a[GOAL])
        # The starts are those of the other variants.
        other = PushTState().reset(seed=seed)[0]
        np.testing.assert_array_equal(a[STATE], np.concatenate([other[STATE], other[ENVIRONMENT]]))
    assert len(np.unique(np.concatenate(goals), axis=0)) == 5


def test_goals_are_distributed_as_demonstrations_end() -> None:
    random = np.random.default_rng(0)
    agents, poses = map(np.array, zip(*(draw_goal(random) for _ in range(2000)), strict=True))
    turned = poses[:, 2] - GOAL_POSE[2]
    # Means and standard deviations of the last states of the 206 human demonstrations.
    np.testing.assert_allclose(poses[:, :2].mean(axis=0), [255.4, 255.8], atol=1.0)
    np.testing.assert_allclose(poses[:, :2].std(axis=0), [5.0, 5.3], atol=0.6)
    assert abs(turned.mean()) < 0.01
    assert turned.std() == pytest.approx(0.057, abs=0.006)
    np.testing.assert_allclose(agents.mean(axis=0), [213.4, 297.6], atol=6.0)
    np.testing.assert_allclose(agents.std(axis=0), [54.3, 52.0], atol=6.0)
    # The agent touches the block, whose faces are 15 px from its middle, and no corner is cut.
    local = ((agents - poses[:, :2]) @ [1, 1j]) * np.exp(-1j * poses[:, 2])
    np.testing.assert_allclose(block_distance(local), 15.0, atol=1e-6)


@pytest.mark.skipif(not HUMAN.exists(), reason="the human demonstrations are not here")
def test_goals_match_the_demonstrations_themselves() -> None:
    from robopolicy.datasets.detect import open_dataset

    episodes = open_dataset(HUMAN)
    arrays, _ = PushTGoal.adapt(episodes.arrays, episodes.features)
    ends = arrays[STATE][episodes.episode_ends - 1].astype(np.float64)
    random = np.random.default_rng(1)
    agents, poses = map(np.array, zip(*(draw_goal(random) for _ in range(2000)), strict=True))
    drawn = np.column_stack([agents, poses[:, :2], np.cos(poses[:, 2]), np.sin(poses[:, 2])])
    np.testing.assert_allclose(np.corrcoef(drawn.T)[:4, :4], np.corrcoef(ends.T)[:4, :4], atol=0.2)
    for quantile in (0.1, 0.5, 0.9):
        difference = np.quantile(drawn, quantile, axis=0) - np.quantile(ends, quantile, axis=0)
        assert np.abs(difference[2:4]).max() < 2.0
        assert np.abs(difference[4:]).max() < 0.03


def test_the_episode_ends_when_the_agent_stays_but_not_before_the_block_moved() -> None:
    task = PushTGoal()
    observation, _ = task.reset(seed=0, options={"state": [256, 150, 256, 200, 0.0]})
    hold = task.hold_action(observation)
    assert not any(task.step(hold)[2] for _ in range(30)), "waiting at the start ends nothing"
    for _ in range(6):
        over = task.step(np.array([256.0, 200.0]))[2]
    assert not over
    reached, before = [], None
    for _ in range(40):
        hold = task.hold_action(observation) if before is None else task.hold_action(before)
        before, reward, over, _, _ = task.step(hold)
        reached.append(reward)
        if over:
            break
    assert over
    assert len(reached) <= 30
    assert reached[-1] == pytest.approx(reached[-5], abs=1e-3)


def test_success_does_not_end_the_episode() -> None:
    task, info = placed((200, 200, 0.3), (200, 200, 0.3))
    assert info["success"]
    _, _, over, _, info = task.step(np.array([40.0, 40.0]))
    assert info["success"]
    assert not over


def test_recordings_of_every_convention_become_one_state() -> None:
    pose = np.array([[200.0, 300.0, 0.5], [210.0, 310.0, -2.5]])
    agent, action = np.array([[50.0, 60.0], [70.0, 80.0]]), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    expected = np.column_stack([agent, pose[:, :2], np.cos(pose[:, 2]), np.sin(pose[:, 2])]).astype(np.float32)
    replay = {STATE: np.column_stack([agent, pose]).astype(np.float32), "action": action}
    spec = FeatureSpec((Feature(STATE, (5,)), Feature("action", (2,), kind="action")), 10.0)
    arrays, features = PushTGoal.adapt(replay, spec)
    np.testing.assert_allclose(arrays[STATE], expected, rtol=1e-6)
    assert features == FeatureSpec((PushTGoal.features[STATE], PushTGoal.features.action), 10.0)
    again, same = PushTGoal.adapt(arrays, features)
    assert again is arrays
    assert same is features
    # The other variants' own keys.
    own = {STATE: agent.astype(np.float32), ENVIRONMENT: expected[:, 2:], "action": action}
    np.testing.assert_allclose(PushTGoal.adapt(own, PushTState.features)[0][STATE], expected, rtol=1e-6)


def test_the_mirror_image_of_a_state_is_that_of_its_parts() -> None:
    # Reflected in x + y = 512, an agent at (50, 60) is at (452, 462) and an angle a becomes pi / 2 - a.
    state = np.array([[50, 60, 200, 300, np.cos(0.5), np.sin(0.5)]], np.float32)
    mirrored = PushTGoal.mirror({STATE: state, "action": np.array([[1.0, 2.0]], np.float32)})
    np.testing.assert_allclose(mirrored["action"], [[510, 511]])
    angle = np.pi / 2 - 0.5
    np.testing.assert_allclose(mirrored[STATE], [[452, 462, 212, 312, np.cos(angle), np.sin(angle)]], rtol=1e-6)


def test_a_bad_goal_is_refused_and_there_is_no_expert() -> None:
    with pytest.raises(RobopolicyError, match='option "goal": expected 5 finite numbers'):
        PushTGoal().reset(seed=0, options={"goal": [1, 2, 3]})
    with pytest.raises(RobopolicyError, match="'pusht-goal' has no scripted expert"):
        registry.expert_class("pusht-goal", "scripted")


def test_the_picture_shows_the_goal_of_the_episode() -> None:
    task, _ = placed((400, 400, 0.0), (150, 150, 0.0))
    # The goal is drawn light green; the block lies elsewhere.
    red, green, blue = task.render()[round(165 * 384 / 512), round(150 * 384 / 512)].astype(int)
    assert green > red + 50 > 100
    assert green > blue + 50
