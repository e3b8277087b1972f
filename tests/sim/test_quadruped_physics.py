"""Quadruped models and batched physics: numbers, impulses, torque limits, closed-form legs, equal backends."""

import mujoco
import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.sim.quadruped.batch import TRUNK, Batch
from robopolicy.sim.quadruped.config import RandomisationConfig
from robopolicy.sim.quadruped.kinematics import feet, into_base, into_world, rotations, yaw
from robopolicy.sim.quadruped.randomise import randomise
from robopolicy.sim.quadruped.robots import JOINTS, LEGS, ROBOTS, compiled, robot

A1 = robot("a1")


def standing(model, height=None):
    data = mujoco.MjData(model)
    data.qpos[2] = height or A1.target_height
    data.qpos[7:] = A1.posture
    return data


@pytest.mark.parametrize(("name", "mass", "limits"), [("aliengo", 24.9, (44, 44, 55)), ("a1", 12.453, (20, 55, 55))])
def test_published_numbers(name, mass, limits) -> None:
    model = compiled(robot(name))
    assert model.body_mass.sum() == pytest.approx(mass, abs=0.005)
    assert robot(name).mass == pytest.approx(model.body_mass.sum())
    np.testing.assert_array_equal(model.actuator_forcerange[:, 1], limits * 4)
    np.testing.assert_array_equal(model.actuator_forcerange[:, 0], -np.array(limits * 4))
    assert [model.joint(j).qposadr[0] for j in JOINTS] == list(range(7, 19))


def test_unknown_robot_is_named() -> None:
    with pytest.raises(RobopolicyError, match=r"unknown robot 'aliengoo'.*'aliengo'"):
        robot("aliengoo")


@pytest.mark.parametrize("name", list(ROBOTS))
def test_closed_form_feet_are_those_of_the_model(name) -> None:
    machine, rng = robot(name), np.random.default_rng(0)
    model = compiled(machine)
    data = mujoco.MjData(model)
    ranges = machine.joint_ranges
    joints, speeds = rng.uniform(ranges[:, 0], ranges[:, 1]), rng.normal(size=12)
    data.qpos[7:], data.qvel[6:] = joints, speeds
    mujoco.mj_forward(model, data)
    position, velocity = feet(machine, joints[None], speeds[None])
    for i, leg in enumerate(LEGS):
        site = data.site(f"{leg}_foot")
        np.testing.assert_allclose(position[:, 0, i], site.xpos - data.qpos[:3], atol=1e-12)
        moving = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, site.id, moving, 0)
        np.testing.assert_allclose(velocity[:, 0, i], moving[3:], atol=1e-12)


def test_rotations_are_mujocos() -> None:
    rng = np.random.default_rng(1)
    quaternions = rng.normal(size=(20, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    vectors = rng.normal(size=(20, 3))
    matrices = rotations(quaternions)
    for q, v, m, world in zip(quaternions, vectors, matrices, into_world(matrices, vectors), strict=True):
        expected, turned = np.zeros(9), np.zeros(3)
        mujoco.mju_quat2Mat(expected, q)
        mujoco.mju_rotVecQuat(turned, v, q)
        np.testing.assert_allclose(m.ravel(), expected, atol=1e-14)
        np.testing.assert_allclose(world, turned, atol=1e-14)
    np.testing.assert_allclose(into_base(matrices, into_world(matrices, vectors)), vectors, atol=1e-13)
    about_z = np.array([[np.cos(0.35), 0, 0, np.sin(0.35)]])
    assert yaw(rotations(about_z))[0] == pytest.approx(0.7)


def batch_of(n, backend, seed, config=None, threads=2) -> Batch:
    models = [compiled(A1) for _ in range(n)]
    rng = np.random.default_rng(seed)
    for model in models:
        randomise(model, config or RandomisationConfig(), rng)
    batch = Batch(models, 4, backend, threads)
    states = batch.present.copy()
    states[:, 3], states[:, 8:20] = 0.33, A1.posture
    batch.place(np.arange(n), states)
    return batch


def test_rollout_equals_the_loop() -> None:
    """100 control steps on robots that differ, under forces, with targets that change within a step."""
    batches = [batch_of(6, backend, 3) for backend in ("rollout", "loop")]
    for batch in batches:
        rng = np.random.default_rng(4)
        before = np.tile(A1.posture, (6, 1))
        for _ in range(100):
            target = A1.posture + rng.normal(size=(6, 12)) * 0.3
            batch.targets[:] = target[:, None]
            delay = rng.integers(0, 4, 6)
            for k in range(3):
                batch.targets[delay > k, k] = before[delay > k]
            before = target
            batch.forces[:] = rng.normal(size=(6, 1, 3)) * 30
            batch.step()
    a, b = batches
    assert np.abs(a.present[:, 1:3]).max() > 0.05, "the robots moved"
    np.testing.assert_allclose(a.states, b.states, rtol=0, atol=1e-10)
    np.testing.assert_allclose(a.sensors, b.sensors, rtol=0, atol=1e-8)
    assert np.ptp(a.present[:, 3]) > 1e-3, "the robots differ"


@pytest.mark.parametrize("backend", ["rollout", "loop"])
def test_a_force_changes_momentum_by_force_times_time(backend) -> None:
    model = compiled(A1)
    model.opt.gravity[:] = 0
    batch = Batch([model], 4, backend)
    state = batch.present.copy()
    state[:, 3], state[:, 8:20] = 5, A1.posture
    batch.place(np.arange(1), state)
    batch.targets[:] = A1.posture
    force = np.array([30.0, -20.0, 10.0])
    batch.forces[:] = force
    batch.step()
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, batch.present[0], mujoco.mjtState.mjSTATE_FULLPHYSICS)
    mujoco.mj_forward(model, data)
    mujoco.mj_subtreeVel(model, data)
    np.testing.assert_allclose(data.subtree_linvel[TRUNK], force * 0.02 / A1.mass, rtol=0.01)
    batch.forces[:] = 0
    batch.step()
    mujoco.mj_setState(model, data, batch.present[0], mujoco.mjtState.mjSTATE_FULLPHYSICS)
    mujoco.mj_forward(model, data)
    mujoco.mj_subtreeVel(model, data)
    np.testing.assert_allclose(data.subtree_linvel[TRUNK], force * 0.02 / A1.mass, rtol=0.01)


def test_the_controller_acts_in_every_physics_step_and_within_its_limits() -> None:
    batch = batch_of(1, "rollout", 0, RandomisationConfig.none())
    batch.targets[:] = A1.posture + 0.1
    before = batch.present.copy()
    batch.step()
    states = np.concatenate([before, batch.states[0, :-1]])
    # Sensor k shows the torque of the state before physics step k.
    expected = A1.kp * (A1.posture + 0.1 - states[:, 8:20]) - A1.kd * states[:, 26:38]
    np.testing.assert_allclose(batch.sensors[0, :, 5:17], np.clip(expected, -A1.torques, A1.torques), atol=1e-9)
    batch.targets[:] = A1.posture + 50
    batch.step()
    assert np.abs(batch.sensors[0, :, 5:17]).max() == 55
    assert (np.abs(batch.sensors[0, :, 5:17]) <= A1.torques).all()


def test_randomisation_draws_what_it_says() -> None:
    config = RandomisationConfig(friction=(0.3, 0.4), payload=(1.0, 2.0), com_shift=0.02, gains=(0.5, 0.6))
    reference, model = compiled(A1), compiled(A1)
    randomise(model, config, np.random.default_rng(0))
    payload = model.body_mass[TRUNK] - A1.trunk_mass
    assert 1 <= payload <= 2
    assert model.body_subtreemass[TRUNK] == pytest.approx(A1.mass + payload), "derived quantities follow"
    assert 0.3 <= model.geom("ground").friction[0] <= 0.4
    assert (np.abs(model.body_ipos[TRUNK]) <= 0.02).all()
    assert (model.body_ipos[TRUNK] != 0).all()
    kp, kd = model.actuator_gainprm[:, 0] / A1.kp, -model.actuator_biasprm[:, 2] / A1.kd
    assert ((kp >= 0.5) & (kp <= 0.6) & (kd >= 0.5) & (kd <= 0.6)).all()
    np.testing.assert_array_equal(model.actuator_gainprm[:, 0], -model.actuator_biasprm[:, 1])
    same = compiled(A1)
    randomise(same, RandomisationConfig.none(), np.random.default_rng(0))
    np.testing.assert_array_equal(same.body_mass, reference.body_mass)
    np.testing.assert_allclose(same.dof_invweight0, reference.dof_invweight0, rtol=1e-12)


def test_friction_of_the_ground_decides() -> None:
    """A robot that is pulled slides on ice and stands on rubber: the feet's own friction plays no part."""
    models = [compiled(A1), compiled(A1)]
    for model, friction in zip(models, (0.05, 1.2), strict=True):
        model.geom_friction[model.geom("ground").id, 0] = friction
    batch = Batch(models, 4, "loop")
    states = batch.present.copy()
    states[:, 3], states[:, 8:20] = 0.31, A1.posture
    batch.place(np.arange(2), states)
    batch.targets[:] = A1.posture
    batch.forces[:, :, 1] = 25
    for _ in range(40):
        batch.step()
    ice, rubber = batch.present[:, 2]
    assert ice > 0.3
    assert abs(rubber) < 0.1


def test_unknown_backend_is_named() -> None:
    with pytest.raises(RobopolicyError, match="physics backend"):
        Batch([compiled(A1)], 4, "warp")  # type: ignore[arg-type]
