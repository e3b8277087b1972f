"""How well the safety gate keeps 50 Hz beside a busy inference process, and what it adds to the latency of ROS 2.

    python benchmarks/ros_loop.py [--minutes 10] [--record]

Separate processes over DDS on this machine: the gate (robopolicy's node, robot sim_pusht, whose limits hand every
target on within a period), a policy that answers each observation with a chunk of 16 rows, a process that runs a
convolutional network all the time, and here a robot that publishes joint states and receives commands. Beside them,
on the same observations at the same time, two chains of plain rclpy: `relay` has the same structure (a process that
answers with the same message, a process that sends the newest row on a 50 Hz timer), `echo` is one process that
answers each observation at once. Observations come at 47 Hz, so that they meet the 50 Hz at every phase.

On every core a witness of higher priority than the gate wakes every 2 ms and writes down when it could not: a gap of
the gate during which a witness was kept waiting as well is the machine's (a virtual one loses its cores now and then).

Period: differences of the stamps of the set-points, taken where they are sent. Latency: from publishing an
observation to the arrival of the first command that was computed from it.
"""

import argparse
import contextlib
import gc
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "hardware"))

from ledger import record

from robopolicy.progress import progress_bar

RATE, OBSERVATIONS, ROWS = 50.0, 47.0, 16
CODES = 200
"""Observations are told apart by the target that they lead to: 1 px each, modulo this."""
WARM_UP = 3.0
CHAINS = ("gate", "relay", "echo")
WITNESS_S, STALL_S = 0.002, 0.01
"""How often the witness of a core wakes, and after how long without waking the machine is said not to have run."""


def policy(topic: str) -> None:
    """Answers each observation with a chunk."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import JointState
    from trajectory_msgs.msg import JointTrajectory

    from robopolicy.hardware.ros.messages import chunk_message
    from robopolicy.hardware.ros.node import COMMAND, SENSOR

    rclpy.init()
    node = rclpy.create_node(f"policy_{topic}")
    publisher = node.create_publisher(JointTrajectory, topic, COMMAND)
    times = 0.1 * np.arange(ROWS)

    def answer(observation: Any) -> None:
        number = int(observation.header.frame_id)
        rows = np.tile([100.0 + number % CODES, 256.0], (ROWS, 1))
        publisher.publish(chunk_message(observation.header.stamp, "bench", number, ["x", "y"], times, rows))

    node.create_subscription(JointState, "joint_states", answer, SENSOR)
    _spin(node, ExternalShutdownException)


def relay() -> None:
    """Plain rclpy in the place of the gate: the newest chunk's first row on a timer."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from std_msgs.msg import Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory

    rclpy.init()
    node = rclpy.create_node("relay")
    publisher = node.create_publisher(Float64MultiArray, "relay_command", 1)
    newest: list[Any] = []

    def send() -> None:
        if newest:
            publisher.publish(Float64MultiArray(data=newest[-1].points[0].positions))

    def take(chunk: Any) -> None:
        newest[:] = [chunk]

    node.create_subscription(JointTrajectory, "relay_chunk", take, 1)
    node.create_timer(1 / RATE, send)
    _spin(node, ExternalShutdownException)


def echo() -> None:
    """Plain rclpy: each observation is answered at once."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float64MultiArray

    rclpy.init()
    node = rclpy.create_node("echo")
    publisher = node.create_publisher(Float64MultiArray, "echo_command", 1)

    def answer(observation: Any) -> None:
        publisher.publish(Float64MultiArray(data=[100.0 + int(observation.header.frame_id) % CODES, 256.0]))

    node.create_subscription(JointState, "joint_states", answer, 1)
    _spin(node, ExternalShutdownException)


def _spin(node: Any, ended: type[BaseException]) -> None:
    import rclpy

    with contextlib.suppress(ended):
        rclpy.spin(node)


def busy() -> None:
    """What a vision policy does to a machine: a convolutional network, forward, without a pause, on one thread."""
    import torch

    torch.set_num_threads(1)
    layers = [torch.nn.Conv2d(a, b, 3, stride=2) for a, b in ((3, 32), (32, 64), (64, 128), (128, 256))]
    network, images = torch.nn.Sequential(*layers), torch.zeros(4, 3, 240, 320)
    with torch.inference_mode():
        while True:
            network(images)


def witness(core: int) -> None:
    """Writes begin and end, seconds of the system clock, of every time when this core did not run its first task."""
    os.sched_setaffinity(0, {core})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(90))
    except PermissionError:
        return  # It would only see that others were running, which excuses nothing.
    gc.disable()
    before = time.time()
    while True:
        time.sleep(WITNESS_S)
        now = time.time()
        if now - before > STALL_S:
            print(before, now, flush=True)
        before = now


def unexplained(stamps: np.ndarray, stalls: list[tuple[float, float]]) -> list[float]:
    """Gaps of more than two periods, s, that no stall of the machine accounts for.

    A gap less the stalls within it is what it would have been on a machine that ran.
    """
    left = []
    for begin, end in itertools.pairwise(stamps):
        lost = max((min(end, b) - max(begin, a) for a, b in stalls if a < end and b > begin), default=0.0)
        if end - begin - lost > 2 / RATE:
            left.append(float(end - begin))
    return left


def measure(seconds: float) -> dict[str, Any]:
    """Runs all processes; the gate's stamps, stalls of the machine and latencies by chain, in seconds."""
    from diagnostic_msgs.msg import DiagnosticStatus
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from ros_graph import Graph, free_domain
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float64MultiArray

    from robopolicy.hardware.ros.messages import joint_state
    from robopolicy.hardware.ros.node import LATCHED

    # Every set-point counts here, unlike for a robot, which wants the newest.
    deep = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
    domain, lock = free_domain()
    with lock, tempfile.TemporaryDirectory() as folder:
        graph = Graph(Path(folder), domain)
        try:
            node = graph.node
            gate = graph.start("robopolicy.hardware.ros.gate_node", robot="sim_pusht")
            for role in ("policy", "relay_policy", "relay", "echo", "busy"):
                graph.run([sys.executable, __file__, "--role", role])
            cores = sorted(os.sched_getaffinity(0))
            witnesses = [graph.run([sys.executable, __file__, "--role", "witness", "--core", str(c)]) for c in cores]
            states = node.create_publisher(JointState, "joint_states", 1)
            # Times alone, and no garbage collection of what is there already: this process is the robot too, and
            # collecting over 30,000 kept messages alone takes 36 ms, in which it would be silent.
            stamps: list[float] = []
            node.create_subscription(JointState, "setpoint", lambda m: stamps.append(_seconds(m.header.stamp)), deep)
            statuses: list[DiagnosticStatus] = graph.collect(DiagnosticStatus, "gate/status", LATCHED)
            sent = np.zeros(CODES)
            found: dict[str, list[tuple[float, float]]] = {chain: [] for chain in CHAINS}
            last = dict.fromkeys(CHAINS, -1)
            position = [100.0, 256.0]
            number = 0

            def observe() -> None:
                nonlocal number
                number += 1
                message = joint_state(node.get_clock().now().to_msg(), ["x", "y"], np.array(position))
                message.header.frame_id = str(number)
                sent[number % CODES] = time.perf_counter()
                states.publish(message)

            def arrived(chain: str, message: Float64MultiArray) -> None:
                now, code = time.perf_counter(), round(message.data[0] - 100.0)
                if chain == "gate":
                    position[:] = message.data
                if code != last[chain] and 0 <= code < CODES:
                    last[chain] = code
                    found[chain].append((now, now - float(sent[code])))

            for chain, topic in zip(CHAINS, ("command", "relay_command", "echo_command"), strict=True):
                node.create_subscription(Float64MultiArray, topic, lambda m, c=chain: arrived(c, m), 10)
            node.create_timer(1 / OBSERVATIONS, observe)
            graph.until(lambda: all(len(v) > 50 for v in found.values()), "commands of all chains", patience=120)
            graph.spin(WARM_UP)
            gc.collect()
            gc.freeze()
            stamps.clear()
            for values in found.values():
                values.clear()
            begin = _numbers(statuses[-1])
            with progress_bar(total=round(seconds), unit="s") as bar:
                for _ in range(round(seconds)):
                    graph.spin(1.0)
                    bar.update(1)
            end = _numbers(statuses[-1])
            if end.get("faults") or not gate.alive:
                raise SystemExit(f"the gate did not run through: {statuses[-1].message}\n{gate.output}")
            lines = [line.split() for w in witnesses for line in w.output.splitlines()]
            return {
                "stamps": np.array(stamps),
                "stalls": [(float(a), float(b)) for a, b in lines],
                "latency": {chain: np.array(v) for chain, v in found.items()},
                "gaps": int(float(end["gaps of two periods"])) - int(float(begin["gaps of two periods"])),
                "worst_ms": float(end["period error max ms"]),
                "real_time": "no real-time scheduling" not in gate.output,
            }
        finally:
            graph.close()


def _seconds(stamp: Any) -> float:
    return float(stamp.sec + stamp.nanosec * 1e-9)


def _numbers(status: Any) -> dict[str, str]:
    return {v.key: v.value for v in status.values}


def resampled(values: list[np.ndarray], statistic: Any, blocks: int = 60, draws: int = 400) -> tuple[float, float]:
    """95 % interval of statistic(*values) by a bootstrap over `blocks` stretches of time, the same for all values."""
    rng = np.random.default_rng(0)
    parts = [np.array_split(v, blocks) for v in values]
    found = []
    for _ in range(draws):
        chosen = rng.integers(0, blocks, blocks)
        found.append(statistic(*(np.concatenate([p[i] for i in chosen]) for p in parts)))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--record", action="store_true")
    parser.add_argument(
        "--role", choices=("policy", "relay_policy", "relay", "echo", "busy", "witness"), help=argparse.SUPPRESS
    )
    parser.add_argument("--core", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    roles = {
        "policy": lambda: policy("action_chunk"),
        "relay_policy": lambda: policy("relay_chunk"),
        "relay": relay,
        "echo": echo,
        "busy": busy,
        "witness": lambda: witness(args.core),
    }
    if args.role:
        roles[args.role]()
        return
    run = measure(args.minutes * 60)
    errors = np.abs(np.diff(run["stamps"]) - 1 / RATE) * 1e3
    latency = {chain: v[:, 1] * 1e3 for chain, v in run["latency"].items()}
    p99 = float(np.percentile(errors, 99))
    table = ", ".join(f"{c} p50 {np.median(v):.2f} p99 {np.percentile(v, 99):.2f}" for c, v in latency.items())
    overhead = float(np.median(latency["gate"]) - np.median(latency["relay"]))
    over_echo = float(np.median(latency["gate"]) - np.median(latency["echo"]))
    print(f"period error p50 {np.median(errors):.3f} p99 {p99:.3f} max {errors.max():.3f} ms, n = {len(errors)}")
    ours = unexplained(run["stamps"], run["stalls"])
    inside = [b - a for a, b in run["stalls"] if a < run["stamps"][-1] and b > run["stamps"][0]]
    gaps = (
        f"gaps of more than two periods: {run['gaps']}, of which {len(ours)} without the machine standing still; "
        f"its cores stood still {len(inside)} times, at most {1e3 * max(inside, default=0.0):.1f} ms"
    )
    print(f"{gaps}; real-time scheduling: {run['real_time']}")
    print(f"observation to command, ms: {table}")
    print(f"over plain rclpy of the same structure {overhead:.2f} ms, over a plain echo {over_echo:.2f} ms (p50)")
    if not args.record:
        return
    command = f"python benchmarks/ros_loop.py --minutes {args.minutes:g} --record"
    scheduling = "SCHED_FIFO" if run["real_time"] else "ordinary scheduling"
    low, high = resampled([errors], lambda e: float(np.percentile(e, 99)))
    record(
        "ros2_period_p99_ms", command, p99, low, high, "ms", len(errors),
        note=f"99th percentile of the error of the gate's 50 Hz period, {scheduling}, beside a process that runs a "
        f"network all the time. Largest {errors.max():.2f} ms; {gaps}.",
        gaps=run["gaps"], gaps_of_ours=len(ours), stalls=len(inside), largest_ms=float(errors.max()),
    )  # fmt: skip
    gate, peer = latency["gate"], latency["relay"]
    low, high = resampled([gate, peer], lambda a, b: float(np.median(a) - np.median(b)))
    record(
        "ros2_latency_overhead_p50_ms", command, overhead, low, high, "ms", len(gate),
        peer="plain rclpy: the same messages, processes and rate",
        note=f"Median latency from observation to command through the gate, minus that of plain rclpy nodes of the "
        f"same structure on the same observations; ms: {table}. Both wait for the next 50 Hz period, 10 ms on "
        f"average, which the echo does not; against it the median is {over_echo:.2f} ms more. The gate runs with "
        f"{scheduling}, the plain nodes with ordinary scheduling.",
        latency_ms={c: [float(x) for x in np.percentile(v, [50, 99, 100])] for c, v in latency.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
