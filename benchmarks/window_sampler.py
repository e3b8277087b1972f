"""Training samples per second: our window sampler against LeRobot's dataset class behind a torch DataLoader.

Both read the same LeRobot v3.0 dataset and return the same windows (two observation steps, sixteen actions, pad
mask, batches of 256, shuffled), which is checked before anything is timed. The two take turns within one run, each
with one thread of arithmetic; the peer keeps its own Python environment and is given its better number of workers.

    python benchmarks/window_sampler.py --data <lerobot v3 dataset> --peer-python <venv with lerobot>/bin/python
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ledger import record

N_OBS_STEPS, HORIZON, FIRST = 2, 16, -1
BATCH = 256
PEER_WORKERS = (0, 2)
STATE, ACTION = "observation.state", "action"


@contextlib.contextmanager
def without_videos(data: Path) -> Iterator[Path]:
    """A copy of the dataset whose info.json lists no videos, so that LeRobot opens it without their files."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "dataset"
        shutil.copytree(data, copy, ignore=shutil.ignore_patterns("videos"))
        file = copy / "meta" / "info.json"
        info = json.loads(file.read_text())
        info["features"] = {k: f for k, f in info["features"].items() if f["dtype"] != "video"}
        file.chmod(0o644)
        file.write_text(json.dumps(info))
        yield copy


def peer_main(data: Path, fps: float) -> None:
    """Answers requests, one JSON object per line, with LeRobot's dataset; runs in the peer's environment."""
    # The libraries print to standard output, which carries the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import lerobot  # type: ignore[import-not-found]
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    deltas = {
        STATE: [i / fps for i in range(1 - N_OBS_STEPS, 1)],
        ACTION: [i / fps for i in range(FIRST, FIRST + HORIZON)],
    }
    dataset = LeRobotDataset("local/data", root=data, delta_timestamps=deltas)

    def items(indices: list[int]) -> dict[str, Any]:
        rows = [dataset[i] for i in indices]
        return {key: [row[key].tolist() for row in rows] for key in (STATE, ACTION, f"{ACTION}_is_pad")}

    def speed(workers: int, batches: int) -> float:
        loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True)
        batch = iter(loader)
        next(batch)  # Starting the workers is not counted.
        start = time.perf_counter()
        for _ in range(batches):
            next(batch)
        return batches * BATCH / (time.perf_counter() - start)

    print(json.dumps(f"lerobot {lerobot.__version__}, torch {torch.__version__}"), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = items(request["items"]) if "items" in request else speed(request["workers"], request["batches"])
        print(json.dumps(answer), file=answers, flush=True)


class Peer:
    """The peer process."""

    def __init__(self, python: Path, data: Path, fps: float) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [str(python), __file__, "--role", "peer", "--data", str(data), "--fps", str(fps)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.version = self._answer()

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with status {self.process.wait()}; its messages are above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """Our sampler with everything a training loop would call."""

    def __init__(self, data: Path) -> None:
        from robopolicy.datasets.detect import open_dataset
        from robopolicy.datasets.windows import BatchOrder, WindowSampler, WindowShape

        episodes = open_dataset(data, keys=[STATE, ACTION])
        self.sampler = WindowSampler(episodes, WindowShape(N_OBS_STEPS, HORIZON, FIRST), [STATE])
        self.order = BatchOrder(len(self.sampler), BATCH, seed=0)
        self.edges = [0, 1, *(int(e) + d for e in episodes.episode_ends[:5] for d in (-HORIZON, -2, -1, 0, 1))]
        self.step = 0

    def speed(self, seconds: float) -> float:
        start, batches = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            batch = self.sampler.batch(self.order(self.step))
            tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
            assert len(tensors[ACTION]) == BATCH
            self.step += 1
            batches += 1
        return batches * BATCH / (time.perf_counter() - start)


def check_same_windows(ours: Ours, peer: Peer) -> None:
    """Both sides return the same numbers at the edges of the first episodes."""
    a, b = ours.sampler.batch(np.asarray(ours.edges)), peer.ask(items=ours.edges)
    for key in (STATE, ACTION, f"{ACTION}_is_pad"):
        np.testing.assert_array_equal(a[key], np.asarray(b[key], dtype=a[key].dtype), err_msg=key)


def interval(ours: list[float], peer: list[float]) -> tuple[float, float]:
    """95% bootstrap interval, over rounds, of the ratio of medians."""
    pairs = np.array([ours, peer])
    draws = np.random.default_rng(0).integers(0, len(ours), (10_000, len(ours)))
    medians = np.median(pairs[:, draws], axis=-1)
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return float(low), float(high)


def main(args: argparse.Namespace) -> None:
    """Takes turns for `args.rounds` rounds and prints the result."""
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    fps = float(json.loads((args.data / "meta" / "info.json").read_text())["fps"])
    with without_videos(args.data) as copy:
        ours, peer = Ours(copy), Peer(args.peer_python, copy, fps)
        check_same_windows(ours, peer)
        ours.speed(0.5)  # Warm caches on our side; the peer drops its first batch in every round.
        measured: dict[str, list[float]] = {name: [] for name in ("ours", *(f"workers {w}" for w in PEER_WORKERS))}
        for n in range(args.rounds):
            measured["ours"].append(ours.speed(args.seconds))
            for w in PEER_WORKERS:
                measured[f"workers {w}"].append(peer.ask(workers=w, batches=args.batches))
            print(f"round {n}: " + ", ".join(f"{k} {v[-1]:,.0f}/s" for k, v in measured.items()), file=sys.stderr)
        peer.close()
    medians = {k: statistics.median(v) for k, v in measured.items()}
    best = max((k for k in measured if k != "ours"), key=lambda k: medians[k])
    low, high = interval(measured["ours"], measured[best])
    record(
        "window_sampler_ratio",
        f"python benchmarks/window_sampler.py --data DATASET --peer-python PEER --rounds {args.rounds}",
        medians["ours"] / medians[best],
        low,
        high,
        "x samples/s",
        args.rounds,
        peer=f"{peer.version}, DataLoader with {best}",
        note=f"Medians: ours {medians['ours']:,.0f} samples/s, peer {medians[best]:,.0f}. Batch {BATCH}, "
        f"{N_OBS_STEPS} observation steps, horizon {HORIZON}; in turn, one thread per process; ratio of medians "
        "over rounds, bootstrap over rounds. LeRobot also returns task, timestamp and indices.",
        load_average={"before": before, "after": os.getloadavg()[0]},
        rounds=measured,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a LeRobot v3.0 dataset")
    parser.add_argument("--peer-python", type=Path, help="python of an environment with lerobot 0.4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of our part of a round")
    parser.add_argument("--batches", type=int, default=30, help="batches of the peer's part of a round")
    parser.add_argument("--role", choices=["driver", "peer"], default="driver", help=argparse.SUPPRESS)
    parser.add_argument("--fps", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "peer":
        peer_main(arguments.data, arguments.fps)
    elif arguments.peer_python is None:
        parser.error("--peer-python is required")
    else:
        main(arguments)
