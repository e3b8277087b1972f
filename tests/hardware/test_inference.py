"""The inference process without ROS: the same chunks as the runner's, what it refuses, and how it ends."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_files import CONTRACT, PROFILE, RATE, make_policy, save, write

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.inference import Inference, InferenceProcess, InferenceSettings
from robopolicy.inference.runner import PolicyRunner
from robopolicy.wire import Arrays, untext


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., InferenceSettings]:
    folder = tmp_path_factory.mktemp("inference")
    checkpoint = str(save(folder / "checkpoint", make_policy()))
    contract = str(write(folder / "contract.yaml", CONTRACT))
    robot = str(write(folder / "table.yaml", PROFILE))
    return lambda **changes: InferenceSettings(
        **{"checkpoint": checkpoint, "contract": contract, "profile": robot} | changes
    )


def frame(k: int, latency: int = 0) -> Arrays:
    position = np.array([np.sin(0.1 * k), np.cos(0.1 * k)])
    return {
        "tick": np.array(10**18 + round(k * 1e9 / RATE), np.int64),
        "session": np.array(3),
        "latency_steps": np.array(latency),
        "measured": position,
        "observation/observation.state": position.astype(np.float32),
        "observation/observation.environment_state": np.array([0.01 * k, -1.0], np.float32),
    }


def planned(steps: int, latency: int = 0, asks: Callable[[int], bool] = lambda k: True, **options: Any) -> list[Any]:
    runner, plans = PolicyRunner(make_policy(), latency_steps=latency, **options), []
    for k in range(steps):
        arrays = frame(k)
        observation = {n.removeprefix("observation/"): v[None] for n, v in arrays.items() if n.startswith("obs")}
        runner.step(observation, time=k / RATE, hold=arrays["measured"][None], ask=asks(k))
        if runner.asked:
            plans.append(runner.plan())
    return plans


@pytest.mark.parametrize(("strategy", "latency"), [("receding", 0), ("receding", 3), ("ensemble", 1), ("realtime", 3)])
def test_frames_give_the_chunks_of_the_runner(settings: Any, strategy: str, latency: int) -> None:
    inference = Inference(settings(strategy=strategy, seed=5))
    found = [inference.frame(frame(k, latency), ask=True) for k in range(20)]
    chunks = [c for c in found if c is not None]
    plans = planned(20, latency, strategy=strategy, seeds=[5])
    assert len(chunks) == len(plans) == (20 if strategy == "ensemble" else 5)
    for chunk, plan in zip(chunks, plans, strict=True):
        assert np.array_equal(chunk["actions"], plan)
        np.testing.assert_allclose(chunk["joints"], plan)
    assert int(chunks[1]["tick"]) == int(frame(1 if strategy == "ensemble" else 4)["tick"])
    assert len(inference.facts["warmup_ms"]) == 3
    assert inference.facts["max_latency_steps"] == {"receding": 7, "ensemble": 10, "realtime": 4}[strategy]


def test_too_much_latency_is_taken_for_the_largest_that_fits_and_reset_starts_anew(settings: Any) -> None:
    inference = Inference(settings(strategy="realtime"))
    first = [inference.frame(frame(k, latency=99), ask=True) for k in range(9)]
    inference.reset({"seed": np.array(0)})
    again = [inference.frame(frame(k, latency=4), ask=True) for k in range(9)]
    for a, b in zip(first, again, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or np.array_equal(a["joints"], b["joints"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "nowhere"}, "nowhere: no such checkpoint or run"),
        ({"profile": "sim_panda"}, "checkpoint has actions x, y; robot sim_panda has joints panda_joint1"),
        ({"profile": "sim_pand"}, "unknown robot 'sim_pand'. Did you mean 'sim_panda'"),
        ({"n_action_steps": 12}, "leaves 11 rows of a chunk; 12 action steps"),
        ({"device": "cuda:7"}, "no CUDA device|invalid device"),
        ({"strategy": "realtme"}, "unknown strategy 'realtme'. Did you mean 'realtime'"),
    ],
)
def test_what_does_not_fit_is_refused(settings: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RobopolicyError, match=message):
        Inference(settings(**changes))


@pytest.fixture(scope="module")
def process(settings: Any) -> Iterator[tuple[InferenceProcess, threading.Event]]:
    woken = threading.Event()
    running = InferenceProcess(settings(), woken.set)
    running.wait_ready()
    yield running, woken
    running.close()


def collect(process: InferenceProcess, woken: threading.Event, count: int) -> list[tuple[str, Arrays]]:
    found: list[tuple[str, Arrays]] = []
    while len(found) < count:
        assert woken.wait(30)
        woken.clear()
        found += process.poll()
    return found


def test_the_process_answers_and_a_backlog_gives_one_chunk_of_the_newest_frame(process: Any) -> None:
    running, woken = process
    running.submit("frame", frame(0))
    ((kind, chunk),) = collect(running, woken, 1)
    assert kind == "chunk"
    assert np.array_equal(chunk["joints"], planned(1)[0])
    # While it is stopped frames pile up, more than wait; then only the newest is acted on.
    os.kill(running.pid, signal.SIGSTOP)
    for k in range(1, 301):
        running.submit("frame", frame(k))
    os.kill(running.pid, signal.SIGCONT)
    ticks: list[int] = []
    while frame(300)["tick"] not in ticks:
        ticks += [int(arrays["tick"]) for _, arrays in collect(running, woken, 1)]
    assert len(ticks) < 20, "not one for every four frames, which would be 75"


def test_a_reset_survives_a_backlog(process: Any) -> None:
    running, woken = process
    # More than the pipe takes while the process is stopped.
    padding = {"padding": np.zeros(10**6, np.uint8)}
    os.kill(running.pid, signal.SIGSTOP)
    for k in range(301, 306):
        running.submit("frame", frame(k) | padding)
    running.submit("reset", {"seed": np.array(12)})
    for k in range(400, 500):
        running.submit("frame", frame(k) | {"session": np.array(4)})
    os.kill(running.pid, signal.SIGCONT)
    chunks: list[Arrays] = []
    while not chunks:
        chunks = [arrays for _, arrays in collect(running, woken, 1) if int(arrays["session"]) == 4]
    # The first chunk of the episode takes the first noise of its seed; the frame before it has come, or not.
    last = (int(chunks[0]["tick"]) - int(frame(400)["tick"])) * RATE / 1e9
    plans = []
    for begin in (round(last) + 399, round(last) + 400):
        runner = PolicyRunner(make_policy(), seeds=[12])
        for k in range(begin, round(last) + 401):
            arrays = frame(k)
            observation = {n.removeprefix("observation/"): v[None] for n, v in arrays.items() if n.startswith("obs")}
            runner.step(observation, time=(k - begin) / RATE, hold=arrays["measured"][None], ask=k == last + 400)
        plans.append(runner.plan())
    assert min(float(np.abs(plan - chunks[0]["actions"]).max()) for plan in plans) < 1e-6


def test_a_killed_process_is_named_once_and_close_is_quiet(settings: Any) -> None:
    woken = threading.Event()
    running = InferenceProcess(settings(), woken.set)
    running.wait_ready()
    os.kill(running.pid, signal.SIGKILL)
    ((kind, arrays),) = collect(running, woken, 1)
    assert (kind, untext(arrays["text"])) == ("error", "the inference process was killed by SIGKILL")
    running.submit("frame", frame(0))
    running.close()
    assert running.poll() == []


def test_errors_of_the_process_come_as_text(settings: Any, tmp_path: Path) -> None:
    running = InferenceProcess(settings(checkpoint=str(tmp_path)))
    with pytest.raises(RobopolicyError, match=r"neither a checkpoint .config.json is missing. nor a run"):
        running.wait_ready()
    running.close()
