"""From a policy's actions to joint targets of a robot, in the order of its profile.

Actions that mean joint positions are mapped by name, changes and velocities are added up from the measured joints, and
end-effector poses go through inverse kinematics. What the numbers mean comes from the checkpoint's action feature.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from robopolicy.configs import from_dict
from robopolicy.datasets.contract import Contract
from robopolicy.datasets.messages import parse_selector
from robopolicy.datasets.untrusted import parse_yaml, read_text
from robopolicy.errors import FeatureMismatch, RobopolicyError, did_you_mean
from robopolicy.features import Feature
from robopolicy.hardware.kinematics import ROTATION_SIZES, ArmKinematics, ArmModel, rotation_matrices
from robopolicy.hardware.profiles import RobotProfile

MAX_BYTES = 1 << 16
GRIPPER_SIGNS = {"positive_closes": -1.0, "positive_opens": 1.0}


@dataclass(frozen=True)
class ArmConfig:
    """How end-effector actions reach the joints: an `ArmModel`, and what 1 means in actions that are changes."""

    model: ArmModel
    package: str = ""
    """Python package in whose folder `model.mjcf` is; without it a relative path starts at this file's folder."""
    position_scale: float = 1.0
    """m per unit of delta actions; robosuite's controllers have 0.05."""
    rotation_scale: float = 1.0
    """Radians per unit of delta actions; robosuite's controllers have 0.5."""


def load_arm(path: Path) -> ArmConfig:
    """The arm in a YAML file; RobopolicyError naming file and field for what is unknown or missing."""
    data = parse_yaml(read_text(path, MAX_BYTES), path)
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise RobopolicyError(f"{path}: expected a table with model: {{mjcf, frame, joints}}")
    config: ArmConfig = from_dict(ArmConfig, {str(k): v for k, v in data.items()}, str(path))
    folder = path.parent
    if config.package:
        found = find_spec(config.package) if config.package.isidentifier() else None
        if found is None or found.origin is None:
            raise RobopolicyError(f"{path}: package {config.package!r}, which has the model, is not installed")
        folder = Path(found.origin).parent
    values = {n: getattr(config.model, n) for n in ArmModel.__dataclass_fields__}
    model = ArmModel(**values | {"mjcf": str(folder / config.model.mjcf)})
    return ArmConfig(model, config.package, config.position_scale, config.rotation_scale)


def misplaced(names: tuple[str, ...], fields: tuple[str, ...]) -> tuple[str, ...]:
    """The joints that a contract's selectors take, when the checkpoint has any of them at another place; else none.

    Joints that the checkpoint calls by other names are those at the same place. `names` are the checkpoint's, one for
    each number of the feature; selectors such as `position[a, b]` follow each other.
    """
    selected = [parse_selector(text)[-1].members for text in fields]
    joints = tuple(name for members in selected for name in members)
    start = 0
    if not all(selected):
        return ()
    for members in selected:
        block = names[start : start + len(members)]
        if any(name in block and block.index(name) != i for i, name in enumerate(members)):
            return joints
        start += len(members)
    return ()


@dataclass(frozen=True)
class Targets:
    """Joint targets [k, n] of the rows of a chunk; fewer than it has when a pose could not be reached."""

    joints: np.ndarray
    unreached: int = 0
    """Rows that were left out: the first pose out of reach and all after it."""
    position_error: float = 0.0
    """Largest residual of the rows that are kept, m and radians."""
    angle_error: float = 0.0


class ActionMapper:
    """Turns the chunks of one policy into joint targets of one robot."""

    def __init__(
        self,
        action: Feature,
        profile: RobotProfile,
        rate_hz: float,
        contract: Contract | None = None,
        arm: ArmConfig | None = None,
    ) -> None:
        """FeatureMismatch showing both sides when the robot cannot execute what the policy says."""
        if action.control is None or len(action.shape) != 1:
            raise FeatureMismatch(
                f"the checkpoint does not say what its action {list(action.shape)} means (no control mode)"
            )
        self._control, self._profile, self._period = action.control, profile, 1.0 / rate_hz
        self._size = action.shape[0]
        self._arm: ArmKinematics | None = None
        self.names = profile.names
        """Joints of the targets, all of the robot's."""
        if action.control.target == "end_effector_pose":
            self._configure_arm(action, arm)
        else:
            self._columns = self._joint_columns(action, contract)

    # Joints

    def _joint_columns(self, action: Feature, contract: Contract | None) -> list[int]:
        """Place in the profile of every number of the action."""
        robot = self._profile
        spec = contract.features.get(action.key) if contract is not None else None
        members = [m for text in spec.field for m in parse_selector(text)[-1].members] if spec is not None else []
        if spec is not None and (moved := misplaced(action.names, spec.field)):
            raise FeatureMismatch(
                f"checkpoint has actions {', '.join(action.names)}; the contract has them as {', '.join(moved)}: put "
                "the contract's in the same order"
            )
        names = members or list(action.names)
        theirs = ", ".join(names if len(names) == self._size else action.names)
        both = f"checkpoint has actions {theirs}; robot {robot.name} has joints {', '.join(robot.names)}"
        if names and len(names) == self._size and set(names) <= set(robot.names):
            return [robot.names.index(n) for n in names]
        # What goes to the command topic as it is has the order of the robot's joints, whatever it is called.
        sent_as_is = spec is not None and spec.topic.strip("/") == robot.command.topic.strip("/")
        if members or not (sent_as_is or not names):
            unknown = next((n for n in names if n not in robot.names), None)
            hint = did_you_mean(unknown, robot.names) if unknown else ""
            raise FeatureMismatch(f"{both}.{hint}")
        if self._size != len(robot.names):
            raise FeatureMismatch(f"the action has {self._size} numbers; {both}")
        return list(range(self._size))

    # End effector

    def _configure_arm(self, action: Feature, arm: ArmConfig | None) -> None:
        control, robot = self._control, self._profile
        if arm is None:
            raise FeatureMismatch(
                f"the checkpoint commands end-effector poses, {robot.name} takes joints: set the parameter arm to a "
                "file that says where the arm's model is"
            )
        self._arm, self._scale = ArmKinematics(arm.model), (arm.position_scale, arm.rotation_scale)
        gripper = robot.gripper.joint if robot.gripper else None
        joints = [n for n in robot.names if n != gripper]
        if len(joints) != len(arm.model.joints):
            raise FeatureMismatch(
                f"the model has {len(arm.model.joints)} joints ({', '.join(arm.model.joints)}); "
                f"{robot.name} has {len(joints)} ({', '.join(joints)})"
            )
        self._arm_columns = [robot.names.index(n) for n in joints]
        self._gripper_column = robot.names.index(gripper) if gripper else None
        self._rotation = ROTATION_SIZES.get(control.rotation, 0)
        if control.rotation not in (*ROTATION_SIZES, "none"):
            raise FeatureMismatch(f"rotations as {control.rotation} are not turned into joints")
        if control.mode == "delta" and control.rotation not in ("axis_angle", "none"):
            raise FeatureMismatch(
                f"changes of a pose need axis_angle rotations, the checkpoint has {control.rotation}"
            )
        expected = 3 + self._rotation + (control.gripper != "none")
        if self._size != expected:
            raise FeatureMismatch(
                f"the action has {self._size} numbers {list(action.names)}; a position, {control.rotation} rotation "
                f"and gripper {control.gripper} are {expected}"
            )
        if control.gripper != "none" and (self._gripper_column is None or control.gripper not in GRIPPER_SIGNS):
            raise FeatureMismatch(f"the checkpoint commands a gripper ({control.gripper}), {robot.name} has none")

    def _gripper(self, values: np.ndarray) -> np.ndarray:
        """Positions of the gripper's joint for commands in -1..1; its upper end is open."""
        assert self._gripper_column is not None
        joint = self._profile.joints[self._gripper_column]
        opening = 0.5 * (1.0 + GRIPPER_SIGNS[self._control.gripper] * np.clip(values, -1.0, 1.0))
        return np.asarray(joint.low + opening * (joint.high - joint.low))

    def _poses(self, actions: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions [k, 3] and matrices [k, 3, 3] that the rows ask for; changes add up from the measured pose."""
        assert self._arm is not None
        position, matrix = self._arm.forward(measured[self._arm_columns])
        moves, turns = actions[:, :3], actions[:, 3 : 3 + self._rotation]
        if self._control.mode == "absolute":
            matrices = np.repeat(matrix[None], len(actions), axis=0)
            return moves, rotation_matrices(turns, self._control.rotation) if self._rotation else matrices
        steps = self._scale[0] * moves
        turned = self._control.frame == "tool"
        matrices = np.empty((len(actions), 3, 3))
        positions = np.empty((len(actions), 3))
        each = rotation_matrices(self._scale[1] * turns, "axis_angle") if self._rotation else None
        for row in range(len(actions)):
            position = position + (matrix @ steps[row] if turned else steps[row])
            if each is not None:
                matrix = matrix @ each[row] if turned else each[row] @ matrix
            positions[row], matrices[row] = position, matrix
        return positions, matrices

    # Both

    def targets(self, actions: np.ndarray, measured: np.ndarray) -> Targets:
        """Joint targets for the rows [k, D_a] of a chunk, computed at measured joint positions [n]."""
        actions, measured = np.asarray(actions, np.float64), np.asarray(measured, np.float64)
        joints = np.repeat(measured[None], len(actions), axis=0)
        if self._arm is not None:
            solutions = self._arm.chunk(*self._poses(actions, measured), measured[self._arm_columns])
            kept = next((i for i, s in enumerate(solutions) if not s.reached), len(solutions))
            joints = joints[:kept]
            if kept:
                joints[:, self._arm_columns] = [s.joints for s in solutions[:kept]]
            if self._control.gripper != "none":
                joints[:, self._gripper_column] = self._gripper(actions[:kept, -1])
            errors = [(s.position_error, s.angle_error) for s in solutions[:kept]] or [(0.0, 0.0)]
            return Targets(joints, len(actions) - kept, *map(float, np.max(errors, axis=0)))
        if self._control.target == "velocity":
            joints[:, self._columns] += np.cumsum(actions, axis=0) * self._period
        elif self._control.mode == "delta":
            joints[:, self._columns] += np.cumsum(actions, axis=0)
        else:
            joints[:, self._columns] = actions
        return Targets(joints)

    def hold(self, measured: np.ndarray) -> np.ndarray:
        """The action [D_a] that keeps the robot where it is; a gripper keeps its opening."""
        control, measured = self._control, np.asarray(measured, np.float64)
        if control.mode == "delta" or control.target == "velocity":
            action = np.zeros(self._size)
        elif self._arm is None:
            return np.array(measured[self._columns])
        else:
            action = np.zeros(self._size)
            position, matrix = self._arm.forward(measured[self._arm_columns])
            action[:3] = position
            if self._rotation:
                action[3 : 3 + self._rotation] = _rotation_numbers(matrix, control.rotation)
        if self._arm is not None and control.gripper != "none":
            joint = self._profile.joints[self._gripper_column or 0]
            opening = (measured[self._gripper_column or 0] - joint.low) / (joint.high - joint.low)
            action[-1] = np.clip(GRIPPER_SIGNS[control.gripper] * (2.0 * opening - 1.0), -1.0, 1.0)
        return action


def _rotation_numbers(matrix: np.ndarray, representation: str) -> np.ndarray:
    if representation == "rot6d":
        return np.asarray(matrix[:2].reshape(6))
    from scipy.spatial.transform import Rotation

    rotation = Rotation.from_matrix(matrix)
    return np.asarray(rotation.as_quat()[[3, 0, 1, 2]] if representation == "quat_wxyz" else rotation.as_rotvec())
