"""Scaling: hand-computed maps, the constant rule, and errors instead of silence."""

import numpy as np
import pytest
import torch

from robopolicy.errors import CheckpointError, DataError, RobopolicyError
from robopolicy.features import Feature
from robopolicy.nn.normalizer import Normalizer

STATE = Feature("observation.state", (2,), low=(0, 0), high=(512, 256))
IMAGE = Feature("observation.images.top", (4, 4, 3), "uint8", "image")
VALUES = np.array([[0.0, 5.0], [10.0, 5.0], [5.0, 5.0]])


def _fitted(mode: str, values: np.ndarray = VALUES) -> Normalizer:
    normalizer = Normalizer((STATE, IMAGE))
    normalizer.fit(STATE.key, values, mode, STATE)  # type: ignore[arg-type]
    return normalizer


def test_min_max_maps_the_range_and_shifts_constants_to_zero() -> None:
    out = _fitted("min_max").normalize(STATE.key, torch.tensor([[0.0, 5.0], [10.0, 5.0], [7.5, 6.0]]))
    assert out.tolist() == [[-1.0, 0.0], [1.0, 0.0], [0.5, 1.0]]


def test_mean_std_and_bounds_and_identity() -> None:
    std = np.std([0, 10, 5])
    out = _fitted("mean_std").normalize(STATE.key, torch.tensor([10.0, 5.0]))
    assert torch.allclose(out, torch.tensor([5 / std, 0.0], dtype=torch.float32))
    assert _fitted("bounds").normalize(STATE.key, torch.tensor([512.0, 128.0])).tolist() == [1.0, 0.0]
    assert _fitted("identity").normalize(STATE.key, torch.tensor([3.0, 4.0])).tolist() == [3.0, 4.0]


def test_pose_scales_positions_only() -> None:
    names = ("robot0_x", "robot0_rot6d_0", "robot0_gripper", "robot1_z")
    action = Feature("action", (4,), kind="action", names=names)
    normalizer = Normalizer((action,))
    normalizer.fit("action", np.array([[0.0, 0.5, -1.0, 3.0], [0.2, 0.6, 1.0, 5.0]]), "pose", action)
    out = normalizer.normalize("action", torch.tensor([0.2, 0.6, 1.0, 4.0]))
    assert torch.allclose(out, torch.tensor([1.0, 0.6, 1.0, 0.0]), atol=1e-6)
    with pytest.raises(RobopolicyError, match=r"'observation\.state' has none"):
        _fitted("pose")


@pytest.mark.parametrize("mode", ["min_max", "mean_std", "bounds", "identity"])
def test_unnormalize_is_the_inverse(mode: str) -> None:
    normalizer = _fitted(mode)
    x = torch.tensor([[3.0, 4.0], [11.0, -2.0]])
    assert torch.allclose(normalizer.unnormalize(STATE.key, normalizer.normalize(STATE.key, x)), x, atol=1e-5)


def test_images_become_channel_first_floats() -> None:
    image = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    image[..., 0] = 255
    out = _fitted("min_max").normalize(IMAGE.key, image)
    assert out.shape == (2, 3, 4, 4)
    assert torch.equal(out[:, 0], torch.ones(2, 4, 4))
    assert torch.equal(out[:, 1:], -torch.ones(2, 2, 4, 4))


def test_missing_statistics_are_an_error_and_never_a_number() -> None:
    unfitted = Normalizer((STATE,))
    assert torch.isnan(unfitted.normalize(STATE.key, torch.ones(2))).all()
    with pytest.raises(CheckpointError, match=r"observation\.state"):
        unfitted.check()
    _fitted("min_max").check()


def test_bad_statistics_are_refused() -> None:
    with pytest.raises(DataError, match="NaN"):
        _fitted("min_max", np.array([[0.0, np.nan]]))
    with pytest.raises(RobopolicyError, match="needs low and high"):
        Normalizer((Feature("a", (1,)),)).fit("a", np.zeros((2, 1)), "bounds", Feature("a", (1,)))
    with pytest.raises(RobopolicyError, match="no key"):
        _fitted("min_max").normalize("observation.other", torch.ones(2))


def test_statistics_travel_in_the_state_dictionary() -> None:
    fresh = Normalizer((STATE, IMAGE))
    fresh.load_state_dict(_fitted("min_max").state_dict())
    x = torch.tensor([1.0, 2.0])
    assert torch.equal(fresh.normalize(STATE.key, x), _fitted("min_max").normalize(STATE.key, x))
