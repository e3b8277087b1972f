"""Random command sequences through the safety gate's limiter and the gate itself: how many outputs leave a limit.

    python benchmarks/gate_violations.py [--sequences 1000000] [--record]

Each sequence is 40 targets for seven joints of very different limits: steps, noise far beyond every limit, waves and
missing targets, from a random start. What is sent is differentiated and compared with the limits without tolerance.
The bulk runs as arrays through `MotionLimiter`, which makes every set-point of the gate; a further hundredth runs
through `SafetyGate` itself, one by one, with invalid, jumping, late and missing messages among them.
"""

import argparse
import sys
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "hardware"))

from ledger import record
from test_limiter import PERIOD, limits, run, targets

from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.statistics import wilson
from robopolicy.hardware.limiter import MotionLimiter, MotionLimits
from robopolicy.hardware.safety import GateConfig, SafetyGate
from robopolicy.progress import progress_bar

TICKS, BLOCK = 40, 2_000


def beyond(sent: np.ndarray, bounds: MotionLimits) -> np.ndarray:
    """Whether set-points [K, ..., n] leave any limit, bool [...]; before the first one the robot stood there."""
    rest = np.concatenate([sent[:1]] * 3 + [sent])
    found = ((sent > bounds.high) | (sent < bounds.low) | ~np.isfinite(sent)).any(axis=(0, -1))
    for limit in (bounds.velocity, bounds.acceleration, bounds.jerk):
        rest = np.diff(rest, axis=0) / PERIOD
        found |= (np.abs(rest) > limit).any(axis=(0, -1))
    return np.asarray(found)


def through_gate(rng: np.random.Generator, gate: SafetyGate, bounds: MotionLimits) -> tuple[bool, set[str]]:
    """Whether one sequence of good and bad messages made a fresh gate send what is beyond a limit, and its faults."""
    position = rng.uniform(bounds.low, bounds.high)
    time, seen = 0.0, set[str]()
    gate.measure(time, position)
    sent = [gate.activate(time)]
    for _ in range(TICKS):
        time += PERIOD if rng.random() < 0.98 else rng.uniform(-0.5, 0.5)
        if rng.random() < 0.97:
            gate.measure(time, position if rng.random() < 0.98 else rng.uniform(-9, 9, 7))
        target = position + rng.uniform(-0.9, 0.9, 7)
        if rng.random() < 0.03:
            target[rng.integers(7)] = rng.choice([np.nan, np.inf, 10.0, -1e300])
        if rng.random() < 0.95:
            gate.command(time, target)
        if rng.random() < 0.01:
            gate.emergency_stop()
        now = gate.tick(time)
        assert now is not None
        sent.append(now)
        position = now
        seen |= set(gate.faults)
        if gate.faults and gate.at_rest and rng.random() < 0.5:
            gate.measure(time, position)
            with suppress(RobopolicyError):
                gate.clear(time)
    return bool(beyond(np.array(sent), bounds)), seen


def main() -> None:
    """Counts and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    bounds = limits()
    limiter, rng = MotionLimiter(bounds, PERIOD), np.random.default_rng(args.seed)
    bad = done = 0
    with progress_bar(total=args.sequences, unit="sequence") as bar:
        while done < args.sequences:
            size = min(BLOCK, args.sequences - done)
            start = rng.uniform(bounds.low, bounds.high, (size, 7))
            bad += int(beyond(run(limiter, start, targets(rng, start.shape, TICKS)), bounds).sum())
            done += size
            bar.update(size)
    singles, faults = args.sequences // 100, set[str]()
    # The limiter's tables take longer than a sequence.
    fresh = SafetyGate(GateConfig(bounds, 1 / PERIOD, tracking_error=np.full(7, 0.5), jump=np.full(7, 1.0)))
    with progress_bar(total=singles, unit="sequence") as bar:
        for _ in range(singles):
            left, seen = through_gate(rng, deepcopy(fresh), bounds)
            bad, faults = bad + left, faults | seen
            bar.update(1)
    total = done + singles
    print(f"{bad} of {total} sequences leave a limit; faults seen: {', '.join(sorted(faults))}")
    if args.record:
        interval = wilson(bad, total)
        record(
            "gate_violations",
            f"python benchmarks/gate_violations.py --sequences {args.sequences} --seed {args.seed} --record",
            bad,
            interval.low * total,
            interval.high * total,
            "sequences that leave a limit",
            total,
            seeds=str(args.seed),
            note=f"{done} sequences of {TICKS} targets through the limiter as arrays, {singles} through the whole gate"
            f" with bad messages among them (faults seen: {', '.join(sorted(faults))}). Position, velocity, "
            "acceleration and jerk of what is sent, compared without tolerance.",
        )


if __name__ == "__main__":
    main()
