"""Goals over DDS: a goal-conditioned policy takes its goal from a topic that speaks only on change."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rclpy", reason="needs the extra ros2")

from diagnostic_msgs.msg import DiagnosticArray
from policy_files import PROFILE, RATE, STATE, save, write
from ros_graph import Graph, ros_graph
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robopolicy.configs import to_dict
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.hardware.ros.node import COMMAND, LATCHED, SENSOR
from robopolicy.inference.runner import PolicyRunner
from robopolicy.policies.base import Policy
from robopolicy.policies.beso import BESOConfig, GPTConfig
from robopolicy.training import checkpoint

graph = pytest.fixture(ros_graph)
GOAL = "observation.goal"
POSITION = np.array([0.5, -0.25])
CONTRACT = """
rate_hz: 50
features:
  observation.state: {topic: /joint_states, type: sensor_msgs/msg/JointState, field: "position[x, y]"}
  observation.goal: {topic: /goal, type: std_msgs/msg/Float64MultiArray, tolerance_s: .inf}
"""


def make_policy() -> Policy:
    """An untrained BESO whose goal [1, 2] matters."""
    action = Feature("action", (2,), kind="action", names=("x", "y"), control=Control("joint", "absolute"))
    spec = FeatureSpec((STATE, Feature(GOAL, (1, 2), kind="goal"), action), RATE)
    torch.manual_seed(0)
    config = BESOConfig(network=GPTConfig(width=16, layers=1, heads=2), n_obs_steps=2, horizon=6, n_action_steps=2)
    policy = checkpoint.build(to_dict(config), spec)
    for feature in spec:
        policy.normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "identity", feature)
    for parameter in policy.network.parameters():  # type: ignore[attr-defined]
        torch.nn.init.normal_(parameter, std=0.3)
    return policy.eval()


def first_chunk(goal: list[float], seed: int, waited: int = 0) -> np.ndarray:
    """What the runner gives at the beginning of an episode, after `waited` observations that found it busy."""
    runner = PolicyRunner(make_policy(), seeds=[seed])
    observation = {"observation.state": POSITION.astype(np.float32), GOAL: np.array([goal], np.float32)}
    for step in range(waited + 1):
        batch = {k: v[None] for k, v in observation.items()}
        runner.step(batch, time=step / RATE, hold=POSITION[None], ask=step == waited)
    return runner.plan()


def test_a_goal_that_is_published_once_holds_over_resets_until_the_next(graph: Graph, tmp_path: Path) -> None:
    graph.start(
        "robopolicy.hardware.ros.policy_node",
        checkpoint=save(tmp_path / "checkpoint", make_policy()),
        contract=write(tmp_path / "contract.yaml", CONTRACT),
        robot=write(tmp_path / "table.yaml", PROFILE),
    )
    chunks = graph.collect(JointTrajectory, "action_chunk", COMMAND)
    arrays = graph.collect(DiagnosticArray, "/diagnostics", 10)
    joints = graph.node.create_publisher(JointState, "joint_states", SENSOR)
    goals = graph.node.create_publisher(Float64MultiArray, "goal", LATCHED)

    def publish(holds: Any) -> Any:
        message = JointState(name=["x", "y"], position=POSITION.tolist())
        message.header.stamp = graph.node.get_clock().now().to_msg()
        joints.publish(message)
        return holds()

    def says(text: str) -> bool:
        return any(text in status.message for array in arrays for status in array.status)

    graph.until(lambda: publish(lambda: says("waiting for /goal")), "the node to wait for a goal")
    assert not chunks

    def answer(goal: list[float], seed: int) -> None:
        """The next chunk, which has to be the first one of an episode with this goal and seed."""
        count = len(chunks)
        graph.until(lambda: publish(lambda: len(chunks) > count), "a chunk")
        rows = np.array([p.positions for p in chunks[count].points])
        plans = [first_chunk(goal, seed, waited) for waited in range(4)]
        np.testing.assert_allclose(rows, min(plans, key=lambda plan: float(np.abs(plan - rows).max())), atol=1e-5)

    def reset() -> None:
        assert graph.call(Trigger, "policy/reset").success
        graph.spin(0.1)

    goals.publish(Float64MultiArray(data=[1.0, 2.0]))
    answer([1.0, 2.0], seed=0)
    reset()
    answer([1.0, 2.0], seed=1)
    assert np.abs(first_chunk([1.0, 2.0], 2) - first_chunk([-2.0, 0.5], 2)).max() > 0.01
    heard = len(arrays)
    goals.publish(Float64MultiArray(data=[-2.0, 0.5]))
    graph.until(lambda: publish(lambda: len(arrays) > heard + 1), "a second")
    reset()
    answer([-2.0, 0.5], seed=2)
