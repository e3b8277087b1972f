"""The tasks of robomimic on robosuite: lift, can, square, transport, tool_hang (Mandlekar et al. 2021).

Observations have robomimic's names, as `datasets/robomimic_hdf5.py` reads them:

observation.object               pose of the task's objects and their position relative to the grippers
observation.robot<i>_eef_pos     position of the grip site in the world, m
observation.robot<i>_eef_quat    orientation of the hand body in robosuite's order xyzw
observation.robot<i>_gripper_qpos  positions of the two finger joints, m

A name without suffix takes the published datasets' own actions, 7 numbers an arm: changes of position and of
orientation (axis-angle, world frame) as shares of 0.05 m and 0.5 rad, and the gripper (-1 opens, +1 closes). With the
suffix `-abs` they are Diffusion Policy's 10: position in the world, the first two rows of the rotation matrix of the
grip site, and the gripper.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium import spaces

from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.sim.robosuite_env import (
    RATE_HZ,
    controller_hash,
    default_env_args,
    load_robosuite,
    make_environment,
    matrix_to_rot6d,
    numpy_seed,
    rot6d_to_matrix,
)
from robopolicy.sim.task import Observation, Task

OBJECT, STATES = "observation.object", "simulator.state"


@dataclass(frozen=True)
class Scene:
    """What tells one robosuite environment from another."""

    name: str
    env_name: str
    """robosuite's name."""
    objects: tuple[tuple[str, int], ...]
    """Parts of `observation.object`: robosuite's name and size. Poses end in _pos [3] and _quat [4], in xyzw."""
    max_steps: int
    """Control steps of an evaluation in the published protocol for proficient-human data."""
    robots: int = 1

    def object_names(self) -> tuple[str, ...]:
        """One name per number of `observation.object`."""
        return tuple(name if size == 1 else f"{name}_{'xyzw'[i]}" for name, size in self.objects for i in range(size))

    def first_position(self) -> slice:
        """Where `observation.object` holds the position of the first object in the world."""
        start = 0
        for name, size in self.objects:
            if name.endswith("_pos") and "_to_" not in name:
                break
            start += size
        return slice(start, start + 3)


def _relative_and_world(*objects: str) -> tuple[tuple[str, int], ...]:
    """Poses in the hand, of one robosuite update before, and in the world."""
    return tuple(
        (f"{name}_{what}", size)
        for name in objects
        for what, size in (("to_robot0_eef_pos", 3), ("to_robot0_eef_quat", 4), ("pos", 3), ("quat", 4))
    )


def _features(scene: Scene, absolute: bool) -> FeatureSpec:
    names = scene.object_names()
    found = [Feature(OBJECT, (len(names),), names=names)]
    for i in range(scene.robots):
        arm = f"observation.robot{i}_"
        found += [
            Feature(f"{arm}eef_pos", (3,), units=("m",) * 3),
            Feature(f"{arm}eef_quat", (4,), names=("x", "y", "z", "w")),
            Feature(f"{arm}gripper_qpos", (2,), units=("m",) * 2),
        ]
    return FeatureSpec((*found, _action(scene.robots, absolute)), RATE_HZ)


def _action(robots: int, absolute: bool) -> Feature:
    rotation = [f"rot6d_{i}" for i in range(6)] if absolute else ["ax", "ay", "az"]
    names = [
        n if robots == 1 else f"robot{i}_{n}" for i in range(robots) for n in ["x", "y", "z", *rotation, "gripper"]
    ]
    size = len(names)
    limit = () if absolute else (1.0,) * size
    mode, kind = ("absolute", "rot6d") if absolute else ("delta", "axis_angle")
    control = Control("end_effector_pose", cast(Any, mode), "world", kind, "positive_closes")
    low = tuple(-n for n in limit)
    return Feature("action", (size,), kind="action", names=tuple(names), low=low, high=limit, control=control)


class RobomimicTask(Task):
    """One of robosuite's tasks as robomimic evaluates it: sparse reward, 20 Hz, success ends the episode.

    Reward and score are 1 once the task succeeds and 0 before. `max_steps` of the published protocol is 400 for lift,
    can and square and 700 for transport and tool_hang; for multi-human data it is 500 (transport: 1100), which
    `LiftTask(max_steps=500)` gives.
    """

    scene: ClassVar[Scene]
    absolute: ClassVar[bool] = False
    score_name = "success"
    replay_tolerance: ClassVar[dict[str, float]] = {"object_position_m": 0.01}

    def __init_subclass__(cls) -> None:
        cls.name = f"robomimic-{cls.scene.name}" + ("-abs" if cls.absolute else "")
        cls.features = _features(cls.scene, cls.absolute)
        cls.max_steps = cls.scene.max_steps

    def __init__(self, max_steps: int | None = None) -> None:
        self._robosuite = load_robosuite(self.name)
        if max_steps is not None:
            self.max_steps = max_steps
        self._env_args = default_env_args(
            self.scene.env_name, self.scene.robots, self.absolute, self._robosuite.__version__
        )
        self.env: Any = make_environment(self._robosuite, self._env_args)
        """robosuite's environment."""
        action = self.features.action
        high = np.full(action.shape, np.inf if self.absolute else 1.0, np.float32)
        self.action_space = spaces.Box(-high, high, dtype=np.float32)
        self.observation_space = cast(
            Any, spaces.Dict({f.key: spaces.Box(-np.inf, np.inf, f.shape, np.float32) for f in self.features.inputs})
        )
        self._site_in_hand = [self._hand_to_site(robot) for robot in self.env.robots]

    def _hand_to_site(self, robot: Any) -> np.ndarray:
        """Rotation [3, 3] of the grip site, which the controller moves, in the hand body, whose pose is observed."""
        data, hand = self.env.sim.data, self.env.sim.model.body_name2id(robot.robot_model.eef_name["right"])
        site = data.site_xmat[robot.eef_site_id["right"]].reshape(3, 3)
        return data.body_xmat[hand].reshape(3, 3).T @ site

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode that robosuite's `reset` gives after `numpy.random.seed(seed)`; 0 <= seed < 2^32."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**32))
        with numpy_seed(seed):
            self.env.reset()
        return self._observe(self._fresh()), {"success": self.success}

    def _fresh(self) -> dict[str, np.ndarray]:
        """robosuite's observations of this moment, as its `reset` leaves them but with relative poses.

        It computes poses relative to the hand from the object's pose of one update before, which after a reset is
        none: then it says 0, while the observations in datasets, computed from recorded states, have a value.
        """
        self.env._get_observations(force_update=True)
        # The moment within a control step at which robosuite samples depends on the updates since this.
        for observable in self.env._observables.values():
            observable.reset()
        return self.env._get_observations(force_update=True)

    @property
    def success(self) -> bool:
        """Whether the task is done at this moment."""
        return bool(self.env._check_success())

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the arms for 0.05 s. Errors: a misshapen or non-finite action."""
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self.features.action.shape or not np.isfinite(values).all():
            size = self.features.action.shape[0]
            raise RobopolicyError(f"task {self.name!r}: expected an action of {size} finite numbers, found {action!r}")
        raw, reward, _, _ = self.env.step(self.controller_action(values) if self.absolute else values)
        success = self.success
        return self._observe(raw), float(reward), success, False, {"success": success}

    def controller_action(self, action: np.ndarray) -> np.ndarray:
        """What robosuite's controllers take for an absolute action [10 an arm]: position, rotation vector, gripper."""
        from scipy.spatial.transform import Rotation

        arms = action.reshape(self.scene.robots, 10)
        rotation = Rotation.from_matrix(rot6d_to_matrix(arms[:, 3:9])).as_rotvec()
        return np.concatenate([arms[:, :3], rotation, arms[:, 9:]], axis=1).reshape(-1)

    def _observe(self, raw: dict[str, np.ndarray]) -> Observation:
        found = {}
        for feature in self.features.inputs:
            name = feature.key.removeprefix("observation.")
            found[feature.key] = np.asarray(raw["object-state" if name == "object" else name], dtype=np.float32)
        return found

    def simulator_state(self) -> np.ndarray:
        """Time, positions and velocities [1 + nq + nv] float64: a row of `states` in robomimic's files."""
        return np.array(self.env.sim.get_state().flatten())

    def model_xml(self) -> str:
        """The MJCF of this episode's scene: `model_file` in robomimic's files."""
        return str(self.env.model.get_xml())

    def env_args(self) -> dict[str, Any]:
        """What robomimic's files call `env_args`: enough to make this environment again."""
        return self._env_args

    def restore(self, arrays: dict[str, np.ndarray]) -> Observation:
        """Starts from the first of recorded simulator states, `simulator.state` [T, n], the arms at rest there.

        Errors: no such array, or one of another simulator model.
        """
        if STATES not in arrays:
            raise RobopolicyError(f"task {self.name!r} cannot restore recorded states: the data has no {STATES!r}")
        self.reset(seed=0)
        state, size = np.asarray(arrays[STATES][0], dtype=np.float64), len(self.simulator_state())
        if state.shape != (size,) or not np.isfinite(state).all():
            raise DataError(f"{STATES!r}: {self.name!r} has {size} finite numbers, the data {list(state.shape)}")
        sim = self.env.sim
        sim.set_state_from_flattened(state)
        sim.forward()
        for robot in self.env.robots:
            controller = robot.part_controllers["right"]
            # A recorded episode held the posture in which it began.
            controller.update_initial_joints(sim.data.qpos[controller.qpos_index])
        return self._observe(self._fresh())

    @classmethod
    def state_error(cls, recorded: Observation, reached: Observation) -> dict[str, float]:
        """Distance in m of the first object, and of the grippers the larger one."""
        grippers, where = [k for k in recorded if k.endswith("_eef_pos")], cls.scene.first_position()
        return {
            "object_position_m": _distance(recorded[OBJECT][where], reached[OBJECT][where]),
            "gripper_position_m": max(_distance(recorded[k], reached[k]) for k in grippers),
        }

    def hold_action(self, observation: Observation) -> np.ndarray:
        """No motion (delta) or the observed pose (absolute); 0 for the gripper leaves its fingers where they are."""
        from scipy.spatial.transform import Rotation

        if not self.absolute:
            return np.zeros(self.features.action.shape, np.float32)
        arms = []
        for i, site in enumerate(self._site_in_hand):
            # scipy's quaternions are xyzw too.
            hand = Rotation.from_quat(observation[f"observation.robot{i}_eef_quat"]).as_matrix()
            position = observation[f"observation.robot{i}_eef_pos"]
            arms.append(np.concatenate([position, matrix_to_rot6d(hand @ site), [0.0]]))
        return np.concatenate(arms).astype(np.float32)

    def fingerprint(self) -> dict[str, str]:
        import mujoco

        return {
            "robosuite": self._robosuite.__version__,
            "mujoco": mujoco.__version__,
            "env": self.scene.env_name,
            "controller": controller_hash(self._env_args),
        }

    def close(self) -> None:
        self.env.close()


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)))


class Lift(RobomimicTask):
    """Lift a cube of 4 cm by 4 cm off the table."""

    scene = Scene("lift", "Lift", (("cube_pos", 3), ("cube_quat", 4), ("gripper_to_cube_pos", 3)), 400)


class Can(RobomimicTask):
    """Move a can from one bin into its compartment of the other."""

    scene = Scene("can", "PickPlaceCan", _relative_and_world("Can"), 400)


class Square(RobomimicTask):
    """Put a square nut onto its peg."""

    scene = Scene("square", "NutAssemblySquare", _relative_and_world("SquareNut"), 400)


class Transport(RobomimicTask):
    """Two arms: one takes a hammer out of a covered bin and hands it over, the other clears a bin for it."""

    scene = Scene(
        "transport",
        "TwoArmTransport",
        (
            *(("payload_pos", 3), ("payload_quat", 4), ("trash_pos", 3), ("trash_quat", 4)),
            *(("lid_handle_pos", 3), ("lid_handle_quat", 4), ("target_bin_pos", 3), ("trash_bin_pos", 3)),
            *(("payload_in_target_bin", 1), ("trash_in_trash_bin", 1)),
            *(("gripper0_to_payload", 3), ("gripper0_to_lid_handle", 3)),
            *(("gripper1_to_payload", 3), ("gripper1_to_trash", 3)),
        ),
        700,
        robots=2,
    )


class ToolHang(RobomimicTask):
    """Assemble a frame from a base and a hook, then hang a tool on it."""

    scene = Scene(
        "tool_hang",
        "ToolHang",
        (*_relative_and_world("base", "frame", "tool"), ("frame_is_assembled", 1), ("tool_on_frame", 1)),
        700,
    )


class LiftAbs(Lift):
    """Lift with absolute actions."""

    absolute = True


class CanAbs(Can):
    """Can with absolute actions."""

    absolute = True


class SquareAbs(Square):
    """Square with absolute actions."""

    absolute = True


class TransportAbs(Transport):
    """Transport with absolute actions."""

    absolute = True


class ToolHangAbs(ToolHang):
    """Tool hang with absolute actions."""

    absolute = True
