"""A walking policy in the ROS graph: the simulated A1 and the policy node over DDS, against the training's own."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rclpy")

from gait_files import make_actor, make_env, save_actor
from geometry_msgs.msg import Twist
from policy_files import make_policy, save
from ros_graph import Graph, ros_graph
from sensor_msgs.msg import Imu, JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from test_deploy import Deployment
from trajectory_msgs.msg import JointTrajectory

from robopolicy.datasets.contract import read_contract
from robopolicy.errors import FeatureMismatch
from robopolicy.features import FeatureSpec
from robopolicy.hardware.inference import Inference, InferenceSettings
from robopolicy.hardware.profiles import FOLDER, load_profile
from robopolicy.hardware.ros.messages import gains_message
from robopolicy.hardware.ros.node import COMMAND
from robopolicy.hardware.ros.policy_node import contract_file
from robopolicy.hardware.ros.streams import completed
from robopolicy.sim.quadruped.env import QuadrupedEnv
from robopolicy.sim.quadruped.robots import CONTROL_DT, robot
from robopolicy.sim.robots import make_robot

graph = pytest.fixture(ros_graph)
SIM, POLICY = "robopolicy.hardware.ros.sim_node", "robopolicy.hardware.ros.policy_node"
A1, PROFILE = robot("a1"), load_profile("sim_a1")
SEED = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_actor(tmp_path_factory.mktemp("gait") / "a1")


def environment(**options: Any) -> QuadrupedEnv:
    """The training's environment with its robot where sim_a1 is at the start of the episode."""
    env, there = make_env(**options), make_robot("sim_a1")
    there.reset(SEED)
    state = np.zeros(env.batch.states.shape[2])
    state[1:8], state[8:20] = there.stream("base_state")[:7], there.joint_state().position
    env.batch.place(np.array([0]), state[None])
    env._look(np.array([0]))
    return env


def stamp(message: Any) -> int:
    return int(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)


class Robot:
    """A stepped sim_a1, seen and commanded over DDS; the test is the gate."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.node = graph.start(SIM, robot="sim_a1", mode="stepped", use_sim_time=True, episode_seed=SEED)
        self.joints, self.imu = graph.collect(JointState, "joint_states"), graph.collect(Imu, "imu")
        self.base = graph.collect(Float64MultiArray, "base_state")
        self.commands = graph.node.create_publisher(Float64MultiArray, "joint_command", COMMAND)
        graph.until(lambda: self.joints and self.imu and self.base, "the robot")
        graph.until(self.commands.get_subscription_count, "its ear")
        self.start = stamp(self.joints[-1])
        self.time = self.start

    def command(self, target: np.ndarray) -> None:
        """One command, and the state after it."""
        gains = A1.kp * np.ones(12), A1.kd * np.ones(12)
        self.commands.publish(gains_message(target, np.zeros(12), np.zeros(12), *gains))
        self.time += round(1e9 / PROFILE.rate_hz)
        self.graph.until(
            lambda: stamp(self.joints[-1]) == stamp(self.imu[-1]) == self.time, "the state after a command"
        )

    def control_step(self, target: np.ndarray) -> None:
        """The same target for a control step of the training."""
        for _ in range(round(CONTROL_DT * PROFILE.rate_hz)):
            self.command(target)


def test_stepped_it_is_the_environment_of_the_training(graph: Graph) -> None:
    asked = graph.collect(Twist, "cmd_vel", COMMAND)
    sim, env = Robot(graph), environment()
    graph.until(lambda: asked, "the operator")
    assert (asked[-1].linear.x, asked[-1].linear.y, asked[-1].angular.z) == (0.5, 0.0, 0.0)
    somebody = graph.node.create_publisher(Twist, "cmd_vel", COMMAND)
    graph.until(somebody.get_subscription_count, "the robot")
    assert sim.joints[-1].name == list(env.features.action.names)
    rng = np.random.default_rng(0)
    for _ in range(15):
        action = torch.tensor(rng.normal(0, 1, (1, 12)), dtype=torch.float32)
        env.step(action)
        state = env.batch.present[0]
        sim.control_step(env.batch.targets[0, -1])
        joints, imu = sim.joints[-1], sim.imu[-1]
        np.testing.assert_allclose(joints.position, state[8:20], atol=1e-12)
        np.testing.assert_allclose(joints.velocity, state[26:38], atol=1e-12)
        np.testing.assert_allclose(joints.effort, env.batch.sensors[0, -1, 5:17], atol=1e-9)
        q, rate = imu.orientation, imu.angular_velocity
        np.testing.assert_allclose([q.w, q.x, q.y, q.z], state[4:8], atol=1e-12)
        np.testing.assert_allclose([rate.x, rate.y, rate.z], state[23:26], atol=1e-12)
    assert np.abs(env.batch.present[0, 26:38]).max() > 1, "it was to move for this test to say anything"
    count = len(asked)
    sim.command(A1.posture)
    assert len(asked) <= count + 1, "the operator is silent while somebody else may speak"


def test_the_policy_acts_on_the_robot_as_in_its_environment(graph: Graph, checkpoint: Path) -> None:
    velocity = (0.4, -0.2)
    sim, env = Robot(graph), environment(velocity=velocity)
    actor = make_actor(env)
    chunks = graph.collect(JointTrajectory, "action_chunk", COMMAND)
    somebody = graph.node.create_publisher(Twist, "cmd_vel", COMMAND)
    twist = Twist()
    twist.linear.x, twist.linear.y = velocity
    graph.start(POLICY, robot="sim_a1", checkpoint=checkpoint, use_sim_time=True)

    def step() -> np.ndarray:
        """Targets of the environment's next step, which is made."""
        with torch.no_grad():
            env.step(actor.raw(env.observe()["policy"]))
        return env.batch.targets[0, -1].copy()

    expected = step()
    # Time stands still until there is a command, so that a chunk comes once: before this test hears the node, it is
    # lost, and before the node hears the velocity, it is another one.
    seen, asked_at = 0, time.monotonic()

    def answered() -> bool:
        """Whether there is a chunk of the first state, made when the velocity had been heard."""
        nonlocal seen, asked_at
        somebody.publish(twist)
        if chunks and np.allclose(chunks[-1].points[0].positions, expected, atol=1e-5):
            return True
        if len(chunks) > seen or time.monotonic() > asked_at + 2.0:
            seen = len(chunks)
            graph.call(Trigger, "policy/reset")
            asked_at = time.monotonic()
        return False

    graph.until(answered, "the first chunk", describe=lambda: f"{chunks[-1:]}\n{expected}")
    assert np.abs(expected - A1.posture).max() > 0.02, "a policy that does nothing says nothing"
    for k in range(1, 20):
        somebody.publish(twist)
        sim.control_step(np.array(chunks[-1].points[0].positions))
        np.testing.assert_allclose(sim.joints[-1].position, env.batch.present[0, 8:20], atol=1e-5)
        expected = step()
        tick = sim.start + round(k * CONTROL_DT * 1e9)
        graph.until(lambda tick=tick: stamp(chunks[-1]) == tick, "the next chunk")
        np.testing.assert_allclose(chunks[-1].points[0].positions, expected, atol=2e-5)


def test_a_deployed_policy_walks_falls_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: Graph
) -> None:
    clumsy = save_actor(tmp_path / "clumsy", gain=0.05, lean=4.0)
    options = ["--robot", "sim_a1", "--episodes", "1", "--output", str(tmp_path / "results.json")]
    deployment = Deployment(tmp_path / "said", graph.environment, str(clumsy), *options)
    commands = graph.collect(Float64MultiArray, "joint_command", COMMAND)

    def standing() -> list[np.ndarray]:
        """Targets [12] that came with the gains of the model; all others must be those of a robot that gives way."""
        found = []
        for command in commands:
            table = np.array(command.data).reshape(12, 5)
            if (table[:, 3] > 0).all():
                np.testing.assert_array_equal(table[:, 1:], [[0.0, 0.0, A1.kp, A1.kd]] * 12)
                found.append(table[:, 0])
            else:
                # When it stops sending, as it does before an episode, the gate lets the robot sink: that may be the
                # first command that the test hears.
                np.testing.assert_array_equal(table[:, 1:], [[0.0, 0.0, 0.0, PROFILE.gains.damping]] * 12)
        return found

    graph.until(lambda: standing() or deployment.process.poll() is not None, "the gate's first command", patience=120)
    assert commands, deployment.said
    graph.until(lambda: deployment.process.poll() is not None, "the end", patience=120)
    assert deployment.end() == 0, deployment.said
    assert min(np.abs(target - A1.posture).max() for target in standing()) < 0.4, "it was to stand"
    (outcome,) = json.loads((tmp_path / "results.json").read_text())
    assert not outcome["success"]
    assert 5 < outcome["steps"] < 60, "standing until the policy speaks is no part of the episode"
    assert 0 < outcome["score"] < 0.1
    assert 0 < outcome["details"]["distance_m"] < 0.5
    assert outcome["faults"] == []
    assert "distance_m" in deployment.said.splitlines()[-1]


def test_what_does_not_belong_together_is_refused_showing_both_sides(tmp_path: Path, checkpoint: Path) -> None:
    def refusal(folder: Path, profile: str, contract: str = "sim_a1") -> str:
        settings = InferenceSettings(str(folder), str(contract_file(contract)), profile)
        with pytest.raises(FeatureMismatch) as error:
            Inference(settings)
        return str(error.value)

    aliengo = refusal(save_actor(tmp_path / "aliengo", "aliengo"), "sim_a1")
    assert aliengo == "the checkpoint was trained on robot aliengo, the contract is of robot a1"
    arm = refusal(save(tmp_path / "arm", make_policy()), "sim_a1")
    assert "checkpoint has actions x, y; robot sim_a1 has joints FL_hip, FL_thigh" in arm
    assert "checkpoint has actions FL_hip, FL_thigh" in refusal(checkpoint, "sim_pusht", "sim_pusht")


def test_a_real_robots_joints_are_those_of_the_gait_by_name(checkpoint: Path) -> None:
    inference = Inference(InferenceSettings(str(checkpoint), str(contract_file("unitree_a1")), "unitree_a1"))
    env = environment()
    state = env.batch.present[0]
    values = {
        "velocity_command": env.command[0],
        "angular_velocity": state[23:26],
        "orientation": state[4:8],
        "joint_positions": state[8:20],
        "joint_velocities": state[26:38],
    }
    frame = {f"observation/observation.{name}": value for name, value in values.items()}
    frame |= {"tick": np.array(0), "session": np.array(0), "latency_steps": np.array(0), "measured": state[8:20]}
    chunk = inference.frame(frame, ask=True)
    with torch.no_grad():
        env.step(make_actor(env).raw(env.observe()["policy"]))
    assert chunk is not None
    np.testing.assert_allclose(chunk["joints"][0], env.batch.targets[0, -1], atol=1e-6)
    wanted = FeatureSpec.from_dict(inference.facts["features"])
    found = completed(read_contract(contract_file("unitree_a1")), wanted).features
    assert found["observation.joint_positions"].field[0].startswith("position[FL_hip_joint, FL_thigh_joint, FL_calf")
    assert load_profile("unitree_a1").names[:3] == ("FL_hip_joint", "FL_thigh_joint", "FL_calf_joint")


def test_a_profile_with_other_commands_is_refused_by_the_robot(graph: Graph) -> None:
    text = (FOLDER / "sim_a1.yaml").read_text().replace("hold: damp\n", "")
    other = graph.folder / "sim_a1.yaml"
    other.write_text(text.replace("adapter: joint_gains", "adapter: forward_position"))
    node = graph.start(SIM, robot="sim_a1", profile=str(other))
    assert node.wait() == 1
    assert "profile sim_a1 sends forward_position commands; sim_a1 takes joint_gains" in node.output
