"""What a UR controller says on its real-time data exchange port, after UR's RTDE guide: states, no motion.

Enough for reading with the vendor's client; there is no robot behind it, no control script, no safety system.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

PORT = 30004
RATE_HZ = 125.0
VERSION, CONTROLLER, OUTPUTS, START, PAUSE, DATA = 86, 118, 79, 83, 80, 85
FORMATS = {"DOUBLE": ">d", "INT32": ">i", "UINT32": ">I", "UINT64": ">Q", "VECTOR6D": ">6d", "VECTOR3D": ">3d"}
FORMATS["VECTOR6INT32"] = ">6i"
TYPES = {
    **dict.fromkeys(("robot_mode", "safety_mode"), "INT32"),
    **dict.fromkeys(("runtime_state", "robot_status_bits", "safety_status_bits"), "UINT32"),
    **dict.fromkeys(("actual_digital_input_bits", "actual_digital_output_bits"), "UINT64"),
    "joint_mode": "VECTOR6INT32",
    **dict.fromkeys(("actual_tool_accelerometer", "payload_cog", "elbow_position"), "VECTOR3D"),
}
SIX = ("_q", "_qd", "_qdd", "_current", "_moment", "_control_output", "_pose", "_speed", "_force", "_temperatures")


def type_of(name: str) -> str:
    """The RTDE type of an output."""
    if name.startswith("output_int_register"):
        return "INT32"
    vector = name.endswith((*SIX, "joint_voltage", "_wrench", "_inertia")) and "robot" not in name
    return TYPES.get(name, "VECTOR6D" if vector else "DOUBLE")


class RtdeServer:
    """Serves one client from a process of its own: the vendor's client keeps the interpreter's lock while it waits."""

    def __init__(self, **values: Any) -> None:
        # An address of this test process alone, as the port is fixed.
        self.address = f"127.30.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
        self._values = {"robot_mode": 7, "safety_mode": 1, "safety_status_bits": 1, **values}

    def __enter__(self) -> "RtdeServer":
        command = [sys.executable, __file__, self.address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.set(**self._values)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "listening\n"
        return self

    def set(self, **values: Any) -> None:
        """Changes what the controller says."""
        assert self._process.stdin is not None
        print(json.dumps(values), file=self._process.stdin, flush=True)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class _Controller:
    def __init__(self, address: str) -> None:
        self.values: dict[str, Any] = {}
        self._names: list[str] = []
        self._started = threading.Event()
        self._listener = socket.create_server((address, PORT))

    def serve(self) -> None:
        """Until its input ends."""
        for target in (self._answer, self._stream):
            threading.Thread(target=target, daemon=True).start()
        self.values.update(json.loads(sys.stdin.readline()))
        print("listening", flush=True)
        for line in sys.stdin:
            self.values.update(json.loads(line))

    def _answer(self) -> None:
        with contextlib.suppress(OSError, struct.error):
            self._client, _ = self._listener.accept()
            while True:
                size, kind = struct.unpack(">HB", self._receive(3))
                payload = self._receive(size - 3)
                if kind == VERSION:
                    self._send(kind, b"\x01")
                elif kind == CONTROLLER:
                    self._send(kind, struct.pack(">4I", 5, 11, 0, 0))
                elif kind == OUTPUTS:
                    self._names = payload[8:].decode().split(",")
                    self._send(kind, b"\x01" + ",".join(map(type_of, self._names)).encode())
                elif kind in (START, PAUSE):
                    self._send(kind, b"\x01")
                    if kind == START:
                        self._started.set()

    def _stream(self) -> None:
        self._started.wait()
        with contextlib.suppress(OSError):
            while True:
                self._send(DATA, b"\x01" + b"".join(self._packed(name) for name in self._names))
                time.sleep(1 / RATE_HZ)

    def _packed(self, name: str) -> bytes:
        layout = FORMATS[type_of(name)]
        value = self.values.get(name, [0] * 6)
        numbers = value if isinstance(value, Sequence) else [value]
        return struct.pack(layout, *numbers[: int(layout[1:-1] or 1)])

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (more := self._client.recv(size - len(data))):
                raise OSError("the client has gone")
            data += more
        return data

    def _send(self, kind: int, payload: bytes) -> None:
        self._client.sendall(struct.pack(">HB", len(payload) + 3, kind) + payload)


if __name__ == "__main__":
    _Controller(sys.argv[1]).serve()
