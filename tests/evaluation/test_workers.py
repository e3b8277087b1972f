import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.evaluation.workers import Workers
from robopolicy.wire import pack, text, unpack, untext

HERE = Path(__file__).parent


class Doubler:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, request, arrays):
        if request == "fail":
            raise KeyError("gripper")
        if request == "refuse":
            raise RobopolicyError("no such camera")
        return {"pid": np.array(os.getpid())} | {k: v * self.factor for k, v in arrays.items()}


def test_messages_keep_names_shapes_dtypes_and_values():
    arrays = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2],
        "scalar": np.array(2.5),
        "none": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
        "text": text("Grüße"),
    }
    kind, found = unpack(pack("step", arrays))
    assert kind == "step"
    assert list(found) == list(arrays)
    for key, value in arrays.items():
        assert found[key].dtype == value.dtype
        assert found[key].shape == value.shape
        np.testing.assert_array_equal(found[key], value)
    assert untext(found["text"]) == "Grüße"
    found["image"][0] = 0


def test_the_layout_is_the_documented_one():
    message = pack("x", {"a": np.array([1, 2], "<i2")})
    assert message == b'\x31\x00\x00\x00{"kind": "x", "arrays": [["a", "<i2", [2]]]}'.replace(
        b"\x31", bytes([len(message) - 8])
    ) + bytes([1, 0, 2, 0])


def test_workers_answer_and_errors_come_back_with_their_cause():
    with Workers(Doubler, (3,), 2) as pool:
        for i in range(2):
            pool.send(i, "double", {"a": np.array([1, 2])})
        replies = [pool.receive(i) for i in range(2)]
        assert [r["a"].tolist() for r in replies] == [[3, 6], [3, 6]]
        assert len({int(r["pid"]) for r in replies} | {os.getpid()}) == 3
        pool.send(0, "fail", {})
        with pytest.raises(RuntimeError, match=r"worker-0 failed:\n(.|\n)*in __call__(.|\n)*KeyError: 'gripper'"):
            pool.receive(0)
        pool.send(1, "refuse", {})
        with pytest.raises(RobopolicyError, match=r"^no such camera$"):
            pool.receive(1)


def test_a_local_function_is_refused_in_one_line():
    with pytest.raises(RobopolicyError, match="not a lambda or local"):
        Workers(lambda: None, (), 1)


@pytest.mark.parametrize(("sent", "send"), [(signal.SIGKILL, os.kill), (signal.SIGINT, os.killpg)])
def test_workers_do_not_outlive_their_parent(tmp_path, sent, send):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "from test_workers import Doubler\n"
        "from robopolicy.evaluation.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    pool = Workers(Doubler, (1,), 2)\n"
        "    for i in range(2):\n"
        "        pool.send(i, 'x', {})\n"
        "    print(*[int(pool.receive(i)['pid']) for i in range(2)], flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job that a shell started in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pids = [int(p) for p in parent.stdout.readline().split()]
    assert len(pids) == 2
    # Ctrl-C in a terminal reaches the workers too: they stay silent and leave the message to the parent.
    send(parent.pid, sent)
    errors = parent.communicate()[1]
    assert "Process worker" not in errors
    assert errors.count("KeyboardInterrupt") == (sent == signal.SIGINT)
    for _ in range(100):
        if not any(alive(p) for p in pids):
            break
        time.sleep(0.1)
    assert not any(alive(p) for p in pids)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
