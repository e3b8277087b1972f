"""The node base as real processes: parameters, refusals, signals, life cycle, diagnostics."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs the extra ros2")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters
from ros_graph import Graph, ros_graph

from robopolicy.hardware.supervisor import PARENT

graph = pytest.fixture(ros_graph)
NODE = """
import sys
from dataclasses import dataclass
from robopolicy.errors import RobopolicyError
from robopolicy.hardware.ros.node import NodeParameters, RobotNode, option, run

@dataclass(frozen=True)
class Parameters(NodeParameters):
    speed: float = option(1.0, "how fast", low=0.0, high=2.0, runtime=True)
    count: int = option(3, "how many")
    names: tuple[str, ...] = option((), "who")
    mode: str = option("slow", "how", choices=("slow", "fast"))

class Walker(RobotNode):
    Parameters, NAME = Parameters, "walker"

    def configure(self):
        if self.parameters.count == 13:
            raise RobopolicyError("count is 13, expected anything else")
        if self.parameters.count == 14:
            raise ValueError("a defect")

    def report(self):
        level, message, _ = super().report()
        p = self.parameters
        return level, message, {"speed": p.speed, "names": p.names, "count": p.count, "mode": p.mode}

    def cleanup(self):
        print("cleaned up", flush=True)

sys.exit(run(Walker, sys.argv))
"""


def walker(graph: Graph, *arguments: str) -> Any:
    (graph.folder / "walker.py").write_text(NODE)
    return graph.run([sys.executable, str(graph.folder / "walker.py"), "--ros-args", *arguments])


def values(array: DiagnosticArray) -> dict[str, str]:
    return {v.key: v.value for v in array.status[0].values}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "sped:=1.0"], "walker: unknown parameter 'sped'. Did you mean 'speed'?"),
        (["-p", "speed:=fast"], "walker: parameter speed: expected float, found 'fast'"),
        (["-p", "speed:=2.5"], "walker: parameter speed: expected 0.0 to 2.0, found 2.5"),
        (["-p", "mode:=fats"], "walker: parameter mode: unknown value 'fats'. Did you mean 'fast'?"),
        (["-p", "names:=bob"], "walker: parameter names: expected a list, found 'bob'"),
        (["-p", "time_scale:=4.0"], "walker: time_scale is 4.0: only with use_sim_time:=true"),
        (["-p", "count:=13"], "count is 13, expected anything else"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line_and_exit_code_1(
    graph: Graph, arguments: list[str], message: str
) -> None:
    node = walker(graph, *arguments)
    assert node.wait() == 1
    lines = [line for line in node.output.splitlines() if line != "cleaned up"]
    assert len(lines) == 1
    assert lines[0].endswith(message)


def test_a_defect_shows_where_it_is_and_ends_the_process(graph: Graph) -> None:
    node = walker(graph, "-p", "count:=14")
    assert node.wait() == 1
    assert "ValueError: a defect" in node.output
    assert "cleaned up" in node.output


def test_parameters_files_diagnostics_and_changes_at_run_time(graph: Graph) -> None:
    file = graph.folder / "parameters.yaml"
    file.write_text("/**:\n  ros__parameters:\n    speed: 2\n    names: [ann, bob]\n")
    node = walker(graph, "--params-file", str(file), "-r", "__ns:=/left")
    arrays = graph.collect(DiagnosticArray, "/diagnostics", 10)
    first = graph.until(lambda: arrays, "diagnostics")[0]
    assert first.status[0].name == "/left/walker"
    assert first.status[0].level == DiagnosticStatus.OK
    assert values(first) == {"speed": "2", "names": "ann, bob", "count": "3", "mode": "slow"}

    def change(name: str, value: ParameterValue) -> Any:
        parameters = [Parameter(name=name, value=value)]
        return graph.call(SetParameters, "/left/walker/set_parameters", parameters=parameters).results[0]

    real = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=0.5)
    assert change("speed", real).successful
    arrays.clear()
    assert values(graph.until(lambda: arrays, "diagnostics")[0])["speed"] == "0.5"
    assert not change("speed", ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=3.0)).successful
    late = change("count", ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=4))
    assert late.reason == "count is read when the node is configured, which is active"
    (described,) = graph.call(DescribeParameters, "/left/walker/describe_parameters", names=["mode"]).descriptors
    assert described.description == "how; one of slow, fast"
    assert node.end() == 0


def test_a_managed_node_waits_and_a_refusal_leaves_it_there(graph: Graph) -> None:
    node = walker(graph, "-p", "autostart:=false", "-p", "count:=13")

    def change(number: int) -> bool:
        return bool(graph.call(ChangeState, "walker/change_state", transition=Transition(id=number)).success)

    assert not change(Transition.TRANSITION_CONFIGURE)
    count = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=4)
    parameters = [Parameter(name="count", value=count)]
    assert graph.call(SetParameters, "walker/set_parameters", parameters=parameters).results[0].successful
    assert change(Transition.TRANSITION_CONFIGURE)
    assert change(Transition.TRANSITION_ACTIVATE)
    assert change(Transition.TRANSITION_DEACTIVATE)
    assert node.end(signal.SIGINT) == 0
    assert "count is 13, expected anything else" in node.output


def test_time_runs_at_another_rate_only_in_simulated_time_whenever_it_is_set(graph: Graph) -> None:
    node = walker(graph, "-p", "autostart:=false")

    def change(name: str, value: ParameterValue) -> str:
        parameters = [Parameter(name=name, value=value)]
        result = graph.call(SetParameters, "walker/set_parameters", parameters=parameters).results[0]
        return str(result.reason) if not result.successful else "set"

    slow = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=0.02)
    yes, no = (ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=v) for v in (True, False))
    refused = "time_scale is 0.02: only with use_sim_time:=true"
    assert change("time_scale", slow) == refused
    assert change("use_sim_time", yes) == "set"
    assert change("time_scale", slow) == "set"
    assert change("use_sim_time", no) == refused
    assert node.end() == 0


def test_ctrl_c_that_comes_again_and_again_is_still_a_clean_end(graph: Graph) -> None:
    """`ros2 launch` passes on what the terminal has already sent, at any moment of the node's end."""
    node = walker(graph)
    graph.first(DiagnosticArray, "/diagnostics", 10)
    while node.alive:
        node.popen.send_signal(signal.SIGINT)
        time.sleep(0.001)
    assert node.wait() == 0


def test_it_ends_with_its_parent(graph: Graph) -> None:
    (graph.folder / "walker.py").write_text(NODE)
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {str(graph.folder / 'walker.py')!r}, '--ros-args'])\n"
        "print(child.pid, flush=True)\ntime.sleep(100)\n"
    )
    process = graph.run([sys.executable, "-c", parent])
    graph.first(DiagnosticArray, "/diagnostics", 10)
    child = int(process.output.split()[0])
    process.kill()
    graph.until(lambda: not _runs(child), "the end of the child")
    assert "cleaned up" in process.output


def test_it_does_not_outlive_a_parent_that_was_gone_before_it_ran(graph: Graph) -> None:
    node = f"exec {sys.executable} {graph.folder / 'walker.py'} --ros-args"
    (graph.folder / "walker.py").write_text(NODE)
    # The node waits until its parent has ended.
    wait = f"while kill -0 ${PARENT} 2>/dev/null; do sleep 0.05; done"
    shell = f'export {PARENT}=$$; sh -c "{wait}; {node}" & echo $!'
    process = graph.run(["sh", "-c", shell])
    assert process.wait() == 0
    # The shell of the test collects nobody: an orphan of a kernel without init stays a zombie.
    child = int(process.output.split()[0])
    graph.until(lambda: not _runs(child), "the end of the child")
    assert "cleaned up" in process.output


def _runs(pid: int) -> bool:
    """Whether the process exists and is no zombie that waits for a parent to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
