import numpy as np
import pytest
from evaluation_fakes import STATE, PointExpert, PointTask, start, straight_steps

from robopolicy.datasets.store import read_store
from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.record import DWELL_STEPS, record


def run(path, **options):
    return record(PointTask, PointExpert, path, **({"progress": False} | options))


def test_rows_pair_each_observation_with_the_action_taken_in_it(tmp_path):
    summary = run(tmp_path / "demos", episodes=4, seed=20)
    store = read_store(tmp_path / "demos")
    assert summary.episodes == store.n_episodes == 4
    assert summary.steps == store.n_steps
    good = [s for s in range(20, 40) if start(s) >= -0.7]
    for i, seed in enumerate(good[:4]):
        whole = store.episode(i)
        assert len(whole["action"]) == straight_steps(seed) + DWELL_STEPS
        # Held where it succeeded.
        assert whole["next.success"][-DWELL_STEPS:].all()
        np.testing.assert_array_equal(whole["action"][-DWELL_STEPS:], whole[STATE][-DWELL_STEPS:, :1])
        episode = {k: v[:-DWELL_STEPS] for k, v in whole.items()}
        # Before the action: the first row is the start, and the goal itself is not seen before the episode is held.
        np.testing.assert_allclose(
            episode[STATE][:, 0], start(seed) + 0.1 * np.arange(straight_steps(seed)), atol=1e-6
        )
        assert (episode["action"] == 0.5).all()
        assert episode["next.success"].tolist() == [False] * (straight_steps(seed) - 1) + [True]
        # After the action.
        assert episode["next.reward"][-1] == 1.0
        np.testing.assert_allclose(episode["next.reward"][:-1], 0.75 + episode[STATE][1:, 0] / 2, atol=1e-6)
    assert store.features.action == PointTask.features.action
    assert store.features.rate_hz == 10
    assert store.fingerprint == {"point": "1"}
    assert episode["observation.images.top"].dtype == np.uint8


def test_failures_are_replaced_by_the_next_seed_or_kept(tmp_path):
    assert [s for s in range(8) if start(s) < -0.7] == [2, 3]
    good = run(tmp_path / "good", episodes=6)
    assert (good.attempts, good.successes, good.episodes) == (8, 6, 6)
    every = run(tmp_path / "all", episodes=6, keep_failures=True)
    assert (every.attempts, every.successes, every.episodes) == (6, 4, 6)
    starts = [float(e[STATE][0, 0]) for e in map(read_store(tmp_path / "good").episode, range(6))]
    np.testing.assert_allclose(starts, [start(s) for s in (0, 1, 4, 5, 6, 7)], atol=1e-6)
    assert "6 of 8 attempts" in str(good)


def test_workers_do_not_change_the_content(tmp_path):
    for workers in (0, 2):
        run(tmp_path / str(workers), episodes=7, workers=workers, expert_options={"noise": 0.1})
    noise = read_store(tmp_path / "0").arrays["action"][:, 0] - 0.5
    lengths = read_store(tmp_path / "0").lengths
    drawn = np.concatenate([e[:-DWELL_STEPS] for e in np.split(noise, np.cumsum(lengths)[:-1])])
    assert len(np.unique(drawn)) == len(drawn)
    for file in (tmp_path / "0").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes()


class Perturbed(PointExpert):
    """Does something else than it means."""

    def act(self, task):
        self.intended = np.array([0.25])
        return super().act(task)


def test_what_an_expert_meant_is_recorded_and_what_it_did_is_executed(tmp_path):
    record(PointTask, lambda seed: Perturbed(seed), tmp_path / "demos", episodes=2, progress=False)
    episode = read_store(tmp_path / "demos").episode(0)
    assert (episode["action"][:-DWELL_STEPS] == 0.25).all()
    # The executed action goes to the goal at 0.5, where 0.25 alone would have stopped on the way.
    assert episode["next.success"][-1]


def test_images_can_be_left_out(tmp_path):
    run(tmp_path / "demos", episodes=2, images=False)
    assert "observation.images.top" not in read_store(tmp_path / "demos").features


def hopeless(seed):
    expert = PointExpert(seed)
    expert.reset = lambda: setattr(expert, "target", -1.0)
    return expert


def test_a_hopeless_expert_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(RobopolicyError, match="succeeded in 0 of 20 attempts at task 'point', 2 are wanted"):
        record(PointTask, hopeless, tmp_path / "demos", episodes=2, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_demonstrations_never_use_test_seeds(tmp_path):
    with pytest.raises(RobopolicyError, match="reach the test seeds, which begin at 100000"):
        run(tmp_path / "demos", episodes=5, seed=99_996)
    with pytest.raises(RobopolicyError, match="at least one episode"):
        run(tmp_path / "demos", episodes=0)
    with pytest.raises(RobopolicyError, match="has no scripted expert"):
        record(PointTask, "scripted", tmp_path / "demos", episodes=1, progress=False)
