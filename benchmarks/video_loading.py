"""Speed of video: our cache of decoded frames against LeRobot's dataset class, over the same LeRobot v3.0 files.

    python benchmarks/video_loading.py cache --peer-python PEER/bin/python      loader_video_cache_ratio
    python benchmarks/video_loading.py windows --peer-python PEER/bin/python    window_images_ratio

`cache`: frames per second from a cold start to a complete training cache (opening, hashing, decoding, writing) for
100,000 frames of one 96x96 camera, against the frames per second at which the peer is iterated, of which a random
stretch is timed in every round. `windows`: samples per second of random windows (two cameras of 96x96, two observation
steps, sixteen actions, batch 64) from that cache against the peer's DataLoader with delta_timestamps.

Before anything is timed both sides must return the same frames. They take turns within one run; the peer keeps its own
Python environment and is given its best decoder (torchcodec where it works, and PyAV; PyAV alone for `windows`) and
its best number of worker processes. --small is for trying the script out; it records
nothing.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ledger import record
from window_sampler import FIRST, HORIZON, N_OBS_STEPS, Peer, interval

SIDE, FPS, EPISODE, BATCH = 96, 10.0, 250, 64
ACTION, CAMERAS = "action", ("observation.images.top", "observation.images.side")
WORKERS = (0, 2)


def scene(n: int, rng: np.random.Generator) -> np.ndarray:
    """[n, 96, 96, 3] uint8: a disc and a box that wander over a floor with a pattern, drawn with sharp edges."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    floor = np.stack([200 + 30 * np.sin(x / 7), 190 + 30 * np.sin(y / 9), 180 + 20 * np.sin((x + y) / 11)], axis=-1)
    frames = np.repeat(floor.astype(np.uint8)[None], n, axis=0)
    paths = 48 + np.cumsum(rng.normal(size=(2, n, 2)) * 1.5, axis=1).clip(-30, 30)
    for frame, disc, box in zip(frames, *paths, strict=True):
        frame[(np.abs(x - box[0]) < 14) & (np.abs(y - box[1]) < 8)] = (120, 140, 170)
        frame[(x - disc[0]) ** 2 + (y - disc[1]) ** 2 < 49] = (40, 80, 220)
    return frames


def write_dataset(path: Path, cameras: tuple[str, ...], n_steps: int) -> None:
    """LeRobot v3.0 as our converter writes it by default."""
    from robopolicy.datasets.detect import make_writer
    from robopolicy.features import Feature, FeatureSpec

    images = (Feature(key, (SIDE, SIDE, 3), "uint8", "image") for key in cameras)
    features = FeatureSpec((*images, Feature(ACTION, (2,), kind="action")), FPS)
    rng = np.random.default_rng(0)
    with make_writer("lerobot", path, features) as writer:
        for start in range(0, n_steps, EPISODE):
            n = min(EPISODE, n_steps - start)
            episode = {key: scene(n, rng) for key in cameras}
            writer.add(episode | {ACTION: rng.normal(size=(n, 2)).astype(np.float32)})


def peer_main(data: Path, backend: str, cameras: tuple[str, ...], windows: bool) -> None:
    """Answers requests, one JSON object per line, with LeRobot's dataset; runs in the peer's environment."""
    # The libraries print to standard output, which carries the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import lerobot  # type: ignore[import-not-found]
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    deltas = {key: [i / FPS for i in range(1 - N_OBS_STEPS, 1)] for key in cameras}
    deltas[ACTION] = [i / FPS for i in range(FIRST, FIRST + HORIZON)]
    dataset = LeRobotDataset(
        "local/data", root=data, video_backend=backend, delta_timestamps=deltas if windows else None
    )

    def frames(index: int) -> list[Any]:
        row = dataset[index]
        return [torch.round(row[key] * 255).to(torch.uint8).movedim(-3, -1).tolist() for key in cameras]

    def speed(workers: int, count: int, seed: int) -> float:
        """Of `count` items: one stretch in order, or random windows."""
        rng = np.random.default_rng(seed)
        if windows:
            indices = rng.integers(0, len(dataset), count + BATCH).tolist()
        else:
            first = int(rng.integers(0, max(len(dataset) - count - BATCH, 0) + 1))
            indices = list(range(first, first + count + BATCH))
        loader = torch.utils.data.DataLoader(
            dataset, BATCH, sampler=indices, num_workers=workers, drop_last=False, persistent_workers=False
        )
        batches = iter(loader)
        next(batches)  # Starting the workers is not counted.
        start, seen = time.perf_counter(), 0
        for batch in batches:
            seen += len(batch[ACTION])
        return seen / (time.perf_counter() - start)

    print(json.dumps(f"lerobot {lerobot.__version__}, torch {torch.__version__}"), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = frames(request["frame"]) if "frame" in request else speed(**request)
        print(json.dumps(answer), file=answers, flush=True)


class VideoPeer(Peer):
    """The peer process with one decoder."""

    def __init__(self, python: Path, data: Path, backend: str, what: str) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [str(python), __file__, what, "--role", "peer", "--data", str(data), "--backend", backend]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.version = self._answer()


def start_peers(args: argparse.Namespace, data: Path) -> dict[str, VideoPeer]:
    """One process per decoder that works on this machine."""
    peers = {}
    for backend in ("pyav",) if args.what == "windows" else ("pyav", "torchcodec"):
        try:
            peer = VideoPeer(args.peer_python, data, backend, args.what)
            peer.ask(frame=0)
        except SystemExit as error:
            print(f"the peer without {backend}: {error}", file=sys.stderr)
            continue
        peers[backend] = peer
    if not peers:
        raise SystemExit("the peer decodes with nothing")
    return peers


def cold_cache(data: Path, cameras: tuple[str, ...], folder: Path) -> tuple[Any, float]:
    """(episodes, frames per second): everything from opening the files to memory maps of all frames."""
    from robopolicy.datasets.detect import open_dataset

    os.environ["ROBOPOLICY_CACHE"] = str(folder)
    start = time.perf_counter()
    episodes = open_dataset(data, images=True)
    seconds = time.perf_counter() - start
    return episodes, len(cameras) * episodes.n_steps / seconds


def our_cache(data: Path, cameras: tuple[str, ...], work: Path) -> Callable[[int], float]:
    """A function of the round that measures one cold start and throws the cache away."""

    def speed(number: int) -> float:
        folder = work / f"cache-{number}"
        rate = cold_cache(data, cameras, folder)[1]
        shutil.rmtree(folder)
        return rate

    return speed


def our_windows(episodes: Any, cameras: tuple[str, ...], seconds: float) -> Callable[[int], float]:
    """A function of the round that measures random batches as a training loop would see them."""
    from robopolicy.datasets.windows import BatchOrder, WindowSampler, WindowShape

    sampler = WindowSampler(episodes, WindowShape(N_OBS_STEPS, HORIZON, FIRST), list(cameras))
    order, step = BatchOrder(len(sampler), BATCH, seed=0), 0

    def speed(number: int) -> float:
        nonlocal step
        start, batches = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            batch = {key: torch.from_numpy(value) for key, value in sampler.batch(order(step)).items()}
            assert batch[cameras[0]].shape == (BATCH, N_OBS_STEPS, SIDE, SIDE, 3)
            step, batches = step + 1, batches + 1
        return batches * BATCH / (time.perf_counter() - start)

    speed(-1)  # Warms the page cache.
    return speed


def check_same_frames(episodes: Any, peers: dict[str, VideoPeer], cameras: tuple[str, ...], windows: bool) -> None:
    """PyAV returns what is in our cache; other decoders convert colours with rounding of their own."""
    ends = episodes.episode_ends
    for row in sorted({1, int(ends[0]) - 1, int(ends[len(ends) // 2]) + 7, int(ends[-1]) - 1}):
        ours = [episodes.arrays[key][row - 1 : row + 1] if windows else episodes.arrays[key][row] for key in cameras]
        for backend, peer in peers.items():
            off = np.abs(np.asarray(peer.ask(frame=row), np.int16) - np.stack(ours)).max()
            if off > (0 if backend == "pyav" else 8):
                raise SystemExit(f"row {row}: frames differ by {off} with {backend}")


def main(args: argparse.Namespace) -> None:
    """Writes the videos, checks, measures in turn, and records the ratio."""
    before, windows = os.getloadavg()[0], args.what == "windows"
    cameras = CAMERAS if windows else CAMERAS[:1]
    n_steps = 2_000 if args.small else args.steps or (20_000 if windows else 100_000)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        data = work / "dataset"
        write_dataset(data, cameras, n_steps)
        peers = start_peers(args, data)
        episodes, _ = cold_cache(data, cameras, work / "cache")
        check_same_frames(episodes, peers, cameras, windows)
        ours = our_windows(episodes, cameras, args.seconds) if windows else our_cache(data, cameras, work)
        measured: dict[str, list[float]] = {"ours": []}
        for n in range(args.rounds):
            measured["ours"].append(ours(n))
            for backend, peer in peers.items():
                for w in WORKERS:
                    name = f"{backend}, {w} workers"
                    measured.setdefault(name, []).append(peer.ask(workers=w, count=args.count, seed=n))
            print(f"round {n}: " + ", ".join(f"{k} {v[-1]:,.0f}/s" for k, v in measured.items()), file=sys.stderr)
        for peer in peers.values():
            peer.close()
    medians = {k: statistics.median(v) for k, v in measured.items()}
    best = max((k for k in measured if k != "ours"), key=lambda k: medians[k])
    low, high = interval(measured["ours"], measured[best])
    ratio, unit = medians["ours"] / medians[best], "x samples/s" if windows else "x frames/s"
    version = next(iter(peers.values())).version
    if args.small:
        print(f"{ratio:.2f} [{low:.2f}, {high:.2f}] {unit}; best peer: {best}; not recorded")
        return
    what = (
        f"random windows of two {SIDE}x{SIDE} cameras, {N_OBS_STEPS} observation steps, horizon {HORIZON}, "
        f"batch {BATCH}, {n_steps:,} steps"
        if windows
        else f"{n_steps:,} frames of {SIDE}x{SIDE} from a cold start to the cache"
    )
    record(
        "window_images_ratio" if windows else "loader_video_cache_ratio",
        f"python benchmarks/video_loading.py {args.what} --peer-python PEER --rounds {args.rounds}",
        ratio,
        low,
        high,
        unit,
        args.rounds,
        peer=f"{version}, {best}",
        note=f"Medians: ours {medians['ours']:,.0f}/s, peer {medians[best]:,.0f}/s. Ours: {what}. The peer is "
        f"timed over {args.count:,} {'random windows' if windows else 'consecutive frames'} per round, in batches of "
        f"{BATCH}, with each of its decoders that load here and 0 and 2 worker processes. "
        "In turn, on all cores; ratio of medians over rounds, bootstrap over rounds.",
        load_average={"before": before, "after": os.getloadavg()[0]},
        rounds=measured,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cache", "windows"])
    parser.add_argument("--peer-python", type=Path, help="python of an environment with lerobot 0.4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of our part of a round of windows")
    parser.add_argument("--count", type=int, default=2048, help="items of the peer's part of a round")
    parser.add_argument("--steps", type=int, help="steps of the dataset")
    parser.add_argument("--work", type=Path, help="where the videos and the cache go, 6 GB (default: $TMPDIR)")
    parser.add_argument("--small", action="store_true", help="2,000 steps, nothing is recorded")
    parser.add_argument("--role", choices=["driver", "peer"], default="driver", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "peer":
        is_windows = arguments.what == "windows"
        peer_main(arguments.data, arguments.backend, CAMERAS if is_windows else CAMERAS[:1], is_windows)
    elif arguments.peer_python is None:
        parser.error("--peer-python is required")
    else:
        main(arguments)
