"""Our HDF5 in robomimic's own SequenceDataset: every value of every key of every frame.

    python benchmarks/peer_robomimic.py --python PEER_VENV/bin/python [--record]

Writes two datasets: the mixed one of the tests, and one with robomimic's own names (two cameras, robot state, object,
env_args, masks). robomimic 0.3 opens both with its own interpreter, with `next_obs`, in windows without it, and with a
mask, and saves what it got frame by frame. Values are compared bit for bit in this process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
TRAIN = [0, 2, 3]


def read_with_robomimic(file: Path, keys: list[str], images: list[str], out: Path) -> None:
    """Runs in the peer's interpreter: all frames one by one into .npz, and again through the masks and batches."""
    import robomimic
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset
    from torch.utils.data import DataLoader

    modalities = {"rgb": images, "low_dim": [k for k in keys if k not in images]}
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": modalities})
    shared = {"obs_keys": keys, "dataset_keys": ("actions", "rewards", "dones"), "hdf5_cache_mode": None}
    whole = SequenceDataset(str(file), load_next_obs=True, **shared)
    arrays: dict[str, list[np.ndarray]] = {}
    for i in range(len(whole)):
        item = whole[i]
        found = {name: item[name] for name in ("actions", "rewards", "dones")}
        found |= {f"{part}/{k}": item[part][k] for part in ("obs", "next_obs") for k in keys}
        for name, values in found.items():
            arrays.setdefault(name, []).append(np.asarray(values)[0])
    windows = SequenceDataset(str(file), load_next_obs=False, frame_stack=2, seq_length=4, **shared)
    n_windows = sum(len(batch["actions"]) for batch in DataLoader(windows, batch_size=8))
    masked = SequenceDataset(str(file), filter_by_attribute="train", **(shared | {"hdf5_cache_mode": "low_dim"}))
    np.savez(
        out,
        **{name.replace("/", "|"): np.stack(values) for name, values in arrays.items()},
    )
    report = {
        "version": robomimic.__version__,
        "frames": len(whole),
        "windows": n_windows,
        "train_demos": masked.demos,
    }
    print("#" + json.dumps(report))


def robomimic_like(rng: np.random.Generator) -> tuple[Any, list[dict[str, np.ndarray]], dict[str, Any]]:
    """Features, episodes and metadata with the names of robomimic's own image datasets."""
    from robopolicy.features import Control, Feature, FeatureSpec

    low_dim = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
    cameras = ("agentview", "robot0_eye_in_hand")
    features = FeatureSpec(
        (
            *(Feature(f"observation.images.{c}", (84, 84, 3), "uint8", "image") for c in cameras),
            *(Feature(f"observation.{k}", (n,)) for k, n in low_dim.items()),
            Feature("simulator.state", (32,), "float64"),
            Feature("next.reward", ()),
            Feature("next.done", (), "bool"),
            Feature("action", (7,), kind="action", control=Control("end_effector_pose", "delta", "world")),
        ),
        20.0,
    )
    episodes = []
    for length in (40, 1, 25, 60):
        episode = {f.key: rng.normal(size=(length, *f.shape)).astype(f.dtype) for f in features if f.kind != "image"}
        episode["next.done"] = np.arange(length) == length - 1
        for f in features.of_kind("image"):
            episode[f.key] = rng.integers(0, 256, (length, *f.shape), dtype=np.uint8)
        episodes.append(episode)
    env = {"env_name": "Lift", "type": 1, "env_version": "1.4.1", "env_kwargs": {"control_freq": 20}}
    return features, episodes, {"env_args": env, "masks": {"train": TRAIN, "valid": [1]}}


def check(python: str, file: Path, features: Any, episodes: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Number of frames and of frames that are equal in every key, and what else robomimic said."""
    from robopolicy.datasets.robomimic_hdf5 import dataset_name

    names = {f.key: dataset_name(f) for f in features}
    observed = [n.removeprefix("obs/") for n in names.values() if n.startswith("obs/")]
    images = [names[f.key].removeprefix("obs/") for f in features.of_kind("image")]
    out = file.with_suffix(".npz")
    command = [python, __file__, "--read", str(file), "--keys", *observed, "--images", *images, "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"robomimic could not read {file.name}:\n{run.stderr}")
    report: dict[str, Any] = json.loads(next(x for x in run.stdout.splitlines() if x.startswith("#"))[1:])
    frames = sum(len(e["action"]) for e in episodes)
    equal = np.ones(frames, bool)
    values = 0
    with np.load(out) as found:
        for f in features:
            # task_index and states are in the file, but SequenceDataset is not asked for them.
            for name in {names[f.key], f"next_{names[f.key]}"} & {n.replace("|", "/") for n in found.files}:
                later = name.startswith("next_obs/")
                rows = [np.concatenate([e[f.key][1:], e[f.key][-1:]]) if later else e[f.key] for e in episodes]
                wanted, got = np.concatenate(rows), found[name.replace("/", "|")]
                if got.shape != wanted.shape or (got.dtype != wanted.dtype and f.dtype != "bool"):
                    found_as, written_as = f"{got.dtype} {got.shape}", f"{wanted.dtype} {wanted.shape}"
                    raise SystemExit(f"{file.name}: {name} is {found_as}, was written as {written_as}")
                equal &= (got == wanted).reshape(frames, -1).all(axis=1)
                values += got.size
        expected_names = {"actions", "rewards", "dones", *(f"{p}/{k}" for p in ("obs", "next_obs") for k in observed)}
        missing = expected_names - {n.replace("|", "/") for n in found.files}
        if missing:
            raise SystemExit(f"{file.name}: robomimic did not give {sorted(missing)}")
    expected = {
        "frames": frames,
        "windows": frames,
        "train_demos": [f"demo_{n}" for n in TRAIN],
    }
    wrong = {k: (report[k], v) for k, v in expected.items() if report[k] != v}
    if wrong:
        raise SystemExit(f"robomimic reads {file.name} otherwise than written (found, expected): {wrong}")
    return {"frames": frames, "equal": int(equal.sum()), "values": values, "version": report["version"]}


def main() -> None:
    """Writes, lets robomimic read, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="interpreter of an environment with robomimic 0.3")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keys", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--images", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read_with_robomimic(args.read, args.keys, args.images, args.out)
        return
    if not args.python:
        parser.error("--python is needed")
    sys.path.insert(0, str(ROOT / "tests" / "datasets"))
    from mixed import FINGERPRINT, TASKS, mixed_episodes, mixed_features

    from robopolicy.datasets.robomimic_writer import RobomimicWriter

    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        like = robomimic_like(np.random.default_rng(0))
        mixed = mixed_features(), mixed_episodes(), {"masks": {"train": TRAIN}}
        for name, (features, episodes, metadata) in {"mixed": mixed, "robomimic": like}.items():
            file = Path(temporary) / f"{name}.hdf5"
            tasks = TASKS if name == "mixed" else ()
            with RobomimicWriter(file, features, FINGERPRINT, tasks=tasks, metadata=metadata) as writer:
                for number, episode in enumerate(episodes):
                    writer.add(episode, {"model_file": f"<mujoco model='{number}'/>"})
            results[name] = check(args.python, file, features, episodes)
    frames, equal = (sum(r[k] for r in results.values()) for k in ("frames", "equal"))
    print(json.dumps({"value": equal / frames, "frames": frames, "equal": equal} | results))
    if args.record:
        from ledger import record

        from robopolicy.evaluation.statistics import wilson

        interval = wilson(equal, frames)
        record(
            "robomimic_opens_hdf5",
            "python benchmarks/peer_robomimic.py --python PEER_VENV/bin/python --record",
            equal / frames,
            interval.low,
            interval.high,
            "frames equal / frames",
            frames,
            peer=f"robomimic {results['mixed']['version']}",
            note="Our HDF5 through robomimic's SequenceDataset: actions, rewards, dones, obs and next_obs of every "
            "frame compared bit for bit; windows and a mask have the right sizes.",
            datasets=results,
        )


if __name__ == "__main__":
    main()
