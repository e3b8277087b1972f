"""Replay buffers written by us: Diffusion Policy's layout for plain zarr, damage and hostile declarations refused."""

import gzip
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from dataset_files import LENGTHS, pusht_arrays, write_replay_buffer
from mixed import mixed_episodes, mixed_features, write_mixed

from robopolicy.datasets import zarr_writer
from robopolicy.datasets.convert import convert
from robopolicy.datasets.detect import make_writer, open_source
from robopolicy.datasets.zarr_writer import ReplayBufferWriter, array_names
from robopolicy.errors import DataError
from robopolicy.features import Feature, FeatureSpec


def read_all(path: Path) -> None:
    with open_source(path) as source:
        for episode in range(source.n_episodes):
            source.read(episode, source.features.keys())


def test_plain_zarr_sees_diffusion_policys_layout(tmp_path: Path) -> None:
    features = FeatureSpec(
        (
            Feature("observation.images.top", (6, 6, 3), "uint8", "image"),
            Feature("observation.state", (5,)),
            Feature("action", (2,), kind="action"),
        ),
        10.0,
    )
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observation.images.top": rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8),
            "observation.state": rng.normal(size=(n, 5)).astype(np.float32),
            "action": rng.normal(size=(n, 2)).astype(np.float32),
        }
        for n in (3, 1, 4)
    ]
    with make_writer("zarr", tmp_path / "d.zarr", features) as writer:
        for episode in episodes:
            writer.add(episode)
    root = zarr.open_group(str(tmp_path / "d.zarr"), mode="r", zarr_format=2)
    assert root["meta/episode_ends"][:].tolist() == [3, 4, 8]  # type: ignore[index]
    assert root["meta/episode_ends"].dtype == np.int64  # type: ignore[union-attr]
    data = root["data"]
    assert isinstance(data, zarr.Group)
    assert sorted(data.array_keys()) == ["action", "img", "state"]
    for name, key in (("img", "observation.images.top"), ("state", "observation.state"), ("action", "action")):
        np.testing.assert_array_equal(data[name][:], np.concatenate([e[key] for e in episodes]))
    meta = json.loads((tmp_path / "d.zarr/data/img/.zarray").read_text())
    assert (meta["zarr_format"], meta["compressor"]["id"], meta["compressor"]["cname"]) == (2, "blosc", "zstd")


def test_several_cameras_have_their_own_names() -> None:
    names = array_names(mixed_features())
    assert names["observation.images.top"] == "top"
    assert names["observation.images.wrist"] == "wrist"
    assert names["observation.keypoints"] == "keypoints"
    assert names["next.reward"] == "next_reward"
    clash = FeatureSpec((Feature("observation.a", (1,)), Feature("a", (1,))))
    with pytest.raises(DataError, match="would share one array"):
        ReplayBufferWriter(Path("x"), clash)


def test_chunks_fill_up_across_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Chunks of 4 rows: episodes end within, at the end of, and beyond chunks; all-zero chunks are written, too.
    monkeypatch.setattr(zarr_writer, "CHUNK_BYTES", 4 * 2 * 4)
    lengths = [3, 1, 4, 11, 2]
    features = FeatureSpec((Feature("action", (2,), kind="action"),))
    values = np.random.default_rng(0).normal(size=(sum(lengths), 2)).astype(np.float32)
    values[8:12] = 0
    with make_writer("zarr", tmp_path / "d.zarr", features) as writer:
        for end, n in zip(np.cumsum(lengths), lengths, strict=True):
            writer.add({"action": values[end - n : end]})
    files = sorted(p.name for p in (tmp_path / "d.zarr/data/action").iterdir() if p.name[0] != ".")
    assert files == sorted(f"{i}.0" for i in range(6))
    with open_source(tmp_path / "d.zarr") as source:
        assert source.lengths.tolist() == lengths
        np.testing.assert_array_equal(source.columns(["action"])["action"], values)
        np.testing.assert_array_equal(source.read(3, ["action"])["action"], values[8:19])


def test_a_replay_buffer_of_others_comes_back_with_names_and_values(tmp_path: Path, replay_buffer: Path) -> None:
    convert([replay_buffer], tmp_path / "copy.zarr", "zarr", progress=False)
    with open_source(replay_buffer) as a, open_source(tmp_path / "copy.zarr") as b:
        assert a.features == b.features
        for episode in range(3):
            for key, values in a.read(episode, a.features.keys()).items():
                np.testing.assert_array_equal(b.read(episode, [key])[key], values)
    assert (tmp_path / "copy.zarr/data/img").is_dir()


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    a, b = (write_mixed(tmp_path / name, "zarr") for name in "ab")
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    assert all((a / f).read_bytes() == (b / f).read_bytes() for f in files)


def test_flipped_bytes_of_chunks_are_noticed(tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "d.zarr", "zarr")
    chunks = sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
    assert len(chunks) == len(mixed_features().keys()) + 1
    rng = np.random.default_rng(0)
    for number in range(60):
        chunk = chunks[number % len(chunks)]
        data = chunk.read_bytes()
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        chunk.write_bytes(changed)
        with pytest.raises(DataError, match=f"{chunk.parent.name}/{chunk.name}: chunk truncated or corrupt"):
            read_all(path)
        chunk.write_bytes(data)
    read_all(path)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["arrays"].update(action="../../secret"), "'../../secret' is not the name of an array"),
        (lambda d: d["arrays"].update(action="/etc"), "'/etc' is not the name of an array"),
        (lambda d: d["arrays"].update(action=".."), "is not the name of an array"),
        (lambda d: d["arrays"].pop("action"), "should name the array of each of"),
        (lambda d: d.pop("arrays"), "should name the array of each of"),
        (lambda d: d["arrays"].update(action="state"), r"should be float32 \[2\] per step, found .* \[3\]"),
        (lambda d: d.pop("checksums"), "no checksums of array"),
        (lambda d: d["checksums"].update(action=[1, 2]), "1 chunks, but 2 checksums"),
        (lambda d: d.update(rate_hz="fast"), "damaged robopolicy metadata"),
        (lambda d: d.update(rate_hz=-1), "damaged robopolicy metadata"),
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.update(tasks=[]), "no table of instructions"),
        (lambda d: d["features"][0].update(dtype="object"), "no feature"),
    ],
)
def test_metadata_that_does_not_fit(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "d.zarr", "zarr")

    def change_and_unseal(data: dict[str, Any]) -> None:
        change(data["robopolicy"])
        for seal in ("crc32", "sealed"):
            data["robopolicy"].pop(seal, None)

    edit(path / ".zattrs", change_and_unseal)
    with pytest.raises(DataError, match=message) as caught:
        read_all(path)
    assert "d.zarr" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data/action", {"shape": [10**15, 2]}, "has 1000000000000000 steps, the episodes end at 14"),
        (
            "data/action",
            {"shape": [14, 10**15], "chunks": [4, 1]},
            r"action/0.1: chunk file missing \(3999999999999996 of",
        ),
        (
            "meta/episode_ends",
            {"shape": [10**15]},
            r"episode_ends/1: .* \(333333333333333 of",
        ),
        ("data/action", {"chunks": [10**12, 2]}, "at most 1073741824 are read"),
        ("data/action", {"chunks": [2**20, 2]}, r"decodes to \d+ bytes, not"),
        ("data/action", {"shape": [-5, 2]}, "damaged"),
        ("data/action", {"shape": []}, "damaged"),
        ("data/action", {"dtype": "|O"}, "only plain numbers"),
        ("data/action", {"dtype": "<f16"}, "only plain numbers"),
        ("data/action", {"compressor": {"id": "lzma"}}, "only plain numbers"),
        ("data/action", {"filters": [{"id": "pickle"}]}, "only plain numbers"),
        ("data/action", {"dimension_separator": "/../../"}, "dimension separator"),
    ],
)
def test_hostile_declarations(name: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_replay_buffer(tmp_path / "d.zarr", pusht_arrays(), np.cumsum(LENGTHS))
    edit(path / name / ".zarray", lambda d: d.update(change))
    with pytest.raises(DataError, match=message) as caught:
        read_all(path)
    assert "d.zarr" in str(caught.value)


@pytest.mark.parametrize("codec", ["zlib", "gzip"])
def test_a_deflate_bomb_is_decoded_no_further_than_its_chunk(codec: str, tmp_path: Path) -> None:
    path = write_replay_buffer(tmp_path / "d.zarr", pusht_arrays(), np.cumsum(LENGTHS))
    edit(path / "data/action/.zarray", lambda d: d.update(compressor={"id": codec, "level": 1}))
    compress = zlib.compress if codec == "zlib" else gzip.compress
    for row in range(4):
        chunk = pusht_arrays()["action"][4 * row : 4 * row + 4]
        whole = np.concatenate([chunk, np.zeros((4 - len(chunk), 2), np.float32)])
        (path / f"data/action/{row}.0").write_bytes(compress(whole.tobytes()))
    with open_source(path) as source:
        np.testing.assert_array_equal(source.columns(["action"])["action"], pusht_arrays()["action"])
    (path / "data/action/2.0").write_bytes(compress(bytes(50_000_000)))
    with pytest.raises(DataError, match=r"action/2.0: chunk truncated or corrupt \(does not decode to 32 bytes\)"):
        read_all(path)
    shutil.rmtree(path)


def test_attributes_of_episodes_are_named_when_they_are_lost(tmp_path: Path) -> None:
    with make_writer("episodes", tmp_path / "store", mixed_features(), tasks=("a", "b")) as writer:
        writer.add(mixed_episodes()[0], {"operator": "A"})
    done = convert([tmp_path / "store"], tmp_path / "d.zarr", "zarr", progress=False)
    assert done.notes == ["format zarr has no place for the episode attributes ['operator']"]
