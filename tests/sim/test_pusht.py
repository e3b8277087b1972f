import math
from typing import Any

import numpy as np
import pytest

from robopolicy.errors import FeatureMismatch, RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.registry import task_class
from robopolicy.sim.pusht import GOAL_POSE, KEYPOINTS, PushTImage, PushTKeypoints, PushTState, keypoints
from robopolicy.sim.pusht import pose_from_keypoints as fit

VARIANTS = ["pusht", "pusht-keypoints", "pusht-image"]


@pytest.fixture(scope="module")
def task():
    return PushTState()


def random_actions(seed, count=40):
    generator = np.random.default_rng(seed)
    return np.repeat(generator.uniform(100, 400, (count // 8, 2)), 8, axis=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_features_describe_what_is_observed(name):
    task = task_class(name)()
    observation, _ = task.reset(seed=3)
    steps = 2 if name == "pusht-image" else 30
    seen = [observation] + [task.step(a)[0] for a in random_actions(3)[:steps]]
    for observation in seen:
        assert set(observation) == {f.key for f in task.features.inputs}
        for feature in task.features.inputs:
            value = observation[feature.key]
            assert value.shape == feature.shape
            assert value.dtype == np.dtype(feature.dtype)
            if feature.low:
                assert (value >= feature.low).all()
                assert (value <= feature.high).all()
        assert task.observation_space.contains(observation)
    assert task.name == name
    assert task.rate_hz == 10
    assert task.max_steps == 300
    assert task.features.action.control == Control("pixel_target", "absolute", frame="image")


def test_same_actions_give_what_gym_pusht_gives(task):
    from gym_pusht.envs.pusht import PushTEnv

    reference = PushTEnv(obs_type="state")
    moved = 0.0
    for seed in range(3):
        observation, _ = task.reset(seed=seed)
        state, _ = reference.reset(seed=seed)
        start = state.copy()
        for action in random_actions(seed):
            observation, reward, terminated, truncated, info = task.step(action)
            state, ref_reward, ref_terminated, _, ref_info = reference.step(action)
            # gym-pusht adds areas in an order that differs between runs, so the last digit is its own.
            assert info["coverage"] == pytest.approx(ref_info["coverage"], abs=1e-12)
            assert reward == pytest.approx(ref_reward, abs=1e-12)
            assert terminated == ref_terminated
            assert not truncated
            np.testing.assert_array_equal(observation["observation.state"], state[:2].astype(np.float32))
            block = [state[2], state[3], math.cos(state[4]), math.sin(state[4])]
            np.testing.assert_allclose(observation["observation.environment_state"], block, atol=1e-6, rtol=1e-6)
        moved = max(moved, np.abs(state - start)[2:4].max())
    assert moved > 20  # the block was pushed: equality above is not that of a resting block


def test_initial_state_is_a_function_of_the_seed(task):
    first, _ = task.reset(seed=11)
    task.reset(seed=12)
    for action in random_actions(0):
        task.step(action)
    second, _ = task.reset(seed=11)
    fresh, _ = PushTState().reset(seed=11)
    other, _ = task.reset(seed=12)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
        np.testing.assert_array_equal(first[key], fresh[key])
        assert not np.array_equal(first[key], other[key])


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_reset_lands_exactly_on_a_given_state(task, seed):
    state = [123.25, 60.5, 310.0, 200.75, 2.5]
    observation, _ = task.reset(seed=seed, options={"state": state})
    np.testing.assert_array_equal(task.agent_position, state[:2])
    np.testing.assert_allclose(task.block_pose, state[2:], rtol=0, atol=1e-10)
    np.testing.assert_array_equal(task.agent_velocity, 0.0)
    assert observation["observation.environment_state"][0] == 310.0
    # The shapes are where the body is: nothing moves while the agent stays away.
    task.step(np.array(state[:2]))
    np.testing.assert_allclose(task.block_pose, state[2:], rtol=0, atol=1e-10)


def test_a_given_state_is_seen_in_the_picture():
    task = PushTImage()
    state = [60.0, 60.0, 380.0, 380.0, 0.0]
    picture = task.reset(seed=0, options={"state": state})[0]["observation.images.top"].astype(int)
    at = lambda x, y: picture[round(y * 96 / 512), round(x * 96 / 512)]  # noqa: E731
    assert at(60, 60)[2] > at(60, 60)[0] + 100  # agent: royal blue, so channels are RGB
    assert at(256, 256)[1] > at(256, 256)[0] + 50  # goal: light green
    np.testing.assert_allclose(at(380, 395), (119, 136, 153), atol=40)  # block: light slate grey, along its bar
    np.testing.assert_array_equal(at(470, 200), 255)


@pytest.mark.parametrize("state", [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0, math.nan], "abcde"])
def test_a_malformed_state_is_refused(task, state):
    with pytest.raises(RobopolicyError, match="5 finite numbers"):
        task.reset(seed=0, options={"state": state})


@pytest.mark.parametrize("action", [[1.0, math.nan], [1.0, 2.0, 3.0], [math.inf, 0.0]])
def test_a_malformed_action_is_refused(task, action):
    task.reset(seed=0)
    with pytest.raises(RobopolicyError, match="2 finite numbers in px"):
        task.step(np.array(action))


def test_coverage_of_known_poses(task):
    def coverage(dx, dy, turn=0.0):
        x, y, angle = GOAL_POSE
        state = [20.0, 20.0, x + dx, y + dy, angle + turn]
        return task.reset(seed=0, options={"state": state})[1]["coverage"]

    assert coverage(0, 0) == pytest.approx(1.0, abs=1e-9)
    assert coverage(300, 0) == 0.0
    # A shift by d along the block's own y axis uncovers a strip 120 px wide: the bar's far side moves off the goal,
    # and the stem still covers its own width. Area of the T: 120 x 30 + 30 x 90 = 6300.
    d = 10.0
    step = d * math.sqrt(0.5)
    assert coverage(-step, step) == pytest.approx(1 - 120 * d / 6300, abs=1e-6)


def test_a_block_on_the_goal_succeeds_and_terminates(task):
    task.reset(seed=0, options={"state": [20.0, 20.0, *GOAL_POSE]})
    _, reward, terminated, _, info = task.step(np.array([20.0, 20.0]))
    assert reward == 1.0
    assert terminated
    assert info == {"success": True, "coverage": pytest.approx(1.0, abs=1e-9)}


def test_reward_is_coverage_over_threshold(task):
    # The strip of the test above at d = 10 px: coverage 1 - 1200 / 6300.
    step = 10 * math.sqrt(0.5)
    x, y, angle = GOAL_POSE
    task.reset(seed=0, options={"state": [20.0, 20.0, x - step, y + step, angle]})
    _, reward, terminated, _, info = task.step(np.array([20.0, 20.0]))
    assert reward == pytest.approx((1 - 1200 / 6300) / 0.95, abs=1e-6)
    assert not terminated
    assert not info["success"]


def test_score_is_the_largest_reward(task):
    assert task.score(np.array([0.1, 0.9, 0.3])) == 0.9
    assert task.score(np.zeros(0)) == 0.0
    assert "0.95" in task.score_name


def test_keypoints_at_known_poses():
    np.testing.assert_allclose(keypoints(np.array([10.0, 20.0, 0.0])), KEYPOINTS + np.array([10, 20]))
    # A quarter turn takes (x, y) to (-y, x).
    turned = np.stack([-KEYPOINTS[:, 1], KEYPOINTS[:, 0]], axis=1) + np.array([10, 20])
    np.testing.assert_allclose(keypoints(np.array([10.0, 20.0, math.pi / 2])), turned, atol=1e-12)
    assert keypoints(np.zeros((5, 3))).shape == (5, 9, 2)
    task = PushTKeypoints()
    observation, _ = task.reset(seed=0, options={"state": [20.0, 20.0, 200.0, 300.0, math.pi / 2]})
    expected = (turned - [10, 20] + [200, 300]).ravel()
    np.testing.assert_allclose(observation["observation.environment_state"], expected, rtol=1e-6)


def test_pose_is_recovered_from_keypoints():
    poses = np.array([[10.0, 20.0, 0.3], [256.0, 100.0, -3.0], [300.0, 400.0, 2.0]])
    np.testing.assert_allclose(fit(keypoints(poses)), poses, atol=1e-9)


def test_hold_action_keeps_the_agent(task):
    observation, _ = task.reset(seed=5)
    action = task.hold_action(observation)
    after, *_ = task.step(action)
    np.testing.assert_allclose(after["observation.state"], observation["observation.state"], atol=1e-3)
    action[:] = 0
    assert not np.array_equal(action, observation["observation.state"])


def test_rendering_needs_no_display(monkeypatch):
    import pygame

    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    task = PushTState()
    task.reset(seed=0, options={"state": [60.0, 60.0, 380.0, 380.0, 0.0]})
    picture = task.render()
    assert picture.shape == (384, 384, 3)
    assert picture.dtype == np.uint8
    assert not pygame.display.get_init()
    # The marker of the last target belongs to the episode: gone after a reset.
    task.step(np.array([200.0, 60.0]))
    assert (task.render()[45, 150] == (255, 0, 0)).all()
    task.reset(seed=0)
    assert not (task.render() == (255, 0, 0)).all(axis=-1).any()


def test_fingerprint_names_what_changes_numbers():
    state, image = PushTState().fingerprint(), PushTImage().fingerprint()
    assert {"gym-pusht", "pymunk", "chipmunk", "shapely"} <= set(state)
    assert set(image) - set(state) == {"pygame", "opencv"}
    assert all(isinstance(v, str) and v for v in image.values())


# Two frames whose derived values are known by hand: angles 0 and a quarter turn.
RECORDED = np.array([[1.0, 2.0, 100.0, 110.0, 0.0], [3.0, 4.0, 200.0, 210.0, np.pi / 2]])


def replay_buffer(**more):
    arrays = {"observation.state": RECORDED, "action": np.array([[5.0, 6.0], [7.0, 8.0]]), **more}
    kinds = {"action": "action", "observation.images.img": "image"}
    features = [Feature(k, a.shape[1:], str(a.dtype), kinds.get(k, "state")) for k, a in arrays.items()]
    return arrays, FeatureSpec(tuple(features))


def test_adapt_replay_buffer_to_state():
    arrays, features = PushTState.adapt(*replay_buffer())
    np.testing.assert_array_equal(arrays["observation.state"], [[1, 2], [3, 4]])
    np.testing.assert_allclose(
        arrays["observation.environment_state"], [[100, 110, 1, 0], [200, 210, 0, 1]], atol=1e-6
    )
    np.testing.assert_array_equal(arrays["action"], [[5, 6], [7, 8]])
    assert {a.dtype for a in arrays.values()} == {np.dtype("float32")}
    assert features == PushTState.features


def test_adapt_replay_buffer_to_keypoints():
    # The recorded keypoints lag a moving block; those of the pose are what the task will show.
    lagging = np.zeros((2, 9, 2))
    arrays, features = PushTKeypoints.adapt(*replay_buffer(**{"observation.keypoint": lagging}))
    np.testing.assert_allclose(
        arrays["observation.environment_state"][0].reshape(9, 2), KEYPOINTS + np.array([100, 110]), rtol=1e-6
    )
    assert features == PushTKeypoints.features
    assert set(arrays) == {"observation.state", "observation.environment_state", "action"}


def test_adapt_keeps_images_lazy(tmp_path):
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (2, 96, 96, 3))
    arrays, features = PushTImage.adapt(*replay_buffer(**{"observation.images.img": images}))
    assert arrays["observation.images.top"] is images
    assert features == PushTImage.features


def test_adapt_fills_in_what_the_source_does_not_say():
    arrays = {f.key: np.zeros((4, *f.shape), f.dtype) for f in PushTState.features} | {"next.reward": np.ones(4)}
    bare = FeatureSpec(tuple(Feature(f.key, f.shape, f.dtype, f.kind) for f in PushTState.features))
    adapted, features = PushTState.adapt(arrays, bare)
    assert features == PushTState.features
    assert all(adapted[key] is arrays[key] for key in arrays)


def test_adapt_keeps_what_the_source_does_say():
    arrays = {f.key: np.zeros((4, *f.shape), f.dtype) for f in PushTState.features}
    delta = Feature("action", (2,), kind="action", control=Control("pixel_target", "delta"))
    spec = FeatureSpec((*PushTState.features.inputs, delta), rate_hz=20.0)
    _, features = PushTState.adapt(arrays, spec)
    assert features.action.control == Control("pixel_target", "delta")
    assert features.rate_hz == 20.0
    assert len(features.compare(PushTState.features)) == 2


def test_adapt_derives_each_variant_from_the_other():
    arrays, features = PushTState.adapt(*replay_buffer())
    points, spec = PushTKeypoints.adapt(arrays, features)
    back, _ = PushTState.adapt(points, spec)
    for key in arrays:
        np.testing.assert_allclose(back[key], arrays[key], atol=1e-4)


def test_adapt_names_what_is_missing():
    arrays, features = replay_buffer()
    with pytest.raises(FeatureMismatch, match=r"'observation\.images\.top' \[96, 96, 3\] uint8.*'observation\.state'"):
        PushTImage.adapt(arrays, features)
    del arrays["observation.state"]
    with pytest.raises(FeatureMismatch, match=r"'pusht' needs 'observation\.state'.*from 'action' \[2\]"):
        PushTState.adapt(arrays, features)


@pytest.mark.parametrize("task", [PushTState, PushTKeypoints])
def test_the_mirror_image_of_an_episode_is_an_episode(task: Any) -> None:
    """Replaying mirrored actions from the mirrored start must retrace the mirrored observations, contact included."""

    def rollout(state: list[float], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[float]]:
        env = task()
        observation, _ = env.reset(seed=0, options={"state": state})
        rows, coverages = [observation], []
        for action in actions:
            observation, _, _, _, info = env.step(action)
            rows.append(observation)
            coverages.append(info["coverage"])
        return {k: np.stack([r[k] for r in rows[:-1]]) for k in rows[0]} | {"action": actions}, coverages

    actions = np.linspace([180, 330], [330, 190], 25).astype(np.float32)
    recorded, coverages = rollout([180, 330, 250, 230, 0.4], actions)
    mirrored = task.mirror(recorded)
    replayed, other = rollout([182, 332, 282, 262, np.pi / 2 - 0.4], mirrored["action"])
    assert (
        np.abs(recorded["observation.environment_state"][-1] - recorded["observation.environment_state"][0]).max() > 5
    )
    for key in ("observation.state", "observation.environment_state"):
        assert mirrored[key].dtype == np.float32
        # The solver treats the two shapes of the block in turn, so contact is symmetric to a fraction of a pixel.
        assert np.abs(mirrored[key] - replayed[key]).max() < 1.0
    assert np.allclose(coverages, other, atol=0.02)
    twice = task.mirror(mirrored)
    assert all(np.allclose(twice[k], recorded[k], atol=1e-3) for k in recorded)


def test_images_are_not_mirrored() -> None:
    with pytest.raises(RobopolicyError, match="not images"):
        PushTImage.mirror({})
