"""Relay kitchen arrays, made here in the published layout: time first, 60 observation columns, a mask."""

from pathlib import Path

import numpy as np
import pytest

from robopolicy.datasets.convert import convert
from robopolicy.datasets.detect import dataset_format, open_dataset
from robopolicy.errors import DataError

LENGTHS = (5, 3, 7)


@pytest.fixture
def relay(tmp_path: Path) -> Path:
    folder = tmp_path / "relay"
    folder.mkdir()
    # Value: trajectory, step and column can be read off, and is nonsense where no step exists.
    time, n, column = np.meshgrid(np.arange(9), np.arange(3), np.arange(60), indexing="ij")
    exists = np.arange(9)[:, None] < np.array(LENGTHS)
    observations = np.where(exists[..., None], 10_000 * n + 100 * time + column, np.nan)
    np.save(folder / "observations_seq.npy", observations)
    np.save(folder / "actions_seq.npy", np.where(exists[..., None], -observations[..., :9], 0.0))
    np.save(folder / "existence_mask.npy", exists.astype(np.float64))
    return folder


def test_trajectories_are_cut_at_their_masks_and_only_the_first_columns_are_states(relay: Path) -> None:
    assert dataset_format(relay) == "relay"
    episodes = open_dataset(relay)
    assert episodes.lengths.tolist() == list(LENGTHS)
    assert episodes.features.rate_hz == 12.5
    for i, length in enumerate(LENGTHS):
        episode = episodes.episode(i)
        expected = 10_000 * i + 100 * np.arange(length)[:, None] + np.arange(30)
        np.testing.assert_array_equal(episode["observation.state"], expected.astype(np.float32))
        np.testing.assert_array_equal(episode["action"], -expected[:, :9])


def test_they_become_an_episode_store(relay: Path, tmp_path: Path) -> None:
    convert([relay], tmp_path / "store", "episodes")
    store = open_dataset(tmp_path / "store")
    assert store.format == "episodes"
    for key, array in open_dataset(relay).arrays.items():
        np.testing.assert_array_equal(store.arrays[key], array)


def test_the_features_fit_the_kitchen_task(relay: Path) -> None:
    from robopolicy.sim.kitchen import Kitchen

    wanted = Kitchen.features
    recorded = wanted.select(["observation.state", "action"])
    recorded.require(open_dataset(relay).features, "task", "dataset")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("existence_mask.npy", lambda m: m.T, "trajectory 3 are not its first 2"),
        ("existence_mask.npy", lambda m: m * 2, "expected zeros and ones"),
        ("existence_mask.npy", lambda m: m[::-1], "trajectory 0 are not its first 5"),
        ("actions_seq.npy", lambda a: a[..., :8], r"actions_seq.npy: expected floats \[9, 3, 9\]"),
        ("observations_seq.npy", lambda o: o[..., :20], r"observations_seq.npy: expected floats \[9, 3, 30\]"),
        ("observations_seq.npy", lambda o: o[:, :2], "as many steps and trajectories"),
    ],
)
def test_arrays_that_disagree_are_refused(relay: Path, file, change, message) -> None:
    np.save(relay / file, np.ascontiguousarray(change(np.load(relay / file))))
    with pytest.raises(DataError, match=message):
        open_dataset(relay)


def test_a_truncated_file_is_refused(relay: Path) -> None:
    file = relay / "actions_seq.npy"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"actions_seq\.npy"):
        open_dataset(relay)
