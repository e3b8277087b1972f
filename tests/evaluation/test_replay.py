"""Replay in the real PushT: what was recorded there is reproduced, and what was altered is found."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from robopolicy.cli import main
from robopolicy.datasets.detect import make_writer, open_source
from robopolicy.errors import DataError, FeatureMismatch, RobopolicyError
from robopolicy.evaluation.record import record
from robopolicy.evaluation.replay import replay
from robopolicy.features import EXECUTED, Feature, FeatureSpec
from robopolicy.sim.pusht import PushTImage, PushTKeypoints, PushTState
from robopolicy.sim.task import Task

HUMAN = Path(os.environ.get("ROBOPOLICY_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "pusht_human"


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    path = tmp_path_factory.mktemp("replay") / "demos"
    record("pusht", "scripted", path, episodes=2, seed=3, expert_options={"noise": 0.0}, progress=False)
    return path


def altered(demos, path, change, fingerprint=None):
    """A copy of the store whose episodes went through `change(number, arrays)`."""
    with (
        open_source(demos) as source,
        make_writer("episodes", path, source.features, fingerprint or source.fingerprint) as out,
    ):
        for number in range(source.n_episodes):
            arrays = {k: np.array(v) for k, v in source.read(number, source.features.keys()).items()}
            change(number, arrays)
            out.add(arrays)
    return path


def test_recorded_episodes_are_reproduced(demos):
    result = replay(demos, progress=False)
    assert (result.task, result.guessed) == ("pusht", True)
    assert result.reproduced.value == result.success.value == result.recorded_success.value == 1.0
    for episode in result.episodes:
        assert episode.final["block_position_px"] < 0.01
        assert episode.largest["agent_position_px"] < 1e-3
        assert episode.left_at is None
    assert all(then == now for then, now in result.fingerprints.values())


def test_a_noisy_expert_replays_by_what_it_did_not_by_what_it_meant(tmp_path):
    record("pusht", "scripted", tmp_path / "noisy", episodes=2, seed=3, progress=False)
    done = replay(tmp_path / "noisy", progress=False)
    assert max(e.largest["agent_position_px"] for e in done.episodes) < 1e-3
    with open_source(tmp_path / "noisy") as source:
        arrays = source.read(0, ["action", EXECUTED])
    assert 2 < np.std(arrays["action"] - arrays[EXECUTED]) < 10
    meant = altered(tmp_path / "noisy", tmp_path / "meant", lambda _, a: a.update({EXECUTED: a["action"]}))
    assert min(e.largest["agent_position_px"] for e in replay(meant, progress=False).episodes) > 3


def test_other_actions_are_found_from_the_step_on_at_which_states_part(demos, tmp_path):
    def stay_away(number, arrays):
        if number == 1:
            arrays[EXECUTED][10:] = (20.0, 20.0)

    changed = altered(demos, tmp_path / "changed", stay_away, {"gym-pusht": "0.0.1"})
    result = replay(changed, "pusht", progress=False)
    whole, broken = result.episodes
    assert whole.reproduced
    assert not broken.reproduced
    assert not broken.success
    assert broken.recorded_success
    assert broken.left_at > 10
    assert broken.final["block_position_px"] > 5
    assert result.reproduced.value == 0.5
    assert result.fingerprints["gym-pusht"] == ("0.0.1", PushTState().fingerprint()["gym-pusht"])
    assert "episode 1" in result.summary()
    assert "differs" in result.summary()
    assert replay(changed, "pusht", [0], progress=False).reproduced.value == 1.0


def test_a_keypoint_data_set_replays_too(demos, tmp_path):
    with open_source(demos) as source:
        keys = [f.key for f in source.features]
        parts = [PushTKeypoints.adapt(source.read(e, keys), source.features) for e in range(2)]
    spec = FeatureSpec(tuple(parts[0][1]), 10.0)
    with make_writer("episodes", tmp_path / "keypoints", spec) as out:
        for arrays, _ in parts:
            out.add({k: arrays[k] for k in spec.keys()})  # noqa: SIM118
    result = replay(tmp_path / "keypoints", progress=False)
    assert result.task == "pusht-keypoints"
    assert result.reproduced.value == 1.0
    assert result.recorded_success is None


def test_restored_state_is_the_recorded_one():
    recorded = {
        "observation.state": np.array([[30.5, 40.25], [0, 0]], np.float32),
        "observation.environment_state": np.array([[300, 200, 0.0, 1.0], [0, 0, 1, 0]], np.float32),
    }
    task = PushTState()
    observation = task.restore(recorded)
    np.testing.assert_allclose(task.agent_position, [30.5, 40.25])
    np.testing.assert_allclose(task.block_pose, [300, 200, np.pi / 2], atol=1e-6)
    first = {k: v[0] for k, v in recorded.items()}
    assert max(task.state_error(first, observation).values()) < 1e-4


def test_state_error_by_hand():
    def state(x, y, angle):
        block = [x, y, np.cos(angle), np.sin(angle)]
        return {
            "observation.state": np.array([10, 10], np.float32),
            "observation.environment_state": np.array(block, np.float32),
        }

    error = PushTState.state_error(state(100, 100, np.pi - 0.1), state(103, 104, 0.1 - np.pi))
    assert error["block_position_px"] == pytest.approx(5.0)
    assert error["block_angle_rad"] == pytest.approx(0.2, abs=1e-6)
    assert error["agent_position_px"] == 0.0


def test_what_cannot_be_replayed_says_so(demos, tmp_path):
    with pytest.raises(RobopolicyError, match="'pusht-image' observes images"):
        replay(demos, "pusht-image")
    with pytest.raises(RobopolicyError, match="'7' is not within the 2 episodes"):
        replay(demos, "pusht", [7])
    with pytest.raises(RobopolicyError, match="no pose of agent and block"):
        PushTImage().restore({"observation.state": np.zeros((1, 2), np.float32)})
    with pytest.raises(RobopolicyError, match="cannot restore recorded states"):
        Task.restore(PushTState(), {})
    other = FeatureSpec((Feature("observation.state", (3,)), Feature("action", (4,), kind="action")))
    with make_writer("episodes", tmp_path / "other", other) as out:
        out.add({"observation.state": np.zeros((2, 3), np.float32), "action": np.zeros((2, 4), np.float32)})
    with pytest.raises(RobopolicyError, match=r"fit no task.*--task, of .*pusht"):
        replay(tmp_path / "other", progress=False)
    with pytest.raises(FeatureMismatch, match=r"needs 'observation.state'"):
        replay(tmp_path / "other", "pusht", progress=False)
    action = np.full((20, 2), 200.0, np.float32)
    action[4, 0] = np.nan
    root = zarr.open_group(str(tmp_path / "nan"), mode="w", zarr_format=2)
    root.create_array("data/action", data=action)
    root.create_array("data/state", data=np.full((20, 5), 100.0, np.float32))
    root.create_array("meta/episode_ends", data=np.array([20]))
    with pytest.raises(DataError, match="episode 0, step 4: key 'action' is not finite"):
        replay(tmp_path / "nan", "pusht", progress=False)


def test_command_line(demos, tmp_path, capsys):
    report = tmp_path / "replay.json"
    assert main(["data", "replay", str(demos), "--episodes", "1", "--output", str(report)]) == 0
    assert "reproduced" in capsys.readouterr().out
    assert json.loads(report.read_text())["episodes"][0]["episode"] == 1
    assert main(["data", "replay", str(demos), "--output", str(report)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["data", "replay", str(demos), "--json", "--task", "pusht"]) == 0
    assert json.loads(capsys.readouterr().out)["reproduced"]["value"] == 1.0
    assert main(["data", "replay", str(demos), "--task", "pusth"]) == 2
    assert "Did you mean 'pusht'" in capsys.readouterr().err


@pytest.mark.skipif(not HUMAN.is_dir(), reason="human demonstrations are not beside the repository")
def test_human_demonstrations_replay():
    result = replay(HUMAN / "pusht_cchi_v7_replay.zarr", episodes=range(0, 206, 10), progress=False)
    assert result.reproduced.value == 1.0
    assert np.median([e.final["block_position_px"] for e in result.episodes]) < 0.1
