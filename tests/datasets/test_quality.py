"""Quality scores: hand-computed numbers, and a corrupted episode that comes out last."""

import json

import numpy as np
import pytest
from dataset_files import without_checksums
from mixed import write_mixed
from recordings import arm_features, smooth, write

from robopolicy.cli import main
from robopolicy.datasets import quality
from robopolicy.datasets.detect import open_source
from robopolicy.datasets.quality import assess, foreign_neighbours, half_squared_difference
from robopolicy.errors import DataError, RobopolicyError


def demonstrator(seed, n=60, noise=0.0):
    """Actions that are a function of the state, plus noise."""
    rng = np.random.default_rng(seed)
    state = smooth(rng, n, 2)
    action = np.stack([np.sin(2 * state[:, 0]), state[:, 0] * state[:, 1]], axis=1) + noise * rng.normal(size=(n, 2))
    return {"observation.state": state.astype(np.float32), "action": action.astype(np.float32)}


def demonstrations(bad=4, n=8):
    episodes = [demonstrator(seed) for seed in range(n)]
    random = np.random.default_rng(99).uniform(-1, 1, episodes[bad]["action"].shape)
    episodes[bad]["action"] = random.astype(np.float32)
    return episodes


def scores(path, **options):
    with open_source(path) as source:
        return assess(source, progress=False, **options)


def test_the_corrupted_episode_is_worst(tmp_path):
    found = scores(write(tmp_path / "d", arm_features(None), demonstrations()))
    assert found.ranking()[-1].episode == 4
    others = [e.divergence for e in found.episodes if e.episode != 4]
    assert found.episodes[4].divergence > 3 * max(others)
    assert found.best(0.8) == [0, 1, 2, 3, 5, 6, 7]
    assert 4 not in found.best(0.5)


def test_divergence_is_the_share_of_variance_that_the_state_does_not_explain(tmp_path):
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(20):
        state = rng.uniform(-1, 1, (200, 2))
        action = np.column_stack([state[:, 0] + rng.normal(size=200) * np.sqrt(1 / 3), rng.normal(size=200)])
        episodes.append({"observation.state": state.astype(np.float32), "action": action.astype(np.float32)})
    found = scores(write(tmp_path / "d", arm_features(None), episodes))
    # Half of the variance of the first number (1/3 of 2/3) and all of that of the second.
    assert np.mean([e.divergence for e in found.episodes]) == pytest.approx(0.75, abs=0.03)


def test_by_hand(tmp_path):
    # Two episodes of two steps; the nearest foreign neighbour of a step is its counterpart.
    first = {"observation.state": [[0.0, 5.0], [10.0, 5.0]], "action": [[0.0, 7.0], [2.0, 7.0]]}
    second = {"observation.state": [[1.0, 5.0], [9.0, 5.0]], "action": [[0.0, 7.0], [4.0, 7.0]]}
    episodes = [{k: np.array(v, np.float32) for k, v in e.items()} for e in (first, second)]
    found = scores(write(tmp_path / "d", arm_features(None), episodes), neighbours=1)
    # The second dimensions never change and drop out. The actions 0, 2, 0, 4 have variance 11 / 4; those of the
    # counterparts differ by 0 and 2, so half the squared difference is 0 and 2 * 4 / 11.
    assert [e.divergence for e in found.episodes] == pytest.approx([4 / 11] * 2)
    # The changes 10 and 8 are one standard deviation to either side of their mean: (1 + 1)^2 / 2.
    assert [e.diversity for e in found.episodes] == pytest.approx([2.0, 2.0])
    # The states 0, 10, 1, 9 have variance (25 + 25 + 16 + 16) / 4.
    assert [e.novelty for e in found.episodes] == pytest.approx([1 / np.sqrt(20.5)] * 2)


def test_neighbours_come_from_other_episodes():
    table = np.array([[0.0], [0.1], [0.2], [5.0], [6.0], [9.0]])
    owner = np.array([0, 0, 0, 1, 1, 2])
    near, distance = foreign_neighbours(table, owner, 2)
    np.testing.assert_array_equal(near, [[3, 4], [3, 4], [3, 4], [5, 2], [5, 2], [4, 3]])
    np.testing.assert_allclose(distance[[0, 5]], [5.5, 3.5])
    near, _ = foreign_neighbours(table[:3], owner[:3], 2)
    np.testing.assert_array_equal(near, -1)
    assert np.isnan(half_squared_difference(table[:3], near)).all()


def test_neighbours_are_found_behind_a_crowd_of_own_steps():
    rng = np.random.default_rng(0)
    table = np.concatenate([rng.normal(size=(500, 2)) * 0.01, [[3.0, 0.0], [0.0, 4.0]]])
    owner = np.array([0] * 500 + [1, 2])
    near, _ = foreign_neighbours(table, owner, 1)
    assert (near[:500, 0] == 500).all()


def test_diversity_grows_with_what_follows(tmp_path):
    episodes = [demonstrator(seed) for seed in range(8)]
    rng = np.random.default_rng(1)
    for episode in episodes[:3]:
        episode["observation.state"] += (0.05 * rng.normal(size=(60, 2))).astype(np.float32)
    found = scores(write(tmp_path / "d", arm_features(None), episodes))
    assert {e.episode for e in found.ranking("diversity")[:3]} == {0, 1, 2}


def test_large_datasets_are_thinned_with_a_seed(tmp_path, monkeypatch):
    path = write(
        tmp_path / "d", arm_features(None), [*demonstrations(), {k: v[:1] for k, v in demonstrator(9).items()}]
    )
    assert scores(path).steps_used == 481
    monkeypatch.setattr(quality, "MAX_STEPS", 240)
    thin = scores(path, seed=1)
    assert thin.steps_used == 8 * 30 + 1
    assert thin.to_dict() == scores(path, seed=1).to_dict()
    assert thin.episodes != scores(path, seed=2).episodes
    assert thin.ranking()[-1].episode == 4
    assert np.isnan(thin.episodes[8].diversity)


def test_many_dimensions_are_reduced(tmp_path):
    # Twenty copies of a state are searched in fewer dimensions with the same neighbours.
    narrow = np.random.default_rng(0).normal(size=(50, 2))
    wide = quality._reduced(np.tile(narrow, (1, 20)))
    assert wide.shape == (50, quality.PRINCIPAL)
    pairs = lambda table: np.linalg.norm(table[:, None] - table[None], axis=2)  # noqa: E731
    np.testing.assert_allclose(pairs(wide), pairs(quality._reduced(narrow)), atol=1e-6)


def test_mixed_dataset_with_every_kind_of_key(tmp_path):
    found = scores(write_mixed(tmp_path / "d"))
    assert [e.steps for e in found.episodes] == [7, 1, 12, 5]
    assert all(np.isfinite(e.divergence) for e in found.episodes)


def test_what_cannot_be_scored_says_so(tmp_path):
    one = write(tmp_path / "one", arm_features(None), demonstrations()[:1])
    with pytest.raises(DataError, match="found one"):
        scores(one)
    still = [e | {"action": np.zeros_like(e["action"])} for e in demonstrations()]
    with pytest.raises(DataError, match="never change"):
        scores(write(tmp_path / "still", arm_features(None), still))
    path = write(tmp_path / "nan", arm_features(None), demonstrations())
    without_checksums(path)
    values = np.load(path / "action.npy", mmap_mode="r+")
    values[65, 0] = np.nan
    values.flush()
    with pytest.raises(DataError, match="episode 1, step 5: key 'action' holds no usable number"):
        scores(path)
    with pytest.raises(RobopolicyError, match=r"--keep 1\.5"):
        scores(write(tmp_path / "good", arm_features(None), demonstrations())).best(1.5)


def test_command_line_writes_the_best_episodes_and_a_picture(tmp_path, capsys):
    episodes = demonstrations()
    path = str(write(tmp_path / "d", arm_features(None), episodes))
    out, plot = tmp_path / "best", tmp_path / "q.html"
    assert main(["data", "quality", path, "--keep", "0.8", "-o", str(out), "--plot", str(plot)]) == 0
    assert "dropped" in capsys.readouterr().out
    with open_source(out) as kept:
        assert kept.n_episodes == 7
        np.testing.assert_array_equal(kept.read(4, ["action"])["action"], episodes[5]["action"])
    assert "data:image/png;base64," in plot.read_text()
    assert main(["data", "quality", path, "--json", "--plot", str(tmp_path / "q.png")]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["kept"] is None
    assert len(data["episodes"]) == 8
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    for flags, message in (
        (["--output", str(tmp_path / "x")], "--output needs --keep"),
        (["--keep", "0", "--output", str(tmp_path / "x")], "--keep 0: expected a share"),
        (["--keep", "0.5", "--output", str(out)], "already exists"),
        (["--plot", "q.pdf"], "ends in .png or .html"),
        (["--neighbours", "0"], "at least 1"),
    ):
        assert main(["data", "quality", path, *flags]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
