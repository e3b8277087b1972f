"""The supervisor of several processes, with real ones."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.supervisor import PARENT, ProcessDied, Program, Supervisor

# Writes "up" and, when it is asked to end, its name and the signal into the log that all share.
WELL_BEHAVED = """
import os, signal, sys
name, log = sys.argv[1:3]
def end(number, frame):
    with open(log, "a") as file:
        file.write(f"{name} {signal.Signals(number).name}\\n")
    sys.exit(0)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
while True:
    signal.pause()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""


def _program(name: str, code: str, *arguments: str, critical: bool = True) -> Program:
    return Program(name, (sys.executable, "-c", code, name, *arguments), critical)


class Lines:
    """What the supervisor said, to wait for."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._more = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._more:
            self.all.append(line)
            self._more.notify_all()

    def wait_for(self, line: str, times: int = 1) -> None:
        with self._more:
            assert self._more.wait_for(lambda: self.all.count(line) >= times, 30), self.all


def _run_until_one_dies(programs: list[Program], lines: Lines, wait_for: str = "") -> None:
    with Supervisor(programs, lines) as supervisor:
        if wait_for:
            lines.wait_for(wait_for)
        for _ in range(3000):
            supervisor.check()
            time.sleep(0.01)


def test_they_end_in_the_opposite_order_of_their_start(tmp_path: Path) -> None:
    log, lines = tmp_path / "log", Lines()
    with Supervisor([_program(n, WELL_BEHAVED, str(log)) for n in ("robot", "gate", "policy")], lines) as supervisor:
        for name in ("robot", "gate", "policy"):
            lines.wait_for(f"[{name}] up")
        supervisor.check()
    assert log.read_text().splitlines() == ["policy SIGINT", "gate SIGINT", "robot SIGINT"]


def test_programs_are_told_who_starts_them() -> None:
    lines = Lines()
    code = f"import os, time; print(os.environ[{PARENT!r}] == str(os.getppid()), flush=True); time.sleep(600)"
    with Supervisor([_program("gate", code)], lines, environment={PARENT: "1"}):
        lines.wait_for("[gate] True")


def test_the_death_of_a_critical_one_is_named_with_its_last_line_and_ends_the_others(tmp_path: Path) -> None:
    log, lines = tmp_path / "log", Lines()
    failing = _program("policy", "print('first'); print('no such checkpoint'); raise SystemExit(3)")
    with pytest.raises(ProcessDied, match=r"^policy ended with exit status 3: no such checkpoint$"):
        _run_until_one_dies([_program("gate", WELL_BEHAVED, str(log)), failing], lines, "[gate] up")
    assert log.read_text().splitlines() == ["gate SIGINT"]


def test_a_killed_one_is_named_with_its_signal() -> None:
    code = "import os, signal; print('all is well', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(ProcessDied, match=r"^gate was killed by SIGKILL$"):
        _run_until_one_dies([_program("gate", code)], Lines())


def test_one_that_is_not_critical_may_end_alone(tmp_path: Path) -> None:
    lines = Lines()
    programs = [_program("gate", WELL_BEHAVED, str(tmp_path / "log")), _program("recorder", "", critical=False)]
    with Supervisor(programs, lines) as supervisor:
        lines.wait_for("[gate] up")
        while not (said := [line for line in lines.all if line.startswith("recorder ended")]):
            supervisor.check()
            time.sleep(0.01)
        supervisor.check()
    assert said == ["recorder ended with exit status 0; the others go on"]


def test_one_that_ignores_signals_is_killed() -> None:
    lines = Lines()
    with Supervisor([_program("policy", STUBBORN)], lines, grace_s=0.2):
        lines.wait_for("[policy] up")
    assert lines.all[-1] == "policy did not end and is killed"


def test_a_program_that_cannot_start_ends_those_that_did(tmp_path: Path) -> None:
    missing = Program("gate", (str(tmp_path / "nowhere"),))
    supervisor = Supervisor([_program("robot", STUBBORN), missing], Lines(), grace_s=0.1)
    with pytest.raises(RobopolicyError, match=r"gate: .*nowhere: No such file"), supervisor:
        pass
    assert supervisor._running == []


def test_an_interrupt_of_the_group_reaches_only_the_supervisor(tmp_path: Path) -> None:
    """As Ctrl-C does: the processes must not end at once but one after the other."""
    log = tmp_path / "log"
    code = f"""
import time
from pathlib import Path
from robopolicy.hardware.supervisor import Program, Supervisor
programs = [Program(n, ({sys.executable!r}, "-c", {WELL_BEHAVED!r}, n, {str(log)!r})) for n in ("robot", "policy")]
ups = []
with Supervisor(programs, ups.append):
    while len(ups) < 2:
        time.sleep(0.01)
    print("ready", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.killpg(process.pid, signal.SIGINT)
    process.wait(30)
    process.stdout.close()
    assert log.read_text().splitlines() == ["policy SIGINT", "robot SIGINT"]
