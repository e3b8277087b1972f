"""Cameras of robomimic's tasks. Drawing needs libegl1 or libosmesa6; without both only the error is tested."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("robosuite")

from robopolicy.errors import RobopolicyError
from robopolicy.sim.rendering import Quality, Renderer, backend
from robopolicy.sim.robomimic import LiftImage, ToolHangImage, TransportImage

AGENT, HAND = "observation.images.agentview", "observation.images.robot0_eye_in_hand"


@pytest.fixture(scope="module")
def task():
    try:
        backend()
    except RobopolicyError as error:
        pytest.skip(str(error))
    task = LiftImage()
    yield task
    task.close()


def test_the_published_cameras_and_sizes():
    assert [f.key for f in LiftImage.features.of_kind("image")] == [AGENT, HAND]
    assert LiftImage.features[AGENT].shape == (84, 84, 3)
    assert "observation.object" not in LiftImage.features
    assert LiftImage.name == "robomimic-lift-image"
    assert len(TransportImage.features.of_kind("image")) == 4
    assert ToolHangImage.features["observation.images.sideview"].shape == (240, 240, 3)


def test_pictures_show_the_scene_and_are_a_function_of_the_seed(task):
    first, _ = task.reset(seed=3)
    other, _ = task.reset(seed=4)
    again, _ = task.reset(seed=3)
    assert first[AGENT].shape == (84, 84, 3)
    assert first[AGENT].dtype == np.uint8
    np.testing.assert_array_equal(first[AGENT], again[AGENT])
    assert (first[AGENT] != other[AGENT]).any()
    # The cube is the only thing that is much more red than green; it lies in the middle of the table.
    red = first[AGENT][..., 0].astype(int) - first[AGENT][..., 1] > 60
    rows, columns = np.nonzero(red)
    assert len(rows) > 10
    assert 30 < rows.mean() < 65
    assert 25 < columns.mean() < 60
    moved = task.step(np.array([0, 0, -1, 0, 0, 0, 1.0]))[0]
    assert (moved[HAND] != again[HAND]).any()


def test_pictures_are_robosuites_own_at_its_quality(task):
    # robosuite's own context, with MuJoCo's default shadow map and samples.
    code = (
        "import sys, numpy as np; from robopolicy.sim.robosuite_env import *; "
        "r = load_robosuite('x'); a = default_env_args('Lift', 1, False, r.__version__); "
        "a['env_kwargs'] |= dict(has_offscreen_renderer=True, use_camera_obs=True, camera_heights=84, "
        "camera_widths=84, camera_names=['agentview', 'robot0_eye_in_hand']); "
        "e = make_environment(r, a); np.random.seed(3); raw = e.reset(); "
        "np.savez(sys.argv[1], **{k: raw[k][::-1] for k in ('agentview_image', 'robot0_eye_in_hand_image')})"
    )
    task.reset(seed=3)
    data, model = task.env.sim.data._data, task.env.sim.model._model
    renderer = Renderer(model, 84, 84, Quality(4096, 4), {0: False, 1: True})
    ours = {name: renderer(data, name) for name in ("agentview", "robot0_eye_in_hand")}
    with pytest.raises(RobopolicyError, match=r"no camera 'agentvew' in the scene; there are frontview, birdview"):
        renderer(data, "agentvew")
    renderer.close()
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        environment = os.environ | {"MUJOCO_GL": backend()}
        subprocess.run([sys.executable, "-c", code, file.name], check=True, env=environment, capture_output=True)
        expected = np.load(file.name)
        for name, picture in ours.items():
            difference = np.abs(picture.astype(int) - expected[f"{name}_image"])
            assert difference.mean() < 1
            assert (difference > 8).mean() < 0.02


def test_what_decides_pixels_is_part_of_the_fingerprint(task):
    assert task.fingerprint()["rendering"] == f"{backend()}, shadow map 1024, 0 samples"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MUJOCO_GL": "disabled"}, "MUJOCO_GL=disabled switches off"),
        ({"MUJOCO_EGL_DEVICE_ID": "99", "MUJOCO_GL": "egl"}, "install the Debian package libegl1"),
    ],
)
def test_without_opengl_the_error_names_the_package(variables, message):
    code = "from robopolicy.sim.robomimic import LiftImage; LiftImage()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | variables)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]
