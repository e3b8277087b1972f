from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.datasets.episodes import Episodes
from robopolicy.datasets.windows import (
    BatchOrder,
    GoalRelabelling,
    WindowSampler,
    WindowShape,
    batch_indices,
    goal_draws,
    split_episodes,
)
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import Feature, FeatureSpec


def counting(lengths: list[int]) -> Episodes:
    """Every value is its row number, so a window shows which rows it was taken from."""
    n = sum(lengths)
    arrays: dict[str, np.ndarray] = {
        "observation.state": np.arange(n, dtype=np.float64)[:, None],
        "observation.images.top": np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1)),
        "action": np.stack([np.arange(n), -np.arange(n)], axis=1).astype(np.float32),
    }
    features = FeatureSpec(
        (
            Feature("observation.state", (1,), "float64"),
            Feature("observation.images.top", (2, 2, 1), "uint8", "image"),
            Feature("action", (2,), kind="action"),
        )
    )
    return Episodes(arrays, np.cumsum(lengths), features, Path("counting"), "episodes")


def rows(sampler: WindowSampler, window: int) -> tuple[list[int], list[int], list[int]]:
    batch = sampler.batch(np.array([window]))
    return (
        batch["observation.state"][0, :, 0].astype(int).tolist(),
        batch["action"][0, :, 0].astype(int).tolist(),
        batch["action_is_pad"][0].astype(int).tolist(),
    )


def test_windows_at_the_edges_of_diffusion_policy_episodes() -> None:
    # Episodes are rows 0..4 and 5..9; the chunk begins one step before the current one.
    sampler = WindowSampler(counting([5, 5]), WindowShape(2, 4, first=-1), ["observation.state"])
    assert len(sampler) == 10
    assert rows(sampler, 0) == ([0, 0], [0, 0, 1, 2], [1, 0, 0, 0])
    assert rows(sampler, 1) == ([0, 1], [0, 1, 2, 3], [0, 0, 0, 0])
    assert rows(sampler, 4) == ([3, 4], [3, 4, 4, 4], [0, 0, 1, 1])
    assert rows(sampler, 5) == ([5, 5], [5, 5, 6, 7], [1, 0, 0, 0])
    assert rows(sampler, 9) == ([8, 9], [8, 9, 9, 9], [0, 0, 1, 1])


def test_chunk_that_begins_at_the_current_step() -> None:
    sampler = WindowSampler(counting([5, 5]), WindowShape(3, 2), ["observation.state"])
    assert rows(sampler, 5) == ([5, 5, 5], [5, 6], [0, 0])
    assert rows(sampler, 6) == ([5, 5, 6], [6, 7], [0, 0])
    assert rows(sampler, 4) == ([2, 3, 4], [4, 4], [0, 1])


def test_episode_shorter_than_history_and_chunk() -> None:
    sampler = WindowSampler(counting([3, 1, 3]), WindowShape(4, 5, first=-3), ["observation.state"])
    assert rows(sampler, 3) == ([3, 3, 3, 3], [3, 3, 3, 3, 3], [1, 1, 1, 0, 1])
    # The same values, had padding crossed into the neighbours, would be 0..6.
    two = WindowSampler(counting([2, 2]), WindowShape(3, 4), ["observation.state"])
    assert rows(two, 1) == ([0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1])


@pytest.mark.parametrize(("n_obs", "horizon", "n_action"), [(2, 16, 8), (1, 8, 8), (3, 10, 4), (2, 4, 3)])
def test_counts_agree_with_the_diffusion_policy_formula(n_obs: int, horizon: int, n_action: int) -> None:
    lengths = [9, 30, 17]
    # Its sampler starts windows at -(n_obs - 1) .. L - horizon + (n_action - 1), both included.
    expected = sum(length - horizon + (n_action - 1) + (n_obs - 1) + 1 for length in lengths)
    shape = WindowShape(n_obs, horizon, 1 - n_obs, horizon - n_action - n_obs + 1)
    sampler = WindowSampler(counting(lengths), shape, [])
    assert len(sampler) == expected
    last = sampler.batch(np.array([len(sampler) - 1]))
    # It lets a window reach n_action - 1 rows past the end of the episode.
    assert last["action_is_pad"].sum() == n_action - 1


def test_drop_last_leaves_short_episodes_one_window() -> None:
    sampler = WindowSampler(counting([3, 10, 7]), WindowShape(2, 16, -1, drop_last=7), ["observation.state"])
    current = [rows(sampler, w)[0][1] for w in range(len(sampler))]
    assert current == [0, 3, 4, 5, 13]


def test_only_chosen_episodes_are_sampled() -> None:
    sampler = WindowSampler(counting([3, 2, 4]), WindowShape(1, 1), ["observation.state"], episode_ids=[0, 2])
    assert [rows(sampler, w)[0][0] for w in range(len(sampler))] == [0, 1, 2, 5, 6, 7, 8]
    assert len(WindowSampler(counting([3, 2]), WindowShape(1, 1), [], episode_ids=[])) == 0
    with pytest.raises(DataError, match=r"episode numbers are 0\.\.1"):
        WindowSampler(counting([3, 2]), WindowShape(1, 1), [], episode_ids=[2])


def test_batches_equal_a_loop_over_steps(memory: Episodes) -> None:
    shape = WindowShape(2, 4, first=-1, drop_last=1)
    keys = ["observation.state", "observation.images.top"]
    sampler = WindowSampler(memory, shape, keys)
    batch = sampler.batch(np.arange(len(sampler)))
    n = 0
    for e in range(memory.n_episodes):
        episode = memory.episode(e)
        length = len(episode["action"])
        for t in range(max(length - shape.drop_last, 1)):
            for key in keys:
                expected = [episode[key][max(t + i, 0)] for i in (-1, 0)]
                np.testing.assert_array_equal(batch[key][n], expected)
            wanted = range(t - 1, t + 3)
            np.testing.assert_array_equal(
                batch["action"][n], [episode["action"][min(max(i, 0), length - 1)] for i in wanted]
            )
            assert batch["action_is_pad"][n].tolist() == [i < 0 or i >= length for i in wanted]
            n += 1
    assert n == len(sampler)


def test_types_and_conversion_without_copy() -> None:
    sampler = WindowSampler(counting([5, 5]), WindowShape(2, 3), ["observation.state", "observation.images.top"])
    batch = sampler.batch(np.array([7, 2, 2]))
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "observation.state": ("float32", (3, 2, 1)),
        "observation.images.top": ("uint8", (3, 2, 2, 2, 1)),
        "action": ("float32", (3, 3, 2)),
        "action_is_pad": ("bool", (3, 3)),
    }
    for value in batch.values():
        assert value.flags.c_contiguous
        assert torch.from_numpy(value).data_ptr() == value.ctypes.data


def test_a_batch_does_not_share_memory_with_the_data(memory: Episodes) -> None:
    sampler = WindowSampler(memory, WindowShape(1, 1), ["observation.state", "observation.images.top"])
    first = sampler.batch(np.array([0]))
    kept = {k: v.copy() for k, v in first.items()}
    for value in first.values():
        value[:] = 1
    for key, value in sampler.batch(np.array([0])).items():
        np.testing.assert_array_equal(value, kept[key])


def test_unknown_key_and_bad_shape(memory: Episodes) -> None:
    with pytest.raises(DataError, match=r"'observation.stat'.*Did you mean 'observation.state'"):
        WindowSampler(memory, WindowShape(1, 1), ["observation.stat"])
    with pytest.raises(RobopolicyError, match="horizon >= 1"):
        WindowShape(1, 0)


@pytest.mark.parametrize(("n", "fraction", "held_out"), [(206, 0.02, 4), (10, 0.25, 2), (10, 0.001, 1), (2, 0.9, 1)])
def test_split_is_disjoint_complete_and_seeded(n: int, fraction: float, held_out: int) -> None:
    train, validation = split_episodes(n, fraction, seed=3)
    assert len(validation) == held_out
    assert sorted([*train, *validation]) == list(range(n))
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(validation) > 0)
    again = split_episodes(n, fraction, seed=3)
    np.testing.assert_array_equal(again[1], validation)
    if n > 100:
        assert split_episodes(n, fraction, seed=4)[1].tolist() != validation.tolist()


def test_split_limits() -> None:
    train, validation = split_episodes(7, 0.0, seed=0)
    assert train.tolist() == list(range(7))
    assert len(validation) == 0
    assert [len(part) for part in split_episodes(1, 0.5, seed=0)] == [1, 0]
    with pytest.raises(RobopolicyError, match="below 1, found 1"):
        split_episodes(5, 1.0, seed=0)


def test_every_epoch_visits_each_window_at_most_once() -> None:
    n, size = 53, 10
    order = BatchOrder(n, size, seed=7)
    epochs = [np.concatenate([order(5 * e + k) for k in range(5)]) for e in range(3)]
    for epoch in epochs:
        assert len(np.unique(epoch)) == 50
        assert epoch.min() >= 0
        assert epoch.max() < n
        assert epoch.tolist() != sorted(epoch)
    assert epochs[0].tolist() != epochs[1].tolist()
    # The tail that is left out differs from epoch to epoch, so that every window is seen in time.
    assert len(np.unique(np.concatenate(epochs))) == n


def test_batches_are_a_function_of_the_step_alone() -> None:
    forward = [BatchOrder(100, 32, seed=1)(k) for k in range(12)]
    for k in reversed(range(12)):
        np.testing.assert_array_equal(batch_indices(100, 32, k, seed=1), forward[k])
    assert forward[0].dtype == np.int64
    assert batch_indices(100, 32, 0, seed=2).tolist() != forward[0].tolist()


def test_changing_a_batch_does_not_change_the_epoch() -> None:
    order = BatchOrder(8, 4, seed=0)
    first = order(0)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(order(0), kept)


def test_batch_order_is_pinned() -> None:
    # A change here would make runs resume with other batches than they were started with.
    assert batch_indices(10, 5, 0, seed=0).tolist() == [3, 2, 1, 8, 6]
    assert batch_indices(10, 5, 3, seed=0).tolist() == [8, 6, 2, 0, 3]


def test_batches_larger_than_the_number_of_windows() -> None:
    batch = batch_indices(4, 11, 3, seed=5)
    assert len(batch) == 11
    assert sorted(batch[:4]) == sorted(batch[4:8]) == [0, 1, 2, 3]
    assert len(np.unique(batch[8:])) == 3
    assert batch.tolist() != batch_indices(4, 11, 4, seed=5).tolist()
    with pytest.raises(RobopolicyError, match="n_windows >= 1"):
        batch_indices(0, 4, 0, seed=0)


def test_windows_without_a_padded_history() -> None:
    sampler = WindowSampler(counting([5, 2]), WindowShape(3, 3, -2, drop_first=2), ["observation.state"])
    assert [rows(sampler, i)[0] for i in range(3)] == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert [rows(sampler, i)[2] for i in range(3)] == [[0, 0, 0]] * 3
    assert len(sampler) == 4, "an episode that is too short keeps one window"
    assert rows(sampler, 3)[0] == [5, 5, 6]


def goal_rows(sampler: WindowSampler, window: int, draws: np.ndarray) -> np.ndarray:
    """Rows [n, G] of the goals that `draws` [n] choose for one window."""
    batch = sampler.batch(np.full(len(draws), window), draws)
    goal = batch["observation.goal"]
    assert goal.shape == (len(draws), sampler.shape.n_obs_steps, sampler.goals.length, 1)
    assert (goal == goal[:, :1]).all(), "the same goal at every observation step"
    assert not batch["goal_is_pad"].any()
    return goal[:, 0, :, 0].astype(int)


def test_goals_are_uniform_over_later_rows_and_never_overlap_the_window() -> None:
    goals = GoalRelabelling("observation.goal", "observation.state", length=2)
    sampler = WindowSampler(counting([4, 10]), WindowShape(3, 3, -2, drop_first=2), ["observation.state"], goals=goals)
    # Windows 0, 1 are of the first episode; window 2 has rows 4, 5, 6. Its goals start at 7, 8, 9, 10 and 11: the
    # published upper end L - G = 12 is exclusive, so row 13 is in no goal.
    found = goal_rows(sampler, 2, (np.arange(5000) + 0.5) / 5000)
    starts, counts = np.unique(found[:, 0], return_counts=True)
    assert starts.tolist() == [7, 8, 9, 10, 11]
    assert counts.tolist() == [1000] * 5
    assert (found[:, 1] == found[:, 0] + 1).all()
    assert goal_rows(sampler, 2, np.array([0.0, np.nextafter(1, 0)]))[:, 0].tolist() == [7, 11]


def test_goals_are_zero_exactly_where_none_is_left() -> None:
    goals = GoalRelabelling("observation.goal", "observation.state", length=2, min_separation=1)
    episodes, shape = counting([10]), WindowShape(1, 1)
    sampler = WindowSampler(episodes, shape, ["observation.state"], goals=goals)
    batch = sampler.batch(np.arange(10), np.zeros(10))
    # A goal starts at t + 2 at the earliest and at 7 at the latest.
    assert batch["goal_is_pad"].tolist() == [False] * 6 + [True] * 4
    assert batch["observation.goal"][:, 0, 0, 0].tolist() == [2, 3, 4, 5, 6, 7, 0, 0, 0, 0]
    without = GoalRelabelling("observation.goal", "observation.state", 2, min_separation=1, keep_without=False)
    kept = WindowSampler(episodes, shape, ["observation.state"], goals=without)
    assert len(kept) == 6
    assert not kept.batch(np.arange(6), np.zeros(6))["goal_is_pad"].any()


def test_goals_at_the_end_of_the_episode_and_right_after_the_window() -> None:
    tail = GoalRelabelling("observation.goal", "observation.state", 2, choice="tail")
    sampler = WindowSampler(counting([3, 5]), WindowShape(1, 1), [], goals=tail)
    batch = sampler.batch(np.arange(8), np.linspace(0, 0.99, 8))
    assert batch["observation.goal"][:, 0, :, 0].tolist() == [[1, 2]] * 3 + [[6, 7]] * 5
    following = GoalRelabelling("observation.goal", "observation.state", 2, choice="next")
    sampler = WindowSampler(counting([3, 5]), WindowShape(1, 1), [], goals=following)
    batch = sampler.batch(np.arange(8), np.linspace(0, 0.99, 8))
    assert (
        batch["observation.goal"][:, 0, :, 0].tolist()
        == [[1, 2], [0, 0], [0, 0], [4, 5], [5, 6], [6, 7]] + [[0, 0]] * 2
    )
    assert "observation.state" not in batch


def test_goal_draws_are_a_function_of_seed_and_step() -> None:
    draws = goal_draws(10_000, step=3, seed=7)
    assert np.array_equal(draws, goal_draws(10_000, 3, 7))
    assert not np.array_equal(draws, goal_draws(10_000, 4, 7))
    assert not np.array_equal(draws, goal_draws(10_000, 3, 8))
    assert draws.min() >= 0 < 1 - draws.max() < 1e-3
    assert abs(draws.mean() - 0.5) < 0.01
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] - 1000).max() < 120
    assert goal_draws(2, 0, 0).tolist() == [0.4492388188116676, 0.39104163833546157], "resumed runs rely on it"


def test_bad_goals_are_named() -> None:
    with pytest.raises(RobopolicyError, match=r"unknown choice of goals 'tails'\. Did you mean 'tail'"):
        GoalRelabelling("observation.goal", "observation.state", choice="tails")  # type: ignore[arg-type]
    with pytest.raises(RobopolicyError, match="length >= 1"):
        GoalRelabelling("observation.goal", "observation.state", length=0)
    with pytest.raises(DataError, match=r"no key 'observation\.block'"):
        WindowSampler(counting([3]), WindowShape(1, 1), [], goals=GoalRelabelling("g", "observation.block"))
    sampler = WindowSampler(
        counting([3]), WindowShape(1, 1), [], goals=GoalRelabelling("observation.goal", "observation.state")
    )
    with pytest.raises(RobopolicyError, match="one number in"):
        sampler.batch(np.arange(3))
