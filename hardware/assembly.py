"""Features of a checkpoint that no topic has, computed from features that topics have.

`quadruped` is the observation of `robopolicy.sim.quadruped`: the velocity asked for, what the IMU says, the joints,
and the policy's own previous action, before the first one that of the default posture.
"""

from typing import Any

import numpy as np

from robopolicy.datasets.contract import Assembly
from robopolicy.errors import FeatureMismatch, RobopolicyError
from robopolicy.features import Feature, FeatureSpec


class QuadrupedState:
    """The state of a legged robot as its policy was trained on it, by the function that the training uses."""

    def __init__(self, assembly: Assembly, features: FeatureSpec, trained_on: str = "") -> None:
        """`features` are those of the checkpoint, `trained_on` the robot of its training as far as that is known.

        FeatureMismatch showing both sides when the checkpoint has another observation, or is of another robot.
        """
        from robopolicy.sim.quadruped.observation import NAMES, SEEN
        from robopolicy.sim.quadruped.robots import JOINTS, robot

        self._key = assembly.feature
        self._robot = robot(assembly.robot)
        made = Feature(self._key, (SEEN,), names=NAMES)
        if self._key in features:
            features.select([self._key]).require(FeatureSpec((made,)), "checkpoint", "the contract's assembly")
        else:
            known = ", ".join(f.key for f in features.inputs)
            raise FeatureMismatch(f"the contract assembles {self._key!r}, the checkpoint has {known}")
        if tuple(features.action.names) != JOINTS:
            both = f"checkpoint has {', '.join(features.action.names)}, robot {self._robot.name} {', '.join(JOINTS)}"
            raise FeatureMismatch(f"joints of the previous action: {both}")
        if trained_on and trained_on != self._robot.name:
            raise FeatureMismatch(
                f"the checkpoint was trained on robot {trained_on}, the contract is of robot {self._robot.name}"
            )
        self._inputs = (
            Feature(
                "observation.velocity_command", (3,), "float64", names=("forward", "sideways", "yaw_rate"),
                units=("m/s", "m/s", "rad/s"),
            ),
            Feature("observation.angular_velocity", (3,), "float64", names=("x", "y", "z"), units=("rad/s",) * 3),
            Feature("observation.orientation", (4,), "float64", names=("w", "x", "y", "z")),
            Feature("observation.joint_positions", (12,), "float64", names=JOINTS, units=("rad",) * 12),
            Feature("observation.joint_velocities", (12,), "float64", names=JOINTS, units=("rad/s",) * 12),
        )  # fmt: skip
        kept = [f for f in features if f.key != self._key]
        self.features = FeatureSpec((*self._inputs, *kept), features.rate_hz)
        """What the topics have to give, with the action."""
        self.reset()

    def reset(self) -> None:
        """A new episode: no previous action."""
        self._target = self._robot.posture

    def acted(self, target: np.ndarray) -> None:
        """The joint angles [12] that the policy asked for, in the order of its action."""
        self._target = np.asarray(target, np.float64)

    def __call__(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The observation of the checkpoint for the features of the topics."""
        from robopolicy.sim.quadruped import kinematics
        from robopolicy.sim.quadruped.observation import observation

        command, rate, orientation, joints, velocities = (values[f.key] for f in self._inputs)
        length = float(np.linalg.norm(orientation))
        if not 0.5 < length < 2:
            raise RobopolicyError(
                f"orientation {orientation.tolist()} has length {length:.3g}: does the IMU give one?"
            )
        rotation = kinematics.rotations(orientation[None] / length)
        seen = observation(
            command[None],
            rate[None],
            -rotation[:, 2],
            (joints - self._robot.posture)[None],
            velocities[None],
            ((self._target - self._robot.posture) / self._robot.action_scale)[None],
        )
        others = {k: v for k, v in values.items() if k not in {f.key for f in self._inputs}}
        return others | {self._key: seen[0].astype(np.float32)}


def trained_on(about: dict[str, Any]) -> str:
    """The robot of a checkpoint's training (`about` of `checkpoint.load`); empty when it does not say."""
    found = about["provenance"].get("fingerprint", {})
    return str(found.get("robot", "")) if isinstance(found, dict) else ""
