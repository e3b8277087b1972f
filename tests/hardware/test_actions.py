"""Actions of every meaning as joint targets: by name, added up, and through inverse kinematics."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robopolicy.datasets.contract import parse_contract
from robopolicy.errors import FeatureMismatch, RobopolicyError
from robopolicy.features import Control, Feature
from robopolicy.hardware.actions import ActionMapper, ArmConfig, load_arm
from robopolicy.hardware.profiles import RobotProfile, load_profile, parse_profile

JOINT = "{{name: {}, low: {}, high: {}, velocity: 1, acceleration: 10, jerk: 1000, home: 0, {}}}"
REST = "tracking_error: 1, jump: 1"
ARM_MJCF = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody><body name="upper">
    <joint name="one" axis="0 0 1" range="-2.5 2.5" limited="true"/>
    <geom type="capsule" size=".02" fromto="0 0 0 .5 0 0"/>
    <body name="lower" pos=".5 0 0">
      <joint name="two" axis="0 0 1" range="-2.5 2.5" limited="true"/>
    <geom type="capsule" size=".02" fromto="0 0 0 .4 0 0"/>
      <body name="hand" pos=".4 0 0">
        <joint name="three" axis="0 0 1" range="-2.5 2.5" limited="true"/>
    <geom type="box" size=".02 .02 .02"/>
        <site name="tip" pos=".1 0 0"/>
      </body>
    </body>
  </body></worldbody>
</mujoco>
"""
MEASURED = np.array([0.3, 0.8, -0.5, 0.02])


@pytest.fixture
def robot(tmp_path: Path) -> RobotProfile:
    joints = "\n".join(f"- {JOINT.format(n, -2.5, 2.5, REST)}" for n in ("a", "b", "c"))
    text = f"""
name: planar3
rate_hz: 50
joints:
{joints}
- {JOINT.format("finger", 0, 0.04, REST)}
gripper: {{joint: finger}}
command: {{adapter: forward_position, topic: command}}
stop_time_s: 1.0
"""
    return parse_profile(text, tmp_path / "planar3.yaml")


@pytest.fixture
def arm(tmp_path: Path) -> ArmConfig:
    (tmp_path / "arm.xml").write_text(ARM_MJCF)
    (tmp_path / "arm.yaml").write_text(
        "model: {mjcf: arm.xml, frame: tip, joints: [one, two, three]}\nposition_scale: 0.05\nrotation_scale: 0.5\n"
    )
    return load_arm(tmp_path / "arm.yaml")


def action(size: int, names: tuple[str, ...] = (), **control: str) -> Feature:
    return Feature("action", (size,), kind="action", names=names, control=Control(**control))  # type: ignore[arg-type]


def test_absolute_joints_go_by_name_and_the_others_stay(robot: RobotProfile) -> None:
    mapper = ActionMapper(action(2, ("c", "a"), target="joint", mode="absolute"), robot, 10)
    found = mapper.targets(np.array([[1.0, 2.0], [3.0, 4.0]]), MEASURED)
    np.testing.assert_allclose(found.joints, [[2, 0.8, 1, 0.02], [4, 0.8, 3, 0.02]])
    np.testing.assert_allclose(mapper.hold(MEASURED), [-0.5, 0.3])


def test_changes_and_velocities_add_up_from_the_measured_joints(robot: RobotProfile) -> None:
    rows = np.array([[0.1, 0, 0], [0.1, 0.2, 0], [0, 0.2, -0.3]])
    names = ("a", "b", "c")
    delta = ActionMapper(action(3, names, target="joint", mode="delta"), robot, 10)
    expected = MEASURED[:3] + np.array([[0.1, 0, 0], [0.2, 0.2, 0], [0.2, 0.4, -0.3]])
    np.testing.assert_allclose(delta.targets(rows, MEASURED).joints[:, :3], expected)
    velocity = ActionMapper(action(3, names, target="velocity", mode="absolute"), robot, 10)
    np.testing.assert_allclose(velocity.targets(10 * rows, MEASURED).joints[:, :3], expected)
    assert delta.hold(MEASURED).tolist() == velocity.hold(MEASURED).tolist() == [0, 0, 0]


def test_what_is_recorded_from_the_command_topic_has_the_robots_order() -> None:
    """PushT calls its joints x and y, its targets target_x and target_y."""
    features = "rate_hz: 10\nfeatures:\n  action: {topic: /command, field: data}\n"
    contract = parse_contract(features, "test")
    target = action(2, ("target_x", "target_y"), target="pixel_target", mode="absolute", frame="image")
    profile = load_profile("sim_pusht")
    mapper = ActionMapper(target, profile, 10, contract)
    assert mapper.targets(np.array([[5.0, 6.0]]), np.zeros(2)).joints.tolist() == [[5, 6]]
    with pytest.raises(FeatureMismatch, match=r"actions target_x, target_y; robot sim_pusht has joints x, y"):
        ActionMapper(target, profile, 10)
    named = parse_contract(features.replace("data", '"positions[y, x]"'), "test")
    mapper = ActionMapper(target, profile, 10, named)
    assert mapper.targets(np.array([[5.0, 6.0]]), np.zeros(2)).joints.tolist() == [[6, 5]]


def test_a_contract_with_the_joints_of_an_action_in_another_order_is_refused(robot: RobotProfile) -> None:
    text = """
rate_hz: 10
features:
  action: {{topic: /targets, type: sensor_msgs/msg/JointState, field: "position[{}]"}}
"""
    action = Feature("action", (2,), kind="action", names=("a", "b"), control=Control("joint", "absolute"))
    with pytest.raises(FeatureMismatch, match=r"checkpoint has actions a, b; the contract has them as b, a"):
        ActionMapper(action, robot, 10.0, parse_contract(text.format("b, a"), "contract.yaml"))
    # Joints that the checkpoint calls otherwise are those at the same place.
    named = replace(action, names=("shoulder", "elbow"))
    mapper = ActionMapper(named, robot, 10.0, parse_contract(text.format("b, a"), "contract.yaml"))
    np.testing.assert_array_equal(mapper.targets(np.array([[0.1, 0.9]]), MEASURED).joints[0, :2], [0.9, 0.1])


def test_actions_that_the_robot_cannot_execute_are_refused(robot: RobotProfile, arm: ArmConfig) -> None:
    with pytest.raises(FeatureMismatch, match=r"actions a, fingr; robot planar3 .*Did you mean 'finger'"):
        ActionMapper(action(2, ("a", "fingr"), target="joint", mode="absolute"), robot, 10)
    with pytest.raises(FeatureMismatch, match="the action has 3 numbers"):
        ActionMapper(action(3, target="joint", mode="absolute"), robot, 10)
    with pytest.raises(FeatureMismatch, match="no control mode"):
        ActionMapper(Feature("action", (4,), kind="action"), robot, 10)
    pose = {"target": "end_effector_pose", "mode": "absolute", "rotation": "rot6d"}
    with pytest.raises(FeatureMismatch, match="set the parameter arm"):
        ActionMapper(action(9, **pose), robot, 10)
    with pytest.raises(FeatureMismatch, match=r"has 7 numbers .* are 9"):
        ActionMapper(action(7, **pose), robot, 10, arm=arm)
    with pytest.raises(FeatureMismatch, match=r"changes of a pose need axis_angle.*, the checkpoint has rot6d"):
        ActionMapper(action(9, **(pose | {"mode": "delta"})), robot, 10, arm=arm)
    two = replace(arm, model=replace(arm.model, joints=("one", "two")))
    with pytest.raises(FeatureMismatch, match=r"commands a gripper \(positive_closes\), sim_pusht has none"):
        ActionMapper(action(10, **pose, gripper="positive_closes"), load_profile("sim_pusht"), 10, arm=two)
    with pytest.raises(FeatureMismatch, match=r"the model has 3 joints .*sim_pusht has 2"):
        ActionMapper(action(9, **pose), load_profile("sim_pusht"), 10, arm=arm)


def test_absolute_poses_and_gripper(robot: RobotProfile, arm: ArmConfig) -> None:
    pytest.importorskip("mink")
    feature = action(
        10, target="end_effector_pose", mode="absolute", rotation="rot6d", gripper="positive_closes", frame="world"
    )
    mapper = ActionMapper(feature, robot, 10, arm=arm)
    held = mapper.hold(MEASURED)
    angle = MEASURED[:3].sum()
    np.testing.assert_allclose(held[3:9], [np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0])
    assert held[9] == pytest.approx(0.0), "half open"
    rows = np.repeat(held[None], 3, axis=0)
    rows[1:, 0] += 0.02
    rows[:, 9] = [-1, 0, 1]
    found = mapper.targets(rows, MEASURED)
    np.testing.assert_allclose(found.joints[0, :3], MEASURED[:3], atol=2e-3)
    np.testing.assert_allclose(found.joints[:, 3], [0.04, 0.02, 0.0])
    assert np.abs(found.joints[1, :3] - MEASURED[:3]).max() > 0.01
    assert found.unreached == 0
    assert found.position_error < 1e-3
    rows[2, 0] += 2.0
    cut = mapper.targets(rows, MEASURED)
    assert (len(cut.joints), cut.unreached) == (2, 1)
    rows[0, 0] += 2.0
    assert len(mapper.targets(rows, MEASURED).joints) == 0


@pytest.mark.parametrize("frame", ["world", "tool"])
def test_changes_of_a_pose_add_up_in_units_of_the_controller(robot: RobotProfile, arm: ArmConfig, frame: str) -> None:
    pytest.importorskip("mink")
    feature = action(6, target="end_effector_pose", mode="delta", rotation="axis_angle", frame=frame)
    mapper = ActionMapper(feature, robot, 10, arm=arm)
    rows = np.array([[-0.4, 0, 0, 0, 0, 0.2], [-0.4, 0, 0, 0, 0, 0.2]])
    found = mapper.targets(rows, MEASURED)
    assert found.unreached == 0
    angles = MEASURED[:3].sum() + np.array([0.1, 0.2])
    np.testing.assert_allclose(found.joints[:, :3].sum(axis=1), angles, atol=1e-2)

    def tip(q: np.ndarray) -> np.ndarray:
        a, b, c = np.cumsum(q[:3])
        return np.array(
            [
                0.5 * np.cos(a) + 0.4 * np.cos(b) + 0.1 * np.cos(c),
                0.5 * np.sin(a) + 0.4 * np.sin(b) + 0.1 * np.sin(c),
            ]
        )

    way, expected = tip(MEASURED), []
    for angle in (MEASURED[:3].sum(), angles[0]):
        step = np.array([np.cos(angle), np.sin(angle)]) if frame == "tool" else np.array([1.0, 0.0])
        way = way - 0.02 * step
        expected.append(way)
    np.testing.assert_allclose([tip(q) for q in found.joints], expected, atol=1.1e-3)
    assert mapper.hold(MEASURED).tolist() == [0] * 6


def test_arm_files_are_strict(tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    for text, message in (
        ("model: {mjcf: a.xml, frame: tip, joint: [one]}", "unknown field in .*'joint'. Did you mean 'joints'"),
        ("frame: tip", "expected a table with model"),
        ("package: no_such_thing\nmodel: {mjcf: a.xml, frame: tip, joints: [one]}", "'no_such_thing'.*not installed"),
    ):
        path.write_text(text)
        with pytest.raises(RobopolicyError, match=message):
            load_arm(path)


def test_the_panda_of_robosuite_is_where_its_tasks_say() -> None:
    """The grip site of the environment is the commanded point of the arm file."""
    pytest.importorskip("robosuite")
    pytest.importorskip("mink")
    from robopolicy.hardware import actions
    from robopolicy.hardware.kinematics import ArmKinematics
    from robopolicy.sim.robomimic import Lift

    task = Lift()
    try:
        task.reset(seed=0)
        env = task.env
        q = np.array([env.sim.data.qpos[i] for i in env.robots[0]._ref_joint_pos_indexes])
        site = env.robots[0].eef_site_id["right"]
        position = np.array(env.sim.data.site_xpos[site])
        matrix = np.array(env.sim.data.site_xmat[site]).reshape(3, 3)
    finally:
        task.close()
    arm = ArmKinematics(load_arm(Path(actions.__file__).parent / "arms/robosuite_panda.yaml").model)
    found, turned = arm.forward(q)
    np.testing.assert_allclose(found, position, atol=1e-4)
    np.testing.assert_allclose(turned, matrix, atol=1e-3)
