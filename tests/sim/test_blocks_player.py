"""The scripted player: it fills both targets, in all its styles, and the style can be seen."""

from collections import Counter

import numpy as np

from robopolicy.evaluation.record import record
from robopolicy.sim.blocks import MAX_STEP, STATE, Blocks
from robopolicy.sim.blocks_player import BlocksPlayer, Style, _around, move


def play(seed: int, **options) -> tuple[bool, np.ndarray, Style, Blocks]:
    """Success, states [T, 10], the style drawn and the task of one episode."""
    task, player = Blocks(), BlocksPlayer(seed=seed, **options)
    player.reset()
    states, over = [task.reset(seed=seed)[0][STATE]], False
    while not over and len(states) <= task.max_steps:
        observation, _, over, _, info = task.step(player.act(task))
        states.append(observation[STATE])
    return info["success"], np.array(states, np.float64), player.style, task


def first_moved(states: np.ndarray) -> int:
    moved = [np.linalg.norm(states[:, c : c + 2] - states[0, c : c + 2], axis=1) > 0.05 for c in (0, 3)]
    return int(np.argmax(moved[1]) < np.argmax(moved[0])) if moved[0].any() and moved[1].any() else -1


def winding(states: np.ndarray, block: int) -> float:
    """Angle in rad by which the effector walks around a block before it moves it; positive is counterclockwise."""
    places = states[:, 3 * block : 3 * block + 2]
    still = np.linalg.norm(places - places[0], axis=1) < 1e-3
    arm = (states[:, 6:8] - places)[still] @ [1, 1j]
    return float(np.angle(arm[1:] / arm[:-1]).sum())


def test_it_fills_both_targets_in_nearly_every_episode() -> None:
    episodes = [play(seed) for seed in range(100)]
    assert sum(e[0] for e in episodes) >= 97
    assert np.mean([len(e[1]) for e in episodes]) < 130
    orders = Counter(first_moved(e[1]) for e in episodes)
    assert orders[-1] == 0
    assert 35 <= orders[0] <= 65
    # The style that was drawn is the one that was played.
    assert np.mean([first_moved(e[1]) == e[2].order[0] for e in episodes]) >= 0.97
    left = Counter(int(e[1][-1, 0] > 0) for e in episodes)
    assert 35 <= left[0] <= 65
    assert all(int(e[1][-1, 0] > 0) == e[2].assignment[0] for e in episodes if e[0])


def test_it_walks_around_each_block_on_either_side() -> None:
    around = np.array([(winding(s, b), style.sides[b]) for _, s, style, _ in map(play, range(30)) for b in (0, 1)])
    wide = np.abs(around[:, 0]) > 0.8
    # The effector begins on the far side of the blocks, so that most ways are long enough to have a side.
    assert wide.mean() > 0.8
    assert (np.sign(around[wide, 0]) == around[wide, 1]).mean() >= 0.9
    assert 0.3 < (around[:, 0] > 0).mean() < 0.7


def test_the_sixteen_styles_are_equally_likely() -> None:
    random = np.random.default_rng(0)
    counts = Counter(Style.draw(random) for _ in range(1600))
    assert len(counts) == 16
    assert min(counts.values()) > 60
    assert max(counts.values()) < 145


def test_moves_are_small_smooth_and_without_memory() -> None:
    task, player = Blocks(), BlocksPlayer(seed=5, noise=0.0)
    player.reset()
    task.reset(seed=5)
    last = None
    for _ in range(60):
        action = player.act(task)
        again = move(player.style, task.block_places, task.effector_target, task.targets)
        np.testing.assert_array_equal(action, again.astype(np.float32))
        assert np.abs(action).max() <= MAX_STEP
        if last is not None:
            assert np.linalg.norm(action - last) < 0.05
        last = action
        task.step(action)


def test_noise_is_executed_but_not_recorded(tmp_path) -> None:
    task, player = Blocks(), BlocksPlayer(seed=2, noise=0.01)
    player.reset()
    task.reset(seed=2)
    perturbed = []
    for _ in range(30):
        action = player.act(task)
        clean = move(player.style, task.block_places, task.effector_target, task.targets)
        np.testing.assert_array_equal(player.intended, clean.astype(np.float32))
        perturbed.append(action - clean)
        task.step(action)
    assert 0.004 < np.std(perturbed) < 0.015


def test_it_asks_for_what_it_plays_unless_it_follows_the_goal() -> None:
    asked = [play(seed) for seed in range(6)]
    assert all(task.assignment == style.assignment for _, _, style, task in asked)
    task, drawn = Blocks(), []
    for seed in range(6):
        task.reset(seed=seed)
        drawn.append(task.assignment)
    assert drawn != [e[2].assignment for e in asked], "play has aims of its own"
    followed = [play(seed, follow_goal=True) for seed in range(6)]
    assert [e[3].assignment for e in followed] == drawn
    assert all(e[0] for e in followed)


def test_the_way_around_an_obstacle_by_hand() -> None:
    # An obstacle straight ahead at distance 2 with radius 1: the tangent leaves at 30 degrees to the chosen side.
    ahead = np.exp(1j * np.pi / 6)
    assert np.isclose(_around(0j, 4 + 0j, 2 + 0j, 1.0, -1), ahead)
    assert np.isclose(_around(0j, 4 + 0j, 2 + 0j, 1.0, 1), ahead.conjugate())
    # A little to the left of the way: the nearer side is to pass it on the right.
    assert _around(0j, 4 + 0j, 2 + 0.1j, 1.0, 0).imag < 0
    assert _around(0j, 4 + 0j, 2 - 0.1j, 1.0, 0).imag > 0
    # Beside the way, behind, or beyond its end: straight on.
    for obstacle in (2 + 1.1j, -0.5 + 0j, 5.5 + 0j):
        assert _around(0j, 4 + 0j, obstacle, 1.0, 1) == 1


def test_recorded_play_has_no_goal_and_ends_with_both_targets_filled(tmp_path) -> None:
    from robopolicy.datasets.detect import open_dataset

    summary = record("blocks", "scripted", tmp_path / "play", episodes=4, progress=False)
    episodes = open_dataset(tmp_path / "play")
    assert summary.episodes == episodes.n_episodes == 4
    assert sorted(episodes.arrays) == ["action", "action.executed", "next.reward", "next.success", STATE]
    assert episodes.features.action == Blocks.features.action
    for i in range(4):
        episode = episodes.episode(i)
        assert episode["next.reward"][-1] == 1.0
        assert episode["next.success"][-1]
        # The set-point changed by what was executed, which is not what is to be learned: that is without the noise.
        change = np.diff(episode[STATE][:, 8:], axis=0)
        np.testing.assert_allclose(change, episode["action.executed"][:-1], atol=1e-6)
        assert 0.002 < np.std(change - episode["action"][:-1]) < 0.008
