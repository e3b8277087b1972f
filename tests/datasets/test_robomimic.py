"""robomimic's HDF5: real layouts read, our own files as robomimic wants them, damage and hostile files refused."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mixed import TASKS, mixed_episodes, mixed_features, write_mixed
from robomimic_files import ENV_14, ENV_15, LENGTHS, ORDER, demonstrations, write_robomimic

from robopolicy.datasets.convert import convert
from robopolicy.datasets.detect import dataset_format, make_writer, open_dataset, open_source
from robopolicy.datasets.robomimic_writer import RobomimicWriter
from robopolicy.errors import DataError
from robopolicy.features import EXECUTED, Control, Feature, FeatureSpec

KEYS = {
    "action": "actions",
    "simulator.state": "states",
    "next.reward": "rewards",
    "next.done": "dones",
    "observation.robot0_eef_quat": "obs/robot0_eef_quat",
    "observation.object": "obs/object",
    "observation.images.agentview": "obs/agentview_image",
}


def test_a_robomimic_file_is_read(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5")
    assert dataset_format(path) == "robomimic"
    with open_source(path) as source:
        assert sorted(source.features.keys()) == sorted(KEYS)
        assert source.lengths.tolist() == [LENGTHS[name] for name in ORDER] == [4, 3, 5]
        for episode, name in enumerate(ORDER):
            found = source.read(episode, source.features.keys())
            for key, place in KEYS.items():
                np.testing.assert_array_equal(
                    found[key], demonstrations()[name][place].astype(source.features[key].dtype), err_msg=key
                )
        dtypes = {f.key: (f.dtype, f.kind) for f in source.features}
        assert dtypes["simulator.state"] == ("float64", "state")
        assert dtypes["action"] == ("float32", "action")
        assert dtypes["next.done"] == ("bool", "state")
        assert dtypes["observation.images.agentview"] == ("uint8", "image")
        assert source.features["observation.robot0_eef_quat"].names == ("x", "y", "z", "w")
        assert source.metadata == {"env_args": ENV_14, "masks": {"train": [0, 2], "valid": [1]}}
        assert source.attributes(2) == {"model_file": "<mujoco model='demo_10'>\n</mujoco>"}
        assert source.tasks == ()
        assert source.notes == []
        rows, key = np.array([0, 6, 11]), "observation.object"
        np.testing.assert_array_equal(source.frames(key, rows), source.columns([key])[key][rows])


@pytest.mark.parametrize(("env_args", "version", "frame"), [(ENV_14, "1.4.1", "world"), (ENV_15, "1.5.1", "base")])
def test_env_args_give_the_rate_the_versions_and_the_meaning_of_actions(
    tmp_path: Path, env_args: dict[str, Any], version: str, frame: str
) -> None:
    with open_source(write_robomimic(tmp_path / "demo.hdf5", env_args)) as source:
        assert source.features.rate_hz == 20
        assert source.features.action.control == Control(
            "end_effector_pose", "delta", frame, "axis_angle", "positive_closes"
        )
        assert (source.fingerprint["robosuite"], source.fingerprint["env"]) == (version, "Lift")
        before = source.fingerprint["env_kwargs"]
    changed = json.loads(json.dumps(env_args))
    changed["env_kwargs"]["control_freq"] = 10
    with open_source(write_robomimic(tmp_path / "other.hdf5", changed)) as source:
        assert source.fingerprint["env_kwargs"] != before


def test_instructions_of_libero_and_robocasa(tmp_path: Path) -> None:
    problem = json.dumps({"language_instruction": "open the drawer"})
    with open_source(write_robomimic(tmp_path / "libero.hdf5", problem_info=problem)) as source:
        assert source.tasks == ("open the drawer",)
        assert source.read(1, ["task_index"])["task_index"].tolist() == [0, 0, 0]
    path = write_robomimic(tmp_path / "casa.hdf5")
    with h5py.File(path, "a") as file:
        for name, text in zip(ORDER, ("pick", "place", "pick"), strict=True):
            file[f"data/{name}"].attrs["ep_meta"] = json.dumps({"lang": text})
    with open_source(path) as source:
        assert source.tasks == ("pick", "place")
        assert [int(source.read(e, ["task_index"])["task_index"][0]) for e in range(3)] == [0, 1, 0]


def test_raw_demonstrations_have_only_states_and_actions(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5")
    with h5py.File(path, "a") as file:
        for name in ORDER:
            for gone in ("obs", "next_obs", "rewards", "dones"):
                del file[f"data/{name}/{gone}"]
            file[f"data/{name}/action_dict/pos"] = np.zeros((LENGTHS[name], 3))
        file["data/demo_zero"] = np.zeros(3)
        file["data"].attrs["total"] = 13
    with open_source(path) as source:
        assert sorted(source.features.keys()) == ["action", "simulator.state"]
        notes = "; ".join(source.notes)
        assert "action_dict" in notes
        assert "demo_zero" in notes
        assert "total says 13 steps, the demonstrations have 12" in notes


def test_the_written_file_has_what_robomimic_asks_for(tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "mixed.hdf5", "robomimic")
    episodes = mixed_episodes()
    with h5py.File(path, "r") as file:
        assert list(file) == ["data"]
        assert file["data"].attrs["total"] == sum(len(e["action"]) for e in episodes)
        assert json.loads(file["data"].attrs["env_args"]).keys() == {"env_name", "type", "env_kwargs"}
        for number, episode in enumerate(episodes):
            demo = file[f"data/demo_{number}"]
            length = demo.attrs["num_samples"]
            assert length == len(episode["action"])
            assert demo["dones"][()].tolist() == [0] * (length - 1) + [1]
            np.testing.assert_array_equal(demo["actions"], episode["action"])
            np.testing.assert_array_equal(demo["obs/top_image"], episode["observation.images.top"])
            state = episode["observation.state"]
            np.testing.assert_array_equal(demo["next_obs/state"], np.concatenate([state[1:], state[-1:]]))
            assert sorted(demo["obs"]) == ["keypoints", "state", "top_image", "wrist_image"]
            assert sorted(demo["next_obs"]) == sorted(demo["obs"])
    write_mixed(tmp_path / "small.hdf5", "robomimic", next_obs=False)
    with h5py.File(tmp_path / "small.hdf5", "r") as file:
        assert "next_obs" not in file["data/demo_0"]


def test_robomimic_to_robomimic_keeps_everything(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5")
    done = convert([path], tmp_path / "copy.hdf5", "robomimic", progress=False)
    assert done.notes == []
    with open_source(path) as a, open_source(tmp_path / "copy.hdf5") as b:
        assert a.features == b.features
        assert (a.metadata, a.fingerprint) == (b.metadata, b.fingerprint)
        for episode in range(3):
            assert a.attributes(episode) == b.attributes(episode)
            for key, values in a.read(episode, a.features.keys()).items():
                np.testing.assert_array_equal(b.read(episode, [key])[key], values)


def test_actions_are_what_was_executed_and_what_was_meant_stands_beside_them(tmp_path: Path) -> None:
    spec = FeatureSpec((Feature("action", (1,), kind="action"), Feature(EXECUTED, (1,), kind="action")))
    meant, done = np.array([[0.0], [1.0]], np.float32), np.array([[0.5], [0.75]], np.float32)
    with make_writer("robomimic", tmp_path / "file.hdf5", spec) as writer:
        writer.add({"action": meant, EXECUTED: done})
    with h5py.File(tmp_path / "file.hdf5") as file:
        demo = file["data/demo_0"]
        np.testing.assert_array_equal(demo["actions"][()], done)
        np.testing.assert_array_equal(demo["actions_intended"][()], meant)
    with open_source(tmp_path / "file.hdf5") as source:
        found = source.read(0, ["action", EXECUTED])
    np.testing.assert_array_equal(found["action"], meant)
    np.testing.assert_array_equal(found[EXECUTED], done)


def test_attributes_of_every_kind_come_back(tmp_path: Path) -> None:
    features = FeatureSpec((Feature("action", (2,), kind="action"),))
    attributes = {
        "text": "zwei\nZeilen ü",
        "zero": "a\0b",
        "number": 3,
        "big": 2**70,
        "part": 0.1,
        "yes": True,
        "nothing": None,
        "list": [1, "a", {"b": []}],
        "num_samples": 99,
        "robopolicy": "x",
        "": "no name",
    }
    with make_writer("robomimic", tmp_path / "a.hdf5", features) as writer:
        writer.add({"action": np.zeros((2, 2), np.float32)}, attributes)
    with open_source(tmp_path / "a.hdf5") as source:
        assert source.attributes(0) == attributes


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    a = write_mixed(tmp_path / "a.hdf5", "robomimic").read_bytes()
    # HDF5 counts times in whole seconds.
    time.sleep(1.1)
    b = write_mixed(tmp_path / "b.hdf5", "robomimic").read_bytes()
    assert hashlib.sha256(a).digest() == hashlib.sha256(b).digest()


def test_images_are_cached_by_content(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5")
    episodes = open_dataset(path, cache_dir=tmp_path / "cache", images=True)
    images = episodes.arrays["observation.images.agentview"]
    wanted = np.concatenate([demonstrations()[name]["obs/agentview_image"] for name in ORDER])
    np.testing.assert_array_equal(images, wanted)
    with h5py.File(path, "a") as file:
        file["data/demo_2/obs/agentview_image"][0] = 7
    again = open_dataset(path, cache_dir=tmp_path / "cache", images=True).arrays["observation.images.agentview"]
    assert (again[4] == 7).all()


def test_what_the_writer_refuses(tmp_path: Path) -> None:
    state, action = Feature("observation.state", (2,)), Feature("action", (2,), kind="action")
    with pytest.raises(DataError, match="robomimic needs the key 'action'"):
        RobomimicWriter(tmp_path / "a.hdf5", FeatureSpec((state,)))
    clash = Feature("observation.images.state", (8, 8, 3), "uint8", "image"), Feature("observation.state_image", (2,))
    with pytest.raises(DataError, match="would share obs/state_image"):
        RobomimicWriter(tmp_path / "a.hdf5", FeatureSpec((*clash, action)))
    for masks, message in (({"a": [1]}, "numbers from 0 to 0"), ({"../a": [0]}, "should be letters")):
        with (
            pytest.raises(DataError, match=message),
            RobomimicWriter(tmp_path / "a.hdf5", FeatureSpec((action,)), metadata={"masks": masks}) as writer,
        ):
            writer.add({"action": np.zeros((2, 2), np.float32)})
    assert list(tmp_path.iterdir()) == []


def written(path: Path) -> Path:
    return write_mixed(path, "robomimic")


def read_all(path: Path) -> None:
    with open_source(path) as source:
        for episode in range(source.n_episodes):
            source.read(episode, source.features.keys())
            source.attributes(episode)


@pytest.mark.parametrize("make", [write_robomimic, written])
def test_truncated_files(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "demo.hdf5")
    data = path.read_bytes()
    for keep in (0, 7, 8, 40, 96, 800, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(DataError, match=r"demo\.hdf5: (damaged|not a dataset)"):
            read_all(path)


def test_flipped_bytes_are_errors_or_change_nothing(tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "demo.hdf5", "robomimic", next_obs=False)
    data = path.read_bytes()
    with open_source(path) as source:
        whole = [source.read(e, source.features.keys()) for e in range(source.n_episodes)]
    rng = np.random.default_rng(0)
    errors = []
    for place in rng.integers(0, len(data), 100):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            with open_source(path) as source:
                for episode, wanted in enumerate(whole):
                    for key in source.features.keys() & wanted.keys():
                        np.testing.assert_array_equal(source.read(episode, [key])[key], wanted[key])
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > 50
    assert all("demo.hdf5" in error for error in errors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.__delitem__("data/demo_3"), "holds 3 demonstrations of 20 steps, its metadata says 4 of 25"),
        (lambda f: f.move("data/demo_3", "data/demo_7"), "numbered from 0"),
        (lambda f: f.__delitem__("data/demo_2/obs/state"), r"episode 2 \(demo_2\).*|demo_2/obs/state: missing"),
        (lambda f: f["data/demo_1"].attrs.__setitem__("num_samples", 2), "demonstrations of 26 steps"),
        (lambda f: f["data/demo_1"].attrs.__setitem__("num_samples", -1), "num_samples should be the number of steps"),
        (lambda f: f["data/demo_1"].attrs.__delitem__("num_samples"), "num_samples should be the number of steps"),
        (lambda f: replace(f, "data/demo_0/actions", np.zeros((7, 3), np.float32)), r"should be float32 \[7, 2\]"),
        (
            lambda f: replace(f, "data/demo_2/actions", np.zeros((12, 2))),
            r"should be float32 \[12, 2\], found float64",
        ),
        (lambda f: replace(f, "data/demo_2/actions", np.zeros((0, 2), np.float32)), "expected at least one step"),
        (lambda f: f["data"].attrs.__setitem__("robopolicy", "{"), "not JSON"),
        (lambda f: f["data"].attrs.__setitem__("robopolicy", "[" * 100_000), "not JSON"),
        (lambda f: f["data"].attrs.__setitem__("robopolicy", "[]"), "damaged robopolicy metadata"),
        (lambda f: f["data"].attrs.__setitem__("env_args", "[]"), "env_args should be a JSON object"),
        (lambda f: f.__delitem__("data"), "data: missing"),
    ],
)
def test_inconsistent_files(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "demo.hdf5")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(DataError, match=message) as caught:
        read_all(path)
    assert "demo.hdf5" in str(caught.value)


def replace(file: Any, name: str, values: np.ndarray) -> None:
    del file[name]
    file[name] = values


def declared(file: Any, name: str, **options: Any) -> None:
    """A dataset of which nothing is written."""
    del file[name]
    file.create_dataset(name, dtype="f4", **options)


def virtual(file: Any, name: str, other: Path) -> None:
    del file[name]
    layout = h5py.VirtualLayout((4, 7), "f8")
    layout[:] = h5py.VirtualSource(str(other), "data/demo_0/actions", (4, 7))
    file.create_virtual_dataset(name, layout)


def external(file: Any, name: str, other: Path) -> None:
    del file[name]
    file.create_dataset(name, (4, 7), "f8", external=[(str(other), 0, 4 * 7 * 8)])


def link(file: Any, name: str, target: Any) -> None:
    del file[name]
    file[name] = target


def vlen(file: Any, name: str) -> None:
    del file[name]
    file.create_dataset(name, (4,), h5py.vlen_dtype(np.float32))[:] = [np.zeros(7, np.float32)] * 4


ACTIONS = "data/demo_0/actions"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, o: link(f, ACTIONS, h5py.ExternalLink(str(o), ACTIONS)), r"is a link \(ExternalLink\)"),
        (lambda f, o: link(f, "data/demo_0", h5py.ExternalLink(str(o), "data/demo_0")), r"is a link \(ExternalLink\)"),
        (lambda f, o: link(f, ACTIONS, h5py.SoftLink("/data/demo_2/actions")), r"is a link \(SoftLink\)"),
        (lambda f, o: link(f, ACTIONS, h5py.SoftLink("/data/demo_0/actions")), r"is a link \(SoftLink\)"),
        (lambda f, o: link(f, ACTIONS, f["data"]), "demo_0/actions: should be a dataset"),
        (lambda f, o: virtual(f, ACTIONS, o), "in other files, which are not read"),
        (lambda f, o: external(f, ACTIONS, o), "in other files, which are not read"),
        (lambda f, o: vlen(f, ACTIONS), "only plain numbers are read"),
        (lambda f, o: replace(f, ACTIONS, np.array([b"a", b"b", b"c", b"d"])), "only plain numbers are read"),
        (lambda f, o: replace(f, ACTIONS, np.zeros(4, [("a", "f4")])), "only plain numbers are read"),
        (lambda f, o: replace(f, ACTIONS, np.zeros((4, 7), np.complex64)), "only plain numbers are read"),
        (lambda f, o: declared(f, ACTIONS, shape=(4, 7)), "0 of its 112 bytes are stored"),
        (lambda f, o: declared(f, ACTIONS, shape=(4, 10**12), chunks=(1, 1000)), "0 of its 4000000000 chunks"),
        (lambda f, o: declared(f, ACTIONS, shape=(4, 2**29), chunks=(1, 2**29)), "are larger than"),
        (lambda f, o: declared(f, ACTIONS, shape=(4, 7), chunks=(1, 7), scaleoffset=2), "encoded by filters"),
        (lambda f, o: link(f, "mask/train", np.arange(3)), "mask/train: holds int64; only plain names"),
        (lambda f, o: link(f, "mask/train", np.array([b"demo_0"] * 4)), "mask/train should list at most 3 names"),
    ],
)
def test_hostile_files(change: Callable[[Any, Path], None], message: str, tmp_path: Path) -> None:
    path, other = write_robomimic(tmp_path / "demo.hdf5"), tmp_path / "secret.hdf5"
    shutil.copy(path, other)
    with h5py.File(path, "a") as file:
        change(file, other)
    with pytest.raises(DataError, match=message) as caught:
        read_all(path)
    assert "demo.hdf5" in str(caught.value)


def test_a_compression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5")
    with h5py.File(path, "a") as file:
        name = "data/demo_0/obs/agentview_image"
        del file[name]
        bomb = file.create_dataset(name, (4, 10_000, 10_000, 3), "u1", chunks=(1, 1000, 10_000, 3), compression="gzip")
        # The same compressed zeros for every chunk.
        bomb[0, :1000] = 0
        _, raw = bomb.id.read_direct_chunk((0, 0, 0, 0))
        for step in range(4):
            for row in range(0, 10_000, 1000):
                bomb.id.write_direct_chunk((step, row, 0, 0), raw)
    with pytest.raises(DataError, match=r"needs 1200000000 bytes, but only \d+ are stored"):
        read_all(path)


@pytest.mark.parametrize("group", ["data", "data/demo_0", "data/demo_0/obs", "mask"])
def test_names_that_are_not_text(group: str, tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5")
    with h5py.File(path, "a") as file:
        h5py.h5g.create(file[group].id, b"demo_\xff")
    with pytest.raises(DataError, match=f"/{group}: damaged .a name within it is not text"):
        read_all(path)


def test_dones_that_are_not_0_or_1(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_2/dones"][1] = 2
    with pytest.raises(DataError, match=r"episode 1 \(demo_2\): dones should be 0 or 1"):
        read_all(path)


def test_masks_of_lost_demonstrations_are_noted(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_2"]
    with open_source(path) as source:
        assert source.metadata["masks"] == {"train": [0, 1], "valid": []}
        assert any("mask 'valid' names demonstrations that are not there: demo_2" in n for n in source.notes)


def test_the_extension_is_compared_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    with make_writer("robomimic", path, mixed_features(), tasks=TASKS) as writer:
        writer.add(mixed_episodes()[0])
    with h5py.File(path, "a") as file:
        said = json.loads(file["data"].attrs["robopolicy"])
        said["features"][0]["shape"] = [4]
        said["features"][0]["names"] = said["features"][0]["units"] = []
        for seal in ("crc32", "sealed"):
            said.pop(seal, None)
        file["data"].attrs["robopolicy"] = json.dumps(said)
    with pytest.raises(DataError, match=r"obs/state should be float32 \[7, 4\], found float32 \[7, 3\]"):
        open_source(path)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    # In a process of its own, because HDF5 left to itself ends it with a segmentation fault.
    code = f"""
import resource, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import h5py
from mixed import write_mixed
from robopolicy.errors import DataError
for limit in (100, 30_000, 80_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_mixed(Path({str(tmp_path / "full.hdf5")!r}), "robomimic")
    except DataError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("full.hdf5: cannot be written (File too large); nothing was kept") == 3
    assert list(tmp_path.iterdir()) == []
