"""Terrains: published sizes, levels, the curriculum's rule, and that the physics stands on the heights we compute."""

import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.sim.quadruped.terrain import CELL, FIELD, KINDS, LEVELS, POINTS, SPAN, Ground, next_levels, tile


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_are_level_in_the_middle_and_fit(kind) -> None:
    for level in (0, 9):
        heights = tile(kind, level, np.random.default_rng(0))
        assert heights.shape == (POINTS, POINTS)
        assert heights[POINTS // 2, POINTS // 2] == 0
        assert np.abs(heights).max() < SPAN / 2


def test_sizes_are_the_published_ones() -> None:
    rng = np.random.default_rng(0)
    middle, metre = POINTS // 2, round(1 / CELL)
    stairs = tile("stairs_up", 5, rng)[middle, middle:]
    assert np.unique(np.round(np.diff(np.unique(stairs)), 5)).tolist() == [pytest.approx(0.05 + 0.18 * 0.5)]
    edges = np.flatnonzero(np.diff(stairs)) * CELL
    np.testing.assert_allclose(np.diff(edges), 0.3, atol=1e-9)
    assert tile("stairs_down", 5, rng)[middle, -1] == pytest.approx(-stairs[-1])
    slope = tile("slope", 5, rng)[middle, middle:]
    assert abs(slope[3 * metre] - slope[2 * metre]) == pytest.approx(0.4 * 0.5)
    flat = tile("slope", 0, rng)
    assert (flat == 0).all()
    rough = tile("rough", 0, rng)
    assert 0.009 < np.abs(rough).max() <= 0.02
    blocks = tile("blocks", 9, rng)
    assert np.abs(blocks).max() == pytest.approx(0.05 + 0.09)


def test_levels_out_of_range_and_unknown_terrains_are_named() -> None:
    with pytest.raises(RobopolicyError, match=r"terrain level 10 is outside 0\.\.9"):
        tile("slope", 10, np.random.default_rng(0))
    with pytest.raises(RobopolicyError, match="terrain level -1"):
        tile("slope", -1, np.random.default_rng(0))
    with pytest.raises(RobopolicyError, match="unknown terrain 'stair'"):
        Ground("stair", 4, 0)


def test_curriculum_by_hand() -> None:
    levels = np.array([0, 0, 5, 5, 5, 9])
    travelled = np.array([4.5, 0.1, 4.1, 3.0, 3.0, 5.0])
    commanded = np.array([9.0, 9.0, 9.0, 5.0, 9.0, 9.0])
    after = next_levels(levels, travelled, commanded, np.random.default_rng(0))
    assert after[:5].tolist() == [1, 0, 6, 5, 4]
    drawn = next_levels(np.full(500, 9), np.full(500, 5.0), np.zeros(500), np.random.default_rng(0))
    assert set(drawn) == set(range(LEVELS))


def test_shares_of_the_mixture() -> None:
    ground = Ground("mixed", 100, 0)
    assert np.bincount(ground.kinds).tolist() == [10, 20, 30, 30, 10]
    assert Ground("mixed", 1, 0).kinds.tolist() == [2]
    assert np.bincount(Ground("stairs", 7, 0).kinds).sum() == 7


def test_heights_below_points() -> None:
    ground = Ground("stairs", 2, 0)
    ground.levels[:] = 2
    for i in range(2):
        ground.lay(i)
    x = np.array([[0.0, 1.15, 1.45, 100.0]] * 2)
    rise = 0.05 + 0.036
    top = rise * np.ceil((FIELD / 2 - 1 - CELL / 2) / 0.3)
    found = ground.under(np.arange(2), x, np.zeros((2, 4)))
    np.testing.assert_allclose(found[0], [0, rise, 2 * rise, top], atol=1e-5)
    np.testing.assert_allclose(found[1], -found[0], atol=1e-6)


def test_a_ball_lands_on_the_height_we_compute() -> None:
    """Rows are along y: a transposed field would put the ball elsewhere."""
    import mujoco

    heights = np.zeros((POINTS, POINTS), np.float32)
    heights[POINTS // 2 + 20 :, :] = 0.7
    xml = f"""<mujoco><asset><hfield name="ground" nrow="{POINTS}" ncol="{POINTS}"
      size="{FIELD / 2} {FIELD / 2} {SPAN} 0.5"/></asset><worldbody>
      <geom type="hfield" hfield="ground" pos="0 0 {-SPAN / 2}"/>
      <body pos="0.3 2 1"><freejoint/><geom size="0.1" mass="1"/></body></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    model.hfield_data[:] = (heights.ravel() + SPAN / 2) / SPAN
    data = mujoco.MjData(model)
    for _ in range(800):
        mujoco.mj_step(model, data)
    assert data.qpos[2] == pytest.approx(0.8, abs=0.01)
