from pathlib import Path

import numpy as np
import pytest
from dataset_files import FEATURES, LENGTHS, make_arrays, pusht_arrays, write_replay_buffer

from robopolicy.datasets.episodes import Episodes


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is left in the cache of the user who runs the tests."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ROBOPOLICY_CACHE", str(folder))
    return folder


@pytest.fixture
def memory() -> Episodes:
    arrays, ends = make_arrays()
    return Episodes(arrays, ends, FEATURES, Path("memory"), "episodes")


@pytest.fixture
def replay_buffer(tmp_path: Path) -> Path:
    return write_replay_buffer(tmp_path / "demo.zarr", pusht_arrays(), np.cumsum(LENGTHS))
