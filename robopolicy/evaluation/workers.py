"""Worker processes that answer requests over pipes, in the messages of `robopolicy.wire`.

Processes are spawned, never forked: a forked child inherits threads and graphics contexts that no longer work.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

from robopolicy.errors import RobopolicyError
from robopolicy.wire import Arrays, pack, text, unpack, untext

_USER_ERROR, _CRASH = "error", "crash"


class WorkerDied(RuntimeError):
    """A worker process ended without a word, as when it is killed or its simulator crashes."""


class Server(Protocol):
    """What runs in a worker: answers each request with arrays."""

    def __call__(self, request: str, arrays: Arrays) -> Arrays: ...


def _serve(connection: Connection, make: Callable[..., Server], args: tuple[Any, ...]) -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A closed pipe (the parent is done, or dead) ends the worker.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            server = make(*args)
            while True:
                request, arrays = unpack(connection.recv_bytes())
                connection.send_bytes(pack("reply", server(request, arrays)))
        except RobopolicyError as error:
            connection.send_bytes(pack(_USER_ERROR, {"text": text(str(error))}))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception:
            connection.send_bytes(pack(_CRASH, {"text": text(traceback.format_exc())}))


class Workers:
    """`count` spawned processes, each with its own `make(*args)`; a context manager that leaves none behind.

    `make` must be importable by name, as spawned processes import it anew.
    """

    def __init__(self, make: Callable[..., Server], args: tuple[Any, ...], count: int) -> None:
        self._make, self._args = make, args
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        try:
            for i in range(count):
                connection, process = self._start(i)
                self._connections.append(connection)
                self._processes.append(process)
        except BaseException:
            self.close()
            raise

    def _start(self, worker: int) -> tuple[Connection, Any]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        target = (theirs, self._make, self._args)
        process = context.Process(target=_serve, args=target, daemon=True, name=f"worker-{worker}")
        try:
            process.start()
        except (AttributeError, TypeError, ValueError) as error:
            ours.close()
            raise RobopolicyError(
                f"worker processes need a task name or an importable function, not a lambda or local: {error}"
            ) from error
        finally:
            theirs.close()
        return ours, process

    def restart(self, worker: int) -> None:
        """A new process in place of a worker that has died; its server begins anew."""
        self._connections[worker].close()
        self._connections[worker], self._processes[worker] = self._start(worker)

    def __len__(self) -> int:
        return len(self._connections)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, worker: int, request: str, arrays: Arrays) -> None:
        """Starts a request; every `send` is followed by one `receive` of the same worker."""
        # When the worker is gone, its last message (the reason) waits in the pipe: `receive` reports it.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connections[worker].send_bytes(pack(request, arrays))

    def receive(self, worker: int) -> Arrays:
        """The reply. A `RobopolicyError` of the worker is raised anew, a crash as RuntimeError with its traceback.

        Raises WorkerDied when the process is gone.
        """
        try:
            kind, arrays = unpack(self._connections[worker].recv_bytes())
        except (EOFError, ConnectionResetError):
            process = self._processes[worker]
            process.join(timeout=5)
            raise WorkerDied(f"{process.name} died with exit code {process.exitcode}") from None
        if kind == _USER_ERROR:
            raise RobopolicyError(untext(arrays["text"]))
        if kind == _CRASH:
            raise RuntimeError(f"{self._processes[worker].name} failed:\n{untext(arrays['text'])}")
        return arrays

    def close(self) -> None:
        """Ends all workers: they see the closed pipe; one that is stuck is terminated."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()
        self._connections, self._processes = [], []
