"""robomimic's HDF5 datasets (Mandlekar et al. 2021): one group per demonstration.

data/demo_N/                actions, states, rewards, dones; attributes num_samples, model_file
data/demo_N/obs/            one array per observation; cameras are <name>_image, uint8 [T, height, width, 3]
data/demo_N/next_obs/       the same, one step later
data                        attributes env_args (JSON: simulator, task and its arguments), total
mask/<name>                 names of demonstrations: train, valid, ...

Where a recording tells what was meant from what was done, `actions` is what was done, as robomimic's tools expect, who
replay it; what was meant, and should be learned, is `actions_intended`.

Values are read as float32, simulator states as float64. Quaternions stay in robosuite's order, which the names of
their dimensions say. `next_obs` is not read: it repeats `obs` one step later.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.datasets.hdf5 import attributes, child, is_group, is_hdf5, members, open_hdf5, parse_json
from robopolicy.datasets.masks import MASKS
from robopolicy.datasets.robomimic_env import UNKNOWN_ENV, control, fingerprint, instruction, rate_hz
from robopolicy.datasets.source import EXTENSION, Source, read_extension
from robopolicy.datasets.untrusted import damage
from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import ACTION, EXECUTED, TASK_INDEX, Feature, FeatureSpec, Kind

FIXED = {ACTION: "actions", "next.reward": "rewards", "next.done": "dones", "simulator.state": "states"}
"""Our key of the arrays that every robomimic dataset has outside `obs`."""
INTENDED = "actions_intended"
"""Where the actions are when `actions` holds those that were executed."""
SAVED = "num_samples"
EPISODES = "n_episodes"
"""Entry that our writer adds to the extension, so that a lost demonstration is noticed."""
MAX_SIDE = 8192
MASK_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


def dataset_name(feature: Feature) -> str:
    """Where the values of a feature are, below data/demo_N."""
    if feature.key in FIXED:
        return FIXED[feature.key]
    name, folder, suffix = feature.key, "", ""
    if feature.kind == "image" and name.startswith("observation.images."):
        name, folder, suffix = name.removeprefix("observation.images."), "obs/", "_image"
    elif name.startswith("observation."):
        name, folder = name.removeprefix("observation."), "obs/"
    return folder + (re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".") or "_") + suffix


def dataset_names(spec: FeatureSpec) -> dict[str, str]:
    """Where the values of every feature are, below data/demo_N."""
    names = {f.key: dataset_name(f) for f in spec}
    return names | {ACTION: INTENDED, EXECUTED: FIXED[ACTION]} if EXECUTED in names else names


def stored_dtype(feature: Feature) -> str:
    """The dtype in the file: `dones` are numbers in robomimic."""
    return "int64" if feature.key == "next.done" and feature.dtype == "bool" else feature.dtype


class RobomimicSource(Source):
    """A robomimic dataset; a demonstration is read when it is asked for."""

    format = "robomimic"

    def __init__(self, path: Path) -> None:
        self._file = open_hdf5(path)
        try:
            self._data = child(self._file, "data", "group")
            self._open(path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        self.notes = []
        self._demos = self._demo_names(path)
        described = attributes(self._data)
        extension = described.pop(EXTENSION, None)
        env_args = parse_json(f"{path}: env_args", described.pop("env_args", "{}"))
        if not isinstance(env_args, dict):
            raise DataError(f"{path}: env_args should be a JSON object, found {type(env_args).__name__}")
        # Not all attributes: model_file is a long text.
        demos = [attributes(child(self._data, name, "group"), (SAVED, "ep_meta")) for name in self._demos]
        lengths = [_length(path, name, demo) for name, demo in zip(self._demos, demos, strict=True)]
        total = described.pop("total", sum(lengths))
        masks = self._masks(path)
        self._exact = extension is not None
        self._task_of: list[int] | None = None
        tasks: Sequence[str] = ()
        if extension is None:
            features, metadata, versions = self._found(env_args), dict[str, Any](), fingerprint(env_args)
            if described:
                metadata["hdf5_attributes"] = described
            texts = [instruction(described, demo) for demo in demos]
            if any(texts):
                tasks = list(dict.fromkeys(text or "" for text in texts))
                self._task_of = [tasks.index(text or "") for text in texts]
                features = (*features, Feature(TASK_INDEX, (), "int64", "language"))
            if total != sum(lengths):
                self.notes.append(f"attribute total says {total} steps, the demonstrations have {sum(lengths)}")
            spec = _spec(path, features, rate_hz(env_args))
        else:
            said = parse_json(f"{path}: {EXTENSION} metadata", extension)
            spec, tasks, versions, metadata = read_extension(path, said)
            expected = said.get(EPISODES), total, self._demos
            if expected != (len(lengths), sum(lengths), [f"demo_{i}" for i in range(len(lengths))]):
                raise DataError(
                    f"{path}: holds {len(lengths)} demonstrations of {sum(lengths)} steps, "
                    f"its metadata says {said.get(EPISODES)} of {total}, numbered from 0"
                )
            self._names = dataset_names(spec)
        if env_args and env_args != UNKNOWN_ENV:
            metadata["env_args"] = env_args
        if masks:
            metadata[MASKS] = masks
        super().__init__(
            path,
            spec,
            np.array(lengths, np.int64),
            tasks=tasks,
            fingerprint=versions,
            metadata=metadata,
            notes=self.notes,
        )
        for feature in spec:
            if not (feature.key == TASK_INDEX and self._task_of):
                self._dataset(0, feature.key)

    def _demo_names(self, path: Path) -> list[str]:
        names = members(self._data)
        found = {name: int(name[5:]) for name in names if re.fullmatch(r"demo_[0-9]{1,9}", name)}
        other = sorted(set(names) - set(found))
        if other:
            self.notes.append(f"left out of data, as not named demo_<number>: {', '.join(other[:5])}")
        return sorted(found, key=lambda name: (found[name], name))

    def _found(self, env_args: dict[str, Any]) -> tuple[Feature, ...]:
        """Features of a file that does not describe them, from its first demonstration; also sets `_names`."""
        if not self._demos:
            raise DataError(f"{self._file.filename}: holds no group data/demo_<number>")
        demo = child(self._data, self._demos[0], "group")
        names = members(demo)
        inside = members(child(demo, "obs", "group")) if "obs" in names else []
        ours = {name: key for key, name in FIXED.items()}
        wanted = [f"obs/{n}" for n in inside] + [n for n in FIXED.values() if n in names]
        features, left, self._names = [], [n for n in names if n not in (*ours, "obs", "next_obs")], {}
        quaternions = env_args.get("type") == 1
        for name in wanted:
            folder, _, last = name.rpartition("/")
            holder = child(demo, folder, "group") if folder else demo
            if name != FIXED[ACTION] and is_group(holder, last):
                left.append(name)
                continue
            feature = _feature(name, child(holder, last, "dataset"), ours.get(name), quaternions)
            if feature.key == ACTION:
                feature = replace(feature, control=control(env_args))
            features.append(feature)
            self._names[feature.key] = name
        if left:
            self.notes.append(f"left out of every demonstration: {', '.join(sorted(left)[:8])}")
        for name in self._demos[1:]:
            demo = child(self._data, name, "group")
            there = members(demo)
            held = [n for n in FIXED.values() if n in there]
            held += [f"obs/{n}" for n in members(child(demo, "obs", "group"))] if "obs" in there else []
            lost = sorted(set(held) - set(wanted))
            if lost:
                self.notes.append(f"left out, as {self._demos[0]} lacks what {name} has: {', '.join(lost[:8])}")
                break
        return tuple(features)

    def _masks(self, path: Path) -> dict[str, list[int]]:
        if "mask" not in members(self._file):
            return {}
        group = child(self._file, "mask", "group")
        number = {name: i for i, name in enumerate(self._demos)}
        masks = {}
        for name in members(group):
            listed = child(group, name, "names")
            if listed.ndim != 1 or len(listed) > len(self._demos) or not MASK_NAME.fullmatch(name):
                raise DataError(f"{path}: mask/{name} should list at most {len(self._demos)} names of demonstrations")
            with damage(f"{path}: mask/{name}"):
                demos = [bytes(m).decode() for m in listed[()]]
            lost = [demo for demo in demos if demo not in number]
            if lost:
                self.notes.append(f"mask {name!r} names demonstrations that are not there: {', '.join(lost[:5])}")
            masks[name] = sorted({number[demo] for demo in demos if demo in number})
        return masks

    def _where(self, episode: int) -> str:
        return f"{self.path}: episode {episode} ({self._demos[episode]})"

    def _dataset(self, episode: int, key: str) -> Any:
        """The array of a key, checked against the feature and the length of the demonstration."""
        with damage(self._where(episode)):
            folder, _, last = self._names[key].rpartition("/")
            demo = child(self._data, self._demos[episode], "group")
            found = child(child(demo, folder, "group") if folder else demo, last, "dataset")
        feature, length = self.features[key], int(self.lengths[episode])
        if found.shape != (length, *feature.shape) or (self._exact and found.dtype.name != stored_dtype(feature)):
            raise DataError(
                f"{self._where(episode)}: {self._names[key]} should be {stored_dtype(feature)} "
                f"{[length, *feature.shape]}, found {found.dtype} {list(found.shape)}"
            )
        return found

    def read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {key: self._rows(episode, key, slice(None)) for key in keys}

    def _rows(self, episode: int, key: str, rows: slice) -> np.ndarray:
        if key == TASK_INDEX and self._task_of is not None:
            return np.full(self.lengths[episode], self._task_of[episode], np.int64)[rows]
        dataset = self._dataset(episode, key)
        where = f"{self._where(episode)}: {self._names[key]}"
        with damage(where):
            values = dataset[rows]
        return _delivered(where, values, self.features[key].dtype)

    def frames(self, key: str, rows: np.ndarray) -> np.ndarray:
        found = []
        for row in rows:
            episode = int(np.searchsorted(self.episode_ends, row, side="right"))
            step = int(row) - int(self.episode_ends[episode] - self.lengths[episode])
            found.append(self._rows(episode, key, slice(step, step + 1))[0])
        return np.stack(found)

    def attributes(self, episode: int) -> dict[str, Any]:
        found = attributes(child(self._data, self._demos[episode], "group"))
        found.pop(SAVED, None)
        more = parse_json(f"{self._where(episode)}: {EXTENSION} attribute", found.pop(EXTENSION, "{}"))
        if not isinstance(more, dict):
            raise DataError(f"{self._where(episode)}: {EXTENSION} attribute should be a JSON object")
        return found | more

    def identity(self, key: str) -> str:
        """Covers the file's size and time of change and, of every demonstration, the first and last frame."""
        status = self.path.stat()
        digest = hashlib.sha256(f"{key} {status.st_size} {status.st_mtime_ns}".encode())
        for episode in range(self.n_episodes):
            dataset = self._dataset(episode, key)
            digest.update(f"{dataset.shape} {dataset.id.get_storage_size()}".encode())
            for row in (0, int(self.lengths[episode]) - 1):
                digest.update(np.ascontiguousarray(self._rows(episode, key, slice(row, row + 1))).data)
        return digest.hexdigest()[:32]

    def close(self) -> None:
        self._file.close()


def is_robomimic(path: Path) -> bool:
    return is_hdf5(path)


def _length(path: Path, name: str, described: dict[str, Any]) -> int:
    length = described.get(SAVED)
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length < 2**40:
        raise DataError(f"{path}: {name}: attribute {SAVED} should be the number of steps, found {length!r}")
    return length


def _spec(path: Path, features: tuple[Feature, ...], rate: float | None) -> FeatureSpec:
    try:
        return FeatureSpec(features, rate)
    except RobopolicyError as error:
        raise DataError(f"{path}: {error}") from error


def _feature(name: str, dataset: Any, fixed: str | None, quaternions: bool) -> Feature:
    """The feature of an array in a file that does not describe its own; `fixed` is the key, outside `obs`."""
    shape, dtype = tuple(dataset.shape[1:]), dataset.dtype
    if fixed is None and dtype == np.uint8 and len(shape) == 3 and shape[-1] in (1, 3, 4):
        if max(shape) > MAX_SIDE:
            raise DataError(f"{dataset.file.filename}: {dataset.name}: images of {shape}; at most {MAX_SIDE} a side")
        return Feature(f"observation.images.{name[4:].removesuffix('_image')}", shape, "uint8", "image")
    if fixed == "next.done":
        return Feature(fixed, shape, "bool")
    if fixed == "simulator.state":
        return Feature(fixed, shape, "float64")
    delivered = "float32" if dtype.kind == "f" or fixed is not None else dtype.name
    names = ("x", "y", "z", "w") if quaternions and "_quat" in name and shape == (4,) else ()
    kind: Kind = "action" if fixed == ACTION else "state"
    return Feature(fixed or f"observation.{name[4:]}", shape, delivered, kind, names)


def _delivered(where: str, values: np.ndarray, dtype: str) -> np.ndarray:
    """Values of the file in the dtype of the feature, without silent changes of meaning."""
    wanted = np.dtype(dtype)
    if wanted.kind == "b" and values.dtype.kind in "iuf" and not np.isin(values, (0, 1)).all():
        raise DataError(f"{where} should be 0 or 1, found others")
    if wanted.kind not in "bf" and values.dtype.name != dtype:
        raise DataError(f"{where} should be {dtype}, found {values.dtype}")
    # Doubles beyond float32 become infinite, which the checks for finite values report.
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(wanted, copy=False)
