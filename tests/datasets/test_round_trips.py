"""Every format to every format: the mixed dataset comes back as it was."""

import json
from pathlib import Path

import numpy as np
import pytest
from mixed import FINGERPRINT, TASKS, mixed_episodes, mixed_features, write_mixed

from robopolicy.datasets.convert import convert
from robopolicy.datasets.detect import open_source, writable_formats
from robopolicy.datasets.source import Source

VIDEO = {"lerobot", "lerobot-v2.1"}
"""Formats that store images as video unless told otherwise."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def check_equal(source: Source, video: bool) -> None:
    expected = mixed_features()
    assert sorted(source.features.keys()) == sorted(expected.keys())
    assert source.features.rate_hz == expected.rate_hz
    for feature in expected:
        assert source.features[feature.key] == feature
    assert source.tasks == TASKS
    assert source.fingerprint == FINGERPRINT
    assert source.metadata["note"] == "made for tests"
    assert not source.notes
    episodes = mixed_episodes()
    assert source.lengths.tolist() == [len(e["action"]) for e in episodes]
    for number, wanted in enumerate(episodes):
        found = source.read(number, expected.keys())
        for feature in expected:
            a, b = wanted[feature.key], found[feature.key]
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            if feature.kind == "image" and video:
                assert psnr(a, b) >= 35, (number, feature.key)
            else:
                np.testing.assert_array_equal(a, b, err_msg=f"{number} {feature.key}")


@pytest.mark.parametrize("first", writable_formats())
def test_round_trip_from_every_format_to_every_other(first: str, tmp_path: Path) -> None:
    write_mixed(tmp_path / "start")
    convert([tmp_path / "start"], tmp_path / "first", first, progress=False)
    with open_source(tmp_path / "first") as source:
        check_equal(source, first in VIDEO)
    for second in writable_formats():
        done = convert([tmp_path / "first"], tmp_path / second, second, progress=False)
        assert not done.notes
        with open_source(tmp_path / second) as source:
            check_equal(source, bool({first, second} & VIDEO))


@pytest.mark.parametrize("name", sorted(VIDEO & set(writable_formats())))
def test_pictures_instead_of_video_are_exact(name: str, tmp_path: Path) -> None:
    write_mixed(tmp_path / "pictures", name, video=False)
    with open_source(tmp_path / "pictures") as source:
        check_equal(source, video=False)


@pytest.mark.parametrize("name", writable_formats())
def test_reading_backwards_and_twice_gives_the_same(name: str, tmp_path: Path) -> None:
    write_mixed(tmp_path / "d", name)
    with open_source(tmp_path / "d") as source:
        forward = [source.read(e, source.features.keys()) for e in range(source.n_episodes)]
        for e in [2, 2, 0, 3, 1]:
            again = source.read(e, source.features.keys())
            for key, values in forward[e].items():
                np.testing.assert_array_equal(again[key], values)


@pytest.mark.parametrize("name", writable_formats())
def test_converting_twice_gives_the_same_content(name: str, tmp_path: Path) -> None:
    write_mixed(tmp_path / "a", name)
    write_mixed(tmp_path / "b", name)
    with open_source(tmp_path / "a") as a, open_source(tmp_path / "b") as b:
        assert a.features.to_dict() == b.features.to_dict()
        assert json.dumps(a.metadata, sort_keys=True) == json.dumps(b.metadata, sort_keys=True)
        for e in range(a.n_episodes):
            ours, theirs = a.read(e, a.features.keys()), b.read(e, a.features.keys())
            for key, values in ours.items():
                np.testing.assert_array_equal(values, theirs[key])
