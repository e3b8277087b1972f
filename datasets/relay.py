"""The relay kitchen demonstrations as arrays (Gupta et al. 2019; layout of play-to-policy, Cui et al. 2022).

    observations_seq.npy   [T, N, 60], of which the first 30 columns are positions of the arm and of the kitchen
    actions_seq.npy        [T, N, 9], joint velocities as shares of 2 rad/s
    existence_mask.npy     [T, N], ones where trajectory n has a step, then zeros

Time is the first axis. 12.5 Hz is the rate of the kitchen that was demonstrated in.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from robopolicy.datasets.npy import map_npy
from robopolicy.datasets.source import Source
from robopolicy.errors import DataError
from robopolicy.features import ACTION, Feature, FeatureSpec

STATE = "observation.state"
FILES = {STATE: "observations_seq.npy", ACTION: "actions_seq.npy"}
MASK = "existence_mask.npy"
RATE_HZ = 12.5
FEATURES = FeatureSpec((Feature(STATE, (30,)), Feature(ACTION, (9,), kind="action")), RATE_HZ)


def is_relay(path: Path) -> bool:
    return path.is_dir() and all((path / name).is_file() for name in (*FILES.values(), MASK))


class RelaySource(Source):
    """The arrays as memory maps; an episode is copied when it is asked for."""

    format = "relay"

    def __init__(self, path: Path) -> None:
        mask = np.asarray(map_npy(path / MASK))
        if mask.ndim != 2 or mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
            raise DataError(f"{path / MASK}: expected zeros and ones [T, N], found {mask.dtype} {list(mask.shape)}")
        lengths = mask.astype(np.int64).sum(axis=0)
        gaps = np.flatnonzero((mask != (np.arange(len(mask))[:, None] < lengths)).any(axis=0))
        if len(gaps):
            raise DataError(f"{path / MASK}: the steps of trajectory {gaps[0]} are not its first {lengths[gaps[0]]}")
        self._arrays = {key: map_npy(path / name) for key, name in FILES.items()}
        for key, array in self._arrays.items():
            width = FEATURES[key].shape[0]
            enough = array.ndim == 3 and (array.shape[2] >= width if key == STATE else array.shape[2] == width)
            if not enough or array.shape[:2] != mask.shape or array.dtype.kind != "f":
                raise DataError(
                    f"{path / FILES[key]}: expected floats {[*mask.shape, width]}, as many steps and trajectories as "
                    f"{MASK}, found {array.dtype} {list(array.shape)}"
                )
        super().__init__(path, FEATURES, lengths)

    def read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        length = int(self.lengths[episode])
        return {
            key: np.array(self._arrays[key][:length, episode, : self.features[key].shape[0]], dtype=np.float32)
            for key in keys
        }
