"""Our LeRobot v3.0 output in lerobot's own dataset class: every value of every key of every frame.

    python benchmarks/peer_lerobot.py --python PEER_VENV/bin/python [--record]

Writes three datasets: the mixed one of the tests as video and as pictures, and rendered PushT as video, long enough
for two video files. lerobot 0.4 opens each with its own interpreter (video_backend="pyav") and saves what it got frame
by frame. Numbers and instructions are compared bit for bit with what was written; images with our own decoding of the
same files, pictures with what was written as well.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
BACKEND = "pyav"


def read_with_lerobot(folder: Path, out: Path) -> None:
    """Runs in the peer's interpreter: all frames one by one into .npz."""
    import lerobot
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/data", root=folder, video_backend=BACKEND)
    arrays: dict[str, list[np.ndarray]] = {}
    tasks = []
    for i in range(len(dataset)):
        item = dataset[i]
        tasks.append(item.pop("task"))
        for key, value in item.items():
            if key in dataset.meta.camera_keys:
                value = torch.round(value * 255).to(torch.uint8).permute(1, 2, 0)
            arrays.setdefault(key, []).append(value.numpy())
    np.savez(out, **{key: np.stack(values) for key, values in arrays.items()})
    report = {
        "version": lerobot.__version__,
        "frames": len(dataset),
        "episodes": dataset.meta.total_episodes,
        "tasks": tasks,
        "stats": {k: {n: np.shape(v) for n, v in s.items()} for k, s in dataset.meta.stats.items()},
    }
    print("#" + json.dumps(report))


def write_rendered(path: Path) -> None:
    """PushT seen by its own camera while the pusher wanders, at 1 Hz so that the frames fill two files."""
    import gym_pusht  # noqa: F401  # registers the environment
    import gymnasium

    from robopolicy.datasets.detect import make_writer
    from robopolicy.features import Feature, FeatureSpec

    environment = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos", render_mode="rgb_array")
    features = FeatureSpec(
        (
            Feature("observation.state", (2,)),
            Feature("observation.images.top", (96, 96, 3), "uint8", "image"),
            Feature("action", (2,), kind="action"),
        ),
        1.0,
    )
    rng = np.random.default_rng(0)
    with make_writer("lerobot", path, features) as writer:
        for number in range(8):
            observation, _ = environment.reset(seed=number)
            steps: dict[str, list[np.ndarray]] = {f.key: [] for f in features}
            action = np.float32([256, 256])
            for _ in range(150):
                action = np.clip(action + rng.normal(size=2) * 40, 0, 511).astype(np.float32)
                steps["observation.state"].append(observation["agent_pos"].astype(np.float32))
                steps["observation.images.top"].append(observation["pixels"])
                steps["action"].append(action)
                observation, *_ = environment.step(action)
            writer.add({key: np.stack(values) for key, values in steps.items()})


def compare(name: str, folder: Path, python: Path, work: Path, exact: Path | None) -> tuple[int, int, str]:
    """(equal frames, frames, version); a frame is equal when every key of it is. `exact` holds what was written."""
    from robopolicy.datasets.detect import open_source
    from robopolicy.features import TASK_INDEX

    out = work / f"{name}.npz"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(work / "hf")}
    command = [str(python), __file__, "--role", "peer", "--folder", str(folder), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name}: lerobot does not read it\n{done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(next(x for x in done.stdout.splitlines() if x.startswith("#"))[1:])
    peer = np.load(out)
    equal = np.ones(report["frames"], bool)
    for reference in [folder] if exact is None else [folder, exact]:
        with open_source(reference) as source:
            assert (source.n_steps, source.n_episodes) == (report["frames"], report["episodes"])
            episodes = [source.read(e, source.features.keys()) for e in range(source.n_episodes)]
            for feature in source.features:
                if reference is exact and feature.kind == "image" and "video" in name:
                    continue
                ours = np.concatenate([e[feature.key] for e in episodes])
                theirs = peer[feature.key].reshape(ours.shape)
                same = (ours == theirs) & (theirs.dtype == ours.dtype)
                equal &= same.reshape(len(ours), -1).all(axis=1)
            if TASK_INDEX in source.features:
                numbers = np.concatenate([e[TASK_INDEX] for e in episodes])
                equal &= np.array([source.tasks[i] for i in numbers]) == np.array(report["tasks"])
    print(f"{name}: {int(equal.sum())} of {len(equal)} frames equal", file=sys.stderr)
    return int(equal.sum()), len(equal), report["version"]


def main(args: argparse.Namespace) -> None:
    """Writes, lets lerobot read, compares, and records the fraction of equal frames."""
    from ledger import record

    from robopolicy.datasets.convert import convert
    from robopolicy.evaluation.statistics import wilson

    sys.path.insert(0, str(ROOT / "tests" / "datasets"))
    from mixed import write_mixed

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        store = write_mixed(work / "store")
        convert([store], work / "mixed-video", "lerobot", progress=False)
        convert([store], work / "mixed-pictures", "lerobot", options={"video": False}, progress=False)
        write_rendered(work / "rendered-video")
        results = {
            name: compare(name, work / name, args.python, work, store if name.startswith("mixed") else None)
            for name in ("mixed-video", "mixed-pictures", "rendered-video")
        }
    equal, frames = sum(r[0] for r in results.values()), sum(r[1] for r in results.values())
    if args.record:
        interval = wilson(equal, frames)
        record(
            "lerobot_opens_v3",
            "python benchmarks/peer_lerobot.py --python PEER --record",
            equal / frames,
            interval.low,
            interval.high,
            "frames equal / frames",
            frames,
            peer=f"lerobot {next(iter(results.values()))[2]}, video_backend={BACKEND}",
            note="A frame counts when every key of it is bit-equal: numbers and instructions to what was written, "
            "video to our decoding of the same file, pictures to what was written. All frames were compared.",
            equal={name: r[0] for name, r in results.items()},
            frames={name: r[1] for name, r in results.items()},
        )
    if equal < frames:
        raise SystemExit(f"only {equal} of {frames} frames are equal")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="python of an environment with lerobot 0.4")
    parser.add_argument("--record", action="store_true", help="write the result into the ledger")
    parser.add_argument("--role", choices=["driver", "peer"], default="driver", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "peer":
        read_with_lerobot(arguments.folder, arguments.out)
    elif arguments.python is None:
        parser.error("--python is required")
    else:
        main(arguments)
