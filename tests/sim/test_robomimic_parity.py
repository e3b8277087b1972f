"""The tasks against robomimic's own wrapper of robosuite, which the published numbers come from."""

import sys
import types

import numpy as np
import pytest

pytest.importorskip("robosuite")
pytest.importorskip("robomimic")

from robopolicy.sim.robomimic import Can, CanAbs, Lift, Square, ToolHang, Transport, TransportAbs
from robopolicy.sim.robomimic_task import OBJECT

STEPS = 100


@pytest.fixture
def reference(monkeypatch):
    """Makes robomimic's environment of `env_args`."""
    # robomimic 0.3 imports a package that no longer installs, for one exception class.
    shim = types.ModuleType("mujoco_py")
    shim.builder = types.SimpleNamespace(MujocoException=RuntimeError)
    monkeypatch.setitem(sys.modules, "mujoco_py", shim)
    from robomimic.utils import env_utils, obs_utils

    obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": ["object"], "rgb": []}}])
    return lambda env_args: env_utils.create_env_from_metadata(env_meta=env_args, render=False)


def actions_for(task, seed):
    """[STEPS, D_a] that move far and work the grippers: random walks of deltas, or the poses that they lead to."""
    random = np.random.default_rng(seed)
    robots = task.scene.robots
    deltas = np.clip(np.cumsum(random.normal(0, 0.2, (STEPS, robots, 7)), axis=0), -1, 1)
    if not task.absolute:
        return deltas.reshape(STEPS, -1)
    start = task.hold_action(task.reset(seed=seed)[0]).astype(np.float64).reshape(robots, 10)
    poses = np.repeat(start[None], STEPS, axis=0)
    poses[..., :3] += 0.1 * deltas[..., :3]
    poses[..., 3:9] += 0.2 * deltas[..., :6]
    poses[..., 9] = deltas[..., 6]
    return poses.reshape(STEPS, -1)


@pytest.mark.parametrize("cls", [Lift, Can, Square, ToolHang, Transport, CanAbs, TransportAbs])
def test_observations_rewards_and_success_are_robomimics(cls, reference):
    task = cls()
    theirs = reference(task.env_args())
    for seed in (3, 4):
        actions = actions_for(task, seed)
        ours, _ = task.reset(seed=seed)
        np.random.seed(seed)  # noqa: NPY002
        expected = theirs.reset()
        np.testing.assert_array_equal(task.simulator_state(), theirs.get_state()["states"])
        for key, value in ours.items():
            if key != OBJECT:
                np.testing.assert_allclose(value, expected[key.removeprefix("observation.")], atol=1e-6)
        largest = 0.0
        for action in actions:
            ours, reward, _, _, info = task.step(action)
            expected, their_reward, _, _ = theirs.step(task.controller_action(action) if cls.absolute else action)
            for key, value in ours.items():
                largest = max(largest, np.abs(value - expected[key.removeprefix("observation.")]).max())
            assert reward == their_reward
            assert info["success"] == theirs.is_success()["task"]
        assert largest <= 1e-6
        np.testing.assert_array_equal(task.simulator_state(), theirs.get_state()["states"])
    task.close()
