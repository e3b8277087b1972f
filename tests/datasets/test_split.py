"""data split and data merge: which episodes go where."""

from pathlib import Path

import numpy as np
import pytest
from mixed import LENGTHS, mixed_episodes, write_mixed
from robomimic_files import write_robomimic

from robopolicy.cli import main
from robopolicy.datasets.convert import convert
from robopolicy.datasets.detect import open_source
from robopolicy.datasets.masks import join_masks
from robopolicy.datasets.split import by_fractions, by_range, split
from robopolicy.errors import DataError, RobopolicyError


def test_fractions_are_disjoint_complete_and_repeatable() -> None:
    parts = by_fractions(206, [0.9, 0.1], 0)
    assert [len(p) for p in parts] == [185, 21]
    assert sorted([*parts[0], *parts[1]]) == list(range(206))
    assert all(p == sorted(p) for p in parts)
    assert parts == by_fractions(206, [0.9, 0.1], 0)
    assert parts != by_fractions(206, [0.9, 0.1], 1)
    # Three thirds of ten: nothing is lost to rounding.
    assert sorted(map(len, by_fractions(10, [1 / 3] * 3, 0))) == [3, 3, 4]
    assert len(by_fractions(10, [0.2], 0)[0]) == 2


@pytest.mark.parametrize("fractions", [[0.5, 0.6], [0.0, 1.0], [-0.1], [float("nan")], [1.5]])
def test_wrong_fractions(fractions: list[float]) -> None:
    with pytest.raises(RobopolicyError, match="should be above 0 and add up to 1 at most"):
        by_fractions(10, fractions, 0)


def test_a_fraction_of_no_episode() -> None:
    with pytest.raises(RobopolicyError, match=r"fraction 0.01 of 10 episodes is none"):
        by_fractions(10, [0.99, 0.01], 0)


def test_ranges() -> None:
    assert by_range(10, "0:3") == [0, 1, 2]
    assert by_range(10, "8:") == [8, 9]
    assert by_range(10, ":2") == [0, 1]
    assert by_range(10, "7") == [7]
    assert by_range(10, "7, 1:3,2") == [7, 1, 2]
    for text in ("", ":", "a", "3:3", "4:2", "0:11", "10", "1:2:3", "-1", "1:2,,3"):
        with pytest.raises(RobopolicyError, match="episodes"):
            by_range(10, text)


def test_masks_follow_their_episodes() -> None:
    first, second = {"train": [0, 2, 3], "valid": [1]}, {"train": [0], "test": [1]}
    # Episodes 3 and 1 of the first become 0 and 1, both of the second 2 and 3.
    assert join_masks([(first, [3, 1]), (second, [0, 1])]) == {"train": [0, 2], "valid": [1], "test": [3]}
    assert join_masks([(first, [1])]) == {"valid": [0]}


def test_split_by_mask_and_merge_again(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5")
    train, valid = tmp_path / "train.hdf5", tmp_path / "valid.hdf5"
    done = split(path, [train, valid], masks=["train", "valid"], progress=False)
    assert [d.n_episodes for d in done] == [2, 1]
    with open_source(path) as whole, open_source(train) as part:
        assert part.format == "robomimic"
        assert part.lengths.tolist() == [4, 5]
        assert part.metadata["masks"] == {"train": [0, 1]}
        assert part.attributes(1) == whole.attributes(2)
        np.testing.assert_array_equal(part.read(1, ["action"])["action"], whole.read(2, ["action"])["action"])
    convert([valid, train], tmp_path / "again", "episodes", progress=False)
    with open_source(tmp_path / "again") as again:
        assert again.lengths.tolist() == [3, 4, 5]
        assert again.metadata["masks"] == {"train": [1, 2], "valid": [0]}
        assert again.metadata["env_args"]["env_name"] == "Lift"


def test_what_a_split_refuses(tmp_path: Path) -> None:
    path, a, b = write_robomimic(tmp_path / "demo.hdf5"), tmp_path / "a", tmp_path / "b"
    with pytest.raises(DataError, match=r"no mask 'trian'. Did you mean 'train'\?"):
        split(path, [a], masks=["trian"])
    with pytest.raises(RobopolicyError, match="one of fractions, episodes and masks, found none"):
        split(path, [a])
    with pytest.raises(RobopolicyError, match="one of fractions, episodes and masks, found"):
        split(path, [a], masks=["train"], episodes=["1"])
    with pytest.raises(RobopolicyError, match="2 parts need as many different outputs"):
        split(path, [a], fractions=[0.5, 0.5])
    with pytest.raises(RobopolicyError, match="2 parts need as many different outputs"):
        split(path, [a, a], fractions=[0.5, 0.5])
    b.mkdir()
    with pytest.raises(DataError, match="b: already exists"):
        split(path, [a, b], fractions=[0.5, 0.5])
    assert not a.exists()


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, a, b = write_mixed(tmp_path / "store"), tmp_path / "a", tmp_path / "b"
    assert main(["data", "split", str(path), "--episodes", "0:3", "3", "--output", str(a), str(b)]) == 0
    assert f"{a}: 3 episodes, {sum(LENGTHS[:3])} steps" in capsys.readouterr().out
    assert main(["data", "merge", str(b), str(a), "-o", str(tmp_path / "c")]) == 0
    with open_source(tmp_path / "c") as merged:
        assert merged.format == "episodes"
        assert merged.lengths.tolist() == [5, 7, 1, 12]
        np.testing.assert_array_equal(merged.read(0, ["action"])["action"], mixed_episodes()[3]["action"])
    assert main(["data", "merge", str(a), "-o", str(tmp_path / "d")]) == 2
    assert main(["data", "split", str(path), "-o", str(tmp_path / "d")]) == 2
    assert "one of fractions, episodes and masks" in capsys.readouterr().err
