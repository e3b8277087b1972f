"""Small valid datasets of every format, their contents as digests, and attempts to read mutants of them.

Run as a program it is the server of `Attempts`: a process that has everything imported and forks for every attempt.
"""

import hashlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from dataset_files import pusht_arrays, without_checksums, write_replay_buffer
from mixed import write_mixed
from robomimic_files import write_robomimic

from robopolicy import cli
from robopolicy.datasets.detect import open_source, writable_formats


def _relay(path: Path) -> Path:
    rng, lengths = np.random.default_rng(0), np.array([5, 3, 7])
    path.mkdir()
    mask = (np.arange(9)[:, None] < lengths).astype(np.float64)
    np.save(path / "observations_seq.npy", rng.normal(size=(9, 3, 60)))
    np.save(path / "actions_seq.npy", rng.normal(size=(9, 3, 9)))
    np.save(path / "existence_mask.npy", mask)
    return path


def corpus() -> dict[str, Callable[[Path], Path]]:
    """Name to a function that writes the dataset: every writable format, and files as others write them."""
    found: dict[str, Callable[[Path], Path]] = {
        name: lambda path, name=name: write_mixed(path, name)  # type: ignore[misc]
        for name in writable_formats()
    }
    found["lerobot-pictures"] = lambda path: write_mixed(path, "lerobot", video=False)
    found["episodes-plain"] = lambda path: without_checksums(write_mixed(path))
    found["zarr-plain"] = lambda path: write_replay_buffer(path, pusht_arrays(), np.cumsum([5, 1, 8]))
    found["robomimic-plain"] = lambda path: write_robomimic(path)
    found["relay-plain"] = _relay
    return found


def file_name(variant: str) -> str:
    """What the dataset is called; formats that are one file have a suffix."""
    return "d.hdf5" if variant.startswith("robomimic") else "d"


def contents(path: Path) -> dict[str, Any]:
    """Everything that a dataset says, with digests for values, as plain JSON types."""
    with open_source(path) as source:
        keys = source.features.keys()
        episodes = []
        for number in range(source.n_episodes):
            arrays = source.read(number, keys)
            episodes.append({k: hashlib.sha256(np.ascontiguousarray(a)).hexdigest() for k, a in arrays.items()})
        found = {
            "features": source.features.to_dict(),
            "tasks": list(source.tasks),
            "fingerprint": source.fingerprint,
            "lengths": source.lengths.tolist(),
            "episodes": episodes,
        }
        return json.loads(json.dumps(found))


def snapshot(folder: Path, skip: str = "out") -> dict[str, Any]:
    """Names, kinds, sizes and times of change of everything below a folder, except for what is called `skip`."""
    found = {}
    for directory, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f != skip]
        for name in [*folders, *files]:
            status = (Path(directory) / name).lstat()
            size = status.st_size if name in files else 0
            found[str(Path(directory) / name)] = (status.st_mode, size, status.st_mtime_ns if name in files else 0)
    return found


class Attempts:
    """`data convert` and `data info` of mutants, each in a process of its own that is watched."""

    def __init__(self, seconds: float = 20.0, memory: int = 4 * 2**30) -> None:
        """`memory` is address space in bytes beyond what the program itself takes."""
        command = [sys.executable, __file__, str(seconds), str(memory)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Attempts":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def __call__(self, dataset: Path, out: Path) -> dict[str, Any]:
        """What came of it; `out` is made, and holds the output if there is any."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps([str(dataset), str(out)]), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


def _serve(seconds: float, memory: int) -> None:
    for name in ("av", "cv2", "h5py", "numcodecs", "pyarrow.parquet", "rosbags.highlevel", "tyro", "zarr"):
        importlib.import_module(name)
    for line in sys.stdin:
        dataset, out = map(Path, json.loads(line))
        print(json.dumps(_attempt(dataset, out, seconds, memory)), flush=True)


def _attempt(dataset: Path, out: Path, seconds: float, memory: int) -> dict[str, Any]:
    (out / "logs").mkdir(parents=True)
    child = os.fork()
    if child == 0:
        _child(dataset, out, memory)
    deadline, status = time.monotonic() + seconds, None
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        time.sleep(0.002)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"end": "hang"}
    if os.WIFSIGNALED(status) or not (out / "logs" / "result.json").exists():
        return {"end": f"status {status}: {(out / 'logs' / 'stderr').read_text()[-500:]}"}
    return json.loads((out / "logs" / "result.json").read_text())


def _child(dataset: Path, out: Path, memory: int) -> None:
    """Never returns."""
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(out / "logs" / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        result = _read(dataset, out)
        (out / "logs" / "result.json").write_text(json.dumps(result))
        code = 0
    finally:
        os._exit(code)


def _read(dataset: Path, out: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"end": "exit"}
    for verb, arguments in (
        ("convert", ["data", "convert", str(dataset), "-o", str(out / "d"), "--to", "episodes"]),
        ("info", ["data", "info", str(dataset)]),
    ):
        marks = [(out / "logs" / name).stat().st_size for name in ("stdout", "stderr")]
        try:
            code: Any = cli.main(arguments)
        except BaseException:
            code = "crash"
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        texts = [
            (out / "logs" / name).read_bytes()[mark:].decode(errors="replace")
            for name, mark in zip(("stdout", "stderr"), marks, strict=True)
        ]
        result[verb] = {"code": code, "stdout": texts[0], "stderr": texts[1]}
    if result["convert"]["code"] == 0:
        result["contents"] = contents(out / "d")
    result["left"] = sorted(p.name for p in out.iterdir() if p.name != "logs")
    return result


def protected(variant: str, kind: str) -> bool:
    """Whether a mutation hit bytes that the format covers by checksums.

    Not so: files of other writers, and valid files with other contents, which somebody may have meant.
    """
    meant = ("unsealed_metadata", "parquet", "hdf5", "bag", "video", "not_a_number")
    return not variant.endswith("-plain") and kind not in meant


def judge(result: dict[str, Any], original: dict[str, Any], dataset: Path, checked: bool) -> tuple[str, str]:
    """(class, why) of an attempt. Classes: error, equal, noted, undetectable, FAILED.

    `checked` says whether the mutated file is one whose values the format protects by checksums.
    """
    if result["end"] != "exit":
        return "FAILED", result["end"]
    for verb in ("convert", "info"):
        code, stderr = result[verb]["code"], result[verb]["stderr"]
        lines = [line for line in stderr.splitlines() if line.startswith("robopolicy: error: ")]
        if code not in (0, 2) or "Traceback" in stderr:
            return "FAILED", f"{verb}: {code} {stderr[-600:]}"
        if code == 2 and (len(lines) != 1 or str(dataset) not in lines[0] or len(lines[0]) > 2000):
            return "FAILED", f"{verb}: unclear error {stderr[-600:]}"
    if result["convert"]["code"] == 2:
        if result["left"]:
            return "FAILED", f"left {result['left']} after an error"
        return "error", result["convert"]["stderr"].strip().splitlines()[-1]
    found = result["contents"]
    if found == original:
        return "equal", ""
    notes = [line for line in result["convert"]["stdout"].splitlines() if line.startswith("note: ")]
    if notes:
        return "noted", "; ".join(notes)
    same = found["lengths"] == original["lengths"] and len(found["features"]["features"]) == len(
        original["features"]["features"]
    )
    if not same:
        return "FAILED", f"silent loss: {found['lengths']} of {original['lengths']}"
    return ("FAILED" if checked else "undetectable"), "changed without a word: " + _difference(found, original)


def _difference(found: dict[str, Any], original: dict[str, Any]) -> str:
    for name in ("features", "tasks", "fingerprint"):
        if found[name] != original[name]:
            a, b = (json.dumps(x[name]) for x in (found, original))
            at = next((i for i, (m, n) in enumerate(zip(a, b, strict=False)) if m != n), 0)
            return f"{name} ...{a[max(at - 60, 0) : at + 60]} not {b[max(at - 60, 0) : at + 60]}"
    for number, (a, b) in enumerate(zip(found["episodes"], original["episodes"], strict=True)):
        keys = [k for k in b if a.get(k) != b[k]]
        if keys:
            return f"episode {number}: {', '.join(keys)}"
    return "?"


if __name__ == "__main__":
    _serve(float(sys.argv[1]), int(sys.argv[2]))
