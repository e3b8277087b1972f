"""The Task contract: a gymnasium environment that also says what its numbers mean and how it is scored."""

from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium
import numpy as np

from robopolicy.errors import RobopolicyError
from robopolicy.features import Feature, FeatureSpec

Observation = dict[str, np.ndarray]

# Disjoint ranges of episode seeds: data is recorded, hyper-parameters are chosen and results are reported
# on different initial states.
RECORD_SEEDS = 0
TEST_SEEDS = 100_000
VALIDATION_SEEDS = 200_000


class Task(gymnasium.Env[Observation, np.ndarray]):
    """A task with typed features. `reset(seed=s)` fixes the initial state as a function of s alone.

    There is no automatic reset and no time-limit wrapper: the evaluator owns the episode loop and stops at
    `max_steps`. `step` returns info with "success" (bool) of this step, and with "metrics" (name to float) when the
    task has other numbers than its score to report; the largest of an episode counts.
    """

    name: ClassVar[str]
    """Registry name."""
    max_steps: int
    """Control steps in one episode."""
    features: FeatureSpec
    """Keys, shapes and control mode of what `reset` and `step` return and take."""
    score_name: ClassVar[str] = "maximum reward"
    """What `score` measures, for reports."""
    metrics: ClassVar[dict[str, str]] = {}
    """Names in info["metrics"] and what each measures, for reports."""
    goal_source: ClassVar[str] = "observation.state"
    """Observation of which a goal is one value or more, for tasks with an input of kind "goal"."""
    goal_dims: ClassVar[tuple[int, ...] | None] = None
    """Dimensions of the goal's source that it specifies; None for all."""
    usual_envs: ClassVar[int] = 50
    """Environments that an evaluation steps beside each other unless told otherwise; their memory adds up."""
    unobserved_features: ClassVar[tuple[Feature, ...]] = ()
    """What `unobserved` returns."""
    replay_tolerance: ClassVar[dict[str, float]] = {}
    """Names in `state_error` and the largest value at which a replayed episode still counts as reproduced."""

    @property
    def rate_hz(self) -> float:
        """Control rate in Hz."""
        assert self.features.rate_hz is not None
        return self.features.rate_hz

    def score(self, rewards: np.ndarray) -> float:
        """Score of one episode in [0, 1] from its [T] rewards."""
        return float(np.max(rewards, initial=0.0))

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Versions of the simulator and hashes of the assets: equal fingerprints mean comparable numbers."""

    @abstractmethod
    def hold_action(self, observation: Observation) -> np.ndarray:
        """The [D_a] action that keeps the robot where this observation (one time step, no batch axis) sees it."""

    @classmethod
    def adapt(cls, arrays: dict[str, np.ndarray], features: FeatureSpec) -> tuple[dict[str, np.ndarray], FeatureSpec]:
        """Recorded arrays [N, ...] in this task's own keys; a task overrides it to accept other conventions."""
        return arrays, features

    @classmethod
    def mirror(cls, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The mirror image of recorded arrays [N, ...] in this task's keys, for tasks with such a symmetry."""
        raise RobopolicyError(f"task {cls.name!r} has no mirror symmetry to augment data with")

    @classmethod
    def of_recording(cls, metadata: dict[str, Any]) -> "Task":
        """An environment with the settings that a dataset's metadata ask for, such as robomimic's `env_args`."""
        return cls()

    @classmethod
    def recorded(cls, metadata: dict[str, Any]) -> bool:
        """Whether a dataset with this metadata may be of this task: False only for one that is known to be another."""
        return True

    @classmethod
    def version_notes(cls, fingerprint: dict[str, str]) -> list[str]:
        """What to know before training on a dataset with this fingerprint, such as another simulator version."""
        return []

    def restore(self, arrays: dict[str, np.ndarray], attributes: dict[str, Any] | None = None) -> Observation:
        """Starts an episode from the first state of recorded arrays [T, ...] in this task's keys (see `adapt`).

        `attributes` is what the dataset says about the whole episode, such as robomimic's `model_file`.
        Errors: a task that cannot do so, or arrays that do not hold the whole state.
        """
        raise RobopolicyError(f"task {self.name!r} cannot restore recorded states")

    @classmethod
    def state_error(cls, recorded: Observation, reached: Observation) -> dict[str, float]:
        """How far two observations [...] of the same moment are apart, each name ending in its unit."""
        raise RobopolicyError(f"task {cls.name!r} cannot compare recorded states")

    def unobserved(self) -> Observation:
        """What recordings hold of this moment beside the observation, such as poses where only pictures are observed:
        a replay and the variants of the task that observe it need it."""
        return {}

    def simulator_state(self) -> np.ndarray | None:
        """The whole state [n] float64 of the simulator, for recordings; None when the observations hold it."""
        return None

    def model_xml(self) -> str | None:
        """The simulator's description of this episode's scene, for recordings, when it is not always the same."""
        return None

    def env_args(self) -> dict[str, Any] | None:
        """What robomimic needs to make this environment (`env_args` of its datasets); None when it cannot."""
        return None

    def render(self) -> Any:
        """An RGB picture [height, width, 3] uint8 of the scene, for videos; never needs a display."""
        raise NotImplementedError
