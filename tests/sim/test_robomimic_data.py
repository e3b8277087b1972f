"""Recorded robomimic data in the tasks: two robosuite versions, both kinds of action, replay."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("robosuite")

import h5py
import robosuite
from scipy.spatial.transform import Rotation

from robopolicy import registry
from robopolicy.commands.data.replay import run
from robopolicy.datasets.detect import open_source
from robopolicy.errors import DataError
from robopolicy.evaluation.replay import replay
from robopolicy.features import ACTION, Control
from robopolicy.sim.lift_cube import recorded_size
from robopolicy.sim.robomimic import Can, Lift, LiftAbs, LiftImage, ToolHang, Transport
from robopolicy.sim.robomimic_data import present_objects
from robopolicy.sim.robomimic_task import OBJECT, STATES
from robopolicy.sim.robosuite_env import default_env_args, present_env_args, rot6d_to_matrix

HAND = "observation.robot0_eef_pos"
# One controller per robot, as robosuite 1.4 wrote it and the published datasets have it.
FORMER_CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


def former_env_args(**controller):
    kwargs = {"robots": ["Panda"], "controller_configs": FORMER_CONTROLLER | controller, "control_freq": 20}
    return {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}


def episode(task, seed):
    """Arrays of an expert's episode in the task's keys, with the states that robomimic's files have."""
    expert = registry.expert_class(task.name, "scripted")(seed=seed)
    expert.reset()
    observation, _ = task.reset(seed=seed)
    columns = {key: [] for key in (*observation, ACTION, STATES)}
    done = False
    while not done:
        action = np.asarray(expert.act(task), np.float32)
        for key, value in (observation | {ACTION: action, STATES: task.simulator_state()}).items():
            columns[key].append(value)
        observation, _, done, _, _ = task.step(action)
    return {key: np.array(values) for key, values in columns.items()} | {"model_file": task.model_xml()}


@pytest.fixture(scope="module")
def lifted():
    """Two episodes of lift by deltas."""
    task = Lift()
    episodes = [episode(task, seed) for seed in (1, 2)]
    task.close()
    return episodes


def write(path, episodes, env_args):
    """A file as robomimic's own scripts write it."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(env_args)
        data.attrs["total"] = sum(len(e[ACTION]) for e in episodes)
        for i, arrays in enumerate(episodes):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = len(arrays[ACTION])
            demo.attrs["model_file"] = arrays["model_file"]
            demo["actions"], demo["states"] = arrays[ACTION], arrays[STATES]
            demo["rewards"], demo["dones"] = np.zeros(len(arrays[ACTION])), np.zeros(len(arrays[ACTION]), int)
            for key in arrays:
                if key.startswith("observation."):
                    demo[f"obs/{key.removeprefix('observation.')}"] = arrays[key]
    return path


def test_lifts_former_sign_is_recognised(lifted):
    now, hand = lifted[0][OBJECT], lifted[0][HAND]
    np.testing.assert_allclose(now[:, 7:], now[:, :3] - hand, atol=1e-6)
    former = now.copy()
    former[:, 7:] = hand - now[:, :3]
    np.testing.assert_allclose(present_objects(Lift.scene, former, hand), now, atol=1e-6)
    assert present_objects(Lift.scene, now, hand) is now
    with pytest.raises(DataError, match=r"expected an object vector of Lift"):
        present_objects(Lift.scene, np.roll(now, 1, axis=1), hand)


def test_former_orders_of_object_poses_are_recognised():
    random = np.random.default_rng(0)
    hand = random.uniform(-0.2, 0.2, (5, 3)) + np.array([0, 0, 1.0])
    turn = Rotation.random(5, rng=1)
    for scene, parts in ((Can.scene, 1), (ToolHang.scene, 3)):
        world = random.uniform(-0.3, 0.3, (5, parts, 3)) + np.array([0, 0, 0.9])
        relative = np.stack([turn.apply(world[:, i] - hand) for i in range(parts)], axis=1)
        quaternion = np.full((5, 4), 0.5)
        flags = random.integers(0, 2, (5, len(scene.object_names()) - 14 * parts))
        former = [np.c_[world[:, i], quaternion, relative[:, i], -quaternion] for i in range(parts)]
        now = [np.c_[relative[:, i], -quaternion, world[:, i], quaternion] for i in range(parts)]
        expected = np.concatenate([*now, flags], axis=1)
        np.testing.assert_array_equal(present_objects(scene, np.concatenate([*former, flags], axis=1), hand), expected)
        np.testing.assert_array_equal(present_objects(scene, expected, hand), expected)


def test_the_flags_of_transport_were_last():
    now = np.random.default_rng(0).uniform(1, 2, (4, 41))
    hand = now[:, :3] - now[:, 29:32]
    now[:, 27:29] = [0, 1]
    former = np.concatenate([now[:, :27], now[:, 29:], now[:, 27:29]], axis=1)
    np.testing.assert_array_equal(present_objects(Transport.scene, former, hand), now)


def test_rows_where_robosuite_knew_no_relative_pose_do_not_decide():
    objects = np.zeros((1, 14))
    objects[0, 7:10] = [0.1, 0.2, 0.86]
    assert present_objects(Can.scene, objects, np.array([[0.0, 0, 1]])) is objects


def test_absolute_actions_made_of_deltas_do_the_same(lifted):
    arrays = {k: v for k, v in lifted[0].items() if k != "model_file"}
    adapted, features = LiftAbs.adapt(arrays, with_states(Lift.features, arrays))
    LiftAbs.features.require(features)
    assert adapted[ACTION].shape == (len(arrays[ACTION]), 10)
    task = LiftAbs()
    task.restore(arrays, {"model_file": lifted[0]["model_file"]})
    for action, state in zip(adapted[ACTION][:-1], arrays[STATES][1:], strict=True):
        task.step(action)
        np.testing.assert_allclose(task.simulator_state(), state, atol=1e-4)
    assert task.step(adapted[ACTION][-1])[4]["success"]
    task.close()


def with_states(features, arrays):
    from robopolicy.features import Feature, FeatureSpec

    state = Feature(STATES, arrays[STATES].shape[1:], "float64")
    return FeatureSpec((*features, state), features.rate_hz)


def test_without_states_deltas_stay_and_are_refused(lifted):
    arrays = {k: v for k, v in lifted[0].items() if k not in ("model_file", STATES)}
    adapted, features = LiftAbs.adapt(arrays, Lift.features)
    assert adapted[ACTION] is arrays[ACTION]
    lines = LiftAbs.features.compare(features, "task", "dataset")
    assert any("control: task has absolute" in line and "dataset has delta" in line for line in lines)
    # And the other way round: poses are no deltas.
    assert any("control" in line for line in Lift.features.compare(LiftAbs.features))


def test_absolute_actions_with_three_numbers_of_rotation_get_six():
    vector = np.array([0.3, -0.2, 2.0])
    arrays = {ACTION: np.array([[0.1, 0.2, 0.9, *vector, -1.0]])}
    control = Control("end_effector_pose", "absolute", "world", "axis_angle", "positive_closes")
    spec = Lift.features.select([ACTION])
    spec = replace(spec, features=(replace(spec.action, control=control, names=(), low=(), high=()),))
    adapted, features = LiftAbs.adapt(arrays, spec)
    assert features.action == LiftAbs.features.action
    np.testing.assert_allclose(adapted[ACTION][0, [0, 1, 2, 9]], [0.1, 0.2, 0.9, -1], rtol=1e-6)
    np.testing.assert_allclose(
        rot6d_to_matrix(adapted[ACTION][0, 3:9]), Rotation.from_rotvec(vector).as_matrix(), atol=1e-6
    )


def test_deltas_of_turned_bases_are_turned_into_the_world():
    feature = Transport.features.action
    spec = Transport.features.select([ACTION])
    spec = replace(spec, features=(replace(feature, control=replace(feature.control, frame="base")),))
    ahead = np.array([[1, 0, 0, 0, 0.5, 0, -1, 1, 0, 0, 0, 0.5, 0, 1]], np.float32)
    adapted, features = Transport.adapt({ACTION: ahead}, spec)
    # The robots face each other along the y axis: ahead is +y for the first and -y for the second.
    expected = [[0, 1, 0, -0.5, 0, 0, -1, 0, -1, 0, 0.5, 0, 0, 1]]
    np.testing.assert_allclose(adapted[ACTION], expected, atol=1e-7)
    assert features.action == feature


def test_former_env_args_mean_the_same_in_the_present_names():
    ours = default_env_args("Lift", 1, False, robosuite.__version__)
    found = present_env_args("robomimic-lift", former_env_args(kp=200, damping=0.8), ours)
    arm = found["env_kwargs"]["controller_configs"]["body_parts"]["right"]
    assert (arm["kp"], arm["damping_ratio"], arm["input_type"], arm["input_ref_frame"]) == (200, 0.8, "delta", "world")
    assert "damping" not in arm
    assert "control_delta" not in arm
    assert found["env_kwargs"]["lite_physics"] is False
    absolute = default_env_args("Lift", 1, True, robosuite.__version__)
    again = present_env_args("robomimic-lift-abs", former_env_args(), absolute)
    assert again["env_kwargs"]["controller_configs"]["body_parts"]["right"]["input_type"] == "absolute"
    # What 1.5 writes comes back as it is.
    assert present_env_args("robomimic-lift", copy.deepcopy(ours), ours) == ours


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_name": "Stack"}, r"env_name is 'Stack', task 'robomimic-lift' has 'Lift'"),
        ({"type": 2}, r"type is 2"),
        ({"env_kwargs": {"robots": "Sawyer"}}, r"robots is \['Sawyer'\]"),
        ({"env_kwargs": {"control_freq": 10}}, r"control_freq is 10"),
        ({"env_kwargs": {"controller_configs": {"type": "IK_POSE"}}}, r"needs an OSC_POSE controller"),
        ({"env_kwargs": {"controller_configs": FORMER_CONTROLLER | {"kp": "stiff"}}}, r"kp of the controller"),
        ({"env_kwargs": {"controller_configs": "osc"}}, r"needs an OSC_POSE controller"),
    ],
)
def test_env_args_of_another_kind_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        Lift(env_args=former_env_args() | change)


def test_a_recorded_file_replays_and_says_which_task_it_is(tmp_path, lifted):
    ours = default_env_args("Lift", 1, False, robosuite.__version__)
    path = write(tmp_path / "lift.hdf5", lifted, ours)
    found = replay(path, progress=False)
    assert found.task == "robomimic-lift"
    assert (found.reproduced.value, found.success.value) == (1.0, 1.0)
    assert max(e.largest["object_position_m"] for e in found.episodes) < 1e-4
    # The size of the cube comes from the episode's model.
    sizes = [recorded_size(e["model_file"]) for e in lifted]
    assert np.abs(sizes[0] - sizes[1]).max() > 1e-4
    absolute = replay(path, "robomimic-lift-abs", progress=False)
    assert absolute.success.value == 1.0
    with pytest.raises(DataError, match=r"half-edges of geom 'cube_g0', found '1 2'"):
        recorded_size('<mujoco><geom name="cube_g0" type="box" size="1 2"/></mujoco>')


def test_a_file_of_another_version_replays_with_its_own_settings_and_both_versions_are_told(tmp_path, lifted):
    former = [dict(e) for e in lifted]
    for arrays in former:
        arrays[OBJECT] = arrays[OBJECT].copy()
        arrays[OBJECT][:, 7:] *= -1
    path = write(tmp_path / "former.hdf5", former, former_env_args())
    found = replay(path, progress=False)
    assert found.fingerprints["robosuite"] == ("1.4.1", robosuite.__version__)
    assert "1.4.1" in found.summary()
    assert "differs" in found.summary()
    assert max(e.largest["gripper_position_m"] for e in found.episodes) < 0.02
    with pytest.raises(DataError, match=r"recorded with robosuite 1\.4\.1, now 1\.5.*of 2 episodes succeed"):
        run([str(path), "--strict"])
    with open_source(path) as source:
        assert source.features.action.control.mode == "delta"
        (note,) = Lift.version_notes(source.fingerprint)
    assert f"recorded with robosuite 1.4.1, task 'robomimic-lift' runs {robosuite.__version__}" in note
    assert Lift.version_notes({"robosuite": robosuite.__version__}) == Lift.version_notes({}) == []


def test_a_missing_camera_is_named(lifted):
    arrays = {k: v for k, v in lifted[0].items() if k not in ("model_file", STATES)}
    _, features = LiftImage.adapt(arrays, Lift.features)
    lines = LiftImage.features.compare(features, "task", "dataset")
    assert any("'observation.images.agentview'" in line for line in lines)
    assert any("'observation.images.robot0_eye_in_hand'" in line for line in lines)
