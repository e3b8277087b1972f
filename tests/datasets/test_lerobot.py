import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from mixed import LENGTHS, TASKS, mixed_episodes, mixed_features, write_mixed

from robopolicy.cli import main
from robopolicy.datasets import lerobot, lerobot_writer
from robopolicy.datasets.detect import dataset_format, make_writer, open_dataset, open_source
from robopolicy.datasets.lerobot_stats import image_stats, merge_stats, number_stats
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import Feature, FeatureSpec

TOP, WRIST = "observation.images.top", "observation.images.wrist"
CAMERA = FeatureSpec((Feature("observation.images.top", (32, 48, 3), "uint8", "image"), Feature("action", (2,))), 10.0)


def edit_json(file: Path, change: Callable[[Any], Any]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def foreign(path: Path) -> Path:
    """As another program would have written it: without our own metadata."""
    edit_json(path / "meta" / "info.json", lambda info: info.pop("robopolicy"))
    return path


def edit_episodes(path: Path, name: str, values: list[Any]) -> None:
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(file, partitioning=None)
    i = table.schema.get_field_index(name)
    pyarrow.parquet.write_table(table.set_column(i, name, pyarrow.array(values, table.schema.types[i])), file)


def numbered_episodes(lengths: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """The brightness of a frame tells the number of its step in the dataset, in steps of 3."""
    episodes, row = [], 0
    for n in lengths:
        rows = np.arange(row, row + n)
        frames = np.zeros((n, 32, 48, 3), np.uint8) + (3 * rows).astype(np.uint8)[:, None, None, None]
        episodes.append({TOP: frames, "action": np.float32(rows)[:, None] * np.float32([1, -1])})
        row += n
    return episodes


def write_numbered(path: Path, to: str = "lerobot", lengths: tuple[int, ...] = (5, 1, 20, 9), **options: Any) -> Path:
    with make_writer(to, path, CAMERA, **options) as writer:
        for episode in numbered_episodes(lengths):
            writer.add(episode)
    return path


def rows_seen(path: Path) -> list[int]:
    with open_source(path) as source:
        found = [source.read(e, [TOP])[TOP] for e in range(source.n_episodes)]
    return np.rint(np.concatenate(found).mean(axis=(1, 2, 3)) / 3).astype(int).tolist()


def read_all(path: Path) -> list[dict[str, np.ndarray]]:
    with open_source(path) as source:
        return [source.read(e, source.features.keys()) for e in range(source.n_episodes)]


def test_layout_of_version_3(tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "d", "lerobot")
    info = json.loads((path / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"], info["total_tasks"]) == ("v3.0", 20, 25, 2)
    assert info["features"]["next.reward"] == {"dtype": "float32", "shape": [1], "names": None}
    assert info["features"][WRIST]["info"]["video.codec"] == "h264"
    episodes = pyarrow.parquet.read_table(path / "meta/episodes/chunk-000/file-000.parquet", partitioning=None)
    assert episodes["length"].to_pylist() == list(LENGTHS)
    assert episodes["dataset_from_index"].to_pylist() == [0, 7, 8, 20]
    assert episodes[f"videos/{TOP}/from_timestamp"].to_pylist() == [0.0, 7 / 20, 8 / 20, 20 / 20]
    assert episodes[f"videos/{TOP}/to_timestamp"].to_pylist() == [7 / 20, 8 / 20, 20 / 20, 25 / 20]
    assert episodes["tasks"].to_pylist() == [[TASKS[0]], [TASKS[1]], list(TASKS), [TASKS[1]]]
    steps = pyarrow.parquet.read_table(path / "data/chunk-000/file-000.parquet", partitioning=None)
    assert steps["frame_index"].to_pylist() == [k for n in LENGTHS for k in range(n)]
    np.testing.assert_array_equal(steps["timestamp"], np.float32([k / 20 for n in LENGTHS for k in range(n)]))
    wanted = mixed_episodes()
    assert episodes["stats/action/max"].to_pylist() == [e["action"].max(axis=0).tolist() for e in wanted]
    assert np.shape(episodes[f"stats/{TOP}/mean"][0].as_py()) == (3, 1, 1)
    stats = json.loads((path / "meta/stats.json").read_text())
    everything = np.concatenate([e["action"] for e in wanted]).astype(np.float64)
    np.testing.assert_allclose(stats["action"]["mean"], everything.mean(axis=0))
    np.testing.assert_allclose(stats["action"]["std"], everything.std(axis=0))
    assert stats["index"]["count"] == [25]


def test_layout_of_version_2(tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "d", "lerobot-v2.1")
    assert dataset_format(path) == "lerobot-v2.1"
    for e in range(4):
        assert (path / f"data/chunk-000/episode_{e:06d}.parquet").is_file()
        assert (path / f"videos/chunk-000/{TOP}/episode_{e:06d}.mp4").is_file()
    lines = [json.loads(x) for x in (path / "meta/episodes.jsonl").read_text().splitlines()]
    assert lines[2] == {"episode_index": 2, "tasks": list(TASKS), "length": 12}
    stats = [json.loads(x) for x in (path / "meta/episodes_stats.jsonl").read_text().splitlines()]
    assert stats[0]["stats"]["action"]["min"] == mixed_episodes()[0]["action"].min(axis=0).tolist()
    assert sorted(stats[0]["stats"][TOP]) == ["count", "max", "mean", "min", "std"]
    tasks = [json.loads(x) for x in (path / "meta/tasks.jsonl").read_text().splitlines()]
    assert tasks == [{"task_index": i, "task": t} for i, t in enumerate(TASKS)]


def test_statistics_of_numbers_and_images() -> None:
    stats = number_stats(np.float32([[0, 10], [1, 10], [5, 40]]))
    assert stats["mean"].tolist() == [2.0, 20.0]
    np.testing.assert_allclose(stats["std"], [np.sqrt(14 / 3), np.sqrt(200)])
    assert (stats["min"].tolist(), stats["max"].tolist(), stats["q50"].tolist()) == ([0, 10], [5, 40], [1, 10])
    assert number_stats(np.ones(4))["mean"].shape == (1,)
    frames = np.zeros((2, 2, 2, 3), np.uint8)
    frames[:, 0, :, 1] = 255
    stats = image_stats(frames)
    assert stats["mean"].ravel().tolist() == [0.0, 0.5, 0.0]
    assert stats["std"].ravel().tolist() == [0.0, 0.5, 0.0]
    assert stats["max"].shape == (3, 1, 1)
    assert stats["q99"].ravel().tolist() == [0.0, 1.0, 0.0]
    values = np.random.default_rng(0).normal(size=(30, 2))
    merged = merge_stats(number_stats(values[:4]), number_stats(values[4:]))
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(merged[name], number_stats(values)[name])


@pytest.mark.parametrize("to", ["lerobot", "lerobot-v2.1"])
def test_another_programs_dataset(tmp_path: Path, to: str) -> None:
    path = foreign(write_mixed(tmp_path / "d", to))
    source = open_source(path)
    assert source.notes == []
    assert source.tasks == TASKS
    found, wanted = source.features, mixed_features()
    assert sorted(found.keys()) == sorted(wanted.keys())
    assert found["action"].names == ("vx", "vy")
    assert found["next.reward"].shape == (1,)
    assert (found["task_index"].kind, found["task_index"].shape) == ("language", ())
    for e, episode in enumerate(mixed_episodes()):
        read = source.read(e, found.keys())
        np.testing.assert_array_equal(read["observation.keypoints"], episode["observation.keypoints"])
        np.testing.assert_array_equal(read["task_index"], episode["task_index"])


def test_text_is_left_out_and_channels_may_come_first(tmp_path: Path) -> None:
    path = foreign(write_mixed(tmp_path / "d", "lerobot"))

    def change(info: dict[str, Any]) -> None:
        info["features"]["note"] = {"dtype": "string", "shape": [1], "names": None}
        info["features"][TOP] |= {"shape": [3, 48, 64], "names": ["channels", "height", "width"]}

    edit_json(path / "meta/info.json", change)
    source = open_source(path)
    assert "note" not in source.features
    assert source.notes == ["'note' (string) is neither a number nor an image and is left out"]
    assert source.read(0, [TOP])[TOP].shape == (7, 48, 64, 3)


def test_numbers_of_tasks_may_have_gaps(tmp_path: Path) -> None:
    path = foreign(write_mixed(tmp_path / "d", "lerobot-v2.1"))
    lines = [{"task_index": 1, "task": TASKS[1]}, {"task_index": 0, "task": TASKS[0]}]
    for line in lines:
        line["task_index"] = 5 * int(line["task_index"]) + 2  # type: ignore[call-overload]
    (path / "meta/tasks.jsonl").write_text("\n".join(json.dumps(x) for x in lines))
    with pytest.raises(DataError, match="task_index 0 at row 0 is in no table of tasks"):
        open_source(path).read(0, ["task_index"])
    for file in sorted((path / "data/chunk-000").iterdir()):
        table = pyarrow.parquet.read_table(file, partitioning=None)
        i = table.schema.get_field_index("task_index")
        numbers = pyarrow.array(5 * table["task_index"].to_numpy() + 2)
        pyarrow.parquet.write_table(table.set_column(i, "task_index", numbers), file)
    source = open_source(path)
    assert source.tasks == TASKS
    np.testing.assert_array_equal(source.read(2, ["task_index"])["task_index"], mixed_episodes()[2]["task_index"])


def test_many_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_writer, "VIDEO_FILE_SECONDS", 1.0)
    monkeypatch.setattr(lerobot_writer, "DATA_FILE_BYTES", 1)
    monkeypatch.setattr(lerobot_writer, "FILES_PER_CHUNK", 2)
    lengths = (5, 5, 1, 20, 9, 3)
    path = write_numbered(tmp_path / "d", lengths=lengths)
    # Ten frames are one second; an episode that is longer has its own file.
    assert sorted(p.relative_to(path / "videos" / TOP).as_posix() for p in path.rglob("*.mp4")) == [
        "chunk-000/file-000.mp4",
        "chunk-000/file-001.mp4",
        "chunk-001/file-000.mp4",
        "chunk-001/file-001.mp4",
        "chunk-002/file-000.mp4",
    ]
    assert len(list((path / "data").rglob("*.parquet"))) == 6
    assert rows_seen(path) == list(range(43))
    with open_source(path) as source:
        assert source.frames(TOP, np.array([42, 7, 0])).mean(axis=(1, 2, 3)).round().tolist() == [126, 21, 0]
    images = open_dataset(path, images=True).arrays[TOP]
    assert np.rint(images.mean(axis=(1, 2, 3)) / 3).tolist() == list(range(43))


def test_video_is_decoded_once_into_a_cache_named_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write_numbered(tmp_path / "d"), tmp_path / "images"
    images = open_dataset(path, images=True, cache_dir=cache).arrays[TOP]
    assert isinstance(images, np.memmap)
    np.testing.assert_array_equal(images, np.concatenate([e[TOP] for e in read_all(path)]))

    def unused(*args: object) -> None:
        raise AssertionError("decoded twice")

    copy = Path(shutil.copytree(path, tmp_path / "elsewhere"))
    with monkeypatch.context() as patch:
        patch.setattr(lerobot, "decode_runs", unused)
        np.testing.assert_array_equal(open_dataset(copy, images=True, cache_dir=cache).arrays[TOP], images)
    before = open_source(path).identity(TOP)
    assert open_source(copy).identity(TOP) == before
    other = numbered_episodes((5, 1, 20, 9))
    other[2][TOP][4] += 1
    with make_writer("lerobot", tmp_path / "other", CAMERA) as writer:
        for episode in other:
            writer.add(episode)
    assert open_source(tmp_path / "other").identity(TOP) != before


def test_wrong_time_stamps_are_reported_and_frames_counted(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "d")
    edit_episodes(path, f"videos/{TOP}/from_timestamp", [0.0, 0.9, 0.6, 2.6])
    with open_source(path) as source:
        assert np.rint(source.read(2, [TOP])[TOP].mean(axis=(1, 2, 3)) / 3).tolist() == list(range(6, 26))
        (note,) = source.notes
        assert "file-000.mp4: time stamps do not fit the episodes; frames are counted instead" in note
    file = path / "data/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(file, partitioning=None)
    stamps = table["timestamp"].to_numpy().copy()
    stamps[10] += 0.02
    i = table.schema.get_field_index("timestamp")
    pyarrow.parquet.write_table(table.set_column(i, "timestamp", pyarrow.array(stamps)), file)
    with open_source(path) as source:
        assert "differ from frame number / fps by up to 0.02 s (episode 2)" in source.notes[0]


def test_frames_that_no_episode_uses_are_passed_over(tmp_path: Path) -> None:
    whole, part = write_numbered(tmp_path / "whole"), tmp_path / "part"
    with make_writer("lerobot", part, CAMERA) as writer:
        for e in (0, 2):
            writer.add(numbered_episodes((5, 1, 20, 9))[e])
    shutil.copy(whole / f"videos/{TOP}/chunk-000/file-000.mp4", part / f"videos/{TOP}/chunk-000/file-000.mp4")
    edit_episodes(part, f"videos/{TOP}/from_timestamp", [0.0, 0.6])
    assert rows_seen(foreign(part)) == [*range(5), *range(6, 26)]
    edit_episodes(part, f"videos/{TOP}/from_timestamp", [0.0, 1.6])
    with pytest.raises(DataError, match=r"has 35 frames, episodes 0 to 1 need 25 and their time stamps do not fit"):
        rows_seen(part)


def test_a_frame_index_with_gaps_is_an_error(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "d")
    file = path / "data/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(file, partitioning=None)
    values = table["frame_index"].to_numpy().copy()
    values[9] += 1
    i = table.schema.get_field_index("frame_index")
    pyarrow.parquet.write_table(table.set_column(i, "frame_index", pyarrow.array(values)), file)
    with pytest.raises(DataError, match="episode 2: frame_index should count"):
        open_source(path)


def test_everything_else_is_kept(tmp_path: Path) -> None:
    features = FeatureSpec(
        (
            Feature("simulator.state", (3,), "float64"),
            Feature("flags", (2, 2), "bool"),
            Feature("observation.images.depth", (8, 8, 1), "uint8", "image"),
            Feature("action", (1,), kind="action"),
        )
    )
    rng = np.random.default_rng(0)
    episode = {
        "simulator.state": rng.normal(size=(4, 3)),
        "flags": rng.random((4, 2, 2)) > 0.5,
        "observation.images.depth": rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8),
        "action": rng.normal(size=(4, 1)).astype(np.float32),
    }
    for to in ("lerobot", "lerobot-v2.1"):
        with pytest.raises(DataError, match="LeRobot needs the rate, which the data does not say; give fps"):
            make_writer(to, tmp_path / to, features)
        with make_writer(to, tmp_path / to, features, fps=12.5) as writer:
            writer.add(episode, {"seed": 3, "label": "ü"})
        with open_source(tmp_path / to) as source:
            assert source.features == features
            assert source.tasks == ()
            assert source.attributes(0) == {"seed": 3, "label": "ü"}
            for key, values in source.read(0, features.keys()).items():
                np.testing.assert_array_equal(values, episode[key])
        assert json.loads((tmp_path / to / "meta/info.json").read_text())["fps"] == 12.5


@pytest.mark.parametrize("to", ["lerobot", "lerobot-v2.1"])
def test_writing_twice_gives_the_same_bytes(tmp_path: Path, to: str) -> None:
    a, b = write_mixed(tmp_path / "a", to), write_mixed(tmp_path / "b", to)
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    for file in files:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


def test_what_lerobot_cannot_hold(tmp_path: Path) -> None:
    def refused(feature: Feature, message: str) -> None:
        with pytest.raises(DataError, match=message):
            make_writer("lerobot", tmp_path / "d", FeatureSpec((feature,), 10.0))

    refused(Feature("a/b", (2,)), "cannot have a key 'a/b'")
    refused(Feature("timestamp", ()), "cannot have a key 'timestamp'")
    refused(Feature("x", (1, 1, 1, 1, 1, 1)), "cannot hold 'x'")
    refused(Feature("i", (4, 4, 2), "uint8", "image"), r"1, 3 or 4\], found \(4, 4, 2\)")
    with pytest.raises(RobopolicyError, match="unknown codec 'vp9'"):
        make_writer("lerobot", tmp_path / "d", CAMERA, codec="vp9")
    with pytest.raises(DataError, match="fps 30, but the data was recorded at 10 Hz"):
        make_writer("lerobot", tmp_path / "d", CAMERA, fps=30.0)
    with pytest.raises(DataError, match="format episodes has no option 'video'"):
        make_writer("episodes", tmp_path / "d", CAMERA, video=False)
    assert list(tmp_path.iterdir()) == []


def test_convert_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = write_mixed(tmp_path / "start")
    main(["data", "convert", str(start), "-o", str(tmp_path / "p"), "--to", "lerobot", "--video", "False"])
    assert not (tmp_path / "p" / "videos").exists()
    np.testing.assert_array_equal(read_all(tmp_path / "p")[2][TOP], mixed_episodes()[2][TOP])
    options = ["--to", "lerobot-v2.1", "--codec", "h264-yuv420p"]
    main(["data", "convert", str(start), "-o", str(tmp_path / "v"), *options])
    info = json.loads((tmp_path / "v/meta/info.json").read_text())
    assert info["features"][TOP]["info"]["video.pix_fmt"] == "yuv420p"
    assert (
        main(["data", "convert", str(start), "-o", str(tmp_path / "e"), "--to", "episodes", "--video", "False"]) == 2
    )
    assert "format episodes has no option 'video'" in capsys.readouterr().err


HOSTILE = [
    "/etc/{chunk_index}",
    "../{chunk_index}/{file_index}.parquet",
    "data/../../{file_index}",
    "data/{file_index.__class__}",
    "data/{file_index!r}",
    "data/{file_index:099999999d}",
    "data/{0}",
    "data/{other}",
    "data/{file_index",
    "data/\0",
    7,
    None,
]


@pytest.mark.parametrize("template", HOSTILE)
@pytest.mark.parametrize("name", ["data_path", "video_path"])
def test_hostile_path_templates(tmp_path: Path, name: str, template: object) -> None:
    path = write_numbered(tmp_path / "d")
    edit_json(path / "meta/info.json", lambda info: info.update({name: template}))
    with pytest.raises(DataError, match=r"d/(meta/info.json|data)|nothing says where the video"):
        read_all(path)


def test_hostile_keys_and_links(tmp_path: Path) -> None:
    path = foreign(write_numbered(tmp_path / "d"))
    outside = shutil.move(path / "videos", tmp_path / "outside")
    (path / "videos").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of the dataset"):
        open_source(path)
    path = write_mixed(tmp_path / "p", "lerobot", video=False)
    file = path / "data/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(file, partitioning=None)
    for bad in ("/etc/passwd", "../outside/x.png"):
        cells = [{"bytes": None, "path": bad}] * table.num_rows
        i = table.schema.get_field_index(TOP)
        pyarrow.parquet.write_table(table.set_column(i, TOP, pyarrow.array(cells, table.schema.types[i])), file)
        with pytest.raises(DataError, match=r"episode 1: .*leads out of the dataset"):
            open_source(path).read(1, [TOP])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["features"][TOP].update(shape=[60_000, 60_000, 3]), "60000x60000 pixels"),
        (lambda i: i["features"][TOP].update(shape=[-1, 48, 3]), "-1x48 pixels"),
        (lambda i: i["features"][TOP].update(shape=[48, 32, 3]), r"described as|should be 48x32 pixels"),
        (lambda i: i["features"][TOP].update(shape=[10**400, 1, 3]), "damaged|pixels"),
        (lambda i: i["features"]["action"].update(shape=[10**9]), "'action' is damaged"),
        (lambda i: i["features"]["action"].update(dtype="object"), "described as|left out|no column"),
        (lambda i: i.update(fps=0), "fps should be"),
        (lambda i: i.update(fps=float("nan")), "fps should be"),
        (lambda i: i.update(total_frames=-1), "info.json says 4 episodes of -1 steps"),
        (lambda i: i.update(total_episodes=10**12), "info.json says 1000000000000 episodes"),
        (lambda i: i.update(chunks_size=0), "chunks_size"),
        (lambda i: i.update(features=[]), "damaged"),
        (lambda i: i["robopolicy"]["features"][0].update(shape=[1, 2, 3]), "changed after it was written"),
        (lambda i: i["robopolicy"].update(version=9), "version 9"),
        (lambda i: i["robopolicy"].pop("features"), "changed after it was written"),
    ],
)
def test_damaged_info(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    path = write_numbered(tmp_path / "d")
    edit_json(path / "meta/info.json", change)
    with pytest.raises(DataError, match=message):
        read_all(path)


def test_deeply_nested_json(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "d")
    (path / "meta/info.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"info.json: damaged"):
        open_source(path)


@pytest.mark.parametrize("video", [True, False])
@pytest.mark.parametrize("to", ["lerobot", "lerobot-v2.1"])
def test_missing_and_truncated_files(tmp_path: Path, to: str, video: bool) -> None:
    whole = write_numbered(tmp_path / "whole", to, video=video)
    needed = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and "stats" not in p.name]
    for file in needed:
        if file.name == "info.json":
            continue
        # Instructions that no step refers to may be none; the last byte of their table ends the line.
        for keep in (None, 0.5) if file.name == "tasks.jsonl" else (None, 0.0, 0.5, 0.99):
            path = Path(shutil.copytree(whole, tmp_path / "copy"))
            data = (path / file).read_bytes()
            (path / file).unlink()
            if keep is not None:
                (path / file).write_bytes(data[: int(keep * len(data))])
            with pytest.raises(DataError, match="/copy") as caught:
                read_all(path)
            assert "\n" not in str(caught.value)
            shutil.rmtree(path)


def test_a_video_with_too_few_frames(tmp_path: Path) -> None:
    path, short = write_numbered(tmp_path / "d"), write_numbered(tmp_path / "short", lengths=(5, 1, 20))
    name = f"videos/{TOP}/chunk-000/file-000.mp4"
    shutil.copy(short / name, path / name)
    with pytest.raises(DataError, match=r"damaged or replaced: its checksum is not the one in info.json"):
        read_all(path)
    foreign(path)
    with pytest.raises(DataError, match=r"episode 0: .*has 26 frames, episodes 0 to 3 need 35"):
        read_all(path)
    with pytest.raises(DataError, match=r"episode 0.*has 26 frames"):
        open_dataset(path, images=True)
    assert len(open_dataset(path).arrays["action"]) == 35


def test_flipped_bits_in_video_are_noticed(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "d")
    file = path / f"videos/{TOP}/chunk-000/file-000.mp4"
    data = bytearray(file.read_bytes())
    data[data.index(b"mdat") + 900] ^= 4
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"file-000.mp4: damaged or replaced"):
        read_all(path)


def test_flipped_bits_in_numbers_are_noticed(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "d", video=False)
    file = path / "data/chunk-000/file-000.parquet"
    data = bytearray(file.read_bytes())
    at = data.index(np.float32([1, -1, 2, -2]).tobytes())
    data[at + 1] ^= 4
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"file-000.parquet: truncated or not a parquet file"):
        read_all(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: damaged"),
        ("[1]", "line 2: should be an object, found list"),
        ('{"episode_index": 2, "length": 1}', "line 2: episode_index should be 1, found 2"),
        ('{"episode_index": 1, "length": -3}', "line 2: episode 1 has length -3"),
        ('{"episode_index": 1, "length": 1e9}', "line 2: episode 1 has length 1000000000.0"),
        ('{"episode_index": 1, "length": 3}', "disagree from episode 1 on"),
        ("[" * 100_000, "line 2: damaged"),
    ],
)
def test_damaged_lines(tmp_path: Path, line: str, message: str) -> None:
    path = write_numbered(tmp_path / "d", "lerobot-v2.1")
    file = path / "meta/episodes.jsonl"
    lines = file.read_text().splitlines()
    lines[1] = line
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        read_all(path)


def test_a_picture_bomb(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "d", video=False)
    file = path / "data/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(file, partitioning=None)
    cells = table[TOP].to_pylist()
    bytes_ = cells[7]["bytes"]
    cells[7]["bytes"] = bytes_[:16] + b"\x00\x01\x00\x00\x00\x01\x00\x00" + bytes_[24:]
    i = table.schema.get_field_index(TOP)
    pyarrow.parquet.write_table(table.set_column(i, TOP, pyarrow.array(cells, table.schema.types[i])), file)
    with open_source(path) as source:
        assert len(source.read(1, [TOP])[TOP]) == 1
        with pytest.raises(DataError, match=r"episode 2: .*row 7: the image (is damaged|should be)"):
            source.read(2, [TOP])


def test_rows_that_a_file_cannot_have(tmp_path: Path) -> None:
    path = foreign(write_numbered(tmp_path / "d", lengths=(5,)))
    n = 10_000_000
    file, table = path / "data/chunk-000/file-000.parquet", pyarrow.table({"episode_index": np.zeros(n, np.int64)})
    pyarrow.parquet.write_table(table, file, data_page_size=2**30, max_rows_per_page=n, row_group_size=n)
    edit_json(path / "meta/info.json", lambda info: info.update(total_frames=n))
    with pytest.raises(DataError, match=r"file-000.parquet: claims 10000000 rows in \d+ bytes"):
        open_source(path)


def test_one_bad_episode_can_be_left_out(tmp_path: Path) -> None:
    from robopolicy.datasets.convert import convert

    path = foreign(write_numbered(tmp_path / "d", "lerobot-v2.1"))
    bad = path / f"videos/chunk-000/{TOP}/episode_000002.mp4"
    bad.write_bytes(bad.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"d: episode 2: .*episode_000002.mp4: truncated"):
        convert([path], tmp_path / "out", "episodes", progress=False)
    done = convert([path], tmp_path / "out", "episodes", skip_bad=True, progress=False)
    assert done.n_episodes == 3
    (note,) = done.notes
    assert "episode 2" in note
