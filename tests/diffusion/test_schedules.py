import math

import pytest
import torch

from robopolicy.diffusion.schedules import SCHEDULES, karras, schedule
from robopolicy.errors import RobopolicyError


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("low", "high"), [(0.005, 1.0), (0.002, 80.0), (0.01, 2e4)])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 100])
def test_levels_fall_strictly_between_exact_ends_and_stop_at_zero(name, low, high, n):
    sigmas = schedule(name, n, low, high)
    assert sigmas.shape == (n + 1,)
    assert sigmas[0] == high
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    assert (sigmas.float().diff() < 0).all()
    if n > 1:
        assert sigmas[-2] == low


@pytest.mark.parametrize(
    ("name", "options", "middle"),
    [
        ("exponential", {}, 0.0707107),
        ("linear", {}, 0.5025),
        ("karras", {"rho": 5}, 0.1384),
        ("cosine", {}, math.tan((math.atan(1) + math.atan(0.005)) / 2)),
    ],
)
def test_three_steps_from_1_to_0005(name, options, middle):
    sigmas = schedule(name, 3, 0.005, 1.0, **options)
    torch.testing.assert_close(sigmas, torch.tensor([1, middle, 0.005, 0], dtype=torch.float64), atol=5e-5, rtol=0)


def test_vp_is_even_in_the_time_of_the_vp_process():
    sigmas = schedule("vp", 5, 0.01, 50.0)[:-1]
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    curve = (19.9 * t**2 / 2 + 0.1 * t).expm1().sqrt()
    times = t[torch.searchsorted(curve, sigmas)]
    torch.testing.assert_close(times.diff(), times.diff()[:1].expand(4), atol=3e-5, rtol=0)


def test_vp_on_its_published_range_is_the_published_schedule():
    end = math.sqrt(math.expm1(19.9 * 1e-6 / 2 + 0.1 * 1e-3))
    start = math.sqrt(math.expm1(19.9 / 2 + 0.1))
    t = torch.linspace(1, 1e-3, 7, dtype=torch.float64)
    torch.testing.assert_close(schedule("vp", 7, end, start)[:-1], (19.9 * t**2 / 2 + 0.1 * t).expm1().sqrt())


def test_karras_tends_to_exponential():
    torch.testing.assert_close(karras(20, 0.01, 10, rho=1e6), schedule("exponential", 20, 0.01, 10), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("n", "low", "high"), [(0, 0.1, 1.0), (3, 1.0, 1.0), (3, 0.0, 1.0), (3, 2.0, 1.0)])
def test_impossible_ranges_are_refused(n, low, high):
    with pytest.raises(RobopolicyError):
        schedule("karras", n, low, high)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(RobopolicyError, match="Did you mean 'exponential'"):
        schedule("exponental", 3, 0.1, 1.0)
