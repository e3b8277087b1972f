"""Image recipes end to end, very small: demonstrations with pictures, training, evaluation. Needs OpenGL."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robosuite")

from robopolicy.cli import main
from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.replay import replay
from robopolicy.sim.rendering import backend
from robopolicy.sim.robomimic import LiftImage, LiftImageAbs

CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")
TINY = ["--steps", "2", "--batch-size", "4", "--eval.every", "0", "--log-every", "1", "--threads", "1"]
NETWORKS = {
    "image-small": ["--policy.network.down-dims", "8", "16", "--policy.sampler.steps", "2"],
    "image-carp": ["--policy.depth", "2", "--policy.width", "16", "--policy.tokenizer.steps", "1"],
    "image-bcrnn": ["--policy.hidden", "8", "--batch-size", "1"],
}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        backend()
    except RobopolicyError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("demos") / "lift.hdf5"
    assert main(["data", "record", "--task", "robomimic-lift-image", "--output", str(path), "--episodes", "2"]) == 0
    return path


def test_recorded_demonstrations_hold_pictures_under_robomimics_names(demonstrations: Path) -> None:
    import h5py

    with h5py.File(demonstrations) as file:
        demo = file["data/demo_0"]
        for name in CAMERAS:
            pictures = demo["obs"][name][()]
            assert pictures.shape == (len(demo["actions"]), 84, 84, 3)
            assert pictures.dtype == np.uint8
            assert (pictures[0] != pictures[-1]).any()
        assert demo["obs/object"].shape == (len(demo["actions"]), 10)
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "Lift"


def test_they_replay_and_train_policies_on_states_too(demonstrations: Path, tmp_path: Path) -> None:
    done = replay(demonstrations, progress=False)
    assert done.task == "robomimic-lift"
    assert [episode.success for episode in done.episodes] == [True, True]
    assert max(e.largest["object_position_m"] for e in done.episodes) < 1e-6
    arguments = ["--data.path", str(demonstrations), "--output", str(tmp_path / "run")]
    assert main(["train", "lift-flow", *arguments, *TINY, "--policy.network.width", "16"]) == 0


@pytest.mark.parametrize("method", NETWORKS)
def test_an_image_recipe_trains_and_is_evaluated(
    method: str, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in (LiftImage, LiftImageAbs):
        monkeypatch.setattr(task, "max_steps", 10)
    run, evaluation = tmp_path / "run", tmp_path / "eval"
    # Absolute poses are made of the recorded deltas.
    arguments = ["--data.path", str(demonstrations), "--data.cache", str(tmp_path / "cache"), "--output", str(run)]
    small = ["--policy.vision.crop", "40", "--policy.vision.share-encoder", "True"]
    assert main(["train", f"lift-{method}", *arguments, *TINY, *small, *NETWORKS[method]]) == 0
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(entry["loss"]) for entry in losses if "loss" in entry)
    assert main(["eval", str(run), "--episodes", "1", "--output", str(evaluation), "--threads", "1"]) == 0
    info = json.loads((evaluation / "eval_info.json").read_text())
    assert info["task"] == ("robomimic-lift-image" if method == "image-bcrnn" else "robomimic-lift-image-abs")
    assert info["episodes"][0]["steps"] == 10
    assert list((evaluation / "videos").glob("*.mp4"))
