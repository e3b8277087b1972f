"""Streams of set-points into direct drivers; the drivers themselves where the vendor's package is installed."""

import sys
import time
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from arm_of_air import ArmOfAir

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.drivers import DRIVERS, make_driver
from robopolicy.hardware.drivers.base import Driver, DriverError
from robopolicy.hardware.drivers.stream import SetpointStream
from robopolicy.hardware.profiles import load_profile, profile_names

PACKAGES = {"franky": ("franky", "franka"), "ur_rtde": ("rtde_control", "ur")}


class Clock:
    """Seconds, as the test sets them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_stream_begins_near_the_robot_and_not_elsewhere() -> None:
    arm = ArmOfAir()
    stream = SetpointStream(arm, timeout=0.1, tolerance=0.05, clock=Clock())
    assert not stream.send(np.full(6, 0.06))
    assert arm.calls == []
    assert stream.refused == 1
    assert stream.send(np.full(6, 0.04))
    # Once it follows, the steps are the gate's business.
    assert stream.send(np.full(6, 0.2))
    assert arm.calls == ["start", "send", "send"]


def test_a_stream_that_dries_up_brakes_once_and_may_begin_again() -> None:
    arm, clock = ArmOfAir(), Clock()
    stream = SetpointStream(arm, timeout=0.1, tolerance=0.05, clock=clock)
    stream.send(np.full(6, 0.04))
    clock.now = 0.1
    stream.tick()
    assert stream.streaming
    for clock.now in (0.101, 0.2, 5.0):
        stream.tick()
    assert arm.calls == ["start", "send", "stop"]
    assert stream.dried_up == 1
    clock.now = 6.0
    assert not stream.send(np.full(6, 0.1))
    assert stream.send(np.full(6, 0.05))
    assert arm.calls == ["start", "send", "stop", "start", "send"]


def test_a_robot_that_is_slow_to_start_has_the_whole_timeout_from_then_on() -> None:
    clock = Clock()

    class SlowArm(ArmOfAir):
        def start(self) -> None:
            super().start()
            clock.now += 3.0

    arm = SlowArm()
    stream = SetpointStream(arm, timeout=0.1, tolerance=0.05, clock=clock)
    stream.send(np.full(6, 0.04))
    clock.now += 0.09
    stream.tick()
    assert arm.calls == ["start", "send"]
    clock.now += 0.02
    stream.tick()
    assert arm.calls == ["start", "send", "stop"]


def test_a_robot_that_stopped_by_itself_is_an_error_at_the_next_reading() -> None:
    arm = ArmOfAir()
    stream = SetpointStream(arm, timeout=0.1, tolerance=0.6, clock=Clock())
    stream.send(np.full(6, 0.55))
    with pytest.raises(DriverError, match=r"^air: protective stop$"):
        stream.tick()


@pytest.mark.parametrize("bad", [np.zeros(5), np.full(6, np.nan), np.full(6, np.inf)])
def test_a_misshapen_setpoint_is_refused_by_every_driver(bad: np.ndarray) -> None:
    with pytest.raises(DriverError, match="air: expected 6 finite joint positions"):
        ArmOfAir().send(bad)


def test_every_driver_belongs_to_a_profile() -> None:
    assert set(DRIVERS) <= set(profile_names())
    assert set(DRIVERS.values()) == set(PACKAGES)


def test_a_robot_without_a_driver_is_refused_by_name() -> None:
    with pytest.raises(RobopolicyError, match=r"unknown robot with a direct driver 'ur5'\. Did you mean 'ur5e'"):
        make_driver("ur5", "10.0.0.1")


@pytest.mark.parametrize("robot", sorted(DRIVERS))
def test_a_missing_package_is_one_line_that_names_the_extra(robot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, extra = PACKAGES[DRIVERS[robot]]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DriverError, match=rf"is not installed .*pip install 'robopolicy\[{extra}\]'$"):
        make_driver(robot, "10.0.0.1")
    with pytest.raises(DriverError, match="the robot's network address is needed"):
        make_driver(robot, "")


def test_franky_follows_a_sine_and_stops() -> None:
    """Against franky-sim, which speaks the robot's network protocol; not a robot, and not its safety functions."""
    pytest.importorskip("franky")
    franky_sim = pytest.importorskip("franky_sim")
    from franky_sim.mujoco_simulator import MujocoSimulator

    from robopolicy.hardware.drivers.franky import FrankyDriver

    assert len([n for n in load_profile("franka_fr3").names if "joint" in n]) == FrankyDriver.joints + 1
    with MujocoSimulator(enable_visualization=False) as simulator:
        arm = simulator.add_robot()
        with franky_sim.SimulationServer(simulator) as server:
            server.run_async()
            driver = FrankyDriver(arm.hostname, enforce_realtime=False)
            with pytest.raises(DriverError, match="not connected"):
                driver.read()
            driver.connect()
            home = driver.read().position
            with pytest.raises(DriverError, match="need start"):
                driver.send(home)
            driver.start()
            begin, places = time.monotonic(), []
            while (now := time.monotonic() - begin) < 2:
                target = home + 0.1 * (1 - np.cos(np.pi * now)) * np.eye(7)[0]
                driver.send(target)
                places.append(driver.read().position[0] - home[0])
                time.sleep(0.02)
            assert 0.15 < max(places) < 0.25
            driver.stop()
            assert np.abs(driver.read().velocity).max() < 0.02
            driver.send_gripper(0.02)
            deadline = time.monotonic() + 20
            while abs(driver.gripper() - 0.02) > 0.002:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            driver.close()
            driver.close()


def read_for_seconds(driver: Driver, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        driver.read()
        time.sleep(0.01)


def test_ur_reads_the_joints_of_a_controller_that_speaks_rtde() -> None:
    pytest.importorskip("rtde_receive")
    from rtde_server import RtdeServer

    from robopolicy.hardware.drivers.ur_rtde import UrDriver

    with RtdeServer(actual_q=[0.1, -1.2, 1.3, -0.4, 0.5, 0.6], actual_qd=[0.01] * 6) as server:
        driver = UrDriver(server.address)
        driver.connect()
        reading = driver.read()
        np.testing.assert_allclose(reading.position, [0.1, -1.2, 1.3, -0.4, 0.5, 0.6])
        np.testing.assert_allclose(reading.velocity, 0.01)
        server.set(safety_status_bits=1 << 2)
        with pytest.raises(DriverError, match="protective stop"):
            read_for_seconds(driver, 10)
        driver.close()


def test_a_servo_stop_that_the_ur_controller_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control interface needs a robot that runs its script; here only the answers that its documentation names."""
    answers = {"setWatchdog": True, "isProgramRunning": True, "kickWatchdog": True, "servoJ": True, "servoStop": False}
    measured = {"getActualQ": [0.0] * 6, "getActualQd": [0.0] * 6, "isConnected": True}
    safety = {"isEmergencyStopped": False, "isProtectiveStopped": False}
    asked: list[str] = []

    class Interface:
        def __init__(self, address: str) -> None:
            self.address = address

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return lambda *_: (answers | measured | safety | {"stopScript": True, "disconnect": None})[name]

    for name, kind in (("rtde_control", "RTDEControlInterface"), ("rtde_receive", "RTDEReceiveInterface")):
        module = ModuleType(name)
        monkeypatch.setattr(module, kind, Interface, raising=False)
        monkeypatch.setitem(sys.modules, name, module)
    driver = make_driver("ur5e", "10.0.0.1")
    driver.connect()
    driver.start()
    with pytest.raises(DriverError, match=r"^10\.0\.0\.1: servoStop was refused$"):
        driver.stop()
    driver.close()
    assert asked[-3:] == ["stopScript", "disconnect", "disconnect"]
