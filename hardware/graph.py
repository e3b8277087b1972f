"""The processes of a robot under a policy, as `launch/` starts them, for those who have no `ros2` command."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robopolicy.errors import RobopolicyError
from robopolicy.hardware.drivers import DRIVERS
from robopolicy.hardware.profiles import RobotProfile, load_profile
from robopolicy.hardware.supervisor import Program

CONFIG = Path(__file__).parent / "ros" / "config"
"""Parameter file and Fast DDS profile, the files of launch/config."""
LARGE_SHARED_MEMORY = 512 * 2**20
"""Free bytes of /dev/shm with which the Fast DDS profile is used: it takes up to 64 MB for each process."""


@dataclass(frozen=True)
class GraphSettings:
    """What differs from one deployment to the next; the arguments of the launch files have the same names."""

    robot: str
    """Robot profile, a name or a YAML file."""
    checkpoint: str
    contract: str = ""
    device: str = "cpu"
    namespace: str = ""
    dry_run: bool = False
    record: str = ""
    """Folder of recordings; empty records nothing."""
    record_at_once: bool = True
    """Whether a recording starts by itself; otherwise services of the recorder start and end episodes."""
    mode: Literal["real_time", "stepped"] = "real_time"
    time_scale: float = 1.0
    camera_hz: float = 0.0
    driver: Literal["ros", "direct"] = "ros"
    robot_ip: str = ""
    params_file: str = str(CONFIG / "params.yaml")

    @property
    def use_sim_time(self) -> bool:
        """Whether ROS time is that of the simulation."""
        return self.mode == "stepped" or self.time_scale != 1


@dataclass(frozen=True)
class NodeProcess:
    """One node: its executable, and the parameters that are not in the parameter file."""

    executable: str
    parameters: Mapping[str, Any]
    critical: bool = True

    def program(self, settings: GraphSettings, folder: Path) -> Program:
        """How it is started; its parameters go into a file in `folder`, where types survive."""
        import yaml

        file = folder / f"{self.executable}.yaml"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": dict(self.parameters)}}))
        command = [sys.executable, "-m", f"robopolicy.hardware.ros.{self.executable}", "--ros-args"]
        command += ["-r", f"__node:={self.executable}"]
        if settings.namespace:
            command += ["-r", f"__ns:=/{settings.namespace.strip('/')}"]
        command += ["--params-file", settings.params_file, "--params-file", str(file)]
        return Program(self.executable, tuple(command), self.critical)


def nodes(settings: GraphSettings) -> list[NodeProcess]:
    """In the order of their start: recorder, robot, gate, policy. RobopolicyError for what does not fit together."""
    profile = load_profile(settings.robot)
    if (settings.time_scale != 1 or settings.mode != "real_time") and not profile.simulated:
        raise RobopolicyError(f"time_scale and mode are for simulated robots; {profile.name} is a real one")
    common = {"autostart": True, "use_sim_time": settings.use_sim_time, "time_scale": settings.time_scale}
    robot = {"robot": settings.robot}
    found = []
    if settings.record:
        recorder: dict[str, Any] = {"contract": settings.contract or profile.name, "output": settings.record}
        recorder["record"] = settings.record_at_once
        found.append(NodeProcess("recorder_node", common | recorder, critical=False))
    found += _robot_side(settings, profile, common)
    found.append(NodeProcess("gate_node", common | robot | {"dry_run": settings.dry_run}))
    policy = {"checkpoint": settings.checkpoint, "device": settings.device}
    policy["contract"] = settings.contract or profile.name
    found.append(NodeProcess("policy_node", common | robot | policy))
    return found


def _robot_side(settings: GraphSettings, profile: RobotProfile, common: Mapping[str, Any]) -> list[NodeProcess]:
    """The simulation, our driver, or nothing because the robot's own driver is running."""
    if profile.simulated:
        own = {**common, "robot": profile.name}
        changed = {"profile": settings.robot} if settings.robot != profile.name else {}
        found = [NodeProcess("sim_node", {**own, "mode": settings.mode, **changed})]
        if settings.camera_hz:
            found.append(NodeProcess("camera_node", {**own, "camera_hz": settings.camera_hz}, critical=False))
        return found
    if settings.driver == "ros":
        return []
    if profile.name not in DRIVERS:
        raise RobopolicyError(f"{profile.name} has no direct driver, only {', '.join(sorted(DRIVERS))} have one")
    if not settings.robot_ip:
        raise RobopolicyError("a direct driver needs the robot's network address, --robot-ip")
    direct = {"robot": settings.robot, "address": settings.robot_ip, "autostart": True}
    return [NodeProcess("driver_node", direct)]


def environment() -> dict[str, str]:
    """Of the processes: this one's, and the Fast DDS profile for pictures where there is memory for it."""
    found = dict(os.environ)
    room = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    if room is not None and room.f_bavail * room.f_frsize >= LARGE_SHARED_MEMORY:
        found.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(CONFIG / "fastdds.xml"))
    return found
