import numpy as np
import pytest

from robopolicy import registry
from robopolicy.errors import DataError, RobopolicyError

pytest.importorskip("robosuite")

from robopolicy.sim.robomimic import Can, CanAbs, Lift, LiftAbs
from robopolicy.sim.robomimic_task import OBJECT, STATES
from robopolicy.sim.robosuite_env import make_environment, matrix_to_rot6d, rot6d_to_matrix


@pytest.fixture(scope="module")
def lift():
    task = Lift()
    yield task
    task.close()


@pytest.fixture(scope="module")
def can():
    task = Can()
    yield task
    task.close()


def test_the_registered_tasks_are_the_published_ones():
    expected = {"lift": (10, 1, 400), "can": (14, 1, 400), "square": (14, 1, 400)}
    expected |= {"transport": (41, 2, 700), "tool_hang": (44, 1, 700)}
    for name, (object_size, robots, max_steps) in expected.items():
        for suffix, numbers, mode in (("", 7, "delta"), ("-abs", 10, "absolute")):
            cls = registry.task_class(f"robomimic-{name}{suffix}")
            assert cls.name == f"robomimic-{name}{suffix}"
            assert cls.max_steps == max_steps
            assert cls.features[OBJECT].shape == (object_size,)
            assert cls.features.action.shape == (numbers * robots,)
            assert cls.features.action.control.mode == mode
            assert [k for k in [f.key for f in cls.features] if k.endswith("eef_quat")] == [
                f"observation.robot{i}_eef_quat" for i in range(robots)
            ]


def test_an_episode_is_a_function_of_its_seed_and_leaves_numpy_alone(lift):
    def episode(seed):
        observation, _ = lift.reset(seed=seed)
        states, actions = [lift.simulator_state()], np.random.default_rng(seed).uniform(-1, 1, (5, 7))
        for action in actions:
            observation = lift.step(action)[0]
            states.append(lift.simulator_state())
        return np.array(states), observation

    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    first, seen = episode(3)
    other, _ = episode(4)
    again, seen_again = episode(3)
    np.testing.assert_array_equal(first, again)
    assert all(np.array_equal(seen[k], seen_again[k]) for k in seen)
    assert np.abs(first[0] - other[0]).max() > 1e-3
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002


def model_arrays(env):
    model = env.sim.model._model
    found = {
        name: np.array(getattr(model, name)) for name in dir(model) if isinstance(getattr(model, name), np.ndarray)
    }
    return found | {
        f"stat.{name}": np.array(getattr(model.stat, name)) for name in ("meaninertia", "meanmass", "extent")
    }


@pytest.mark.parametrize("name", ["lift", "can"])
def test_a_reset_without_compiling_equals_one_with(name, request):
    import robosuite

    task = request.getfixturevalue(name)
    compiled = make_environment(robosuite, task.env_args(), hard_reset=True)
    sizes = set()
    for seed in (11, 5):
        task.reset(seed=seed)
        np.random.seed(seed)  # noqa: NPY002
        compiled.reset()
        np.testing.assert_array_equal(task.simulator_state(), compiled.sim.get_state().flatten())
        ours, expected = model_arrays(task.env), model_arrays(compiled)
        different = [k for k, v in expected.items() if not np.array_equal(ours[k], v)]
        assert different == []
        sizes.add(task.model_xml())
        task.step(np.ones(7))
    # Only lift's scene differs between episodes.
    assert len(sizes) == (2 if name == "lift" else 1)
    compiled.close()


def test_delta_actions_move_by_shares_of_five_centimetres_and_hold_stays(lift):
    observation, _ = lift.reset(seed=0)
    start = observation["observation.robot0_eef_pos"]
    for _ in range(10):
        observation, *_ = lift.step(np.array([0.2, 0, 0, 0, 0, 0, -1]))
    moved = observation["observation.robot0_eef_pos"] - start
    # The goal runs 0.2 x 5 cm ahead of the hand, which follows it at the speed of a critically damped spring.
    assert 0.01 < moved[0] < 0.1
    assert np.abs(moved[1:]).max() < 0.2 * moved[0]
    width = np.abs(observation["observation.robot0_gripper_qpos"]).sum()
    assert width > 0.07
    for _ in range(20):
        observation, *_ = lift.step(lift.hold_action(observation))
    held = observation["observation.robot0_eef_pos"].copy()
    for _ in range(20):
        observation, *_ = lift.step(lift.hold_action(observation))
    assert np.abs(observation["observation.robot0_eef_pos"] - held).max() < 1e-3
    for _ in range(10):
        observation, *_ = lift.step(np.array([0, 0, 0, 0, 0, 0, 1]))
    assert np.abs(observation["observation.robot0_gripper_qpos"]).sum() < 0.02


def test_absolute_actions_reach_the_pose_and_hold_keeps_it():
    from scipy.spatial.transform import Rotation

    task = LiftAbs()
    observation, _ = task.reset(seed=5)
    goal = task.hold_action(observation).astype(np.float64)
    turn = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    goal[:3] += [0.05, -0.06, 0.08]
    goal[3:9] = matrix_to_rot6d(turn @ rot6d_to_matrix(goal[3:9]))
    for _ in range(60):
        observation, *_ = task.step(goal)
    reached = task.hold_action(observation)
    np.testing.assert_allclose(reached[:3], goal[:3], atol=5e-3)
    np.testing.assert_allclose(reached[3:9], goal[3:9], atol=3e-2)
    task.close()


def test_rot6d_is_the_first_two_rows():
    matrix = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(matrix_to_rot6d(matrix), [0, -1, 0, 1, 0, 0])
    skewed = np.array([0.0, -2, 0, 3, 0.5, 0])
    np.testing.assert_allclose(rot6d_to_matrix(skewed), matrix, atol=1e-12)


def test_lifting_the_cube_succeeds_and_ends_the_episode(lift):
    lift.reset(seed=0)
    assert not lift.success
    cube = lift.env.sim.data.get_joint_qpos("cube_joint0").copy()
    cube[2] = 0.8 + 0.2
    lift.env.sim.data.set_joint_qpos("cube_joint0", cube)
    _, reward, terminated, truncated, info = lift.step(np.zeros(7))
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    assert lift.score(np.array([0, 0, reward])) == 1.0


@pytest.mark.parametrize("action", [np.zeros(10), np.full(7, np.nan), "north"])
def test_wrong_actions_are_refused(lift, action):
    lift.reset(seed=0)
    with pytest.raises((RobopolicyError, ValueError), match=r"7 finite numbers|could not convert"):
        lift.step(action)


def test_a_restored_state_goes_on_as_the_recorded_episode_did(can):
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 7))
    can.reset(seed=8)
    states, observations = [can.simulator_state()], []
    for action in actions:
        observations.append(can.step(action)[0])
        states.append(can.simulator_state())
    expected = can.reset(seed=8)[0]
    can.reset(seed=9)
    first = can.restore({STATES: np.array(states)})
    assert all(np.array_equal(first[k], expected[k]) for k in expected)
    for action, expected in zip(actions, observations, strict=True):
        reached = can.step(action)[0]
        assert max(Can.state_error(expected, reached).values()) < 1e-6
    np.testing.assert_allclose(can.simulator_state(), states[-1], atol=1e-6)
    moved = {k: v + 0.5 if k == OBJECT else v for k, v in reached.items()}
    assert Can.state_error(reached, moved)["object_position_m"] == pytest.approx(0.5 * 3**0.5)


def test_object_names_are_those_of_robosuites_observables(can):
    raw = can.env._get_observations()
    expected = np.concatenate([np.atleast_1d(raw[name]) for name, _ in Can.scene.objects])
    np.testing.assert_array_equal(raw["object-state"], expected)
    np.testing.assert_array_equal(raw["object-state"][Can.scene.first_position()], raw["Can_pos"])
    assert Can.features[OBJECT].names[:4] == tuple(
        f"Can_to_robot0_eef_{n}" for n in ("pos_x", "pos_y", "pos_z", "quat_x")
    )


def test_relative_poses_are_there_from_the_start(can):
    observation, _ = can.reset(seed=2)
    hand, world = observation[OBJECT][:3], observation[OBJECT][7:10]
    distance = np.linalg.norm(world - observation["observation.robot0_eef_pos"])
    assert np.linalg.norm(hand) == pytest.approx(distance, abs=1e-5)


def test_states_of_another_model_are_refused(lift):
    with pytest.raises(DataError, match=r"has 32 finite numbers, the data \[71\]"):
        lift.restore({STATES: np.zeros((3, 71))})
    with pytest.raises(RobopolicyError, match=r"has no 'simulator\.state'"):
        lift.restore({})


def test_fingerprint_tells_control_modes_apart(lift):
    import robosuite

    absolute = CanAbs()
    assert lift.fingerprint()["robosuite"] == robosuite.__version__
    assert lift.fingerprint()["controller"] != absolute.fingerprint()["controller"]
    assert absolute.env_args()["env_name"] == absolute.fingerprint()["env"] == "PickPlaceCan"
    absolute.close()
