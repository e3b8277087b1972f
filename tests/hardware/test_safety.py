"""The safety gate: every fault is latched and named, and what is sent stays within limits meanwhile."""

from typing import Any

import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.limiter import MotionLimits
from robopolicy.hardware.safety import GateConfig, SafetyGate, Workspace

N, RATE = 2, 50.0
PERIOD = 1 / RATE
LIMITS = MotionLimits(*(np.full(N, x) for x in (-2.0, 2.0, 1.0, 4.0, 80.0)))


def config(**changes: Any) -> GateConfig:
    return GateConfig(LIMITS, RATE, **({"tracking_error": np.full(N, 0.3), "jump": np.full(N, 0.6)} | changes))


class Robot:
    """A robot that follows its set-points one period late, and a clock."""

    def __init__(self, **changes: Any) -> None:
        self.gate, self.time = SafetyGate(config(**changes)), 100.0
        self.position = np.array([0.5, -0.5])
        self.sent: list[np.ndarray] = [self.position] * 4
        self.gate.measure(self.time, self.position)
        self.gate.activate(self.time)

    def run(self, seconds: float, target: Any = None, measure: bool = True) -> "Robot":
        for _ in range(round(seconds * RATE)):
            self.time += PERIOD
            if measure:
                self.gate.measure(self.time, self.position)
            if target is not None:
                self.gate.command(self.time, target(self) if callable(target) else target)
            sent = self.gate.tick(self.time)
            assert sent is not None
            self.sent.append(sent)
            self.position = sent
        return self

    def within_limits(self) -> bool:
        q = np.array(self.sent)
        v = np.diff(q, axis=0) / PERIOD
        a = np.diff(v, axis=0) / PERIOD
        j = np.diff(a, axis=0) / PERIOD
        shares = [np.abs(x).max() / y for x, y in ((q, 2.0), (v, 1.0), (a, 4.0), (j, 80.0))]
        return bool(max(shares) <= 1 and np.isfinite(q).all())


def small_steps(robot: Robot) -> np.ndarray:
    """A policy that moves both joints up."""
    return robot.position + 0.2


def test_it_follows_targets_and_holds_without_any() -> None:
    robot = Robot().run(0.5)
    np.testing.assert_array_equal(robot.gate.setpoint, [0.5, -0.5])
    robot.run(3.0, np.array([0.7, -0.9]))
    np.testing.assert_allclose(robot.gate.setpoint, [0.7, -0.9], atol=1e-6)
    assert not robot.gate.faults
    robot.gate.release()
    robot.run(2.0)
    assert not robot.gate.faults
    robot.gate.deactivate()
    assert robot.gate.tick(robot.time + 1) is None


def inject(robot: Robot, kind: str) -> None:
    gate, now = robot.gate, robot.time
    if kind == "nan":
        gate.command(now, np.array([np.nan, 0.0]))
    elif kind == "shape":
        gate.command(now, np.zeros(3))
    elif kind == "text":
        gate.command(now, "forward")  # type: ignore[arg-type]
    elif kind == "jump":
        gate.command(now, robot.position + 2.0)
    elif kind == "old command":
        gate.command(now - 1.0, robot.position)
    elif kind == "old measurement":
        gate.measure(now - 1.0, robot.position)
    elif kind == "nan measurement":
        gate.measure(now, np.array([np.nan, 0.0]))
    elif kind == "jumping measurement":
        gate.measure(now, robot.position + 1.0)
    elif kind == "collision":
        robot.position = robot.position - 0.35
        gate.measure(now, robot.position)
    elif kind == "stop":
        gate.emergency_stop("button")
    elif kind == "no measurements":
        robot.run(0.2, robot.position, measure=False)
    elif kind == "no commands":
        robot.run(0.6)
    elif kind == "late":
        robot.time += 0.15
        gate.measure(robot.time, robot.position)
        gate.command(robot.time, robot.position)
    elif kind == "clock back":
        robot.time -= 5.0
        sent = gate.tick(robot.time)
        assert sent is not None
        robot.sent.append(sent)
        robot.time += 5.0


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("nan", "command_invalid"),
        ("shape", "command_invalid"),
        ("text", "command_invalid"),
        ("jump", "command_jump"),
        ("old command", "clock"),
        ("old measurement", "clock"),
        ("nan measurement", "observation_invalid"),
        ("jumping measurement", "observation_jump"),
        ("collision", "tracking_error"),
        ("stop", "emergency_stop"),
        ("no measurements", "observation_timeout"),
        ("no commands", "command_timeout"),
        ("late", "overrun"),
        ("clock back", "clock"),
    ],
)
def test_every_fault_is_latched_and_named_and_the_robot_stops_within_limits(kind: str, fault: str) -> None:
    robot = Robot(tracking_error=np.full(N, 0.3)).run(0.4, small_steps)
    assert robot.gate.setpoint[0] > 0.55
    inject(robot, kind)
    robot.run(0.7, small_steps)
    assert fault in robot.gate.faults
    assert f"{fault}: " in robot.gate.describe()
    assert robot.gate.counts[fault] >= 1
    # From 1 rad/s at 4 rad/s2 and 80 rad/s3 a stop takes 0.25 + 0.05 s and a period or two.
    assert robot.gate.at_rest
    held = robot.gate.setpoint
    robot.run(1.0, small_steps)
    np.testing.assert_array_equal(robot.gate.setpoint, held)
    assert robot.within_limits()
    robot.gate.clear(robot.time)
    robot.run(0.5, small_steps)
    assert not robot.gate.faults
    assert (robot.gate.setpoint > held + 0.05).all()
    assert robot.within_limits()


def test_a_fault_is_cleared_only_when_its_cause_is_gone() -> None:
    robot = Robot().run(0.3, small_steps)
    robot.gate.emergency_stop()
    with pytest.raises(RobopolicyError, match="has not come to rest"):
        robot.gate.clear(robot.time)
    robot.run(0.5, measure=False)
    with pytest.raises(RobopolicyError, match="no fresh joint positions"):
        robot.gate.clear(robot.time)
    robot.position = robot.position - np.array([0.0, 0.5])
    robot.gate.measure(robot.time, robot.position)
    robot.gate.measure(robot.time + 0.3, robot.position)
    with pytest.raises(RobopolicyError, match=r"joint 1 is 0\.5.* away from its set-point; deactivate, then activate"):
        robot.gate.clear(robot.time + 0.3)
    robot.gate.deactivate()
    with pytest.raises(RobopolicyError, match="cannot start: emergency_stop: asked for"):
        robot.gate.activate(robot.time + 0.3)
    robot.gate.clear(robot.time + 0.3)
    np.testing.assert_array_equal(robot.gate.activate(robot.time + 0.3), robot.position)


def test_it_does_not_start_blind_or_stop_sending_in_motion() -> None:
    gate = SafetyGate(config())
    assert gate.tick(0.0) is None
    with pytest.raises(RobopolicyError, match="no fresh joint positions"):
        gate.activate(0.0)
    gate.measure(0.0, np.zeros(N))
    assert not gate.command(0.0, np.zeros(N))
    with pytest.raises(RobopolicyError, match="no fresh joint positions"):
        gate.activate(0.2)
    gate.measure(0.2, np.array([0.0, 2.5]))
    with pytest.raises(RobopolicyError, match=r"joint 1 starts at 2\.5, outside its limits -2\.\.2"):
        gate.activate(0.2)
    robot = Robot().run(0.3, small_steps)
    with pytest.raises(RobopolicyError, match="while the robot moves"):
        robot.gate.deactivate()


def test_after_the_clock_went_back_old_measurements_are_not_taken_for_fresh_ones() -> None:
    robot = Robot().run(0.2, small_steps)
    robot.time -= 5.0
    robot.run(0.5, measure=False)
    assert {"clock", "observation_timeout"} <= set(robot.gate.faults)
    with pytest.raises(RobopolicyError, match="no fresh joint positions"):
        robot.gate.clear(robot.time)
    robot.run(0.1)
    robot.gate.clear(robot.time)
    assert robot.run(0.3, small_steps).gate.faults == {}
    assert robot.within_limits()


def test_a_joint_measured_a_hair_outside_its_limits_starts_at_the_limit() -> None:
    gate = SafetyGate(config())
    gate.measure(0.0, np.array([-2.004, 2.019]))
    np.testing.assert_array_equal(gate.activate(0.0), [-2.0, 2.0])
    # 1 % of the range would be 0.04, but no set-point moves by more than 1 rad/s x 0.02 s.
    gate = SafetyGate(config())
    gate.measure(0.0, np.array([-2.004, 2.021]))
    with pytest.raises(RobopolicyError, match=r"joint 1 starts at 2\.021, outside its limits"):
        gate.activate(0.0)


def test_the_joint_that_jumped_is_named_and_not_the_gripper_that_may() -> None:
    robot = Robot(tracking_error=np.array([0.3, np.inf]))
    robot.gate.measure(robot.time + PERIOD, robot.position + np.array([0.7, 1.5]))
    assert robot.gate.describe().startswith("observation_jump: joint 0 moved 0.7")


def test_braking_without_watchdogs_follows_the_way_that_was_foreseen() -> None:
    robot = Robot().run(0.4, small_steps)
    foreseen = robot.gate.stop_path()
    assert len(foreseen) > 3
    np.testing.assert_array_equal([robot.gate.brake() for _ in foreseen], foreseen)
    assert robot.gate.at_rest
    assert len(robot.gate.stop_path()) == 0
    assert not robot.gate.faults


def elbow(q: np.ndarray) -> np.ndarray:
    """The tip of a planar arm of two links of 0.5 m."""
    angle = q[0] + q[1]
    tip = 0.5 * np.array([np.cos(q[0]) + np.cos(angle), np.sin(q[0]) + np.sin(angle)])
    return np.array([[*tip, 0.0]])


def test_the_workspace_is_not_left_even_while_braking() -> None:
    box = Workspace(np.array([-2.0, -0.2, -1.0]), np.array([2.0, 0.6, 1.0]), elbow)
    robot = Robot(workspace=box)
    seen = []
    for _ in range(150):
        robot.run(PERIOD, small_steps)
        seen.append(elbow(robot.gate.setpoint)[0, 1])
    assert "workspace" in robot.gate.faults
    # It came close and no farther; without looking ahead it would have left.
    assert 0.5 < max(seen) <= 0.6
    assert robot.within_limits()
    outside = SafetyGate(config(workspace=box))
    outside.measure(0.0, np.array([1.5, 0.0]))
    with pytest.raises(RobopolicyError, match="outside its workspace"):
        outside.activate(0.0)


def test_random_messages_never_make_it_send_what_is_beyond_a_limit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        robot = Robot()
        for _ in range(60):
            choice = rng.random()
            if choice < 0.04:
                inject(robot, str(rng.choice(["nan", "jump", "stop", "nan measurement", "late", "old command"])))
            elif choice < 0.1 and robot.gate.at_rest and robot.gate.faults:
                robot.gate.measure(robot.time, robot.position)
                robot.gate.clear(robot.time)
            noise = rng.uniform(-0.59, 0.59, N)
            robot.run(PERIOD, None if choice > 0.9 else robot.position + noise, measure=choice < 0.97)
        assert robot.within_limits()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jump": np.zeros(N)}, "jump: expected 2 numbers above 0"),
        ({"tracking_error": np.ones(3)}, "tracking_error: expected 2 numbers"),
        ({"command_timeout": 0.0}, "command_timeout must be above 0"),
        ({"observation_timeout": float("nan")}, "observation_timeout must be above 0"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RobopolicyError, match=message):
        config(**changes)
