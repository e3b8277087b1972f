"""What robomimic's tasks on robosuite have in common; `sim/robomimic.py` lists them."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium import spaces

from robopolicy.errors import DataError, RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.sim import robomimic_data
from robopolicy.sim.lift_cube import LiftCube, recorded_size
from robopolicy.sim.rendering import PACKAGES, Quality, Renderer, asked_for, backend
from robopolicy.sim.robosuite_env import (
    RATE_HZ,
    controller_hash,
    default_env_args,
    load_robosuite,
    make_environment,
    matrix_to_rot6d,
    numpy_seed,
    present_env_args,
    rot6d_to_matrix,
)
from robopolicy.sim.robosuite_step import FastStep
from robopolicy.sim.task import Observation, Task

OBJECT, STATES, IMAGES = "observation.object", "simulator.state", "observation.images."
VIDEO_SIZE = 256
VISIBLE = {0: False, 1: True}
"""robosuite keeps collision shapes in group 0 and what is to be seen in group 1."""


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
    base_yaw: tuple[float, ...] = (0.0,)
    """How far each robot's base is turned about the vertical, rad."""
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    """Cameras of the published datasets."""
    image_size: int = 84
    new_model: bool = False
    """Whether robosuite draws shapes anew in each reset, so that the scene is compiled again."""

    @property
    def robots(self) -> int:
        return len(self.base_yaw)

    def object_names(self) -> tuple[str, ...]:
        """One name per number of `observation.object`."""
        return tuple(name if size == 1 else f"{name}_{'xyzw'[i]}" for name, size in self.objects for i in range(size))

    def where(self, name: str) -> slice:
        """The numbers of one part in `observation.object`."""
        start = 0
        for part, size in self.objects:
            if part == name:
                return slice(start, start + size)
            start += size
        raise KeyError(name)

    def first_position(self) -> slice:
        """Where `observation.object` holds the position of the first object in the world."""
        return self.where(next(n for n, _ in self.objects if n.endswith("_pos") and "_to_" not in n))


def features_of(scene: Scene, absolute: bool, images: bool) -> FeatureSpec:
    """What a variant observes and takes: pictures in place of the objects' poses when `images`."""
    names, found = scene.object_names(), []
    if not images:
        found.append(Feature(OBJECT, (len(names),), names=names))
    for i in range(scene.robots):
        arm = f"observation.robot{i}_"
        found += [
            Feature(f"{arm}eef_pos", (3,), units=("m",) * 3),
            Feature(f"{arm}eef_quat", (4,), names=("x", "y", "z", "w")),
            Feature(f"{arm}gripper_qpos", (2,), units=("m",) * 2),
        ]
    if images:
        shape = (scene.image_size, scene.image_size, 3)
        found += [Feature(IMAGES + camera, shape, "uint8", "image") for camera in scene.cameras]
    return FeatureSpec((*found, _action(scene.robots, absolute)), RATE_HZ)


def _action(robots: int, absolute: bool) -> Feature:
    rotation = [f"rot6d_{i}" for i in range(6)] if absolute else ["ax", "ay", "az"]
    arm = ["x", "y", "z", *rotation, "gripper"]
    names = tuple(n if robots == 1 else f"robot{i}_{n}" for i in range(robots) for n in arm)
    high = () if absolute else (1.0,) * len(names)
    low = tuple(-n for n in high)
    if absolute:
        control = Control("end_effector_pose", "absolute", "world", "rot6d", "positive_closes")
    else:
        control = Control("end_effector_pose", "delta", "world", "axis_angle", "positive_closes")
    return Feature("action", (len(names),), kind="action", names=names, low=low, high=high, control=control)


class RobomimicTask(Task):
    """One of robosuite's tasks as robomimic evaluates it: sparse reward, 20 Hz, success ends the episode.

    Reward and score are 1 once the task succeeds and 0 before. `max_steps` of the published protocol is 400 for lift,
    can and square and 700 for transport and tool_hang; for multi-human data it is 500 (transport: 1100), which
    `Lift(max_steps=500)` gives. `env_args` of a robomimic dataset, of robosuite 1.4 or 1.5, makes the environment with
    that dataset's controller settings instead of ours. Variants that observe images draw them with `quality`.

    Pictures for reports and videos are drawn when images are observed or MUJOCO_GL is egl or osmesa, and otherwise
    left out: nothing else needs OpenGL.
    """

    scene: ClassVar[Scene]
    absolute: ClassVar[bool] = False
    images: ClassVar[bool] = False
    score_name = "success"
    usual_envs: ClassVar[int] = 10
    replay_tolerance: ClassVar[dict[str, float]] = {"object_position_m": 0.01}

    def __init_subclass__(cls) -> None:
        suffix = ("-image" if cls.images else "") + ("-abs" if cls.absolute else "")
        cls.name = f"robomimic-{cls.scene.name}{suffix}"
        cls.features = features_of(cls.scene, cls.absolute, cls.images)
        cls.unobserved_features = tuple(
            f for f in features_of(cls.scene, cls.absolute, images=False) if f.key not in cls.features
        )
        cls.max_steps = cls.scene.max_steps

    def __init__(
        self,
        env_args: dict[str, Any] | None = None,
        max_steps: int | None = None,
        quality: Quality = Quality(),  # noqa: B008
    ) -> None:
        self._robosuite = load_robosuite(self.name)
        if max_steps is not None:
            self.max_steps = max_steps
        self._env_args = default_env_args(
            self.scene.env_name, self.scene.robots, self.absolute, self._robosuite.__version__
        )
        if env_args is not None:
            self._env_args = present_env_args(self.name, env_args, self._env_args)
        self.quality = quality
        self._draws = self.images or asked_for() in PACKAGES
        if self.images:
            backend()  # An error about OpenGL is better before the scene is compiled.
        self._renderers: dict[int, Renderer] = {}
        self.env: Any = make_environment(self._robosuite, self._env_args, hard_reset=self.scene.new_model)
        """robosuite's environment."""
        self._cube = LiftCube(self.env) if self.scene.env_name == "Lift" else None
        self._step: FastStep | None = None
        self._site_in_hand = [self._hand_to_site(robot) for robot in self.env.robots]
        limit = np.full(self.features.action.shape, np.inf if self.absolute else 1.0, np.float32)
        self.action_space = spaces.Box(-limit, limit, dtype=np.float32)
        self.observation_space = cast(Any, spaces.Dict({f.key: _space(f) for f in self.features.inputs}))

    def _hand_to_site(self, robot: Any) -> np.ndarray:
        """Rotation [3, 3] of the grip site, which the controller moves, in the hand body, whose pose is observed."""
        data, hand = self.env.sim.data, self.env.sim.model.body_name2id(robot.robot_model.eef_name["right"])
        site = data.site_xmat[robot.eef_site_id["right"]].reshape(3, 3)
        return data.body_xmat[hand].reshape(3, 3).T @ site

    @classmethod
    def of_recording(cls, metadata: dict[str, Any]) -> "RobomimicTask":
        env_args = metadata.get("env_args")
        return cls(env_args=env_args if isinstance(env_args, dict) else None)

    @classmethod
    def recorded(cls, metadata: dict[str, Any]) -> bool:
        env_args = metadata.get("env_args")
        return isinstance(env_args, dict) and env_args.get("env_name") == cls.scene.env_name

    @classmethod
    def version_notes(cls, fingerprint: dict[str, str]) -> list[str]:
        then = fingerprint.get("robosuite")
        try:
            now = version("robosuite")
        except PackageNotFoundError:
            return []
        if then in (None, now):
            return []
        return [
            f"the dataset was recorded with robosuite {then}, task {cls.name!r} runs {now}: "
            "`robopolicy data replay` says how many of its episodes still succeed"
        ]

    @classmethod
    def adapt(cls, arrays: dict[str, np.ndarray], features: FeatureSpec) -> tuple[dict[str, np.ndarray], FeatureSpec]:
        """Recorded arrays [N, ...] with objects as robosuite 1.5 orders them and this variant's actions.

        robosuite 1.4 recorded the same numbers of `observation.object` in another order, and of lift with another
        sign: which one it is follows from the positions. An absolute variant takes delta actions, which its controller
        turned into poses of the recorded `simulator.state`, and absolute ones with three numbers of rotation.
        Errors: DataError for objects that neither order explains.
        """
        return robomimic_data.adapt(cls, arrays, features)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode that robosuite's `reset` gives after `numpy.random.seed(seed)`; 0 <= seed < 2^32."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**32))
        with numpy_seed(seed):
            if self._cube is not None:
                self._cube.draw()
            self.env.reset()
        if self.scene.new_model:
            self._close_renderers()
        self._step = FastStep(self.env) if FastStep.supported(self.env) else None
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
        if self.absolute:
            values = self.controller_action(values)
        raw, reward = self._step(values) if self._step is not None else self.env.step(values)[:2]
        success = self.success
        return self._observe(raw), float(reward), success, False, {"success": success}

    def controller_action(self, action: np.ndarray) -> np.ndarray:
        """What robosuite's controllers take for an absolute action [10 an arm]: position, rotation vector, gripper."""
        from scipy.spatial.transform import Rotation

        arms = np.asarray(action, dtype=np.float64).reshape(self.scene.robots, 10)
        rotation = Rotation.from_matrix(rot6d_to_matrix(arms[:, 3:9])).as_rotvec()
        return np.concatenate([arms[:, :3], rotation, arms[:, 9:]], axis=1).reshape(-1)

    def _observe(self, raw: dict[str, np.ndarray]) -> Observation:
        self._objects = np.asarray(raw["object-state"], dtype=np.float32)
        found = {}
        for feature in self.features.inputs:
            name = feature.key.removeprefix("observation.")
            if feature.kind == "image":
                found[feature.key] = self._picture(feature.key.removeprefix(IMAGES), self.scene.image_size)
            else:
                found[feature.key] = self._objects if name == "object" else np.asarray(raw[name], dtype=np.float32)
        return found

    def unobserved(self) -> Observation:
        return {feature.key: self._objects for feature in self.unobserved_features}

    def _picture(self, camera: str, size: int) -> np.ndarray:
        if size not in self._renderers:
            self._renderers[size] = Renderer(self.env.sim.model._model, size, size, self.quality, VISIBLE)
        return self._renderers[size](self.env.sim.data._data, camera)

    def render(self) -> np.ndarray:
        """The first camera's picture [256, 256, 3] uint8 RGB. Raises NotImplementedError where nothing is drawn."""
        if not self._draws:
            raise NotImplementedError(f"pictures of {self.name} need MUJOCO_GL=egl or MUJOCO_GL=osmesa")
        return self._picture(self.scene.cameras[0], VIDEO_SIZE)

    def simulator_state(self) -> np.ndarray:
        """Time, positions and velocities [1 + nq + nv] float64: a row of `states` in robomimic's files."""
        return np.array(self.env.sim.get_state().flatten())

    def model_xml(self) -> str:
        """The MJCF of this episode's scene: `model_file` in robomimic's files."""
        xml = str(self.env.model.get_xml())
        return xml if self._cube is None else self._cube.write(xml)

    def env_args(self) -> dict[str, Any]:
        """What robomimic's files call `env_args`: enough to make this environment again."""
        return self._env_args

    def restore(self, arrays: dict[str, np.ndarray], attributes: dict[str, Any] | None = None) -> Observation:
        """Starts from the first of recorded simulator states, `simulator.state` [T, n], the arms at rest there.

        `attributes` of a robomimic demonstration hold the size of the cube in their `model_file`.
        Errors: no such array, or one of another simulator model.
        """
        if STATES not in arrays:
            raise RobopolicyError(f"task {self.name!r} cannot restore recorded states: the data has no {STATES!r}")
        self.reset(seed=0)
        state, size = np.asarray(arrays[STATES][0], dtype=np.float64), len(self.simulator_state())
        if state.shape != (size,) or not np.isfinite(state).all():
            raise DataError(f"{STATES!r}: {self.name!r} has {size} finite numbers, the data {list(state.shape)}")
        model_file = (attributes or {}).get("model_file")
        if self._cube is not None and isinstance(model_file, str):
            self._cube.set(recorded_size(model_file))
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

        found = {
            "robosuite": self._robosuite.__version__,
            "mujoco": mujoco.__version__,
            "env": self.scene.env_name,
            "controller": controller_hash(self._env_args),
        }
        return found | ({"rendering": f"{backend()}, {self.quality}"} if self.images else {})

    def _close_renderers(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def close(self) -> None:
        self._close_renderers()
        self.env.close()


def _space(feature: Feature) -> spaces.Box:
    if feature.kind == "image":
        return spaces.Box(0, 255, feature.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, feature.shape, np.float32)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)))
