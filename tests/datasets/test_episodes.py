import errno
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_files import without_checksums

from robopolicy.datasets import npy
from robopolicy.datasets.episodes import Episodes, validate
from robopolicy.datasets.store import EpisodeWriter, StoreSource, read_store
from robopolicy.errors import DataError
from robopolicy.features import Feature, FeatureSpec


def write(path: Path, episodes: Episodes, fingerprint: dict[str, str] | None = None) -> Path:
    with EpisodeWriter(path, episodes.features, fingerprint) as writer:
        for e in range(episodes.n_episodes):
            writer.add(episodes.episode(e))
    return path


def test_slices_and_lengths(memory: Episodes) -> None:
    assert (memory.n_episodes, memory.n_steps, memory.lengths.tolist()) == (3, 14, [5, 1, 8])
    assert [memory.slice(e) for e in range(3)] == [slice(0, 5), slice(5, 6), slice(6, 14)]
    np.testing.assert_array_equal(memory.episode(2)["action"], memory.arrays["action"][6:])


def test_store_round_trip(tmp_path: Path, memory: Episodes) -> None:
    path = write(tmp_path / "new" / "demo", memory, {"mujoco": "3.8.1"})
    back = read_store(path)
    assert back.features == memory.features
    assert back.fingerprint == {"mujoco": "3.8.1"}
    assert back.episode_ends.tolist() == [5, 6, 14]
    for key, array in memory.arrays.items():
        assert isinstance(back.arrays[key], np.memmap)
        np.testing.assert_array_equal(back.arrays[key], array)
    assert back.content_hash() == memory.content_hash()
    validate(back)
    assert os.listdir(path.parent) == ["demo"]


def test_numpy_opens_the_files_without_this_package(tmp_path: Path, memory: Episodes) -> None:
    path = write(tmp_path / "demo", memory)
    assert sorted(os.listdir(path)) == [
        "action.npy",
        "checksums.npy",
        "episode_ends.npy",
        "episodes.json",
        "observation.images.top.npy",
        "observation.state.npy",
    ]
    for key, array in memory.arrays.items():
        np.testing.assert_array_equal(np.load(path / f"{key}.npy", allow_pickle=False), array)
    assert np.load(path / "episode_ends.npy").tolist() == [5, 6, 14]
    assert json.loads((path / "episodes.json").read_text())["rate_hz"] == 20.0


def test_reading_some_keys(tmp_path: Path, memory: Episodes) -> None:
    path = write(tmp_path / "demo", memory)
    assert list(read_store(path, ["action"]).arrays) == ["action"]
    with pytest.raises(DataError, match=r"no key 'actions'. Did you mean 'action'\?"):
        read_store(path, ["actions"])


def test_content_hash_sees_every_kind_of_change(memory: Episodes) -> None:
    hashes = {memory.content_hash()}
    state = memory.arrays["observation.state"].copy()
    state[13, 2] = np.nextafter(state[13, 2], np.float32(9))
    image = memory.arrays["observation.images.top"].copy()
    image[7, 0, 0, 0] ^= 1
    changes = [
        replace(memory, arrays=memory.arrays | {"observation.state": state}),
        replace(memory, arrays=memory.arrays | {"observation.images.top": image}),
        replace(memory, arrays={k: v for k, v in memory.arrays.items() if k != "action"}),
        replace(memory, episode_ends=np.array([4, 6, 14])),
        replace(memory, arrays=memory.arrays | {"action": memory.arrays["action"].view(np.int32)}),
    ]
    hashes |= {changed.content_hash() for changed in changes}
    assert len(hashes) == 6
    # Provenance files keep hashes, so the rule must not change.
    pinned = Episodes(
        {"action": np.arange(4, dtype=np.float32)[:, None]},
        np.array([1, 4]),
        FeatureSpec((Feature("action", (1,), kind="action"),)),
        Path("pinned"),
        "episodes",
    )
    content = struct.pack("<2q", 1, 4) + b"action float32 (4, 1)" + struct.pack("<4f", 0, 1, 2, 3)
    assert pinned.content_hash() == hashlib.sha256(content).hexdigest()
    reordered = dict(reversed(list(memory.arrays.items())))
    big_endian = {k: v.astype(v.dtype.newbyteorder(">")) for k, v in reordered.items()}
    assert replace(memory, arrays=big_endian).content_hash() == memory.content_hash()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"action": np.zeros((3, 3), np.float32)},
            r"key 'action' should be float32 \[2\] per step, found float32 \[3\]",
        ),
        ({"action": np.zeros((3, 2))}, r"should be float32 \[2\] per step, found float64"),
        ({"action": np.zeros((4, 2), np.float32)}, "equally many steps"),
        ({"action": np.full((3, 2), np.nan, np.float32)}, "episode 1, step 0: key 'action' is not finite"),
        ({"extra": np.zeros(3)}, r"episode 1 has keys .*'extra'"),
    ],
)
def test_writer_refuses_what_the_features_do_not_describe(
    tmp_path: Path, memory: Episodes, change: dict[str, np.ndarray], message: str
) -> None:
    with EpisodeWriter(tmp_path / "demo", memory.features) as writer:
        writer.add(memory.episode(0))
        bad = {k: v[:3] for k, v in memory.episode(2).items()} | change
        with pytest.raises(DataError, match=message):
            writer.add(bad)
        # Refusing leaves nothing of the bad episode behind, so the next one may follow.
        writer.add(memory.episode(2))
    back = read_store(tmp_path / "demo")
    assert back.lengths.tolist() == [5, 8]
    np.testing.assert_array_equal(back.episode(1)["action"], memory.episode(2)["action"])


def test_writer_refuses_empty_and_existing(tmp_path: Path, memory: Episodes) -> None:
    with pytest.raises(DataError, match="no episode was added"), EpisodeWriter(tmp_path / "demo", memory.features):
        pass
    empty = {k: v[:0] for k, v in memory.arrays.items()}
    with pytest.raises(DataError, match="at least one"), EpisodeWriter(tmp_path / "demo", memory.features) as writer:
        writer.add(empty)
    assert os.listdir(tmp_path) == []
    (tmp_path / "demo").mkdir()
    with pytest.raises(DataError, match="already exists"), EpisodeWriter(tmp_path / "demo", memory.features):
        pass
    clash = FeatureSpec((Feature("a/b", (1,)), Feature("a b", (1,))))
    with pytest.raises(DataError, match="share one file"):
        EpisodeWriter(tmp_path / "other", clash)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path: Path, memory: Episodes, error: type[BaseException]) -> None:
    def record() -> None:
        with EpisodeWriter(tmp_path / "demo", memory.features) as writer:
            writer.add(memory.episode(0))
            assert len(os.listdir(tmp_path)) == 1
            raise error

    with pytest.raises(error):
        record()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("moment", ["append", "close"])
def test_full_disk_is_one_error_and_leaves_nothing(
    tmp_path: Path, memory: Episodes, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def record() -> None:
        with EpisodeWriter(tmp_path / "demo", memory.features) as writer:
            writer.add(memory.episode(0))
            monkeypatch.setattr(npy.NpyStream, moment, full)
            writer.add(memory.episode(1))

    with pytest.raises(DataError, match=r"No space left on device.*nothing was kept"):
        record()
    assert os.listdir(tmp_path) == []


def test_a_writer_that_failed_cannot_be_completed(
    tmp_path: Path, memory: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    def record() -> None:
        with EpisodeWriter(tmp_path / "demo", memory.features) as writer:
            writer.add(memory.episode(0))
            with monkeypatch.context() as patch:
                patch.setattr(npy.NpyStream, "append", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    writer.add(memory.episode(1))
            with pytest.raises(DataError, match="closed"):
                writer.add(memory.episode(1))

    with pytest.raises(DataError, match="an earlier episode failed"):
        record()
    assert os.listdir(tmp_path) == []


REAL_LIMIT = """
    import resource, sys
    import numpy as np
    from pathlib import Path
    from robopolicy.datasets.store import EpisodeWriter
    from robopolicy.errors import DataError
    from robopolicy.features import Feature, FeatureSpec
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        with EpisodeWriter(Path(sys.argv[1]), FeatureSpec((Feature("action", (100,), kind="action"),))) as writer:
            for _ in range(10):
                writer.add({"action": np.zeros((50, 100), np.float32)})
    except DataError as error:
        print(error)
"""


def test_a_real_write_failure_of_the_operating_system(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(REAL_LIMIT), str(tmp_path / "demo")], capture_output=True, text=True
    )
    assert "demo: cannot be written (File too large); nothing was kept" in done.stdout
    assert done.stderr == ""
    assert os.listdir(tmp_path) == []


HANG = """
    import sys, time
    import numpy as np
    from pathlib import Path
    from robopolicy.datasets.store import EpisodeWriter
    from robopolicy.features import Feature, FeatureSpec
    with EpisodeWriter(Path(sys.argv[1]), FeatureSpec((Feature("action", (2,), kind="action"),))) as writer:
        writer.add({"action": np.zeros((5, 2), np.float32)})
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_killed_writer_is_cleaned_up_by_the_next_and_a_living_one_is_not(tmp_path: Path, memory: Episodes) -> None:
    target = tmp_path / "demo"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HANG), str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (left,) = os.listdir(tmp_path)
    write(tmp_path / "demo", memory)
    assert sorted(os.listdir(tmp_path)) == [left, "demo"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(DataError, match="already exists"):
        write(target, memory)
    target.rename(tmp_path / "done")
    write(target, memory)
    assert sorted(os.listdir(tmp_path)) == ["demo", "done"]


def test_two_writers_of_one_path_do_not_overwrite_each_other(tmp_path: Path, memory: Episodes) -> None:
    def record() -> None:
        with EpisodeWriter(tmp_path / "demo", memory.features) as slow:
            slow.add(memory.episode(1))
            write(tmp_path / "demo", memory)

    with pytest.raises(DataError, match="Directory not empty"):
        record()
    assert os.listdir(tmp_path) == ["demo"]
    assert read_store(tmp_path / "demo").n_episodes == 3


def test_header_grows_with_the_number_of_rows(tmp_path: Path) -> None:
    stream = npy.NpyStream(tmp_path / "x.npy", (1,), "uint8")
    for _ in range(3):
        stream.append(np.ones((100_000, 1), np.uint8))
    stream.close()
    array = np.load(tmp_path / "x.npy")
    assert array.shape == (300_000, 1)
    assert array.all()


def test_reading_an_episode_compares_checksums_and_training_does_not(tmp_path: Path, memory: Episodes) -> None:
    path = write(tmp_path / "demo", memory)
    data = bytearray((path / "action.npy").read_bytes())
    data[-1] ^= 1
    (path / "action.npy").write_bytes(data)
    with StoreSource(path) as source:
        source.read(0, ["action"])
        with pytest.raises(DataError, match=r"demo/action.npy: episode 2 is corrupt"):
            source.read(2, ["action"])
    read_store(path)
    manifest = json.loads((path / "episodes.json").read_text())
    manifest["features"][0]["units"] = ["cm", "m", "rad"]
    (path / "episodes.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"episodes.json: the metadata was changed after it was written"):
        read_store(path)
    assert read_store(without_checksums(path)).features["observation.state"].units[0] == "cm"


def test_a_store_without_features_is_refused(tmp_path: Path, memory: Episodes) -> None:
    path = without_checksums(write(tmp_path / "demo", memory))
    manifest = json.loads((path / "episodes.json").read_text()) | {"features": []}
    (path / "episodes.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="demo: describes no features"):
        read_store(path)


def test_damaged_stores_are_named(tmp_path: Path, memory: Episodes) -> None:
    def damaged(name: str) -> Path:
        return write(tmp_path / name, memory)

    path = damaged("truncated")
    data = (path / "action.npy").read_bytes()
    (path / "action.npy").write_bytes(data[:-5])
    with pytest.raises(DataError, match=r"truncated/action.npy: truncated"):
        read_store(path)

    path = damaged("missing")
    (path / "observation.state.npy").unlink()
    with pytest.raises(DataError, match=r"missing/observation.state.npy: missing"):
        read_store(path)

    path = damaged("pickled")
    np.save(path / "action.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"pickled/action.npy: truncated or not a .npy file"):
        read_store(path)

    path = damaged("shape")
    np.save(path / "action.npy", np.zeros((14, 3), np.float32))
    with pytest.raises(DataError, match=r"key 'action' should be float32 \[2\] per step, found float32 \[3\]"):
        read_store(path)

    path = damaged("ends")
    np.save(path / "episode_ends.npy", np.array([6, 14]))
    with pytest.raises(DataError, match=r"episode_ends.npy: corrupt \(its checksum is not the one"):
        read_store(path)
    without_checksums(path)
    with pytest.raises(DataError, match=r"2 episodes of 14 steps, episodes.json says 3 of 14"):
        read_store(path)

    path = damaged("manifest")
    (path / "episodes.json").write_text("{}")
    with pytest.raises(DataError, match=r"episodes.json: format version None"):
        read_store(path)

    path = damaged("future")
    manifest = json.loads((path / "episodes.json").read_text())
    (path / "episodes.json").write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(DataError, match="format version 2, this release reads 1"):
        read_store(path)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([5, 5, 14], "episode 1 ends at 5 after 5"),
        ([0, 6, 14], "episode 0 ends at 0 after 0"),
        ([5, 4, 14], "episode 1 ends at 4 after 5"),
        ([5, 6, 13], "has 14 steps, the episodes end at 13"),
        ([], "non-empty"),
    ],
)
def test_validate_checks_the_ends(memory: Episodes, ends: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        validate(replace(memory, episode_ends=np.array(ends, dtype=np.int64)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_validate_names_key_episode_and_step_of_a_bad_value(memory: Episodes, value: float) -> None:
    memory.arrays["action"][8, 1] = value
    with pytest.raises(DataError, match=rf"memory: key 'action' holds {value} at episode 2, step 2 \(row 8\)"):
        validate(memory)
    memory.arrays["action"][8, 1] = 0
    memory.arrays["observation.state"][5, 0] = value
    with pytest.raises(DataError, match=r"'observation.state' holds .* at episode 1, step 0"):
        validate(memory)


def test_validate_compares_lengths_shapes_and_keys(memory: Episodes) -> None:
    short = replace(memory, arrays=memory.arrays | {"action": memory.arrays["action"][:-1]})
    with pytest.raises(DataError, match="key 'action' has 13 steps, the episodes end at 14"):
        validate(short)
    wrong = replace(memory, arrays=memory.arrays | {"action": memory.arrays["action"].astype(np.float64)})
    with pytest.raises(DataError, match="found float64"):
        validate(wrong)
    with pytest.raises(DataError, match="are not those described"):
        validate(replace(memory, features=memory.features.select(["action"])))
    validate(memory)


def test_memory_stays_bounded_while_writing(tmp_path: Path) -> None:
    import tracemalloc

    features = FeatureSpec((Feature("observation.images.top", (64, 64, 3), "uint8", "image"),))
    episode = {"observation.images.top": np.zeros((40, 64, 64, 3), np.uint8)}
    tracemalloc.start()
    with EpisodeWriter(tmp_path / "demo", features) as writer:
        for _ in range(20):
            writer.add(episode)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 40 * 64 * 64 * 3
