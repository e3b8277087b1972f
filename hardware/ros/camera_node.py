"""The cameras of a simulated robot in a process of their own: they draw what joint states and streams say.

    python -m robopolicy.hardware.ros.camera_node --ros-args -p robot:=sim_pusht

Drawing takes longer than a control period, and real cameras fail by themselves: without this node sim_node draws, with
it (camera_hz of sim_node 0) the simulation keeps its rate. Pictures bear the stamp of the joint states that they show.
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray

from robopolicy.hardware.ros.messages import positions
from robopolicy.hardware.ros.node import SENSOR, NodeParameters, RobotNode, option, run
from robopolicy.hardware.ros.sim_node import picture_message

if TYPE_CHECKING:
    from robopolicy.sim.robots import SimRobot


@dataclass(frozen=True)
class CameraParameters(NodeParameters):
    """Of camera_node."""

    robot: str = option("sim_pusht", "a simulated robot")
    camera_hz: float = option(10.0, "pictures per simulated second", low=0.1, high=100.0)


class CameraNode(RobotNode):
    """Cameras that look at a sim_node."""

    Parameters: ClassVar[type[NodeParameters]] = CameraParameters
    NAME = "camera_node"

    def configure(self) -> None:
        from robopolicy.sim.robots import make_robot

        self._robot: SimRobot | None = make_robot(self.parameters.robot)
        robot = self._robot
        robot.reset(0)
        self._streams: dict[str, np.ndarray] = {}
        self._drawn_at, self._pictures = -np.inf, 0
        self._cameras = {c: self.create_publisher(Image, f"{c}/image_raw", SENSOR) for c in robot.cameras}
        self._heard: list[Any] = [self.create_subscription(JointState, "joint_states", self._on_joints, SENSOR)]
        for name in robot.streams:
            take = self._take(name)
            self._heard.append(self.create_subscription(Float64MultiArray, name, take, SENSOR))

    def cleanup(self) -> None:
        robot, self._robot = getattr(self, "_robot", None), None
        if robot is None:
            return
        robot.close()
        for subscription in getattr(self, "_heard", ()):
            self.destroy_subscription(subscription)
        for publisher in getattr(self, "_cameras", {}).values():
            self.destroy_publisher(publisher)

    def _take(self, name: str) -> Any:
        def take(message: Float64MultiArray) -> None:
            values = np.array(message.data, np.float64)
            if self._robot is not None and len(values) == len(self._robot.streams[name]):
                self._streams[name] = values

        return take

    def _on_joints(self, message: JointState) -> None:
        robot, stamp = self._robot, message.header.stamp
        if self.state != "active" or robot is None or len(self._streams) < len(robot.streams):
            return
        now = stamp.sec + stamp.nanosec * 1e-9
        position = positions(message, robot.joints)
        # A clock that went back makes a new beginning.
        if 0 <= now - self._drawn_at < 1 / self.parameters.camera_hz - 1e-6 or not np.isfinite(position).all():
            return
        self._drawn_at = now
        robot.mirror(position, self._streams)
        for camera, publisher in self._cameras.items():
            publisher.publish(picture_message(robot.picture(camera), stamp, camera))
        self._pictures += 1

    def report(self) -> tuple[bytes, str, dict[str, Any]]:
        if self.state != "active" or self._robot is None:
            return super().report()
        lacking = [name for name in self._robot.streams if name not in self._streams]
        level = DiagnosticStatus.WARN if lacking else DiagnosticStatus.OK
        return level, f"waiting for {', '.join(lacking)}" if lacking else "running", {"pictures": self._pictures}


if __name__ == "__main__":
    sys.exit(run(CameraNode))
