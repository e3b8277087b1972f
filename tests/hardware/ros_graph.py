"""A ROS graph for tests: nodes as processes over DDS on this machine, in a domain that nobody else uses.

graph = pytest.fixture(ros_graph)        # in the test module, after pytest.importorskip("rclpy")

def test_it(graph):
    node = graph.start("robopolicy.hardware.ros.gate_node", robot="sim_pusht")
    status = graph.first(DiagnosticStatus, "gate/status", LATCHED)
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 30.0
"""Seconds until a wait fails: for a loaded machine, not an expectation."""


class Process:
    """A node under test."""

    def __init__(self, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self.popen, self.log = popen, log

    @property
    def output(self) -> str:
        """What it has written to stdout and stderr so far."""
        return self.log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """kill -9, and waits for the end."""
        self.popen.kill()
        self.popen.wait()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal, waits for the end and returns the exit code."""
        if self.alive:
            self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code once it has ended by itself."""
        return self.popen.wait(timeout=PATIENCE)


class Graph:
    """Starts nodes and talks to them through a node of the test's own."""

    def __init__(self, folder: Path, domain: int) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        self.folder, self.domain = folder, domain
        self.environment = os.environ | {
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "OMP_NUM_THREADS": "1",
            "ROS_LOG_DIR": str(folder / "log"),
        }
        self.processes: list[Process] = []
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("test", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.said: dict[str, str] = {}
        """The newest diagnostics of every node, for failures."""
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._hear, 10)

    def _hear(self, message: Any) -> None:
        for status in message.status:
            values = ", ".join(f"{v.key}={v.value}" for v in status.values)
            self.said[status.name] = f"{status.message}; {values}"

    def start(self, module: str, namespace: str = "", files: tuple[Path, ...] = (), **parameters: Any) -> Process:
        """`python -m module` with ROS parameters; `files` are parameter files, given before them."""
        command = [sys.executable, "-m", module, "--ros-args"]
        if namespace:
            command += ["-r", f"__ns:=/{namespace}"]
        for file in files:
            command += ["--params-file", str(file)]
        for name, value in parameters.items():
            plain = str(value) if isinstance(value, Path) else value
            command += ["-p", f"{name}:={json.dumps(list(plain) if isinstance(plain, tuple) else plain)}"]
        return self.run(command)

    def run(self, command: list[str], **environment: str) -> Process:
        """Any process, with the environment of this graph."""
        log = self.folder / f"process_{len(self.processes)}.log"
        with open(log, "wb") as file:
            popen = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=self.environment | environment
            )
        self.processes.append(Process(popen, log))
        return self.processes[-1]

    def spin(self, seconds: float) -> None:
        """Runs the callbacks of the test's node for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def until(
        self,
        holds: Callable[[], Any],
        what: str = "the condition",
        patience: float = PATIENCE,
        describe: Callable[[], Any] = str,
    ) -> Any:
        """Runs callbacks until `holds` returns something true, which is returned; fails after `patience` seconds.

        The failure shows what `describe` says then, the output of all processes and their newest diagnostics.
        """
        end = time.monotonic() + patience
        while not (value := holds()):
            if time.monotonic() > end:
                logs = "\n".join(f"--- {p.popen.args!r}\n{p.output[-3000:]}" for p in self.processes)
                said = "\n".join(f"{name}: {status}" for name, status in self.said.items())
                pytest.fail(f"{what} did not come true in {patience} s\n{describe()}\n{logs}\n{said}")
            self.executor.spin_once(timeout_sec=0.02)
        return value

    def collect(self, kind: Any, topic: str, qos: Any = None) -> list[Any]:
        """A list that grows with every message from now on, while callbacks run."""
        from robopolicy.hardware.ros.node import SENSOR

        found: list[Any] = []
        self.node.create_subscription(kind, topic, found.append, qos or SENSOR)
        return found

    def first(self, kind: Any, topic: str, qos: Any = None) -> Any:
        """The first message on a topic: a match of endpoints alone does not mean that messages arrive yet."""
        found = self.collect(kind, topic, qos)
        return self.until(lambda: found, f"a message on {topic}")[0]

    def call(self, kind: Any, service: str, **request: Any) -> Any:
        """The response of a service."""
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready, f"service {service}")
        future = client.call_async(kind.Request(**request))
        self.until(future.done, f"the answer of {service}")
        self.node.destroy_client(client)
        return future.result()

    def close(self) -> None:
        for process in self.processes:
            if process.alive:
                process.popen.kill()
        for process in self.processes:
            process.popen.wait()
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


def free_domain() -> tuple[int, Any]:
    """A domain number that no other test of this machine uses, and the locked file that says so."""
    for domain in range(1, 100):
        lock = open(Path(tempfile.gettempdir()) / f"robopolicy_test_domain_{domain}.lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return domain, lock
    raise RuntimeError("all ROS domains from 1 to 99 are in use by tests")


def ros_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    """The fixture; see the top of the file."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    domain, lock = free_domain()
    graph = Graph(tmp_path, domain)
    try:
        yield graph
    finally:
        graph.close()
        lock.close()
