"""Locomotion evaluation: pushes as stated and paired, falls counted once, ratios by hand, a page from real trials."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.configs import to_dict
from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.locomotion import (
    GRAVITY,
    Locomotion,
    Point,
    Protocol,
    Walk,
    continuous,
    measure,
    ratio,
    sudden,
    transport,
    trial_config,
    walk,
)
from robopolicy.evaluation.locomotion_report import as_json, build_page, charts, picture
from robopolicy.evaluation.statistics import Interval
from robopolicy.rl.actor import deployed
from robopolicy.rl.nets import GaussianActor, NetConfig
from robopolicy.rl.normalise import RunningNormaliser
from robopolicy.sim.quadruped.config import NoiseConfig, QuadrupedConfig, RandomisationConfig
from robopolicy.sim.quadruped.kinematics import into_world, level_into_base
from robopolicy.training import checkpoint

A1 = QuadrupedConfig(robot="a1", noise=NoiseConfig.none(), randomisation=RandomisationConfig.none(), threads=1)
NOTHING = Interval(0.0, 0.0, 0.0)


def stand(observation: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(observation), 12)


def test_pushes_are_what_they_say() -> None:
    push = sudden(50, 40.0, 3)
    forces = torch.stack([push(step, torch.empty(0)) for step in range(200)])
    norms = forces.norm(dim=2)
    assert torch.isin(norms.round(decimals=3), torch.tensor([0.0, 40.0])).all()
    assert ((norms > 0).sum(dim=0) == 10).all(), "0.2 s at 50 Hz"
    first = (norms > 0).int().argmax(dim=0)
    assert first.min() >= 75
    assert first.max() <= 100
    assert len(first.unique()) > 5
    assert (forces[:, :, 2] == 0).all()
    stronger = sudden(50, 80.0, 3)
    torch.testing.assert_close(stronger(90, torch.empty(0)), 2 * push(90, torch.empty(0)))
    lasting = continuous(50, 40.0, 3)
    assert (lasting(49, torch.empty(0)) == 0).all()
    torch.testing.assert_close(lasting(60, torch.empty(0)), lasting(79, torch.empty(0)))
    assert not torch.allclose(lasting(79, torch.empty(0)), lasting(80, torch.empty(0)))
    torch.testing.assert_close(lasting(299, torch.empty(0)).norm(dim=1), torch.full((50,), 40.0))


def test_a_standing_robot_by_hand() -> None:
    """It does not follow the command, loses exactly what that costs, and falls under a push of its weight."""
    env = trial_config(A1, 0.5, 3.0, 0).make(6)
    calm = walk(env, stand, 3.0, 0)
    assert calm.survived.all()
    np.testing.assert_allclose(calm.forward_error, 0.5, atol=0.02)
    # exp(-0.5^2 / 0.25) of the first term is left and all of the second, of 1 + 0.5.
    np.testing.assert_allclose(calm.cost, 1 - (np.exp(-1) + 0.5) / 1.5, atol=0.02)
    assert (calm.force == 0).all()
    weight = env.robot.mass * GRAVITY
    pushed = walk(env, stand, 3.0, 0, sudden(6, 1.5 * weight, 0))
    assert pushed.survived.sum() <= 2
    assert (pushed.cost > calm.cost - 0.02).all()
    again = walk(env, stand, 3.0, 0)
    np.testing.assert_array_equal(again.cost, calm.cost)
    env.close()


def test_a_fall_costs_everything_from_then_on() -> None:
    env = trial_config(A1, 0.5, 3.0, 0).make(4)
    weight = env.robot.mass * GRAVITY
    fallen = walk(env, stand, 3.0, 0, sudden(4, 2 * weight, 0))
    long = walk(env, stand, 5.0, 0, sudden(4, 2 * weight, 0))
    assert not fallen.survived.any()
    share = 1 - fallen.cost
    np.testing.assert_allclose(1 - long.cost, share * 150 / 250, atol=1e-9)
    # The average force ends with the fall.
    np.testing.assert_allclose(long.force, fallen.force)
    env.close()


def test_cost_per_newton_divides_sums() -> None:
    found = ratio(np.array([1.0, 3.0]), np.array([10.0, 10.0]))
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.3)


def test_area_by_hand() -> None:
    points = [
        Point("sudden", 0.0, (True, True), NOTHING),
        Point("sudden", 10.0, (True, False), NOTHING),
        Point("sudden", 30.0, (False, False), NOTHING),
    ]
    found = Locomotion("a1", 0.5, 2, NOTHING, NOTHING, NOTHING, NOTHING, sudden=points)
    # The first robot: 10 N full, 20 N sloping to zero; the second half of the first 10 N.
    assert found.area(points).value == pytest.approx(((10 + 10) + 5) / 2 / 30)
    assert found.area(points[:1]) is None
    assert points[1].survival.value == 0.5


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Protocol(episodes=1), "--episodes 1"),
        (Protocol(speed=-1.0), "--speed -1"),
        (Protocol(sudden=(0.0, 300.0)), "--sudden 300: expected 0 to 244 N, twice the robot's weight"),
        (Protocol(terrains=("lava",)), "unknown terrain 'lava'"),
        (Protocol(levels=(10,)), "--levels 10: terrain levels are 0 to 9"),
        (Protocol(sudden=(50.0, 50.0)), "--sudden: one strength is given twice"),
        (Protocol(adversary_iterations=-1), "--adversary-iterations -1"),
        (Protocol(adversary_force=500.0), "--adversary-force 500: expected 0 or more, and 0 to 244 N"),
    ],
)
def test_mistakes_are_named_before_anything_runs(protocol, message) -> None:
    with pytest.raises(RobopolicyError, match=message):
        measure(A1, stand, protocol)


def test_a_whole_evaluation_of_a_standing_robot(tmp_path: Path) -> None:
    protocol = Protocol(2, 0.5, (0.0, 200.0), (0.0,), ("slope",), (0,), adversary_iterations=1)
    found = measure(A1, stand, protocol, eta=0.01)
    rates = [p.survival.value for p in found.sudden]
    assert rates == [1.0, 0.0]
    assert found.area(found.sudden).value == pytest.approx(0.5)
    assert found.adversary["max_force"] == 50.0
    assert found.adversary["eta"] == 0.01
    assert [p.name for p in found.terrain] == ["slope"]
    plain = json.loads(json.dumps(as_json(found)))
    assert plain["survival_auc"]["sudden"]["value"] == pytest.approx(0.5)
    assert plain["sudden"][1]["survived"] == [False, False]
    assert set(charts(found)) == {"survival.png", "tracking.png", "terrain.png"}
    for heading, _, draw in charts(found).values():
        assert picture(draw, heading).startswith(b"\x89PNG")
    text = build_page(found, "run <1>", b"video", {"command": "x & y"})
    assert "run &lt;1&gt;" in text
    assert "x &amp; y" in text
    assert text.count('<img class="chart"') == 3


def test_command_needs_a_quadruped(tmp_path: Path, capsys) -> None:
    from robopolicy.cli import main

    env = A1.make(1)
    env.reset(0)
    net = NetConfig(hidden=(8,))
    policy = deployed(env, net, GaussianActor(45, 12, net).network.state_dict(), RunningNormaliser(45))
    golden = {"observation.state": env.observe()["policy"][:1, None]}
    checkpoint.save(tmp_path / "c", policy, "pointmass", golden, {"environment": {"kind": "pointmass"}})
    assert main(["eval-locomotion", str(tmp_path / "c"), "--output", str(tmp_path / "o")]) == 2
    assert "needs one of a quadruped" in capsys.readouterr().err
    checkpoint.save(tmp_path / "q", policy, "quadruped", golden, {"environment": to_dict(A1)})
    arguments = "--episodes 2 --sudden 0 --continuous 0 --terrains --levels --adversary-iterations 0 --no-video"
    target = tmp_path / "o"
    assert main(["eval-locomotion", str(tmp_path / "q"), "--output", str(target), *arguments.split()]) == 0
    assert {"locomotion.json", "report.html", "survival.png"} <= {p.name for p in target.iterdir()}


def test_level_forces_stay_horizontal_when_the_trunk_tilts() -> None:
    """Turned by 90 degrees, then pitched by 30: forward is the world's y, and the base sees a part of it upwards."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    pitch = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
    rotation = (turn @ pitch)[None]
    base = level_into_base(rotation, np.array([[100.0, 0.0, 0.0]]))
    np.testing.assert_allclose(base, [[100 * c, 0.0, 100 * s]], atol=1e-9)
    np.testing.assert_allclose(into_world(rotation, base), [[0.0, 100.0, 0.0]], atol=1e-9)


def test_pushes_are_horizontal_in_the_world_whatever_the_trunk_does() -> None:
    env = trial_config(A1, 0.5, 3.0, 0).make(4)
    seen = []
    step = env.batch.step
    env.batch.step = lambda: (seen.append(env.batch.forces.copy()), step())  # type: ignore[func-returns-value]
    walk(env, stand, 2.5, 0, sudden(4, 60.0, 0))
    pushed = np.concatenate(seen)
    pushed = pushed[np.abs(pushed).max(axis=(1, 2)) > 0]
    np.testing.assert_allclose(pushed[..., 2], 0, atol=1e-4)
    np.testing.assert_allclose(np.hypot(pushed[..., 0], pushed[..., 1]), 60.0, rtol=1e-5)
    env.close()


def test_cost_of_transport_of_one_robot_that_stays_where_it_is() -> None:
    work, distance = np.array([1.0, 1.0, np.nan, 1.0]), np.array([2.0, 2.0, np.nan, 0.0])
    nothing = np.zeros(4)
    found = transport(Walk(nothing > 0, nothing, work, distance, nothing, nothing, 0))
    assert found.value == pytest.approx(3 / 4), "three of the four got beyond the first second"
    nobody = transport(Walk(nothing > 0, nothing, work[2:3], distance[2:3], nothing, nothing, 0))
    assert np.isnan(nobody.value)


def test_strengths_are_measured_in_order_and_kicks_are_off() -> None:
    kicked = dataclasses.replace(A1, randomisation=dataclasses.replace(RandomisationConfig.none(), kick=1.0))
    assert trial_config(kicked, 0.5, 3.0, 0).randomisation.kick == 0
    found = measure(A1, stand, Protocol(2, 0.5, (200.0, 0.0), (0.0,), (), (), adversary_iterations=0))
    assert [p.value for p in found.sudden] == [0.0, 200.0]
    assert found.area(found.sudden).value == pytest.approx(0.5)


def test_the_adversary_has_the_force_of_the_game_it_was_trained_in(tmp_path: Path) -> None:
    from robopolicy.commands.eval_locomotion import locomotion_policy

    env = A1.make(1)
    env.reset(0)
    net = NetConfig(hidden=(8,))
    policy = deployed(env, net, GaussianActor(45, 12, net).network.state_dict(), RunningNormaliser(45))
    golden = {"observation.state": env.observe()["policy"][:1, None]}
    path = tmp_path / "run" / "checkpoints" / "00000001"
    checkpoint.save(path, policy, "quadruped", golden, {"environment": to_dict(A1)})
    game = {"eta": 0.01, "constrained": True, "disturbance": "learned", "max_force": 25.0}
    (tmp_path / "run" / "train_config.json").write_text(json.dumps({"config": {"game": game}}))
    _, config, eta = locomotion_policy(path)
    assert (config.max_force, eta) == (25.0, 0.01)
