"""The view shows what the dataset holds: pictures and numbers are compared with the arrays, not merely present."""

import base64
import re
import sys

import cv2
import numpy as np
import pytest
from mixed import mixed_episodes, write_mixed
from recordings import arm_features, planar_episode, write

from robopolicy.cli import main
from robopolicy.datasets.detect import open_source
from robopolicy.datasets.recording import write_recording
from robopolicy.datasets.view import build_page, build_sheet, collect
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import Feature, FeatureSpec

TOP = "observation.images.top"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp("view") / "mixed")


def view_of(path, episode=0, **options):
    with open_source(path) as source:
        return collect(source, episode, **options)


def test_collected_are_the_arrays_of_the_episode(mixed):
    recorded = mixed_episodes()[2]
    view = view_of(mixed, 2, frames=3)
    assert [t for t, _ in view.cameras[TOP]] == [0, 6, 11]
    for t, frame in view.cameras[TOP]:
        np.testing.assert_array_equal(frame, recorded[TOP][t])
    by_title = {s.title: s for s in view.signals}
    np.testing.assert_array_equal(by_title["observation.state [m]"].values, recorded["observation.state"][:, :2])
    np.testing.assert_array_equal(by_title["observation.state [rad]"].values, recorded["observation.state"][:, 2:])
    assert by_title["action"].labels == ("vx [m/s]", "vy [m/s]")
    assert view.instructions == ((0, "push the block"), (6, "go home, slowly"))
    assert view.headline == "Episode 2 of 0 to 3: 12 steps, 0.6 s at 20 Hz"
    assert ("simulator", "simulator test 1.2") in view.facts


def test_the_page_holds_the_frames_without_loss_and_loads_nothing(mixed):
    page = build_page(view_of(mixed, 2, frames=4))
    tags = re.findall(r'<figure><img alt="([^"]+) at step (\d+)" src="data:image/png;base64,([^"]+)"', page)
    assert len(tags) == 8
    recorded = mixed_episodes()[2]
    for key, step, data in tags:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), recorded[key][int(step)])
    assert page.count('class="chart"') == 6
    assert "go home, slowly" in page
    assert not re.search(r'(src|srcset|href)="(?!data:)', page)
    assert page == build_page(view_of(mixed, 2, frames=4)), "equal data give equal pages"


@pytest.mark.parametrize("episode", [0, 1], ids=["usual", "one step"])
def test_the_sheet_is_a_picture_with_the_frames_in_it(mixed, episode):
    sheet = cv2.imdecode(np.frombuffer(build_sheet(view_of(mixed, episode, frames=2)), np.uint8), cv2.IMREAD_COLOR)
    height, width, _ = sheet.shape
    assert width == 1320
    assert height > 1000
    # The frames are coloured, everything else of the upper part is black on white.
    spread = np.ptp(sheet[: height // 3].astype(int), axis=2)
    assert (spread > 60).mean() > 0.1


def test_names_from_the_data_are_text(tmp_path):
    # Neither a tag nor a formula: names are shown as they are.
    names = ("<script>alert(1)</script>", "$x_{")
    episode = planar_episode("absolute", 0)
    view = view_of(write(tmp_path / "$a<b", arm_features(None, names), [episode]))
    page = build_page(view)
    assert "<script" not in page
    assert "$a&lt;b" in page
    assert build_sheet(view).startswith(b"\x89PNG")


def test_grey_and_large_cameras_and_many_dimensions(tmp_path):
    features = FeatureSpec(
        (
            Feature("observation.images.depth", (300, 400, 1), "uint8", "image"),
            Feature("observation.state", (40,), names=tuple(f"joint_with_a_long_name_{i}" for i in range(40))),
        )
    )
    frames = np.full((5, 300, 400, 1), 77, np.uint8)
    state = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    path = write(tmp_path / "d", features, [{"observation.images.depth": frames, "observation.state": state}])
    view = view_of(path)
    assert view.cameras["observation.images.depth"][0][1].shape == (300, 400, 3)
    assert "rate unknown" in view.headline
    page = build_page(view)
    (data, *_) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (240, 320, 3)
    assert abs(picture.astype(int) - 77).max() <= 2
    assert build_sheet(view).startswith(b"\x89PNG")


def test_the_recording_holds_every_number_and_frame(mixed, tmp_path):
    pytest.importorskip("rerun")
    from rerun.chunk import RrdReader

    file = tmp_path / "e.rrd"
    with open_source(mixed) as source:
        write_recording(source, 2, file, progress=False)
    recorded = mixed_episodes()[2]
    rows: dict[str, int] = {}
    values = []
    for chunk in RrdReader(str(file)).stream().to_chunks():
        if not chunk.is_static:
            rows[chunk.entity_path] = rows.get(chunk.entity_path, 0) + chunk.num_rows
        if chunk.entity_path == "/action" and not chunk.is_static:
            batch = chunk.to_record_batch()
            name = next(n for n in batch.schema.names if "scalars" in n)
            values += batch.column(name).to_pylist()
    np.testing.assert_allclose(values, recorded["action"])
    assert rows["/observation/images/top"] == rows["/observation/images/wrist"] == 12
    assert rows["/task"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["e.rrd"]


def test_without_rerun_the_error_names_the_extra(mixed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with open_source(mixed) as source, pytest.raises(RobopolicyError, match=r"pip install 'robopolicy\[viz\]'"):
        write_recording(source, 0, tmp_path / "e.rrd")


def test_command_line(mixed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "view", str(mixed), "--episode", "3"]) == 0
    assert capsys.readouterr().out == "mixed_view.html\n"
    assert "Episode 3 of 0 to 3" in (tmp_path / "mixed_view.html").read_text()
    assert main(["data", "view", str(mixed), "-o", "sheet.png", "--frames", "2"]) == 0
    capsys.readouterr()
    for flags, message in (
        ([], "mixed_view.html: already exists"),
        (["--episode", "4", "-o", "x.html"], "episodes 0..3, asked for 4"),
        (["--frames", "0", "-o", "x.html"], "--frames 0"),
        (["-o", "x.pdf"], "ends in .html or .png"),
        (["--rerun", "x.mp4"], "ends in .rrd"),
    ):
        assert main(["data", "view", str(mixed), *flags]) == 2
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mixed_view.html", "sheet.png"]
    with pytest.raises(DataError, match=r"asked for -1"):
        view_of(mixed, -1)
