"""The quadruped environment: costs, forces, falls, time-outs, failed physics, determinism, commands, observations."""

import dataclasses

import numpy as np
import pytest
import torch

from robopolicy.errors import RobopolicyError
from robopolicy.rl.vec import check_environment
from robopolicy.sim.quadruped import rewards as terms
from robopolicy.sim.quadruped.config import CommandConfig, NoiseConfig, QuadrupedConfig, RandomisationConfig
from robopolicy.sim.quadruped.env import QuadrupedEnv
from robopolicy.sim.quadruped.rewards import TERMS, RewardScales, Signals
from robopolicy.sim.quadruped.robots import CONTROL_DT, robot

N = 4


def make(n=N, **overrides) -> QuadrupedEnv:
    """Nominal A1s that start at rest in their default posture, unless `overrides` say otherwise."""
    plain = {
        "robot": "a1",
        "randomisation": RandomisationConfig.none(),
        "noise": NoiseConfig.none(),
        "joint_spread": (1.0, 1.0),
        "velocity_spread": 0.0,
        "staggered": False,
        "threads": 1,
    }
    env = QuadrupedConfig(**(plain | overrides)).make(n)
    env.reset(0)
    return env


def turned(state: np.ndarray, angle: float) -> np.ndarray:
    """The states [N, 38] turned about the world's vertical axis."""
    result = state.copy()
    half = np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
    w, x, y, z = state[:, 4:8].T
    a, d = half[0], half[3]
    result[:, 4:8] = np.stack([a * w - d * z, a * x - d * y, a * y + d * x, a * z + d * w], axis=1)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for columns in (slice(1, 3), slice(20, 22)):
        result[:, columns] = state[:, columns] @ matrix.T
    return result


def signals(n=3, **changes) -> Signals:
    zero = {f.name: np.zeros((n, 12)) for f in dataclasses.fields(Signals)}
    zero |= {name: np.zeros((n, 3)) for name in ("command", "velocity", "rate", "gravity")}
    zero |= {"foot_height": np.zeros((n, 4)), "foot_speed": np.zeros((n, 4)), "height": np.zeros(n)}
    zero["landed_after"] = np.zeros((n, 4))
    zero |= {"target_height": 0.3, "nominal_foot_height": -0.2}
    return Signals(**(zero | changes))


def test_reward_terms_by_hand() -> None:
    one = np.ones((1, 12))
    expected = {
        "linear_tracking": np.exp(-0.25 / 0.25),
        "yaw_tracking": np.exp(-1.0 / 0.25),
        "vertical_velocity": 4.0,
        "roll_pitch_rate": 5.0,
        "orientation": 0.25,
        "joint_acceleration": 12 * 9.0,
        "joint_power": 12 * 6.0,
        "base_height": 0.01,
        "foot_clearance": 4 * 0.01 * 2.0,
        "action_rate": 12.0,
        "smoothness": 12 * 4.0,
        "alive": 1.0,
        "air_time": (0.05 - 0.1) + (0.2 - 0.1) + (0.4 - 0.1),
    }
    s = signals(
        1,
        command=np.array([[0.5, 0.0, 1.0]]),
        velocity=np.array([[0.8, 0.4, 2.0]]),
        rate=np.array([[1.0, 2.0, 0.0]]),
        gravity=np.array([[0.3, -0.4, -0.9]]),
        height=np.array([0.2]),
        joint_velocity=-2 * one,
        joint_acceleration=3 * one,
        torque=3 * one,
        foot_height=np.full((1, 4), -0.1),
        foot_speed=np.full((1, 4), 2.0),
        landed_after=np.array([[0.0, 0.05, 0.2, 0.7]]),
        action=2 * one,
        action_before=one,
        action_twice_before=2 * one,
    )
    assert set(expected) == set(TERMS)
    for name, value in expected.items():
        assert TERMS[name](s)[0] == pytest.approx(value), name
    total, task, parts = terms.rewards(s, RewardScales(), 0.02)
    assert task[0] == pytest.approx(0.02 * (np.exp(-1) + 0.5 * np.exp(-4)))
    scales = dataclasses.asdict(RewardScales())
    assert total[0] == pytest.approx(0.02 * sum(scales[name] * value for name, value in expected.items()))
    assert sum(p[0] for p in parts.values()) == pytest.approx(total[0])


def test_cost_is_zero_at_perfect_tracking_and_blind_to_auxiliary_terms() -> None:
    highest = terms.task_maximum(RewardScales(), 0.02)
    assert highest == pytest.approx(1.5 * 0.02)
    command = np.array([[0.5, 0.1, 0.2]])
    rate, velocity = np.array([[0.0, 0.0, 0.2]]), np.array([[0.5, 0.1, 0.0]])
    perfect = signals(1, command=command, velocity=velocity, rate=rate)
    wild = dataclasses.replace(perfect, torque=np.full((1, 12), 50.0), joint_velocity=np.full((1, 12), 9.0))
    for s in (perfect, wild):
        assert highest - terms.rewards(s, RewardScales(), 0.02)[1][0] == pytest.approx(0, abs=1e-15)
    assert terms.rewards(wild, RewardScales(), 0.02)[0][0] < terms.rewards(perfect, RewardScales(), 0.02)[0][0]
    env = make()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        task = env.step(torch.randn(N, 12, generator=generator), None).task_reward
        cost = env.task_reward_max - task
        assert ((cost >= 0) & (cost <= 1.5 * 0.02 + 1e-7)).all()


def test_it_is_the_environment_that_learning_expects() -> None:
    for terrain in ("flat", "mixed"):
        env = make(terrain=terrain)
        check_environment(env)
        assert env.features.action.names[:3] == ("FL_hip", "FL_thigh", "FL_shank")
        assert env.features.rate_hz == 50
        assert env.action_offset[:3].tolist() == pytest.approx([0.1, 0.8, -1.5])
        assert env.action_offset[9:].tolist() == pytest.approx([-0.1, 1.0, -1.5])


def test_observations_of_a_known_state() -> None:
    env = make(1, commands=CommandConfig((0.5, 0.5), (0.0, 0.0), (1.0, 1.0)))
    state = env.batch.present.copy()
    state = turned(state, 0.6)
    state[:, 20:23] = [np.cos(0.6), np.sin(0.6), 0.0]
    state[:, 23:26] = [0.1, 0.2, 0.3]
    state[:, 8:20] += 0.1
    env.batch.place(np.arange(1), state)
    env._look(np.arange(1))
    seen = env.observe()
    o = seen["policy"][0].numpy()
    np.testing.assert_allclose(o[:3], [1.0, 0.0, 0.25 * 0.5 * 0.4], atol=1e-6)
    np.testing.assert_allclose(o[3:6], [0.025, 0.05, 0.075], atol=1e-6)
    np.testing.assert_allclose(o[6:9], [0, 0, -1], atol=1e-6)
    np.testing.assert_allclose(o[9:21], 0.1, atol=1e-6)
    np.testing.assert_allclose(o[21:], 0, atol=1e-6)
    np.testing.assert_allclose(seen["disturber"][0, 45:], [2, 0, 0], atol=1e-6)
    moves = torch.full((1, 12), 0.25)
    np.testing.assert_allclose(env.step(moves).observations["policy"][0, 33:], 0.25)


def test_noise_has_the_stated_width_and_spares_command_and_action() -> None:
    env = make(256, noise=NoiseConfig())
    seen = env.observe()
    noise = (seen["policy"] - seen["disturber"][:, :45]).numpy()
    assert (noise[:, :3] == 0).all()
    assert (noise[:, 33:] == 0).all()
    for columns, width in ((slice(3, 6), 0.05), (slice(6, 9), 0.05), (slice(9, 21), 0.01), (slice(21, 33), 0.075)):
        assert 0.95 * width < np.abs(noise[:, columns]).max() <= width + 1e-6


def test_backends_agree_with_randomisation_forces_and_delays() -> None:
    results = []
    for backend in ("rollout", "loop"):
        env = QuadrupedEnv(QuadrupedConfig(robot="a1", backend=backend, threads=2, seed=5), N)
        env.reset(6)
        generator, rewards = torch.Generator().manual_seed(7), []
        for _ in range(100):
            force = torch.randn(N, 3, generator=generator) * 10
            rewards.append(env.step(torch.randn(N, 12, generator=generator), force).reward.clone())
        results.append((env.batch.states.copy(), torch.stack(rewards), env.observe()["policy"].clone()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=0, atol=1e-10)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-7)
    torch.testing.assert_close(results[0][2], results[1][2], rtol=0, atol=1e-7)


def test_no_force_is_a_force_of_zero_to_the_bit_and_forces_end() -> None:
    plain, zero, before = make(), make(), make()
    before.step(torch.zeros(N, 12), torch.full((N, 3), 20.0))
    before.reset(0)
    assert (before.batch.forces == 0).all()
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        moves = torch.randn(N, 12, generator=generator)
        plain.step(moves)
        zero.step(moves, torch.zeros(N, 3))
        before.step(moves)
    np.testing.assert_array_equal(plain.batch.states, zero.batch.states)
    np.testing.assert_array_equal(plain.batch.states, before.batch.states)


def test_forces_turn_with_the_robot() -> None:
    """A quarter turn of the scene turns everything that follows; the friction pyramid allows no other angle."""
    force = torch.tensor([[30.0, 10.0, -5.0]] * N)
    straight, rotated = make(), make()
    start = straight.batch.present.copy()
    rotated.batch.place(np.arange(N), turned(start, np.pi / 2))
    for _ in range(25):
        straight.step(torch.zeros(N, 12), force)
        rotated.step(torch.zeros(N, 12), force)
    np.testing.assert_allclose(rotated.batch.present, turned(straight.batch.present, np.pi / 2), atol=1e-6)
    assert np.hypot(*(straight.batch.present - start)[0, 1:3]) > 0.01
    once, angle = make(), 0.8
    once.batch.place(np.arange(N), turned(once.batch.present, angle))
    once.step(torch.zeros(N, 12), force)
    x, y = 30 * np.cos(angle) - 10 * np.sin(angle), 30 * np.sin(angle) + 10 * np.cos(angle)
    np.testing.assert_allclose(once.batch.forces, np.broadcast_to([x, y, -5], (N, 4, 3)), atol=1e-5)


def test_air_time_counts_from_lifting_to_landing() -> None:
    env = make(1, rewards=RewardScales(**{name: 0.0 for name in TERMS} | {"air_time": 1.0}))
    state = env.batch.present.copy()
    height = 0.25
    state[:, 3] += height
    env.batch.place(np.arange(1), state)
    env._command[:] = 0.5
    paid = []
    for _ in range(25):
        paid.append(env.step(torch.zeros(1, 12)).reward.item() / CONTROL_DT)
        env._command[:] = 0.5
    landing = int(np.flatnonzero(paid)[0])
    fall = np.sqrt(2 * (height + 0.01) / 9.81)
    assert landing * CONTROL_DT == pytest.approx(fall, abs=0.04)
    per_foot = landing * CONTROL_DT - 0.1
    assert paid[landing] / per_foot == pytest.approx(round(paid[landing] / per_foot), abs=1e-4)
    assert 1 <= round(paid[landing] / per_foot) <= 4


def test_a_fall_is_not_a_time_out() -> None:
    env = make(2, episode_s=0.2)
    state = env.batch.present[1:2].copy()
    state[:, 4:8] = [np.cos(0.9), np.sin(0.9), 0, 0]
    state[:, 3] += 0.3
    env.batch.place(np.array([1]), state)
    result = env.step(torch.zeros(2, 12))
    assert result.terminated.tolist() == [False, True]
    assert result.timeout.tolist() == [False, False]
    assert result.info["count/falls"] == 1
    assert result.final_observations["critic"].shape == (1, 48)
    # The final observation shows the fallen robot, the next one the fresh start.
    assert result.final_observations["critic"][0, 8] > -0.5
    assert result.observations["critic"][1, 8] == pytest.approx(-1)
    for step in range(9):
        result = env.step(torch.zeros(2, 12))
        assert result.timeout.tolist() == [step == 8, False]
    assert not result.terminated.any()
    result = env.step(torch.zeros(2, 12))
    assert result.timeout.tolist() == [False, True], "the fallen robot's clock started anew"


def test_a_trunk_on_the_ground_has_fallen() -> None:
    env = make(1)
    state = env.batch.present.copy()
    state[:, 3] = 0.055
    state[:, 8:20] = [0, 3.0, -2.6] * 4
    env.batch.place(np.arange(1), state)
    assert env.step(torch.zeros(1, 12)).terminated.tolist() == [True]


def test_failed_physics_ends_the_episode_masked_and_counted() -> None:
    env, twin = make(), make()
    env.step(torch.zeros(N, 12))
    twin.step(torch.zeros(N, 12))
    before = env.observe()["critic"].clone()
    gains = env.batch.models[2].actuator_gainprm.copy()
    env.batch.models[2].actuator_gainprm[:] = np.nan
    env.batch.models[3].opt.gravity[2] = 1e7
    result = env.step(torch.zeros(N, 12))
    healthy = twin.step(torch.zeros(N, 12))
    assert result.invalid is not None
    assert result.invalid.tolist() == [False, False, True, True]
    assert result.timeout.tolist() == [False, False, True, True]
    assert not result.terminated.any()
    assert result.info["count/failed_physics"] == 2
    assert result.reward[2:].tolist() == [0, 0]
    for value in (*result.observations.values(), result.reward):
        assert torch.isfinite(value).all()
    torch.testing.assert_close(result.reward[:2], healthy.reward[:2])
    assert torch.isfinite(torch.tensor(list(result.info.values()))).all()
    assert before.shape == result.observations["critic"].shape
    env.batch.models[2].actuator_gainprm[:] = gains
    env.batch.models[3].opt.gravity[2] = -9.81
    assert env.step(torch.zeros(N, 12)).invalid is None


def test_everything_is_a_function_of_the_seed() -> None:
    def run(seed: int, model_seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
        env = QuadrupedEnv(QuadrupedConfig(robot="a1", threads=2, seed=model_seed), N)
        env.reset(seed)
        for _ in range(40):
            env.step(torch.full((N, 12), 0.3))
        return env.batch.states.copy(), env.observe()["policy"].clone()

    a, b = run(1), run(1)
    np.testing.assert_array_equal(a[0], b[0])
    torch.testing.assert_close(a[1], b[1], rtol=0, atol=0)
    assert not np.allclose(a[0], run(2)[0])
    assert not np.allclose(a[0], run(1, 9)[0]), "the robots are other robots"


@pytest.mark.parametrize("terrain", ["flat", "mixed"])
def test_it_continues_where_it_stopped(terrain) -> None:
    def make_one() -> QuadrupedEnv:
        return QuadrupedEnv(QuadrupedConfig(robot="a1", terrain=terrain, episode_s=0.5, threads=1), N)

    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(60, N, 12, generator=generator)
    env = make_one()
    env.reset(0)
    for move in moves[:30]:
        env.step(move)
    stored = env.state()
    tail = [env.step(move).reward.clone() for move in moves[30:]]
    other = make_one()
    other.reset(99)
    other.restore(stored)
    for move, expected in zip(moves[30:], tail, strict=True):
        torch.testing.assert_close(other.step(move).reward, expected, rtol=0, atol=0)
    with pytest.raises(RobopolicyError, match="not the same environment"):
        make(2).restore(stored)


def test_commands_are_drawn_again_and_stand_below_the_dead_zone() -> None:
    commands = CommandConfig((-1.0, 1.0), (0.0, 0.0), (0.5, 0.5), every_s=0.1)
    env = make(200, commands=commands)
    first = env.observe()["policy"][:, 0].clone() / 2
    assert ((first == 0) | (first.abs() >= 0.2)).all()
    assert 10 < (first == 0).sum() < 80
    for _ in range(4):
        seen = env.step(torch.zeros(200, 12)).observations["policy"][:, 0] / 2
        torch.testing.assert_close(seen, first)
    assert not torch.allclose(env.step(torch.zeros(200, 12)).observations["policy"][:, 0] / 2, first)
    assert env.observe()["policy"][0, 2] == pytest.approx(0.25 * 0.25, abs=0.02), "turns towards the heading"


def test_observation_delay_shows_an_older_state() -> None:
    draw = dataclasses.replace(RandomisationConfig.none(), observation_delay=3)
    env = make(64, randomisation=draw)
    env.step(torch.ones(64, 12))
    ages = env.batch.states[:, :, 26:38] * 0.05
    seen = env.observe()["policy"][:, 21:33].numpy()
    which = np.abs(seen[:, None] - ages).max(axis=2).argmin(axis=1)
    np.testing.assert_allclose(seen, ages[np.arange(64), which], atol=1e-6)
    assert set(which) == {0, 1, 2, 3}


def test_a_kick_changes_the_velocity() -> None:
    draw = dataclasses.replace(RandomisationConfig.none(), kick=1.0, kick_every_s=0.04)
    env, calm = make(64, randomisation=draw), make(64)
    for e in (env, calm):
        e.step(torch.zeros(64, 12))
    np.testing.assert_array_equal(env.batch.present, calm.batch.present)
    for e in (env, calm):
        e.step(torch.zeros(64, 12))
    change = env.batch.present - calm.batch.present
    assert 0.8 < np.abs(change[:, 20:22]).max() <= 1
    assert (np.delete(change, [20, 21], axis=1) == 0).all()


def test_stair_levels_follow_what_the_robots_do() -> None:
    env = make(terrain="stairs", episode_s=0.06)
    env._commanded[:], env._start[:] = 10.0, 0.0
    env.ground.levels[:] = 3
    state = env.batch.present.copy()
    state[0, 1:3] = [3.0, 2.9]
    state[:, 3] += 1
    env.batch.place(np.arange(N), state)
    for _ in range(3):
        env.step(torch.zeros(N, 12))
    assert env.ground.levels.tolist() == [4, 2, 2, 2]
    np.testing.assert_allclose(
        env.batch.models[0].hfield_data.reshape(env.ground.heights[0].shape) * 8 - 4, env.ground.heights[0], atol=1e-5
    )
    assert env.ground.heights[0].max() == pytest.approx(0.122 * 12, abs=1e-5)


def test_the_edge_of_a_tile_is_a_time_out() -> None:
    env = make(terrain="slope", level=0)
    state = env.batch.present.copy()
    state[1, 1] = 4.05
    env.batch.place(np.arange(N), state)
    result = env.step(torch.zeros(N, 12))
    assert result.timeout.tolist() == [False, True, False, False]
    assert not result.terminated.any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_force": 500.0}, r"max_force is 500 N; expected 0 to 244 N, 2 times the weight of a1"),
        ({"terrain": "stairs", "level": 10}, r"terrain level 10 is outside 0\.\.9"),
        ({"level": 1}, "flat ground has no levels"),
        ({"robot": "dog"}, "unknown robot 'dog'"),
        ({"terrain": "lava"}, "unknown terrain 'lava'"),
        ({"randomisation": RandomisationConfig(friction=(1.0, 0.5))}, "randomisation.friction is 1.0 to 0.5"),
        ({"randomisation": RandomisationConfig(action_delay=4)}, "delays are 4 and 0 physics steps, expected 0 to 3"),
        ({"randomisation": RandomisationConfig(payload=(-5.0, 0.0))}, "payload from -5.0 kg"),
        ({"episode_s": 0.0}, "at least one control step"),
    ],
)
def test_mistakes_are_named(overrides, message) -> None:
    with pytest.raises(RobopolicyError, match=message):
        make(**overrides)


def test_wrong_actions_and_forces_are_refused() -> None:
    env = make()
    bad = torch.zeros(N, 12)
    bad[1, 3] = torch.nan
    with pytest.raises(RobopolicyError, match="finite"):
        env.step(bad)
    with pytest.raises(RobopolicyError, match=r"\[4, 12\]"):
        env.step(torch.zeros(3, 12))
    with pytest.raises(RobopolicyError, match=r"force of 60 N is above max_force, 50 N"):
        env.step(torch.zeros(N, 12), torch.tensor([[0.0, 60.0, 0.0]] * N))
    with pytest.raises(RobopolicyError, match="above max_force"):
        env.step(torch.zeros(N, 12), torch.full((N, 3), torch.nan))


def test_a_hundred_thousand_forces_stay_below_the_limit() -> None:
    """What a disturber may ask for is bounded by the environment, not by trust."""
    env = make(100)
    direction = torch.randn(1000, 100, 3, generator=torch.Generator().manual_seed(0))
    direction = direction / direction.norm(dim=2, keepdim=True)
    for force in direction[:20] * env.max_force:
        env.step(torch.zeros(100, 12), force)
        applied = np.linalg.norm(env.batch.forces[:, 0], axis=1)
        assert (applied <= env.max_force * (1 + 1e-5)).all()
    assert robot("a1").force_limit == env.max_force


def test_terms_are_paid_per_second() -> None:
    env = make(rewards=RewardScales(**{name: 0.0 for name in TERMS} | {"linear_tracking": 2.0}))
    result = env.step(torch.zeros(N, 12))
    torch.testing.assert_close(result.reward, result.task_reward)
    assert env.task_reward_max == pytest.approx(2.0 * CONTROL_DT)
    assert set(result.info) == {
        "reward/linear_tracking",
        "tracking/forward_error",
        "count/falls",
        "count/failed_physics",
    }
