"""A control loop of fixed rate in Python: memory, scheduling and collection out of its way, and how it keeps time.

A process of its own under SCHED_FIFO is the only combination that holds its period on a loaded machine; what the
system does not allow is left out and said.
"""

import ctypes
import gc
import os
import resource
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.executors import Executor

MCL_CURRENT, MCL_FUTURE = 1, 2
SLEEP = 0.0005
"""Seconds before a deadline from which on no further callback is waited for."""
KEPT = 3000
"""Periods that the percentiles look back: one minute at 50 Hz."""


def settle(priority: int, lock_memory: bool, say: Callable[[str], object]) -> None:
    """Prepares this thread for the loop, after everything it needs has been loaded; `say` gets what was not possible.

    `priority` is that of SCHED_FIFO, 0 leaves the scheduling as it is.
    """
    gc.collect()
    # What exists now stays: later collections look at new objects only and are short.
    gc.freeze()
    if lock_memory:
        unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY or os.geteuid() == 0
        if not unlimited:
            say("memory is not locked: the limit of locked memory (ulimit -l) is not unlimited")
        elif ctypes.CDLL(None, use_errno=True).mlockall(MCL_CURRENT | MCL_FUTURE):
            say(f"memory is not locked: {os.strerror(ctypes.get_errno())}")
    if priority:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        except OSError as error:
            say(f"no real-time scheduling: {error.strerror}; the period will vary more under load")


class Periods:
    """How far the periods of a loop were from what they should be."""

    def __init__(self, period: float) -> None:
        self.period = period
        self.gaps = 0
        """Periods of more than twice the length, since the start."""
        self.worst = 0.0
        """Largest error since the start, s."""
        self._errors = np.zeros(KEPT)
        self._count = 0
        self._last: float | None = None

    def tick(self, now: float) -> None:
        if self._last is not None:
            found = now - self._last
            error = abs(found - self.period)
            self._errors[self._count % KEPT] = error
            self._count += 1
            self.gaps += found > 2 * self.period
            self.worst = max(self.worst, error)
        self._last = now

    def pause(self) -> None:
        """The loop is not running; the next tick begins anew."""
        self._last = None

    def values(self) -> dict[str, Any]:
        """For diagnostics: errors of the period, absolute, in ms."""
        if not self._count:
            return {}
        p50, p99 = np.percentile(self._errors[: self._count], [50, 99]).tolist()
        return {
            "periods": self._count,
            "period error p50 ms": p50 * 1e3,
            "period error p99 ms": p99 * 1e3,
            "period error max ms": self.worst * 1e3,
            "gaps of two periods": self.gaps,
        }


def run_periodically(
    executor: Executor,
    stop: threading.Event,
    periods: Periods,
    runs: Callable[[], bool],
    tick: Callable[[], None],
    failed: Callable[[], None],
) -> None:
    """Runs callbacks, and `tick` at absolute deadlines one period apart, until `stop` or while `runs` holds.

    One thread: callbacks run in the time that is left. Deadlines that have passed are skipped, not made up for. An
    exception of a callback or a tick goes to `failed` and ends nothing.
    """
    periods.pause()
    period = periods.period
    deadline = time.monotonic() + period
    while not stop.is_set() and runs():
        try:
            left = deadline - time.monotonic()
            if left > SLEEP:
                executor.spin_once(timeout_sec=left - SLEEP)
                continue
            time.sleep(max(left, 0.0))
            now = time.monotonic()
            periods.tick(now)
            deadline += period * (1 + max(0, int((now - deadline) / period)))
            tick()
        except Exception:
            failed()
