"""Damaged datasets of every format: an error of one line, or contents that are right, and nothing else.

The cases are mutations by name or number that once went wrong, and a few of each format; the benchmark
corrupt_inputs.py runs hundreds.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import Attempts, contents, corpus, file_name, judge, protected, snapshot
from dataset_files import without_checksums
from mixed import write_mixed, write_mixed_long
from mutations import GENERAL, HOSTILE_VALUES, SPECIFIC, TEXTUAL, mutate, prepare_outside

from robopolicy import cli
from robopolicy.datasets.detect import dataset_format, open_source
from robopolicy.datasets.info import describe, format_info
from robopolicy.datasets.untrusted import parse_yaml
from robopolicy.errors import DataError, RobopolicyError

ALL = {f.__name__: f for f in (*GENERAL, *TEXTUAL, *(f for found in SPECIFIC.values() for f in found))}
ONCE_WRONG = (
    ("zarr", "nested", 3),  # .zarray of brackets
    ("zarr-plain", "metadata", 372),  # a codec named by an object
    ("lerobot", "link_outside", 38),  # info.json is /dev/zero
    ("rosbag2-mcap", "nested", 0),  # metadata.yaml of brackets
    ("rosbag2-mcap", "link_outside", 10),  # metadata.yaml is /dev/zero
    ("rosbag2-mcap", "metadata", 348),  # a file name of 100,000 letters
    ("episodes-plain", "metadata", 1121),  # a dtype that is a number
    ("relay-plain", "huge_npy", 0),  # a negative number of steps
    ("robomimic-plain", "hdf5", 113),  # the first demonstration has no actions
)
"""(dataset, mutation, seed)."""


@pytest.fixture(scope="module")
def attempts() -> Iterator[Attempts]:
    with Attempts() as running:
        yield running


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Every dataset of the corpus, and its contents."""
    made = {}
    for variant, write in corpus().items():
        path = write(tmp_path_factory.mktemp(variant) / file_name(variant))
        made[variant] = path, contents(path)
    return made


def check(
    variant: str, kind: str, seed: int, good: dict[str, tuple[Path, Any]], attempts: Attempts, folder: Path
) -> str:
    """Mutates a copy, tries to read it, and asserts that this ended in order; returns the class of the outcome."""
    source, original = good[variant]
    prepare_outside(folder)
    dataset = folder / file_name(variant)
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, dataset)
    if kind:
        said = ALL[kind](dataset, np.random.default_rng(seed))
    else:
        kind, said = mutate(dataset, seed)
    before = snapshot(folder)
    outcome, why = judge(attempts(dataset, folder / "out"), original, dataset, protected(variant, kind))
    assert outcome != "FAILED", f"{kind}: {said}: {why}"
    assert snapshot(folder) == before
    return outcome


@pytest.mark.parametrize("variant", sorted(corpus()))
def test_some_mutations_of_every_format(
    variant: str, good: dict[str, tuple[Path, Any]], attempts: Attempts, tmp_path: Path
) -> None:
    outcomes = [check(variant, "", seed, good, attempts, tmp_path / str(seed)) for seed in range(1000, 1004)]
    assert set(outcomes) <= {"error", "equal", "noted", "undetectable"}


@pytest.mark.parametrize(("variant", "kind", "seed"), ONCE_WRONG)
def test_what_once_went_wrong(
    variant: str, kind: str, seed: int, good: dict[str, tuple[Path, Any]], attempts: Attempts, tmp_path: Path
) -> None:
    check(variant, kind, seed, good, attempts, tmp_path)


def test_every_value_of_our_own_metadata_may_be_hostile(good: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    """All of them, because a hostile manifest carries no checksum: described, or an error that names the dataset."""
    dataset = shutil.copytree(good["episodes-plain"][0], tmp_path / "d")
    file = dataset / "episodes.json"
    text, crashed, refused = file.read_text(), [], 0
    for place in _places(json.loads(text)):
        for value in HOSTILE_VALUES:
            data = whole = [json.loads(text)]
            for step in (0, *place[:-1]):
                data = data[step]
            data[place[-1]] = value
            file.write_text(json.dumps(whole[0]))
            try:
                format_info(describe(dataset))
            except RobopolicyError as error:
                refused += str(dataset) in str(error)
            except Exception as error:
                crashed.append((place, str(value)[:20], repr(error)))
    assert crashed == []
    assert refused > 1000


def _places(data: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if above:
        yield above
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from _places(data[key], (*above, key))


def test_names_that_no_file_can_have_and_rates_that_are_none(tmp_path: Path) -> None:
    path = without_checksums(write_mixed(tmp_path / "d"))
    file = path / "episodes.json"
    good = json.loads(file.read_text())
    for change, message in (
        ({"rate_hz": ""}, "rate_hz is ''"),
        ({"rate_hz": 0}, "rate_hz is '0'"),
        ({"tasks": "push"}, "'tasks' is not a list"),
        ({"fingerprint": {"mujoco": 3}}, "'fingerprint' is not a table of texts"),
        ({"metadata": []}, "'metadata' is not a table"),
        ({"features": [{**good["features"][0], "key": "a" * 201}]}, "more than 200 bytes"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(DataError, match=rf"episodes\.json: damaged .*{message}"):
            open_source(path)


def test_a_replay_buffer_that_lost_a_description_is_not_taken_for_another(
    good: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    for variant, name, message in (
        ("zarr", ".zattrs", r"lacks 'robopolicy', which meta/.zattrs announces"),
        ("zarr-plain", "data/state/.zarray", r"state/.zarray: missing"),
    ):
        path = shutil.copytree(good[variant][0], tmp_path / variant)
        (path / name).unlink()
        with pytest.raises(DataError, match=message):
            open_source(path)


@pytest.mark.parametrize(
    ("variant", "kind", "seed"), [("lerobot", "video", 0), ("lerobot", "parquet", 4), ("rosbag2-sqlite3", "bag", 8)]
)
def test_bombs(
    variant: str, kind: str, seed: int, good: dict[str, tuple[Path, Any]], attempts: Attempts, tmp_path: Path
) -> None:
    """40 frames of 4096x4096 in 100 kB, a table of 5,000,000 rows, a message of 300 MB."""
    assert check(variant, kind, seed, good, attempts, tmp_path) == "error"


def test_the_judge_sees_silent_loss_crashes_and_hangs(good: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    path, original = good["episodes"]
    fine = {"code": 0, "stdout": "", "stderr": ""}
    shorter = original | {"lengths": original["lengths"][:-1], "episodes": original["episodes"][:-1]}
    end = {"end": "exit", "convert": fine, "info": fine, "left": []}
    assert judge(end | {"contents": original}, original, path, True)[0] == "equal"
    assert judge(end | {"contents": shorter}, original, path, False)[0] == "FAILED"
    noted = fine | {"stdout": "note: episode 3 left out"}
    assert judge(end | {"contents": shorter, "convert": noted}, original, path, True)[0] == "noted"
    changed = original | {"episodes": [{}, *original["episodes"][1:]]}
    assert judge(end | {"contents": changed}, original, path, True)[0] == "FAILED"
    assert judge(end | {"contents": changed}, original, path, False)[0] == "undetectable"
    assert judge({"end": "hang"}, original, path, True)[0] == "FAILED"
    crash = {"code": "crash", "stdout": "", "stderr": "Traceback"}
    assert judge(end | {"convert": crash}, original, path, True)[0] == "FAILED"
    vague = {"code": 2, "stdout": "", "stderr": "robopolicy: error: something is wrong"}
    assert judge(end | {"convert": vague}, original, path, True)[0] == "FAILED"
    clear = vague | {"stderr": f"robopolicy: error: {path}/action.npy: truncated"}
    assert judge(end | {"convert": clear}, original, path, True)[0] == "error"
    assert judge(end | {"convert": clear, "left": ["d"]}, original, path, True)[0] == "FAILED"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "- " * 100_000, "{a: " * 50_000, "a: [", "a: !!python/object:os.x {}"]
)
def test_yaml_that_overflows_or_does_not_parse_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match=r"^x: (nested|damaged YAML)"):
        parse_yaml(text, "x")


def test_errors_are_one_line_however_long_the_names_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mixed(tmp_path / "d")
    assert cli.main(["data", "convert", str(tmp_path / "d"), "-o", str(tmp_path / "o"), "--to", "x\n" * 5000]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 2000


@pytest.mark.parametrize("to", ["zarr", "rosbag2-mcap", "robomimic"])
def test_a_killed_conversion_leaves_no_dataset_and_the_next_run_is_whole(to: str, tmp_path: Path) -> None:
    source, folder = write_mixed_long(tmp_path / "source", 20), tmp_path / "out"
    folder.mkdir()
    arguments = ["data", "convert", str(source), "-o", str(folder / "d"), "--to", to]
    process = subprocess.Popen(
        [sys.executable, "-m", "robopolicy", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    written = 0
    while process.poll() is None and written < 1000:
        written = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    (left,) = folder.glob(".d.*.tmp")
    assert not (folder / "d").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert dataset_format(left) is None
    for path in (left, folder):
        with pytest.raises(DataError, match=r"did not finish|not a dataset"):
            open_source(path)
    assert cli.main(arguments) == 0
    assert [p.name for p in folder.iterdir()] == ["d"]
    assert contents(folder / "d") | {"features": 0} == contents(source) | {"features": 0}
