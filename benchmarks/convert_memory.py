"""Peak memory of `robopolicy data convert` on a synthetic dataset of two cameras that is far larger than the bar.

    python benchmarks/convert_memory.py [--gigabytes 5] [--rest 1] [--record]

Writes an episode store of --gigabytes of images in a temporary folder, converts it to zarr and back, and one of --rest
gigabytes to every other format and back. The number is the largest resident set (VmHWM, which counts pages of mapped
files as well) of any of the converting processes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = (240, 320, 3)
STEPS = 150
"""Of one episode: 35 MB of images per camera."""
OTHERS = ("robomimic", "lerobot", "lerobot-v2.1", "rosbag2-mcap", "rosbag2-sqlite3")


def make(path: Path, gigabytes: float) -> None:
    """Writes the store. Images are gradients that move, with noise, so that nothing compresses to little."""
    import numpy as np

    from robopolicy.datasets.store import EpisodeWriter
    from robopolicy.features import Feature, FeatureSpec

    cameras = ["observation.images.front", "observation.images.wrist"]
    features = FeatureSpec(
        (
            *(Feature(key, SHAPE, "uint8", "image") for key in cameras),
            Feature("observation.state", (14,)),
            Feature("action", (14,), kind="action"),
        ),
        20.0,
    )
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 16, (STEPS + 40, *SHAPE), dtype=np.uint8)
    slope = np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1]))[..., None]
    with EpisodeWriter(path, features) as writer:
        while writer.n_steps * 2 * int(np.prod(SHAPE)) < gigabytes * 1e9:
            shift = (np.arange(STEPS) + 3 * writer.n_episodes)[:, None, None, None]
            base = (((slope + shift) % 480) // 2).astype(np.uint8)
            episode = {key: base + noise[k * 7 : k * 7 + STEPS] // (k + 1) for k, key in enumerate(cameras)}
            for key in ("observation.state", "action"):
                episode[key] = rng.normal(size=(STEPS, 14)).astype(np.float32)
            writer.add(episode)


def run(command: list[str]) -> tuple[float, float]:
    """(peak resident GiB, seconds) of a process that must succeed.

    This process stays small, because the kernel counts its size at the start of the other as that one's.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"status {status}: {' '.join(command)}")
    return usage.ru_maxrss / 2**20, time.perf_counter() - start


def convert(source: Path, output: Path, to: str) -> dict[str, Any]:
    """One conversion, measured."""
    command = [sys.executable, "-m", "robopolicy", "data", "convert", str(source), "-o", str(output), "--to", to]
    peak, seconds = run(command)
    print(f"{source.name} -> {to}: {peak:.2f} GiB, {seconds:.0f} s", flush=True)
    return {"from": source.name, "to": to, "gib": round(peak, 3), "seconds": round(seconds, 1)}


def remove(path: Path) -> None:
    """A dataset that is a folder or a file."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def main() -> None:
    """Runs all conversions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--rest", type=float, default=1.0, help="gigabytes for formats other than zarr")
    parser.add_argument("--only", nargs="*", default=["zarr", *OTHERS])
    parser.add_argument("--record", action="store_true", help="write the ledger entry")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(Path(args.make[0]), float(args.make[1]))
        return
    measured = []
    with tempfile.TemporaryDirectory(prefix="convert_memory_") as temporary:
        for size, formats in ((args.gigabytes, ["zarr"]), (args.rest, list(OTHERS))):
            formats = [f for f in formats if f in args.only]
            if not formats:
                continue
            store = Path(temporary) / f"episodes-{size:g}GB"
            run([sys.executable, __file__, "--make", str(store), str(size)])
            for to in formats:
                there, back = Path(temporary) / f"{to}-{size:g}GB", Path(temporary) / "back"
                measured += [convert(store, there, to), convert(there, back, "episodes")]
                remove(there)
                remove(back)
            remove(store)
    worst = max(m["gib"] for m in measured)
    print(f"largest: {worst:.3f} GiB")
    if args.record:
        from ledger import record

        record(
            "convert_memory_gib",
            f"python benchmarks/convert_memory.py --gigabytes {args.gigabytes:g} --rest {args.rest:g} --record",
            worst,
            min(m["gib"] for m in measured),
            worst,
            "GiB resident",
            len(measured),
            note=f"Largest VmHWM of {len(measured)} conversions (interval: smallest to largest); "
            f"{args.gigabytes:g} GB to zarr and back, {args.rest:g} GB to every other format and back; two cameras of "
            f"240x320, episodes of {STEPS} steps. "
            + "; ".join(f"{m['from']} to {m['to']} {m['gib']:.2f} in {m['seconds']:.0f} s" for m in measured),
            conversions=measured,
        )


if __name__ == "__main__":
    main()
