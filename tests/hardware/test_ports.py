"""A node that is started again after a kill -9 takes other ports than the dead one's."""

import fcntl
import os
import socket
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs the extra ros2")

from diagnostic_msgs.msg import DiagnosticStatus
from ros_graph import Graph, Process, ros_graph

from robopolicy.hardware.ros.node import LATCHED
from robopolicy.hardware.ros.ports import MEMORY, abandoned, past_the_dead

graph = pytest.fixture(ros_graph)


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def receiving() -> set[int]:
    """Ports of shared memory on which somebody receives."""
    files = {int(f.name.removeprefix("fastdds_port")) for f in MEMORY.glob("fastdds_port*") if f.name[-1].isdigit()}
    return files - set(abandoned())


def test_ports_without_a_living_receiver_are_found_the_latest_first(tmp_path: Path) -> None:
    for age, name in enumerate(("fastdds_port7661", "fastdds_port7003", "fastdds_port7663", "fastdds_port7665")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    for name in ("fastdds_port7661_el", "fastdds_port7663_el", "sem.fastdds_port7661_mutex", "fastdds_abc", "other"):
        (tmp_path / name).touch()
    with open(tmp_path / "fastdds_port7663_el") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert abandoned(tmp_path) == [7661, 7003, 7665]
    assert abandoned(tmp_path) == [7661, 7003, 7663, 7665]
    assert abandoned(tmp_path / "nothing") == []


def test_abandoned_ports_are_busy_meanwhile_and_free_again(tmp_path: Path) -> None:
    port = next(p for p in range(46001, 46401, 2) if is_free(p - 1))
    for number in (port, 7003):
        (tmp_path / f"fastdds_port{number}").touch()
    with past_the_dead(tmp_path) as passed:
        assert set(passed) == {port, 7003}
        assert not is_free(port - 1)
        assert abandoned(tmp_path) == [port], "the lock of the other is held"
    assert is_free(port - 1)
    assert set(abandoned(tmp_path)) == {port, 7003}


@pytest.mark.skipif(not MEMORY.is_dir(), reason="Fast DDS has no shared memory here")
def test_a_node_after_a_kill_takes_none_of_the_dead_ones_ports(graph: Graph) -> None:
    def start() -> tuple[Process, set[int]]:
        before = receiving()
        node = graph.start("robopolicy.hardware.ros.gate_node", robot="sim_pusht")
        statuses = graph.collect(DiagnosticStatus, "gate/status", LATCHED)
        graph.until(lambda: statuses, "the gate's status")
        return node, receiving() - before

    first, ports = start()
    assert len(ports) == 2, "one by the domain, one below"
    first.kill()
    assert ports <= set(abandoned())
    _, again = start()
    assert len(again) == 2
    assert not ports & again
