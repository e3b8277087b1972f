from pathlib import Path

import numpy as np
import pytest
from dataset_files import FEATURES, LENGTHS, make_arrays, pusht_arrays, write_replay_buffer

from robopolicy.datasets.episodes import Episodes


@pytest.fixture
def memory() -> Episodes:
    arrays, ends = make_arrays()
    return Episodes(arrays, ends, FEATURES, Path("memory"), "episodes")


@pytest.fixture
def replay_buffer(tmp_path: Path) -> Path:
    return write_replay_buffer(tmp_path / "demo.zarr", pusht_arrays(), np.cumsum(LENGTHS))
