"""Robot profiles: those that come with the package, and what a wrong one is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.limiter import MotionLimiter
from robopolicy.hardware.profiles import load_profile, longest_stop, parse_profile, profile_names
from robopolicy.hardware.safety import SafetyGate

ARM = """
name: arm
kind: manipulator
rate_hz: 50
joints:
- {name: a, low: -2, high: 2, velocity: 1, acceleration: 4, jerk: 80, home: 0, tracking_error: 0.2, jump: 0.4}
- {name: grip, low: 0, high: 0.04, velocity: 0.1, acceleration: 1, jerk: 80, home: 0, tracking_error: .inf, jump: .inf}
gripper: {joint: grip}
command: {adapter: forward_position, topic: commands}
stop_time_s: 0.5
"""


def parse(text: str = ARM, **replaced: str) -> Any:
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return parse_profile(text, Path("arm.yaml"))


def test_the_robots_of_the_package() -> None:
    assert profile_names() == [
        "franka_fr3", "franka_panda", "sim_a1", "sim_panda", "sim_pusht", "so101", "unitree_a1", "unitree_go2", "ur5e",
        "xarm7",
    ]  # fmt: skip
    kinds = {name: load_profile(name).kind for name in profile_names()}
    assert [n for n, k in kinds.items() if k == "quadruped"] == ["sim_a1", "unitree_a1", "unitree_go2"]
    assert kinds["sim_pusht"] == "planar"


@pytest.mark.parametrize("name", profile_names())
def test_a_gate_made_from_a_profile_starts_at_home_and_stops_in_time(name: str) -> None:
    profile = load_profile(name)
    config = profile.gate_config()
    assert profile.name == name
    gate = SafetyGate(config)
    gate.measure(0.0, profile.home)
    np.testing.assert_array_equal(gate.activate(0.0), profile.home)
    # At full speed towards the far end, then a fault: how long the set-points still move.
    period, limits = 1 / profile.rate_hz, config.limits
    target = np.where(limits.high - profile.home > profile.home - limits.low, limits.high, limits.low)
    slowest = 0.0
    for wait in (1, 2, 3, 5, 8, 13, 21, 34):
        limiter = MotionLimiter(limits, period)
        limiter.start(profile.home)
        for _ in range(wait):
            limiter.step(target)
        slowest = max(slowest, len(limiter.stop_path()) * period)
    assert 0 < slowest <= profile.stop_time_s


@pytest.mark.parametrize("name", ["sim_pusht", "sim_a1", "unitree_a1", "unitree_go2"])
def test_targets_pass_within_one_period_where_the_simulation_knows_no_limits(name: str) -> None:
    profile = load_profile(name)
    limits = profile.gate_config().limits
    limiter = MotionLimiter(limits, 1 / profile.rate_hz)
    limiter.start(profile.home)
    rng = np.random.default_rng(0)
    for _ in range(200):
        reach = 0.49 * limits.velocity / profile.rate_hz
        inside = 1e-6 * (limits.high - limits.low)
        target = np.clip(limiter.position + rng.uniform(-reach, reach), limits.low + inside, limits.high - inside)
        np.testing.assert_allclose(limiter.step(target), target, atol=1e-9 * (limits.high - limits.low).max())


def test_margins_speed_and_the_gripper() -> None:
    margins = "margins: {position: 0.1, velocity: 0.5, acceleration: 0.25, jerk: 0.2}\nstop_time_s: 1.5"
    profile = parse(**{"stop_time_s: 0.5": margins})
    limits = profile.gate_config(speed=0.5).limits
    # The gripper must be able to close: no margin at its ends.
    np.testing.assert_allclose(limits.low, [-1.9, 0.0])
    np.testing.assert_allclose(limits.high, [1.9, 0.04])
    np.testing.assert_allclose(limits.velocity, [0.25, 0.025])
    np.testing.assert_allclose(limits.acceleration, [0.5, 0.125])
    np.testing.assert_allclose(limits.jerk, [8.0, 8.0])
    assert profile.blended.tolist() == [True, False]
    assert profile.names == ("a", "grip")
    with pytest.raises(RobopolicyError, match="speed is a share of the limits"):
        profile.gate_config(speed=1.5)


def test_the_longest_stop_by_hand() -> None:
    # 1 / 4 s to brake, 2 x 4 / 80 s to take the acceleration there and back, four periods.
    assert longest_stop(parse().gate_config()) == pytest.approx(0.25 + 0.1 + 0.08)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"rate_hz": "rate"}, r"unknown field in arm.yaml: 'rate'\. Did you mean 'rate_hz'"),
        ({"kind: manipulator": "kind: manipulater"}, "Did you mean 'manipulator'"),
        ({"forward_position": "forward_positions"}, "Did you mean 'forward_position'"),
        ({"{joint: grip}": "{joint: girp}"}, "unknown gripper joint in profile arm: 'girp'. Did you mean 'grip'"),
        ({"low: -2": "low: three"}, r"arm.yaml.joints.low: expected float, found 'three'"),
        ({"low: -2": "low: 3"}, "profile arm: position limits: low .* is not below high"),
        ({"velocity: 1,": "velocity: 0,"}, "profile arm: velocity limits must be above 0"),
        ({"jerk: 80, home: 0, tracking_error: 0.2": "jerk: 80, home: 3, tracking_error: 0.2"}, "home of a is 3.0"),
        ({"tracking_error: 0.2": "tracking_error: 0"}, "tracking_error: expected 2 numbers above 0"),
        ({"stop_time_s: 0.5": "stop_time_s: 0.2"}, r"stop_time_s is 0\.2, the limits allow 0\.430 at best"),
        ({"name: grip": "name: a"}, "joints need names that differ"),
        ({"stop_time_s: 0.5": ""}, "stop_time_s"),
        ({"forward_position": "pose"}, "adapter pose needs geometry"),
        ({"forward_position": "joint_gains"}, "adapter joint_gains needs gains"),
        ({"stop_time_s": "hold: damp\nstop_time_s"}, "damp needs the adapter joint_gains"),
        ({"stop_time_s": "margins: {velocity: 2.0}\nstop_time_s"}, "margins.velocity is a share of the limit"),
        ({"stop_time_s": "timeouts: {command: .nan}\nstop_time_s"}, "timeouts.command must be above 0, is nan"),
        ({"stop_time_s": "workspace: {low: [0, 0, 0], high: [1, 1, 1]}\nstop_time_s"}, "workspace needs geometry"),
        (
            {"stop_time_s": "gains: {kp: .nan, kd: 1, damping: 1}\nstop_time_s"},
            r"^arm\.yaml: profile arm: gains\.kp should be finite and not negative, is nan$",
        ),
        ({"stop_time_s": "gains: {kp: .inf, kd: 1, damping: 1}\nstop_time_s"}, "gains.kp should be finite"),
        ({"stop_time_s": "gains: {kp: 0, kd: -0.5, damping: 1}\nstop_time_s"}, "gains.kd .* is -0.5"),
        ({"stop_time_s": "gains: {kp: 1, kd: 1, damping: 0}\nstop_time_s"}, "gains.damping must be above 0, is 0"),
        ({"stop_time_s": "gains: {kp: 1, kd: 1, damping: .nan}\nstop_time_s"}, "gains.damping must be above 0"),
        ({"stop_time_s": "source: x\nstop_time_s"}, "unknown field in arm.yaml: 'source'"),
    ],
)
def test_what_is_wrong_is_named(replaced: dict[str, str], message: str) -> None:
    with pytest.raises(RobopolicyError, match=message):
        parse(**replaced)


def test_a_profile_by_name_by_path_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "arm.yaml").write_text(ARM)
    profile = load_profile(tmp_path / "arm.yaml")
    assert profile.source == tmp_path / "arm.yaml"
    with pytest.raises(RobopolicyError, match=r"unknown robot 'sim_push'\. Did you mean 'sim_pusht'"):
        load_profile("sim_push")
    with pytest.raises(RobopolicyError, match="missing"):
        load_profile(tmp_path / "none.yaml")
    with pytest.raises(RobopolicyError, match="expected a table"):
        parse_profile("[1, 2]", Path("list.yaml"))
