"""The scripted experts: they succeed, their recordings are robomimic's files, and those replay."""

import json

import numpy as np
import pytest

from robopolicy import registry
from robopolicy.evaluation.record import DWELL_STEPS, SUCCESS, Recorder, record
from robopolicy.evaluation.replay import replay

pytest.importorskip("robosuite")

from robopolicy.sim import robomimic_experts as experts
from robopolicy.sim.robomimic import Lift, LiftAbs
from robopolicy.sim.robomimic_experts import DOWNWARD, Goal, MixedExpert, ProficientExpert, Style, View

MOST_STEPS = {"lift": 60, "can": 200, "square": 200}


def view(**changes) -> View:
    place = {"position": np.array([0.1, 0, 1.0]), "rotation": DOWNWARD, "width": 0.08}
    return View(**(place | {"thing": np.array([0.1, 0, 0.83]), "thing_yaw": 0.0} | changes))


def about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def test_the_yaw_of_a_gripper_is_its_turn_about_the_vertical():
    for angle in (-2.5, -0.3, 0.0, 1.2):
        assert view(rotation=about_z(angle) @ DOWNWARD).yaw == pytest.approx(angle)


def test_far_motions_are_as_large_as_allowed_and_near_ones_proportional():
    far = experts.motion_to(Goal(np.array([0.1, 0.3, 1.4]), 0.0, False, 0.5), view())
    np.testing.assert_allclose(far[0], [0, 0.3, 0.4, 0, 0, 0], atol=1e-12)
    assert far[1] == -1
    near, gripper = experts.motion_to(Goal(np.array([0.11, 0, 1.0]), 0.1, True, 1.0), view())
    np.testing.assert_allclose(near, [0.2 * experts.GAIN, 0, 0, 0, 0, 0.2 * experts.GAIN], atol=1e-12)
    assert gripper == 1


def test_an_absolute_action_is_the_pose_that_the_controller_makes_of_the_delta():
    task, absolute = Lift(), LiftAbs()
    task.reset(seed=3)
    seen = experts.observe(task.env._get_observations(), "cube")
    motion = np.array([0.5, -0.2, 0.1, 0.3, -0.4, 0.8])
    task.step(experts.encode(motion, -1.0, seen, absolute=False))
    made = task.env.robots[0].part_controllers["right"]
    pose = absolute.controller_action(experts.encode(motion, -1.0, seen, absolute=True).astype(np.float64))
    absolute.env.reset()
    absolute.env.step(pose)
    asked = absolute.env.robots[0].part_controllers["right"]
    np.testing.assert_allclose(made.goal_pos, asked.goal_pos, atol=1e-6)
    np.testing.assert_allclose(made.goal_ori, asked.goal_ori, atol=1e-6)
    for env in (task, absolute):
        env.close()


def test_the_cube_is_approached_from_above_grasped_and_raised():
    aside = experts.lift(view(position=np.array([0.0, 0, 0.9])), Style())
    assert not aside.close
    np.testing.assert_allclose(aside.position, [0.1, 0, 0.83 + Style().hover])
    over = experts.lift(view(position=np.array([0.1, 0, 0.9])), Style())
    np.testing.assert_allclose(over.position, [0.1, 0, 0.83])
    assert experts.lift(view(position=np.array([0.1, 0, 0.832])), Style()).close
    held = experts.lift(view(position=np.array([0.1, 0, 0.832]), width=0.042), Style())
    assert held.close
    assert held.position[2] == experts.CUBE_TOP


def test_the_nut_is_turned_to_the_nearest_way_onto_the_peg():
    # Held by a handle that points at the robot, the nut needs no turn: it comes to lie over the peg.
    nut, yaw = np.array([0.0, 0.1, 0.99]), np.pi
    grip = nut - np.array([experts.NUT_HANDLE, 0, 0])
    goal = experts.square(view(position=grip, width=0.032, thing=nut, thing_yaw=yaw), Style())
    assert goal.close
    assert goal.yaw == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(goal.position - grip, [experts.FAR, 0, 0], atol=1e-9)
    # Pointing away, it would leave the arm too short: a quarter turn.
    away = view(position=nut + np.array([experts.NUT_HANDLE, 0, 0]), width=0.032, thing=nut, thing_yaw=0.2)
    assert experts.square(away, Style()).yaw == pytest.approx(np.pi / 2 - 0.2)
    # Around the peg and low enough, it is let go.
    on_peg = np.array([0.235, 0.1, 0.89])
    assert not experts.square(
        view(position=on_peg - np.array([experts.NUT_HANDLE, 0, 0]), width=0.032, thing=on_peg), Style()
    ).close


def test_a_rule_chooses_one_of_equal_grasps_and_stays_with_it():
    before = experts.lift(view(thing_yaw=0.7), Style())
    assert before.yaw == pytest.approx(0.7)
    # A cube that turns a little past the middle between two grasps, while the gripper is on its way to one.
    past = experts.lift(view(rotation=about_z(0.5) @ DOWNWARD, thing_yaw=0.9), Style())
    assert past.yaw == pytest.approx(0.9)
    assert experts.lift(view(thing_yaw=0.9), Style()).yaw == pytest.approx(0.9 - np.pi / 2)


@pytest.mark.parametrize("task", sorted(MOST_STEPS))
def test_experts_succeed(task):
    for name in ("proficient", "mixed"):
        recorder = Recorder(f"robomimic-{task}", name, {}, ())
        for seed in (300_000, 300_001):
            won = recorder.episode(seed)[SUCCESS.key]
            assert won.any()
            assert won.argmax() < MOST_STEPS[task] * (1 if name == "proficient" else 2)
            # What has been achieved stays.
            assert won[-DWELL_STEPS:].all()
        recorder.close()


def test_styles_are_drawn_per_episode_from_its_seed():
    styles = []
    for seed in range(20):
        expert = MixedExpert(seed=seed)
        expert.reset()
        styles.append(expert.style)
    assert len(set(styles)) == 20
    again = MixedExpert(seed=7)
    again.reset()
    assert again.style == styles[7]
    assert registry.expert_class("robomimic-can-abs", "scripted") is ProficientExpert


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("lift") / "lift.hdf5"
    summary = record("robomimic-lift", "proficient", path, episodes=3, progress=False)
    assert (summary.episodes, summary.attempts) == (3, 3)
    return path


def test_a_recording_is_a_robomimic_file(recorded):
    import h5py

    with h5py.File(recorded) as file:
        data = file["data"]
        arguments = json.loads(data.attrs["env_args"])
        assert (arguments["env_name"], arguments["type"]) == ("Lift", 1)
        assert data.attrs["total"] == sum(d.attrs["num_samples"] for d in data.values())
        for demo in data.values():
            count = demo.attrs["num_samples"]
            assert demo["actions"].shape == demo["actions_intended"].shape == (count, 7)
            assert np.abs(demo["actions"]).max() <= 1
            assert demo["states"].shape == (count, 32)
            assert demo["states"].dtype == np.float64
            assert demo.attrs["model_file"].startswith("<mujoco")
            assert demo["obs/object"].shape == demo["next_obs/object"].shape == (count, 10)
            np.testing.assert_array_equal(demo["obs/robot0_eef_pos"][1:], demo["next_obs/robot0_eef_pos"][:-1])
            assert (demo["dones"][-1], demo["rewards"][-1]) == (1, 1)
            # The state of a row belongs to its observation: joint positions 10 to 12 are the cube's place.
            np.testing.assert_allclose(demo["states"][:, 10:13], demo["obs/object"][:, :3], atol=2e-3)
            # Noise is executed, which tools replay, and not learned.
            apart = np.abs(demo["actions"][()] - demo["actions_intended"][()])
            assert 0.01 < apart[:, :6].max() < 0.6
            assert apart[:, 6].max() == 0


def test_a_recording_replays(recorded):
    result = replay(recorded, progress=False)
    assert result.task == "robomimic-lift"
    assert result.success.value == result.reproduced.value == 1


def test_recordings_are_the_same_every_time(recorded, tmp_path):
    record("robomimic-lift", "proficient", tmp_path / "again.hdf5", episodes=3, progress=False)
    assert (tmp_path / "again.hdf5").read_bytes() == recorded.read_bytes()


def test_an_expert_without_noise_executes_what_it_means():
    recorder = Recorder("robomimic-lift-abs", "scripted", {"noise": 0.0}, ("action", "action.executed"))
    arrays = recorder.episode(5)
    recorder.close()
    assert arrays[SUCCESS.key].any()
    np.testing.assert_array_equal(arrays["action"], arrays["action.executed"])
