"""PushT as a planar robot: the agent is a carriage with two prismatic joints, in px, under the task's own controller.

With a target that is constant over a control step of the task this is `PushTState.step` to the last bit.
"""

from typing import ClassVar

import numpy as np

from robopolicy.sim.pusht import ENVIRONMENT, PushTState
from robopolicy.sim.robots.base import JointReading, SimRobot


class PushTRobot(SimRobot):
    """Joints x and y of the agent; the block's pose as a stream; the scene from above as a camera."""

    name = "sim_pusht"
    joints = ("x", "y")
    streams: ClassVar[dict[str, tuple[str, ...]]] = {"block_state": PushTState.features[ENVIRONMENT].names}
    cameras: ClassVar[dict[str, tuple[int, int]]] = {"camera": (96, 96)}
    step_s = 0.01
    steps_per_control = 10
    max_steps = PushTState.max_steps

    def __init__(self) -> None:
        super().__init__()
        self._task = PushTState()
        self._target = np.zeros(2)

    def _reset(self, seed: int) -> None:
        self._task.reset(seed=seed)
        self.hold()

    def hold(self) -> None:
        self._target = self._task.agent_position

    def _follow(self, target: np.ndarray) -> None:
        self._target = target.copy()

    def _advance(self, steps: int) -> None:
        self._task.advance(self._target, steps)

    def _assess(self) -> tuple[float, bool]:
        reward, success, _ = self._task.assess()
        return reward, success

    def joint_state(self) -> JointReading:
        return JointReading(self.joints, self._task.agent_position, self._task.agent_velocity)

    def _stream(self, name: str) -> np.ndarray:
        x, y, angle = self._task.block_pose
        return np.array([x, y, np.cos(angle), np.sin(angle)])

    def _picture(self, camera: str) -> np.ndarray:
        return np.asarray(self._task.simulator.get_obs())

    def mirror(self, position: np.ndarray, streams: dict[str, np.ndarray]) -> None:
        simulator, (x, y, cos, sin) = self._task.simulator, streams["block_state"].tolist()
        simulator.agent.position = tuple(position.tolist())
        # Turning moves a body whose centre of gravity is off its origin, so the angle comes before the position.
        simulator.block.angle = float(np.arctan2(sin, cos))
        simulator.block.position = (x, y)
        # Pictures are drawn where the shapes were last indexed.
        for body in (simulator.agent, simulator.block):
            simulator.space.reindex_shapes_for_body(body)

    def fingerprint(self) -> dict[str, str]:
        return self._task.fingerprint()

    def close(self) -> None:
        self._task.close()
