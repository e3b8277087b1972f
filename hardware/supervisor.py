"""Several processes as one: started in order, stopped in the opposite one, all down when one that matters ends."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from robopolicy.errors import RobopolicyError

GRACE_S = 5.0
"""Seconds between SIGINT, SIGTERM and SIGKILL to a process that does not end."""
LAST_LINES = 20
PARENT = "ROBOPOLICY_PARENT_PID"
"""Environment variable with the process id of the one that starts a node, which knows it before the node runs."""


@dataclass(frozen=True)
class Program:
    """One process of a graph."""

    name: str
    command: tuple[str, ...]
    critical: bool = True
    """Whether everything ends when it does; a recorder may die alone."""


@dataclass
class _Running:
    program: Program
    process: "subprocess.Popen[str]"
    reader: threading.Thread
    lines: deque[str]
    noticed: bool = False


class ProcessDied(RobopolicyError):
    """A process that the graph cannot do without has ended."""


class Supervisor:
    """Runs programs until `stop`; use it as a context manager, so that nothing outlives a failure.

    The processes are no part of the terminal's group: Ctrl-C reaches only the supervisor, which stops them in order.
    `say` gets every line they write, with the name of its program in front, from several threads.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        say: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self.programs, self._say, self._grace_s = tuple(programs), say, grace_s
        # By this a node sees that whoever started it is gone already.
        self._environment = dict(os.environ if environment is None else environment) | {PARENT: str(os.getpid())}
        self._running: list[_Running] = []

    def __enter__(self) -> "Supervisor":
        try:
            for program in self.programs:
                self._start(program)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        """ProcessDied when a critical process has ended; others that have are reported once."""
        for one in self._running:
            if one.process.poll() is None or one.noticed:
                continue
            if one.program.critical:
                raise ProcessDied(self._obituary(one))
            one.noticed = True
            self._say(f"{self._obituary(one)}; the others go on")

    def stop(self) -> None:
        """Ends what runs, last started first: SIGINT, after the grace period SIGTERM, then SIGKILL.

        A second Ctrl-C ends the waiting: all get SIGTERM at once, and what is left after the grace period SIGKILL.
        """
        try:
            for one in reversed(self._running):
                self._end(one, (signal.SIGINT, signal.SIGTERM))
        except KeyboardInterrupt:
            left = [one for one in self._running if one.process.poll() is None]
            for one in left:
                one.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + self._grace_s
            for one in left:
                _wait(one.process, max(0.0, deadline - time.monotonic()))
        finally:
            for one in self._running:
                if one.process.poll() is None:
                    self._say(f"{one.program.name} did not end and is killed")
                    one.process.kill()
                    one.process.wait()
            for one in self._running:
                # A grandchild may hold the pipe open; what it says is not worth waiting for.
                one.reader.join(1.0)
            self._running.clear()

    def _start(self, program: Program) -> None:
        try:
            process = subprocess.Popen(
                program.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise RobopolicyError(f"{program.name}: {program.command[0]}: {error.strerror}") from error
        assert process.stdout is not None
        lines: deque[str] = deque(maxlen=LAST_LINES)
        reader = threading.Thread(target=self._read, args=(program.name, process.stdout, lines), daemon=True)
        self._running.append(_Running(program, process, reader, lines))
        reader.start()

    def _read(self, name: str, pipe: IO[str], lines: deque[str]) -> None:
        with pipe:
            for line in pipe:
                lines.append(line.rstrip())
                self._say(f"[{name}] {line.rstrip()}")

    def _end(self, one: _Running, signals: Sequence[signal.Signals]) -> None:
        for number in signals:
            if one.process.poll() is not None:
                return
            one.process.send_signal(number)
            _wait(one.process, self._grace_s)

    def _obituary(self, one: _Running) -> str:
        one.reader.join(1.0)
        code = one.process.returncode
        if code < 0:
            # Whatever it said last has nothing to do with that.
            return f"{one.program.name} was killed by {signal.Signals(-code).name}"
        last = next((line for line in reversed(one.lines) if line.strip()), "")
        return f"{one.program.name} ended with exit status {code}" + (f": {last}" if last else "")


def _wait(process: "subprocess.Popen[str]", seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
