import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from dataset_files import LENGTHS, pusht_arrays, write_lerobot, write_replay_buffer

from robopolicy.datasets import npy
from robopolicy.datasets.detect import dataset_format, open_dataset
from robopolicy.datasets.episodes import Episodes, validate
from robopolicy.datasets.info import describe, format_info
from robopolicy.datasets.store import EpisodeWriter
from robopolicy.datasets.windows import WindowSampler, WindowShape
from robopolicy.errors import DataError

REPOSITORY = Path(__file__).parents[2]
REAL = REPOSITORY.parent / "shared" / "data" / "pusht_human"
ENDS = np.cumsum(LENGTHS).tolist()


def test_replay_buffer_keys_and_values(replay_buffer: Path, tmp_path: Path) -> None:
    episodes = open_dataset(replay_buffer)
    source = pusht_arrays()
    mapping = {
        "action": "action",
        "observation.state": "state",
        "observation.keypoint": "keypoint",
        "observation.n_contacts": "n_contacts",
    }
    assert sorted(episodes.arrays) == sorted(mapping)
    for key, name in mapping.items():
        np.testing.assert_array_equal(episodes.arrays[key], source[name])
    assert episodes.format == "zarr"
    assert episodes.episode_ends.tolist() == ENDS
    assert episodes.features.action.kind == "action"
    assert episodes.features.rate_hz is None
    assert [(f.key, f.dtype, f.kind) for f in episodes.unloaded] == [("observation.images.img", "uint8", "image")]
    validate(episodes)


def test_replay_buffer_images_are_cached_as_uint8(
    replay_buffer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    episodes = open_dataset(replay_buffer, ["observation.images.img", "action"], cache_dir=cache)
    images = episodes.arrays["observation.images.img"]
    assert isinstance(images, np.memmap)
    np.testing.assert_array_equal(images, pusht_arrays()["img"].astype(np.uint8))
    (file,) = (cache / "images").iterdir()
    np.testing.assert_array_equal(np.load(file), images)

    def unused(*args: object) -> None:
        raise AssertionError("decoded twice")

    with monkeypatch.context() as patch:
        patch.setattr("robopolicy.datasets.zarr_dp._as_uint8", unused)
        open_dataset(replay_buffer, cache_dir=cache, images=True)
        monkeypatch.setenv("ROBOPOLICY_CACHE", str(cache))
        open_dataset(replay_buffer, images=True)
    # Another content is another file, even at the same place.
    other = pusht_arrays()
    other["img"] = 255 - other["img"]
    shutil.rmtree(replay_buffer)
    write_replay_buffer(replay_buffer, other, np.array(ENDS))
    again = open_dataset(replay_buffer, images=True).arrays["observation.images.img"]
    np.testing.assert_array_equal(again, other["img"].astype(np.uint8))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"others at episode 2, step 3 \(row 9\)"),
        (256.0, r"others at episode 2, step 3 \(row 9\)"),
        (-1.0, r"others at episode 2, step 3 \(row 9\)"),
        (None, "should be 0..255, found at most 1"),
    ],
)
def test_images_outside_0_to_255_are_refused(tmp_path: Path, value: float | None, message: str) -> None:
    arrays = pusht_arrays()
    if value is None:
        arrays["img"] /= arrays["img"].max()
    else:
        arrays["img"][9, 2, 2, 1] = value
    path = write_replay_buffer(tmp_path / "demo.zarr", arrays, np.array(ENDS))
    with pytest.raises(DataError, match=message):
        open_dataset(path, images=True, cache_dir=tmp_path / "cache")
    assert os.listdir(tmp_path / "cache" / "images") == []


def test_full_disk_while_caching_images(replay_buffer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(npy.NpyStream, "close", full)
    with pytest.raises(DataError, match=r"cannot write the image cache \(No space left on device\)"):
        open_dataset(replay_buffer, images=True, cache_dir=tmp_path / "cache")
    assert os.listdir(tmp_path / "cache" / "images") == []


def test_missing_chunk_is_an_error_and_not_zeros(replay_buffer: Path) -> None:
    (replay_buffer / "data" / "action" / "2.0").unlink()
    with pytest.raises(DataError, match=r"action/2.0: chunk file missing \(1 of 4 of array 'action'\).*read as 0.0"):
        open_dataset(replay_buffer)
    assert "action" not in open_dataset(replay_buffer, ["observation.state"]).arrays


def test_missing_image_chunk_matters_when_images_are_read(replay_buffer: Path, tmp_path: Path) -> None:
    (replay_buffer / "data" / "img" / "1.0.0.0").unlink()
    open_dataset(replay_buffer)
    for read in (
        lambda: open_dataset(replay_buffer, images=True, cache_dir=tmp_path),
        lambda: describe(replay_buffer),
    ):
        with pytest.raises(DataError, match=r"img/1.0.0.0: chunk file missing"):
            read()


@pytest.mark.parametrize("keep", [0, 10, 16, 40, -1])
def test_truncated_chunk(replay_buffer: Path, keep: int) -> None:
    # These few random numbers do not compress, and of such chunks blosc itself does not notice the missing end.
    chunk = replay_buffer / "data" / "state" / "3.0"
    chunk.write_bytes(chunk.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"state/3.0: chunk truncated or corrupt"):
        open_dataset(replay_buffer)


def test_chunk_that_does_not_decode(replay_buffer: Path) -> None:
    chunk = replay_buffer / "data" / "n_contacts" / "1.0"
    data = chunk.read_bytes()
    # The header stays as it was but for the number of decoded bytes.
    chunk.write_bytes(data[:4] + (8).to_bytes(4, "little") + data[8:])
    with pytest.raises(DataError, match=r"n_contacts/1.0: chunk truncated or corrupt"):
        open_dataset(replay_buffer)


def test_other_damage_to_a_replay_buffer(replay_buffer: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(replay_buffer, replay_buffer.with_name(name)))

    path = copy("metadata")
    (path / "data" / "state" / ".zarray").write_text("{")
    with pytest.raises(DataError, match=r"state/.zarray: damaged"):
        open_dataset(path)
    path = copy("ends")
    shutil.rmtree(path / "meta" / "episode_ends")
    with pytest.raises(DataError, match=r"episode_ends/.zarray: missing"):
        open_dataset(path)
    path = copy("no_data")
    shutil.rmtree(path / "data")
    with pytest.raises(DataError, match="no_data/data: missing"):
        open_dataset(path)
    path = copy("pickle")
    meta = json.loads((path / "data" / "state" / ".zarray").read_text())
    (path / "data" / "state" / ".zarray").write_text(json.dumps(meta | {"filters": [{"id": "pickle"}]}))
    with pytest.raises(DataError, match="only plain numbers are read"):
        open_dataset(path)


def test_nan_action_is_read_but_not_valid(tmp_path: Path) -> None:
    arrays = pusht_arrays()
    arrays["action"][6, 1] = np.nan
    path = write_replay_buffer(tmp_path / "demo.zarr", arrays, np.array(ENDS))
    with pytest.raises(DataError, match=r"demo.zarr: key 'action' holds nan at episode 2, step 0 \(row 6\)"):
        validate(open_dataset(path))
    (action,) = [k for k in describe(path).keys if k.key == "action"]
    assert (action.n_nan, action.n_inf) == (1, 0)
    assert action.maximum == np.nanmax(arrays["action"])


@pytest.mark.parametrize(("ends", "message"), [([5, 5, 14], "ends at 5 after 5"), ([5, 6, 12], "end at 12")])
def test_wrong_episode_ends(tmp_path: Path, ends: list[int], message: str) -> None:
    path = write_replay_buffer(tmp_path / "demo.zarr", pusht_arrays(), np.array(ends))
    with pytest.raises(DataError, match=message):
        open_dataset(path)


def test_float64_becomes_float32(tmp_path: Path) -> None:
    arrays = pusht_arrays()
    arrays["state"] = arrays["state"].astype(np.float64)
    path = write_replay_buffer(tmp_path / "demo.zarr", arrays, np.array(ENDS))
    assert open_dataset(path).arrays["observation.state"].dtype == np.float32


def test_lerobot_reads_all_files_in_order(tmp_path: Path) -> None:
    arrays = write_lerobot(tmp_path / "demo")
    episodes = open_dataset(tmp_path / "demo")
    assert sorted(episodes.arrays) == sorted(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(episodes.arrays[key], array)
        assert episodes.arrays[key].dtype == array.dtype
    assert episodes.episode_ends.tolist() == ENDS
    assert episodes.features.rate_hz == 10.0
    assert episodes.features["observation.state"].names == ("motor_0", "motor_1")
    assert episodes.features["action"].names == ("x", "y")
    assert [f.key for f in episodes.unloaded] == ["observation.images.top"]
    validate(episodes)


def test_lerobot_without_its_videos(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "demo")
    requests: list[dict[str, Any]] = [{"keys": ["observation.images.top"]}, {"images": True}]
    for request in requests:
        with pytest.raises(DataError, match=r"'observation.images.top'"):
            open_dataset(tmp_path / "demo", **request)
    write_lerobot(tmp_path / "plain", video=False)
    open_dataset(tmp_path / "plain", images=True)


@pytest.mark.parametrize("keep", [0, 4, 500, -8])
def test_lerobot_truncated_data(tmp_path: Path, keep: int) -> None:
    write_lerobot(tmp_path / "demo")
    file = tmp_path / "demo" / "data" / "chunk-000" / "file-001.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"chunk-000/file-001.parquet: truncated or not a parquet file"):
        open_dataset(tmp_path / "demo")


def test_lerobot_missing_files(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "demo")
    (tmp_path / "demo" / "data" / "chunk-001" / "file-000.parquet").unlink()
    with pytest.raises(DataError, match=r"chunk-001/file-000.parquet: missing; meta/episodes says"):
        open_dataset(tmp_path / "demo")
    shutil.rmtree(tmp_path / "demo" / "data")
    with pytest.raises(DataError, match="no chunk"):
        open_dataset(tmp_path / "demo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.update(total_episodes=4), "info.json says 4 episodes of 14 steps, found 3"),
        (lambda i: i.update(total_frames=15), "info.json says 3 episodes of 15 steps, found 3 in .* and 14"),
        (lambda i: i.update(codebase_version="v1.6"), r"version v1.6, this release reads v2.0, v2.1, v3.0"),
        (lambda i: i.pop("fps"), r"info.json: damaged"),
        (lambda i: i["features"]["action"].update(shape=[3]), r"'action' should be \[3\] per step, found 2 values"),
        (lambda i: i["features"].update(extra=i["features"]["action"]), r"no column 'extra'"),
    ],
)
def test_lerobot_metadata_is_cross_checked(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    write_lerobot(tmp_path / "demo", change=change)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "demo")


def edit_table(file: Path, name: str, values: Any) -> None:
    table = pyarrow.parquet.read_table(file, partitioning=None)
    index = table.schema.get_field_index(name)
    pyarrow.parquet.write_table(table.set_column(index, name, pyarrow.array(values)), file)


def test_lerobot_episode_numbers_and_ends_are_cross_checked(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "ends")
    edit_table(tmp_path / "ends/meta/episodes/chunk-000/file-000.parquet", "dataset_to_index", [5, 7, 14])
    with pytest.raises(DataError, match=r"meta/episodes and data disagree from episode 1 on \(ends \[7\] and \[6\]\)"):
        open_dataset(tmp_path / "ends")
    write_lerobot(tmp_path / "gap")
    edit_table(tmp_path / "gap/data/chunk-001/file-000.parquet", "episode_index", [3] * 8)
    with pytest.raises(DataError, match="episode_index should count 0, 1, 2"):
        open_dataset(tmp_path / "gap")


def test_lerobot_missing_and_ragged_values(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "null")
    rewards = [0.5] * 7 + [None]
    edit_table(tmp_path / "null/data/chunk-001/file-000.parquet", "next.reward", pyarrow.array(rewards, "float32"))
    with pytest.raises(DataError, match=r"'next.reward' has no value at episode 2, step 7 \(row 13\)"):
        open_dataset(tmp_path / "null")
    write_lerobot(tmp_path / "ragged", lengths=[3])
    ragged = pyarrow.array([[1.0, 2.0], [1.0], [1.0, 2.0, 3.0]], pyarrow.list_(pyarrow.float32()))
    edit_table(tmp_path / "ragged/data/chunk-000/file-000.parquet", "action", ragged)
    with pytest.raises(DataError, match=r"'action' has between 1 and 3 values"):
        open_dataset(tmp_path / "ragged")


def test_format_is_detected(replay_buffer: Path, memory: Episodes, tmp_path: Path) -> None:
    write_lerobot(tmp_path / "lerobot")
    with EpisodeWriter(tmp_path / "store", memory.features) as writer:
        writer.add(memory.episode(0))
    assert dataset_format(tmp_path / "lerobot") == "lerobot"
    assert dataset_format(tmp_path / "store") == "episodes"
    assert dataset_format(replay_buffer) == "zarr"
    with pytest.raises(
        DataError, match=r"not a dataset: looked for episodes.json .*inside it there is demo.zarr, ler"
    ):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such dataset"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"\.zgroup: not a dataset"):
        open_dataset(replay_buffer / ".zgroup")
    for path in (tmp_path / "lerobot", tmp_path / "store", replay_buffer):
        with pytest.raises(DataError, match=r"no key 'observation.stat'. Did you mean 'observation.state'\?"):
            open_dataset(path, ["observation.stat"])


def test_the_same_data_has_the_same_hash_in_every_format(replay_buffer: Path, tmp_path: Path) -> None:
    source = open_dataset(replay_buffer, images=True, cache_dir=tmp_path / "cache")
    with EpisodeWriter(tmp_path / "store", source.features) as writer:
        for e in range(source.n_episodes):
            writer.add(source.episode(e))
    assert open_dataset(tmp_path / "store").content_hash() == source.content_hash()


def test_describe(tmp_path: Path, replay_buffer: Path, memory: Episodes) -> None:
    info = describe(replay_buffer)
    assert (info.n_episodes, info.n_steps, info.rate_hz, info.hours) == (3, 14, None, None)
    assert (info.length_min, info.length_median, info.length_max) == (1, 5, 8)
    keys = {k.key: k for k in info.keys}
    source = pusht_arrays()
    assert keys["observation.keypoint"].shape == [9, 2]
    assert keys["observation.state"].minimum == source["state"].min()
    assert keys["action"].mean == pytest.approx(source["action"].mean(dtype=np.float64), rel=1e-6)
    image = keys["observation.images.img"]
    assert (image.frames_read, image.dtype) == (3, "uint8")
    assert image.maximum == source["img"][[0, 6, 13]].max()

    memory.arrays["observation.state"][:, 1] = 4.0
    with EpisodeWriter(tmp_path / "store", memory.features, {"mujoco": "3.8.1"}) as writer:
        for e in range(3):
            writer.add(memory.episode(e))
    info = describe(tmp_path / "store")
    assert info.hours == pytest.approx(14 / 20 / 3600)
    assert {k.key: k.constant_dims for k in info.keys}["observation.state"] == (1,)
    write_lerobot(tmp_path / "lerobot", video=False)
    for path in (tmp_path / "store", tmp_path / "lerobot", replay_buffer):
        info = describe(path)
        text = format_info(info)
        assert max(len(line) for line in text.splitlines()[1:]) <= 100
        assert all(k.key in text for k in info.keys)
        assert json.loads(json.dumps(info.to_dict(), allow_nan=False))["n_steps"] == 14


def test_the_repository_root_does_not_shadow_the_datasets_package(tmp_path: Path) -> None:
    assert not (REPOSITORY / "datasets" / "__init__.py").exists()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")
    code = "import datasets, robopolicy.datasets.windows as w; print(datasets.__file__); print(w.__file__)"
    # The shell's folder comes first on sys.path, an installed package later.
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r}); {code}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    found, ours = done.stdout.split()
    assert found == str(tmp_path / "datasets" / "__init__.py")
    assert Path(ours).resolve() == REPOSITORY / "datasets" / "windows.py"


def test_opening_modules_load_no_reader_library() -> None:
    code = (
        "import sys, robopolicy.datasets.info; "
        "print([m for m in ('zarr', 'pyarrow', 'numcodecs', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not REAL.is_dir(), reason="the human PushT demonstrations are not on this machine")
def test_human_pusht_demonstrations() -> None:
    zarr, lerobot = (open_dataset(REAL / n) for n in ("pusht_cchi_v7_replay.zarr", "lerobot_v3_lowdim"))
    for episodes in (zarr, lerobot):
        validate(episodes)
        assert (episodes.n_episodes, episodes.n_steps) == (206, 25_650)
        assert episodes.episode_ends[:3].tolist() == [161, 279, 420]
        assert (episodes.arrays["action"].min(), episodes.arrays["action"].max()) == (12, 511)
        # Diffusion Policy's own sampler counts 24208 windows with its default horizon, T_a and T_o.
        assert len(WindowSampler(episodes, WindowShape(2, 16, -1, 7), ["observation.state"])) == 25_650 - 7 * 206
    assert zarr.arrays["observation.keypoint"].shape == (25_650, 9, 2)
    assert lerobot.features.rate_hz == 10
    np.testing.assert_array_equal(zarr.episode_ends, lerobot.episode_ends)
    np.testing.assert_array_equal(zarr.arrays["action"], lerobot.arrays["action"])
    np.testing.assert_array_equal(zarr.arrays["observation.state"][:, :2], lerobot.arrays["observation.state"])
