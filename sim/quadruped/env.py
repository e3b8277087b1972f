"""N quadrupeds that follow velocity commands under external forces: observations, rewards, resets around the physics.

Everything is a function of the seed and the actions. The numbers of the observation, its scales, the commands and the
time-outs follow the reference locomotion code; where ours differs, the docstring says so.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robopolicy.errors import RobopolicyError
from robopolicy.features import ACTION, Control, Feature, FeatureSpec
from robopolicy.rl.vec import Observations, StepResult
from robopolicy.sim.quadruped import kinematics
from robopolicy.sim.quadruped.batch import Batch
from robopolicy.sim.quadruped.config import QuadrupedConfig
from robopolicy.sim.quadruped.observation import JOINT_VELOCITY, NAMES, RATE, SEEN, VELOCITY, observation
from robopolicy.sim.quadruped.randomise import randomise
from robopolicy.sim.quadruped.rewards import Signals, rewards, task_maximum
from robopolicy.sim.quadruped.robots import CLEARANCE, CONTACT, CONTROL_DT, JOINTS, SUBSTEPS, Robot, compiled, robot
from robopolicy.sim.quadruped.terrain import FIELD, POINTS, SIDE, SPAN, Ground, next_levels

ACTION_LIMIT = 100.0
LOST = 1e4
"""Any coordinate or speed beyond this, like one that is not a number, is failed physics."""
SCAN_X, SCAN_Y = np.linspace(-0.8, 0.8, 17), np.linspace(-0.5, 0.5, 11)
"""m: where the critic sees the ground's height, in the frame of the robot's heading."""


class QuadrupedEnv:
    """The environment; implements `robopolicy.rl.vec.VecEnv`.

    Groups: "policy" [N, 45] is command (2, 2, 0.25), angular velocity (0.25), gravity's direction, joint angles from
    the default posture, joint velocities (0.05) and the previous action, scaled by the numbers in parentheses, with
    noise; "disturber" [N, 48] the same without noise and with the velocity (2) in the base frame; "critic" [N, 48], on
    uneven ground [N, 235] with 17 x 11 heights (5).
    """

    action_dim = 12
    wrench_dim = 3
    device = torch.device("cpu")

    def __init__(self, config: QuadrupedConfig, n_envs: int) -> None:
        """Makes one model for each robot; call `reset` next. Raises RobopolicyError for settings that cannot be."""
        import mujoco

        config.check()
        if n_envs < 1:
            raise RobopolicyError(f"n_envs must be at least 1, got {n_envs}")
        self.config, self.n_envs = config, n_envs
        self.robot = robot(config.robot)
        self.max_force = self.robot.force_limit if config.max_force is None else config.max_force
        self.task_reward_max = task_maximum(config.rewards, CONTROL_DT)
        flat = config.terrain == "flat"
        self.ground = None if flat else Ground(config.terrain, n_envs, config.seed)
        self.model = compiled(self.robot, None if flat else (POINTS, FIELD, SPAN))
        models = [self.model.__copy__() for _ in range(n_envs)]
        rng = np.random.default_rng([config.seed, 0x40B0])
        for model in models:
            randomise(model, config.randomisation, rng)
        self.batch = Batch(models, SUBSTEPS, config.backend, config.threads)
        n = n_envs
        self.features = _features(self.robot)
        self.action_offset = torch.tensor(self.robot.posture, dtype=torch.float32)
        self.action_scale = torch.full((12,), self.robot.action_scale)
        self._posture, self._everyone = self.robot.posture, np.arange(n)
        self._rng = np.random.Generator(np.random.SFC64(0))
        self._clock = np.zeros(n, np.int64)
        self._actions = np.zeros((3, n, 12))
        """The last, the one before, the one before that."""
        self._target = np.tile(self._posture, (n, 1))
        self._command, self._heading = np.zeros((n, 3)), np.zeros(n)
        self._airborne = np.zeros((n, 4))
        """Seconds since each foot last touched the ground."""
        self._start, self._commanded = np.zeros((n, 2)), np.zeros(n)
        noise = config.noise
        widths = [0.0, noise.rate * RATE, noise.gravity, noise.joint, noise.joint_velocity * JOINT_VELOCITY, 0.0]
        self._noise = 2 * np.repeat(widths, [3, 3, 3, 12, 12, 12]).astype(np.float32)
        self._policy = np.zeros((n, SEEN), np.float32)
        self._full = np.zeros((n, SEEN + 3 + (0 if flat else len(SCAN_X) * len(SCAN_Y))), np.float32)
        self._scan = np.stack(np.meshgrid(SCAN_X, SCAN_Y, indexing="ij")).reshape(2, -1)
        self._episode_steps = max(1, round(config.episode_s / CONTROL_DT))
        self._command_steps = max(1, round(config.commands.every_s / CONTROL_DT))
        self._kick_steps = max(1, round(config.randomisation.kick_every_s / CONTROL_DT))
        self._mujoco = mujoco.__version__

    def fingerprint(self) -> dict[str, str]:
        return {
            "robot": self.robot.name,
            "model": _digest(repr(asdict(self.robot))),
            "terrain": self.config.terrain,
            "environment": _digest(repr(asdict(self.config) | {"backend": "", "threads": ""})),
            "copies": str(self.n_envs),
            "mujoco": self._mujoco,
        }

    def observe(self) -> Observations:
        policy, full = torch.from_numpy(self._policy), torch.from_numpy(self._full)
        return {"policy": policy, "critic": full, "disturber": full[:, : SEEN + 3]}

    def reset(self, seed: int) -> Observations:
        self._rng = np.random.Generator(np.random.SFC64(seed))
        if self.ground is not None:
            self.ground.levels[:] = self.config.level or 0
        self._begin(self._everyone)
        if self.config.staggered:
            self._clock[:] = self._rng.integers(0, self._episode_steps, self.n_envs)
        self._look(self._everyone)
        return self.observe()

    def step(self, actions: Tensor, wrenches: Tensor | None = None) -> StepResult:
        batch, config = self.batch, self.config
        moves = actions.detach().numpy().astype(np.float64)
        # The sum is not finite when an element is not, and costs less than looking at each.
        if moves.shape != (self.n_envs, 12) or not np.isfinite(moves.sum()):
            raise RobopolicyError(f"actions are {list(moves.shape)}, expected finite [{self.n_envs}, 12]")
        np.clip(moves, -ACTION_LIMIT, ACTION_LIMIT, out=moves)
        self._actions = np.stack((moves, self._actions[0], self._actions[1]))
        self._apply(moves, wrenches)
        before = batch.present.copy()
        batch.step()
        state = batch.present
        lost = ~(np.abs(state).max(axis=1) < LOST)
        if any_lost := bool(lost.any()):
            batch.place(np.flatnonzero(lost), before[lost])
        self._clock += 1
        rotation = kinematics.rotations(state[:, 4:8])
        reward, task, info = self._pay(state, before, rotation)
        fallen = (batch.sensors[:, :, 0].max(axis=1) > CONTACT) | (rotation[:, 2, 2] < config.min_upright)
        over = self._clock >= self._episode_steps
        if self.ground is not None:
            over |= np.abs(state[:, 1:3]).max(axis=1) > SIDE / 2
        if any_lost:
            reward[lost] = task[lost] = 0
            fallen &= ~lost
            over |= lost
        timeout = over & ~fallen
        self._continue(state)
        self._look(self._everyone)
        ended = np.flatnonzero(fallen | timeout)
        final = {group: value[ended] for group, value in self.observe().items()}
        if len(ended):
            self._climb(ended[~lost[ended]])
            self._begin(ended)
            self._look(ended)
        info |= {"count/falls": float(fallen.sum()), "count/failed_physics": float(lost.sum())}
        return StepResult(
            self.observe(),
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(task.astype(np.float32)),
            torch.from_numpy(fallen),
            torch.from_numpy(timeout),
            final,
            info,
            torch.from_numpy(lost) if any_lost else None,
        )

    @property
    def command(self) -> np.ndarray:
        """The present commands [N, 3]: forward and sideways m/s, yaw rate rad/s."""
        return self._command

    def velocity(self) -> np.ndarray:
        """The trunks' present velocities in the base frame [N, 3], m/s."""
        state = self.batch.present
        return kinematics.into_base(kinematics.rotations(state[:, 4:8]), state[:, 20:23])

    def state(self) -> dict[str, Tensor]:
        arrays = {name: getattr(self, f"_{name}") for name in self._remembered}
        arrays |= {"physics": self.batch.states, "random": _random_state(self._rng)}
        if self.ground is not None:
            arrays["levels"] = self.ground.levels
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        expected = {name: tuple(value.shape) for name, value in self.state().items()}
        found = {name: tuple(value.shape) for name, value in state.items()}
        if found != expected:
            raise RobopolicyError(f"the stored environment has {found}, this one {expected}: not the same environment")
        for name in self._remembered:
            getattr(self, f"_{name}")[...] = state[name].numpy()
        self.batch.states[:] = state["physics"].numpy()
        self._rng = _restored_random(state["random"].numpy())
        if self.ground is not None:
            self.ground.levels[:] = state["levels"].numpy()
            for i in range(self.n_envs):
                self._lay(i)

    _remembered = (
        "clock",
        "actions",
        "target",
        "command",
        "heading",
        "start",
        "commanded",
        "airborne",
        "policy",
        "full",
    )

    def close(self) -> None:
        self.batch.close()

    def _apply(self, moves: np.ndarray, wrenches: Tensor | None) -> None:
        """Targets and forces of the coming control step."""
        batch, late = self.batch, self.config.randomisation.action_delay
        target = self._posture + self.robot.action_scale * moves
        batch.targets[:] = target[:, None]
        if late:
            delay = self._rng.integers(0, late + 1, self.n_envs)
            for k in range(late):
                np.copyto(batch.targets[:, k], self._target, where=(delay > k)[:, None])
        self._target = target
        if wrenches is None:
            batch.forces[:] = 0
            return
        force = wrenches.detach().numpy().astype(np.float64)
        if force.shape != (self.n_envs, 3):
            raise RobopolicyError(f"wrenches are {list(force.shape)}, expected [{self.n_envs}, 3]")
        largest = float(np.sqrt(np.einsum("ni,ni->n", force, force).max()))
        if not largest <= self.max_force * (1 + 1e-5):
            raise RobopolicyError(f"a force of {largest:g} N is above max_force, {self.max_force:g} N")
        batch.forces[:] = kinematics.into_world(kinematics.rotations(batch.present[:, 4:8]), force)[:, None]

    def _pay(
        self, state: np.ndarray, before: np.ndarray, rotation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        joints, speeds, rate = state[:, 8:20], state[:, 26:38], state[:, 23:26]
        velocity = kinematics.into_base(rotation, state[:, 20:23])
        position, motion = kinematics.feet(self.robot, joints, speeds)
        # The trunk's rotation moves the feet sideways as well.
        x_speed = motion[0] + rate[:, 1:2] * position[2] - rate[:, 2:3] * position[1]
        y_speed = motion[1] + rate[:, 2:3] * position[0] - rate[:, 0:1] * position[2]
        touching = self.batch.sensors[:, :, 1:5].max(axis=1) > CONTACT
        landed_after = np.where(touching, self._airborne, 0.0)
        self._airborne = np.where(touching, 0.0, self._airborne + CONTROL_DT)
        signals = Signals(
            command=self._command,
            velocity=velocity,
            rate=rate,
            gravity=-rotation[:, 2],
            height=state[:, 3] - self._below(self._everyone, state),
            target_height=self.robot.target_height,
            joint_velocity=speeds,
            joint_acceleration=(speeds - before[:, 26:38]) * (1 / CONTROL_DT),
            torque=self.batch.sensors[:, -1, 5:17],
            foot_height=position[2],
            foot_speed=np.sqrt(x_speed**2 + y_speed**2),
            nominal_foot_height=self.robot.lifted_foot,
            landed_after=landed_after,
            action=self._actions[0],
            action_before=self._actions[1],
            action_twice_before=self._actions[2],
        )
        reward, task, parts = rewards(signals, self.config.rewards, CONTROL_DT)
        info = {f"reward/{name}": float(part.sum()) / (CONTROL_DT * self.n_envs) for name, part in parts.items()}
        error = np.abs(velocity[:, 0] - self._command[:, 0])
        info["tracking/forward_error"] = float(error.sum()) / self.n_envs
        if self.ground is not None:
            info["terrain/level"] = float(self.ground.levels.mean())
        return reward, task, info

    def _continue(self, state: np.ndarray) -> None:
        """Commands of the next step, and kicks."""
        self._commanded += np.sqrt(np.einsum("ni,ni->n", self._command[:, :2], self._command[:, :2])) * CONTROL_DT
        self._draw_commands(np.flatnonzero(self._clock % self._command_steps == 0))
        kick = self.config.randomisation.kick
        if kick:
            rows = np.flatnonzero(self._clock % self._kick_steps == 0)
            state[rows, 20:22] += self._rng.uniform(-kick, kick, (len(rows), 2))

    def _draw_commands(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        ranges = self.config.commands
        forward, sideways = (self._rng.uniform(*r, len(rows)) for r in (ranges.forward, ranges.sideways))
        moving = np.hypot(forward, sideways) >= ranges.dead_zone
        self._command[rows, 0], self._command[rows, 1] = forward * moving, sideways * moving
        self._heading[rows] = self._rng.uniform(*ranges.heading, len(rows))

    def _climb(self, rows: np.ndarray) -> None:
        """The curriculum, for episodes that ended."""
        if self.ground is None or self.config.level is not None:
            return
        travelled = np.sqrt(((self.batch.present[rows, 1:3] - self._start[rows]) ** 2).sum(axis=1))
        self.ground.levels[rows] = next_levels(self.ground.levels[rows], travelled, self._commanded[rows], self._rng)

    def _lay(self, i: int) -> None:
        """Puts robot i's tile into its model."""
        heights = self.ground.lay(i)  # type: ignore[union-attr]
        self.batch.models[i].hfield_data[:] = (heights.ravel() + SPAN / 2) / SPAN

    def _begin(self, rows: np.ndarray) -> None:
        """Starts new episodes of robots `rows` [K]."""
        k, config, rng = len(rows), self.config, self._rng
        states = np.zeros((k, self.batch.states.shape[2]))
        ranges = self.robot.joint_ranges
        joints = self._posture * rng.uniform(*config.joint_spread, (k, 12))
        states[:, 8:20] = np.clip(joints, ranges[:, 0], ranges[:, 1])
        states[:, 20:26] = rng.uniform(-config.velocity_spread, config.velocity_spread, (k, 6))
        states[:, 4] = 1
        position, _ = kinematics.feet(self.robot, states[:, 8:20], states[:, 26:38])
        lowest = -position[2]
        if self.ground is not None:
            for i in rows.tolist():
                self._lay(i)
            states[:, 1:3] = rng.uniform(-1, 1, (k, 2))
            lowest = lowest + self.ground.under(rows, states[:, 1:2] + position[0], states[:, 2:3] + position[1])
        states[:, 3] = lowest.max(axis=1) + self.robot.foot_radius + CLEARANCE
        self.batch.place(rows, states)
        self._clock[rows], self._commanded[rows], self._airborne[rows] = 0, 0, 0
        self._actions[:, rows], self._target[rows] = 0, self._posture
        self._start[rows] = states[:, 1:3]
        self._draw_commands(rows)

    def _below(self, rows: np.ndarray, state: np.ndarray) -> np.ndarray | float:
        """Height of the ground under the trunk, [K]."""
        if self.ground is None:
            return 0.0
        return self.ground.under(rows, state[:, 1:2], state[:, 2:3])[:, 0]

    def _look(self, rows: np.ndarray) -> None:
        """Fills the observations of robots `rows` [K], and turns headings into yaw rates."""
        whole = len(rows) == self.n_envs
        state = self.batch.present if whole else self.batch.present[rows]
        rotation = kinematics.rotations(state[:, 4:8])
        heading = kinematics.yaw(rotation)
        commands = self.config.commands
        error = np.remainder(self._heading[rows] - heading + np.pi, 2 * np.pi) - np.pi
        self._command[rows, 2] = np.clip(commands.heading_gain * error, -commands.max_yaw_rate, commands.max_yaw_rate)
        seen = clean = self._seen(rows, state, rotation)
        self._full[rows, :SEEN] = clean
        self._full[rows, SEEN : SEEN + 3] = VELOCITY * kinematics.into_base(rotation, state[:, 20:23])
        oldest = self.config.randomisation.observation_delay
        if oldest:
            age = self._rng.integers(0, oldest + 1, len(rows))
            old = self.batch.states[rows, SUBSTEPS - 1 - age]
            seen = self._seen(rows, old, kinematics.rotations(old[:, 4:8]))
        if self._noise.any():
            seen = seen + self._noise * (self._rng.random(seen.shape, np.float32) - np.float32(0.5))
        self._policy[rows] = seen
        if self.ground is not None:
            cosine, sine = np.cos(heading)[:, None], np.sin(heading)[:, None]
            x = state[:, 1:2] + cosine * self._scan[0] - sine * self._scan[1]
            y = state[:, 2:3] + sine * self._scan[0] + cosine * self._scan[1]
            heights = state[:, 3:4] - 0.5 - self.ground.under(rows, x, y)
            self._full[rows, SEEN + 3 :] = 5 * np.clip(heights, -1, 1)

    def _seen(self, rows: np.ndarray, state: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        return observation(
            self._command[rows],
            state[:, 23:26],
            -rotation[:, 2],
            state[:, 8:20] - self._posture,
            state[:, 26:38],
            self._actions[0, rows],
        )


def _features(robot: Robot) -> FeatureSpec:
    low, high = robot.joint_ranges.T.tolist()
    action = Feature(
        ACTION, (12,), kind="action", names=JOINTS, units=("rad",) * 12, low=tuple(low), high=tuple(high),
        control=Control("joint", "absolute"),
    )  # fmt: skip
    return FeatureSpec((Feature("observation.state", (SEEN,), names=NAMES), action), rate_hz=1 / CONTROL_DT)


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _random_state(rng: np.random.Generator) -> np.ndarray:
    state: Any = rng.bit_generator.state
    words = np.array([*state["state"]["state"], state["has_uint32"], state["uinteger"]], np.uint64)
    return words.view(np.int64)


def _restored_random(words: np.ndarray) -> np.random.Generator:
    bits, unsigned = np.random.SFC64(0), words.view(np.uint64)
    state: Any = bits.state
    state["state"]["state"] = unsigned[:4].copy()
    state["has_uint32"], state["uinteger"] = int(unsigned[4]), int(unsigned[5])
    bits.state = state
    return np.random.Generator(bits)
