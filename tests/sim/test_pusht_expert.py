"""The scripted expert: closed-form mechanics by hand, and episodes that end well."""

import numpy as np
import pytest

from robopolicy.sim.pusht import PushTState
from robopolicy.sim.pusht_expert import PushTExpert, arc, block_distance


def _episode(seed: int, noise: float | None = None) -> tuple[float, bool, np.ndarray]:
    """Best coverage, success, and the actions of one episode."""
    task = PushTState()
    task.reset(seed=seed)
    expert = PushTExpert(seed=seed) if noise is None else PushTExpert(seed=seed, noise=noise)
    expert.reset()
    best, actions, done = 0.0, [], False
    while not done and len(actions) < task.max_steps:
        actions.append(expert.act(task))
        _, _, done, _, info = task.step(actions[-1])
        best = max(best, info["coverage"])
    return best, done, np.array(actions)


def test_distance_to_the_block_by_hand() -> None:
    # The T is a 120 x 30 bar over a 30 x 90 stem, its frame's origin in the middle of the bar's outer edge.
    points = np.array([0 - 10j, 60 + 15j, 70 + 15j, 0 + 15j, 63 + 34j, 0 + 130j])
    assert np.allclose(block_distance(points), [10, 0, 10, -15, 5, 10])


def test_a_push_is_an_arc() -> None:
    straight = arc(np.array([1j]), np.array([10.0]), np.array([0.0]))
    assert np.allclose(straight, [10j])
    # A quarter turn along an arc of length L has radius 2 L / pi; it ends at (r, r) from its start.
    length = 10.0
    radius = 2 * length / np.pi
    quarter = arc(np.array([1 + 0j]), np.array([length]), np.array([np.pi / 2]))
    assert np.allclose(quarter, [radius * (1 + 1j)])


def test_most_episodes_succeed_and_coverage_is_high() -> None:
    results = [_episode(seed) for seed in range(200_000, 200_012)]
    assert np.mean([r[0] for r in results]) >= 0.90
    assert sum(r[1] for r in results) >= 10


def test_actions_stay_in_the_window_and_are_functions_of_the_seed() -> None:
    first, again = _episode(200_003)[2], _episode(200_003)[2]
    assert np.array_equal(first, again)
    assert first.shape[1] == 2
    assert first.min() >= 0
    assert first.max() <= 512


def test_targets_stay_near_the_agent() -> None:
    """People move the target smoothly; a jump across the window could not be learned."""
    task = PushTState()
    task.reset(seed=200_004)
    expert = PushTExpert(seed=0, noise=0.0)
    expert.reset()
    for _ in range(60):
        action = expert.act(task)
        assert np.linalg.norm(action - task.agent_position) < 80
        if task.step(action)[2]:
            break


def test_doing_nothing_fails_where_the_expert_succeeds() -> None:
    task = PushTState()
    observation, _ = task.reset(seed=200_000)
    best = max(task.step(task.hold_action(observation))[4]["coverage"] for _ in range(50))
    assert best < 0.5 < _episode(200_000)[0]


@pytest.mark.parametrize("noise", [0.0])
def test_without_noise_the_expert_is_precise(noise: float) -> None:
    coverage, success, _ = _episode(200_005, noise)
    assert success
    assert coverage > 0.95
