"""Guesses about action spaces that are known: each is also shown to follow the data when the convention changes."""

import numpy as np
import pytest
from recordings import planar_episode, quaternion, smooth

from robopolicy.datasets.action_space import Guess, Signals, contradictions, correlations, guess_action_space
from robopolicy.datasets.rotations import (
    matrices,
    quaternion_order,
    rotation_groups,
    sign_flips,
    three_number_rotation,
)
from robopolicy.features import Control


def signals(actions, states, ends, state_names=None, action_names=None):
    names = lambda given, table, what: given or [f"{what}[{i}]" for i in range(table.shape[1])]  # noqa: E731
    return Signals(
        actions, states, names(action_names, actions, "action"), names(state_names, states, "state"), np.asarray(ends)
    )


def guessed(found, what):
    return next((g for g in found if g.what == what), Guess(what, "nothing", 0.0, ""))


def test_pairs_never_cross_an_episode():
    s = signals(np.zeros((6, 1)), np.zeros((6, 1)), [4, 6])
    np.testing.assert_array_equal(s.pairs(), [0, 1, 2, 4])
    np.testing.assert_array_equal(s.pairs(2), [0, 1])
    np.testing.assert_array_equal(s.pairs(5), [])


def test_correlations_by_hand():
    a = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    b = np.array([[2.0, 1.0], [4.0, 0.0], [6.0, 1.0]])
    np.testing.assert_allclose(correlations(a, b), [[1.0, 0.0], [0.0, 0.0]], atol=1e-12)


@pytest.mark.parametrize("mode", ["absolute", "delta"])
def test_mode(mode):
    parts = [planar_episode(mode, seed) for seed in range(4)]
    actions, states = (np.concatenate([p[k] for p in parts]).astype(float) for k in ("action", "observation.state"))
    found = guessed(guess_action_space(signals(actions, states, np.arange(1, 5) * 80)), "mode")
    assert found.value == mode
    assert found.confidence > 0.6


def test_a_slow_follower_of_jumping_set_points_is_absolute():
    # Correlations alone would say delta here: only the pull towards the set-point tells.
    rng = np.random.default_rng(0)
    actions, states = np.repeat(rng.uniform(-1, 1, (200, 1)), 4, axis=0), np.zeros((800, 1))
    for t in range(799):
        states[t + 1] = states[t] + 0.3 * (actions[t] - states[t])
    found = guessed(guess_action_space(signals(actions, states, [800])), "mode")
    assert found.value == "absolute"
    assert "pulls back" in found.evidence


def test_delta_actions_towards_a_goal_are_not_taken_for_absolute():
    # The action is minus a multiple of the state, so it correlates perfectly with it, with the wrong sign.
    rng = np.random.default_rng(0)
    states = (rng.uniform(-1, 1, (20, 1)) * 0.9 ** np.arange(30)[None]).reshape(-1, 1)
    found = guessed(guess_action_space(signals(-0.1 * states, states, np.arange(1, 21) * 30)), "mode")
    assert found.value == "delta"
    assert found.confidence > 0.6


def test_velocity_states_do_not_make_delta_actions_absolute():
    rng = np.random.default_rng(1)
    actions = smooth(rng, 300, 2)
    position = np.concatenate([np.zeros((1, 2)), np.cumsum(actions, axis=0)[:-1]])
    velocity = np.concatenate([np.zeros((1, 2)), actions[:-1]])
    found = guessed(guess_action_space(signals(actions, np.concatenate([position, velocity], axis=1), [300])), "mode")
    assert found.value == "delta"
    assert found.confidence > 0.85


def test_noise_says_nothing():
    rng = np.random.default_rng(0)
    found = guess_action_space(signals(rng.normal(size=(500, 2)), rng.normal(size=(500, 3)), [500]))
    assert guessed(found, "mode").value == "unclear"
    assert guessed(found, "mode").confidence == 0
    assert guess_action_space(signals(np.zeros((5, 2)), np.zeros((5, 2)), [5])) == []


@pytest.mark.parametrize("frame", ["world", "tool"])
def test_frame_of_delta_actions(frame):
    rng = np.random.default_rng(2)
    # Orientations far from the identity, so that the frames differ.
    four = quaternion(2.0 * smooth(rng, 400, 3) + np.array([0.0, 0.0, 1.5]))
    actions = smooth(rng, 400, 3)
    moved = 0.05 * (actions if frame == "world" else np.einsum("nij,nj->ni", matrices(four), actions))
    position = np.concatenate([np.zeros((1, 3)), np.cumsum(moved, axis=0)[:-1]])
    found = guess_action_space(signals(actions, np.concatenate([position, four], axis=1), [400]))
    assert guessed(found, "frame").value == frame
    assert guessed(found, "mode").value == "delta"
    assert guessed(found, "frame").confidence > 0.6


def test_matrices_turn_as_the_quaternion_says():
    # A quarter turn about z takes x to y.
    quarter = np.array([[np.sqrt(0.5), 0, 0, np.sqrt(0.5)]])
    np.testing.assert_allclose(matrices(quarter)[0] @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_rotation_groups_and_quaternion_order():
    rng = np.random.default_rng(3)
    four = quaternion(0.5 * smooth(rng, 200, 3))
    columns = matrices(quaternion(smooth(rng, 200, 3)))
    six = columns.transpose(0, 2, 1)[:, :2].reshape(-1, 6)
    table = np.concatenate(
        [smooth(rng, 200, 3), four, six, np.roll(four, -1, axis=1), np.eye(4)[rng.integers(4, size=200)]], 1
    )
    found = [(g.start, g.stop, g.kind) for g in rotation_groups(table)]
    assert found == [(3, 7, "quat_wxyz"), (7, 13, "rot6d"), (13, 17, "quat_xyzw")]
    axis = np.random.default_rng(5).normal(size=(400, 3))
    canonical = quaternion(np.linspace(1.5, 2.0, 400)[:, None] * axis / np.linalg.norm(axis, axis=1, keepdims=True))
    for order, columns in (("quat_wxyz", canonical), ("quat_xyzw", np.roll(canonical, -1, axis=1))):
        kind, confidence, _ = quaternion_order(columns)
        assert kind == order, "the real part alone is never negative"
        assert confidence > 0.6
    down = quaternion(np.array([np.pi, 0, 0]) + 0.2 * smooth(rng, 200, 3))
    assert quaternion_order(down)[1] < 0.6, "a gripper that points down does not show the order"


def test_sign_flips():
    four = quaternion(0.1 * np.ones((5, 3)))
    four[2:4] *= -1
    np.testing.assert_array_equal(sign_flips(four), [2, 4])


def test_three_number_rotations():
    pose = np.zeros((10, 6))
    pose[:, 3:] = 0.01
    assert three_number_rotation(pose, absolute=False)[0] == "axis_angle or euler"
    pose[0, 3:] = (3.0, 2.0, 0.0)
    assert three_number_rotation(pose, absolute=True)[0] == "euler_xyz"
    pose[0, 3:] = (3.0, 0.0, 0.0)
    assert three_number_rotation(pose, absolute=True)[0] == "axis_angle"
    assert three_number_rotation(np.zeros((10, 2)), absolute=True) is None


@pytest.mark.parametrize(("sign", "value"), [(1, "positive_opens"), (-1, "positive_closes")])
def test_gripper_sign(sign, value):
    rng = np.random.default_rng(4)
    command = np.repeat(rng.choice([-1.0, 1.0], 40), 10)
    width = np.full(400, 0.02)
    for t in range(399):
        width[t + 1] = np.clip(width[t] + 0.01 * sign * command[t], 0.0, 0.04)
    arm = smooth(rng, 400, 3)
    fingers = np.stack([width, -width], axis=1)
    s = signals(
        np.concatenate([arm, command[:, None]], axis=1),
        np.concatenate([arm, fingers], axis=1),
        [400],
        [f"observation.eef[{i}]" for i in range(3)] + [f"observation.gripper_qpos[{i}]" for i in range(2)],
    )
    found = guessed(guess_action_space(s), "gripper")
    assert found.value == value
    assert found.confidence > 0.6


def test_contradictions_are_only_those_that_are_sure():
    control = Control("end_effector_pose", "absolute", "world", "quat_wxyz", "positive_closes")
    wrong = [
        Guess("mode", "delta", 0.9, "m"),
        Guess("frame", "tool", 0.9, "f"),
        Guess("rotation", "quat_xyzw", 0.7, "r"),
        Guess("gripper", "positive_opens", 0.8, "g"),
    ]
    lines = contradictions(wrong, control, 0.6)
    assert [line.split(",")[0] for line in lines] == [
        "declared absolute",
        "declared in the world frame",
        "declared rotation quat_wxyz",
        "declared gripper positive_closes",
    ]
    assert contradictions(wrong, control, 0.95) == []
    assert contradictions(wrong[:1], Control("velocity", "absolute"), 0.6) == []
    right = [Guess("mode", "absolute", 0.9, ""), Guess("rotation", "quat_wxyz", 0.9, "")]
    assert contradictions(right, control, 0.6) == []
