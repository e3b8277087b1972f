"""The example policy of SROS 2 against what the gate of that robot really publishes, subscribes to and serves."""

import sys
from xml.etree import ElementTree

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticStatus
from ros_graph import Graph, ros_graph

from robopolicy.hardware.graph import CONFIG
from robopolicy.hardware.profiles import load_profile
from robopolicy.hardware.ros.node import LATCHED

graph = pytest.fixture(ros_graph)
ALLOWED = {"publish": "topic", "subscribe": "topic", "reply": "service", "request": "service"}


def allowed(node: str) -> dict[str, set[str]]:
    """Full names of what a node at the root may do, by kind."""
    tree = ElementTree.parse(CONFIG / "security_policy.xml")
    (enclave,) = tree.findall(f".//enclave[@path='/robopolicy/{node}']")
    found = {}
    for kind, tag in ALLOWED.items():
        names = [e.text or "" for e in enclave.findall(f".//*[@{kind}='ALLOW']/{tag}")]
        assert len(set(names)) == len(names)
        found[kind] = {n if n.startswith("/") else f"/{n.replace('~', node)}" for n in names}
    return found


def test_the_gate_does_what_the_policy_allows_and_no_more(graph: Graph) -> None:
    robot = load_profile("ur5e")
    graph.run([*graph_command("gate_node"), "-p", f"robot:={robot.name}"])
    graph.first(DiagnosticStatus, "gate/status", LATCHED)
    node = graph.node

    def names(kind: str) -> set[str]:
        ask = {
            "publish": node.get_publisher_names_and_types_by_node,
            "subscribe": node.get_subscriber_names_and_types_by_node,
            "reply": node.get_service_names_and_types_by_node,
        }[kind]
        return {name for name, _ in ask("gate_node", "/")}

    rules = allowed("gate_node")
    # The graph is learnt bit by bit; of use_sim_time's topics the node has none while it is off.
    graph.until(lambda: names("reply") == rules["reply"], "the services")
    assert names("publish") == rules["publish"]
    assert rules["subscribe"] - {"/clock"} <= names("subscribe") | {"/parameter_events"}
    assert names("subscribe") <= rules["subscribe"]
    assert f"/{robot.command.topic}" in rules["publish"]


def graph_command(executable: str) -> list[str]:
    return [sys.executable, "-m", f"robopolicy.hardware.ros.{executable}", "--ros-args", "-r", f"__node:={executable}"]


def test_only_the_gate_may_command_the_robot_and_only_the_policy_may_send_chunks() -> None:
    tree = ElementTree.parse(CONFIG / "security_policy.xml")
    nodes = [(e.get("path") or "").rpartition("/")[2] for e in tree.findall(".//enclave")]
    for topic, owner in (
        ("/forward_position_controller/commands", "gate_node"),
        ("/action_chunk", "policy_node"),
        ("/emergency_stop", "operator"),
    ):
        assert [node for node in nodes if topic in allowed(node)["publish"]] == [owner]
    assert [node for node in nodes if "/gate/clear" in allowed(node)["request"]] == ["operator"]
