"""Inference in a process of its own: frames go in, chunks of joint targets come out, over a pipe of raw bytes.

The process loads the checkpoint, keeps the `PolicyRunner` and asks it for chunks; whoever started it never waits. When
frames come faster than chunks can be made, the waiting ones only enter the history and the newest is acted on. A
process that dies, even by kill -9, is seen at once and takes nothing else with it.

    python -m robopolicy.hardware.inference FD      (started by `InferenceProcess`; FD is one end of a socket pair)
"""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.configs import from_dict
from robopolicy.errors import RobopolicyError
from robopolicy.wire import Arrays, pack, text, unpack, untext

WAITING = 64
"""Frames that wait while the process is busy; older ones are dropped, as histories are shorter."""
READY_S = 120.0
CLOSE_S = 2.0


@dataclass(frozen=True)
class InferenceSettings:
    """What the process is told at its start."""

    checkpoint: str
    contract: str
    """File; see `robopolicy.datasets.contract`."""
    profile: str
    """Name or file of a robot profile."""
    arm: str = ""
    """File of an `ArmConfig`, for end-effector actions."""
    device: str = "cpu"
    threads: int = 1
    """CPU threads of torch."""
    strategy: str = "receding"
    n_action_steps: int = 0
    """0 takes the checkpoint's."""
    ensemble_decay: float = 0.01
    seed: int = 0
    warmup: int = 3
    """Chunks made before the first frame, and timed."""


class Inference:
    """The process's side: one runner, one mapper, and what they need."""

    def __init__(self, settings: InferenceSettings) -> None:
        import torch

        from robopolicy.datasets.contract import read_contract
        from robopolicy.hardware.actions import ActionMapper, load_arm
        from robopolicy.hardware.assembly import QuadrupedState, trained_on
        from robopolicy.hardware.profiles import load_profile
        from robopolicy.inference.runner import PolicyRunner
        from robopolicy.training import checkpoint

        torch.set_num_threads(settings.threads)
        if settings.device.startswith("cuda") and not torch.cuda.is_available():
            raise RobopolicyError(f"device {settings.device!r}: this machine has no CUDA device that torch can use")
        self._policy, about = checkpoint.load(settings.checkpoint, settings.device)
        contract, profile = read_contract(Path(settings.contract)), load_profile(settings.profile)
        features = self._policy.features
        arm = load_arm(Path(settings.arm)) if settings.arm else None
        self._rate = features.rate_hz or contract.rate_hz
        self._mapper = ActionMapper(features.action, profile, self._rate, contract, arm)
        self._assembly: QuadrupedState | None = None
        if contract.assemble is not None:
            self._assembly = QuadrupedState(contract.assemble, features, trained_on(about))
            features = self._assembly.features
        self._options: dict[str, Any] = {
            "strategy": settings.strategy,
            "n_action_steps": settings.n_action_steps or None,
            "ensemble_decay": settings.ensemble_decay,
        }
        self._runner = PolicyRunner(self._policy, seeds=[settings.seed], **self._options)
        self._start: int | None = None
        stored = checkpoint.stored_observation(about["path"])
        self.facts: dict[str, Any] = {
            "features": features.to_dict(),
            "policy": type(self._policy).__name__,
            "task": about["task"],
            "checkpoint": about["path"],
            "checkpoint_hash": about["provenance"]["sha256"]["model.safetensors"][:16],
            "rate_hz": self._rate,
            "n_action_steps": self._runner.n_action_steps,
            "max_latency_steps": self._runner.max_latency_steps,
            "usable_rows": self._runner.usable_rows,
            "warmup_ms": self._warm_up({k: v.numpy()[:, -1] for k, v in stored.items()}, settings.warmup),
        }

    def _warm_up(self, observation: Arrays, chunks: int) -> list[float]:
        """Milliseconds of `chunks` chunks of a runner that is thrown away, one after the other as in operation."""
        from robopolicy.inference.runner import PolicyRunner

        runner = PolicyRunner(self._policy, **self._options)
        found: list[float] = []
        keys = [f.key for f in self._policy.features.inputs]
        while len(found) < chunks:
            begin = time.perf_counter()
            runner.step({k: observation[k] for k in keys})
            if runner.asked:
                found.append(1e3 * (time.perf_counter() - begin))
        return found

    def reset(self, arrays: Arrays) -> None:
        """A new episode: history and chunks are forgotten, noise starts from the seed given."""
        self._runner.reset(seeds=[int(arrays["seed"])])
        self._start = None
        if self._assembly is not None:
            self._assembly.reset()

    def frame(self, arrays: Arrays, ask: bool) -> Arrays | None:
        """Takes the observation of one tick; joint targets for it and the following steps when a chunk was made."""
        runner, tick = self._runner, int(arrays["tick"])
        self._start = tick if self._start is None else self._start
        runner.latency_steps = min(int(arrays["latency_steps"]), runner.max_latency_steps)
        measured = arrays["measured"]
        observation = {k.removeprefix("observation/"): v for k, v in arrays.items() if k.startswith("observ")}
        begin = time.perf_counter()
        if self._assembly is not None:
            observation = self._assembly(observation)
        hold = self._mapper.hold(measured)[None]
        batch = {k: v[None] for k, v in observation.items()}
        runner.step(batch, time=(tick - self._start) * 1e-9, hold=hold, ask=ask)
        actions = runner.plan()
        if self._assembly is not None and len(actions):
            self._assembly.acted(actions[0])
        if not runner.asked:
            return None
        spent = time.perf_counter() - begin
        targets = self._mapper.targets(actions, measured)
        return {
            "tick": arrays["tick"],
            "session": arrays["session"],
            "actions": actions,
            "joints": targets.joints,
            "unreached": np.array(targets.unreached),
            "residual": np.array([targets.position_error, targets.angle_error]),
            "seconds": np.array([spent, time.perf_counter() - begin - spent]),
        }


def serve(connection: Connection) -> None:
    """Answers until the other end is closed."""
    _, arrays = unpack(connection.recv_bytes())
    inference = Inference(from_dict(InferenceSettings, json.loads(untext(arrays["settings"])), "settings"))
    connection.send_bytes(pack("ready", {"facts": text(json.dumps(inference.facts))}))
    while True:
        waiting = [unpack(connection.recv_bytes())]
        while connection.poll(0):
            waiting.append(unpack(connection.recv_bytes()))
        for i, (kind, arrays) in enumerate(waiting):
            if kind == "reset":
                inference.reset(arrays)
            elif (chunk := inference.frame(arrays, ask=i == len(waiting) - 1)) is not None:
                connection.send_bytes(pack("chunk", chunk))


def main(descriptor: int) -> None:
    """The process: errors are sent as text, a closed pipe is the end."""
    # Ctrl-C reaches the whole process group; the parent alone decides, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            serve(connection)
        except RobopolicyError as error:
            connection.send_bytes(pack("error", {"text": text(str(error))}))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception:
            connection.send_bytes(pack("error", {"text": text(f"defect in inference: {traceback.format_exc()}")}))


class InferenceProcess:
    """The other side: starts the process, hands over without waiting, and collects what comes back."""

    def __init__(self, settings: InferenceSettings, wake: Callable[[], None] = lambda: None) -> None:
        """`wake` is called from another thread whenever `poll` has something new."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "robopolicy.hardware.inference", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        self._wake, self._closed = wake, False
        self._waiting: deque[tuple[str, bytes]] = deque(
            [("start", pack("start", {"settings": text(json.dumps(asdict(settings)))}))]
        )
        self._ready_to_send = threading.Condition()
        self._received: deque[tuple[str, Arrays]] = deque()
        self._arrived = threading.Condition()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait_ready(self, seconds: float = READY_S) -> dict[str, Any]:
        """Blocks until the checkpoint is loaded and warm; RobopolicyError with the reason when it cannot be."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: bool(self._received), seconds):
                raise RobopolicyError(f"inference was not ready after {seconds:.0f} s")
            kind, arrays = self._received.popleft()
        if kind != "ready":
            raise RobopolicyError(untext(arrays["text"]))
        facts: dict[str, Any] = json.loads(untext(arrays["facts"]))
        return facts

    def submit(self, kind: str, arrays: Arrays) -> None:
        """Queues a "frame" or a "reset" (after which no earlier frame matters); never waits."""
        with self._ready_to_send:
            if kind == "reset":
                self._waiting = deque(one for one in self._waiting if one[0] == "start")
            elif len(self._waiting) >= WAITING:
                # What begins the process or the episode is never dropped.
                del self._waiting[next(i for i, (what, _) in enumerate(self._waiting) if what == "frame")]
            self._waiting.append((kind, pack(kind, arrays)))
            self._ready_to_send.notify()

    def poll(self) -> list[tuple[str, Arrays]]:
        """What came since the last call: "chunk", or once "error" with the "text" of why there will be no more."""
        with self._arrived:
            found = list(self._received)
            self._received.clear()
        return found

    def _write(self) -> None:
        with suppress(OSError):
            while True:
                with self._ready_to_send:
                    self._ready_to_send.wait_for(lambda: bool(self._waiting) or self._closed)
                    if self._closed:
                        return
                    _, message = self._waiting.popleft()
                self._connection.send_bytes(message)

    def _read(self) -> None:
        while True:
            try:
                kind, arrays = unpack(self._connection.recv_bytes())
            except (EOFError, OSError):
                if self._closed:
                    return
                kind, arrays = "error", {"text": text(f"the inference process {self._ending()}")}
            with self._arrived:
                self._received.append((kind, arrays))
                self._arrived.notify()
            self._wake()
            if kind == "error":
                return

    def _ending(self) -> str:
        try:
            code = self._popen.wait(timeout=CLOSE_S)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def close(self) -> None:
        """Ends the process: it sees the closed pipe; one that is busy is killed after a while."""
        with self._ready_to_send:
            if self._closed:
                return
            self._closed = True
            self._ready_to_send.notify()
        # Shut down, not only closed: a thread that waits in it must wake up.
        with suppress(OSError), socket.socket(fileno=self._connection.fileno()) as ours:
            ours.shutdown(socket.SHUT_RDWR)
            ours.detach()
        try:
            self._popen.wait(timeout=CLOSE_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for thread in self._threads:
            thread.join()
        self._connection.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
