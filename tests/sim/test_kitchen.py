"""The kitchen: goals, elements done and metrics, by setting its joints; needs the extra `kitchen`."""

import subprocess
import sys

import numpy as np
import pytest

from robopolicy import registry
from robopolicy.errors import RobopolicyError
from robopolicy.sim.kitchen import GOAL, STATE, Kitchen

# What each element is in the 30 numbers of the state, and when it is done: the published table.
ELEMENTS = {
    "bottom burner": ((11, 12), (-0.88, -0.01)),
    "top burner": ((15, 16), (-0.92, -0.01)),
    "light switch": ((17, 18), (-0.69, -0.05)),
    "slide cabinet": ((19,), (0.37,)),
    "hinge cabinet": ((20, 21), (0.0, 1.45)),
    "microwave": ((22,), (-0.75,)),
    "kettle": (tuple(range(23, 30)), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
STAY = np.zeros(9)


def test_without_the_extra_the_error_names_it() -> None:
    code = (
        "import sys; sys.modules['gymnasium_robotics'] = None\n"
        "from robopolicy.registry import task_class\n"
        "cls = task_class('kitchen'); print(cls.features.action.shape)\n"
        "try: cls()\nexcept Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "(9,)"
    assert "RobopolicyError" in done.stdout
    assert "install robopolicy[kitchen]" in done.stdout


@pytest.fixture
def task():
    pytest.importorskip("gymnasium_robotics")
    kitchen = registry.task_class("kitchen")()
    yield kitchen
    kitchen.close()


def put(task: Kitchen, *names: str) -> None:
    """Moves these elements to where they count as done, at rest."""
    qpos, qvel = task.simulator.data.qpos.copy(), np.zeros(29)
    for name in names:
        where, value = ELEMENTS[name]
        qpos[list(where)] = value
    task.simulator.robot_env.set_state(qpos, qvel)


def test_the_elements_are_the_published_ones(task) -> None:
    assert {k: (tuple(w.tolist()), tuple(v.tolist())) for k, (w, v) in task.elements.items()} == ELEMENTS


def test_goals_are_drawn_from_the_seed_alone(task) -> None:
    other, sets = Kitchen(), set()
    other.reset(seed=77)
    for seed in range(20):
        a, info = task.reset(seed=seed)
        b, _ = other.reset(seed=seed)
        for key in (STATE, GOAL):
            np.testing.assert_array_equal(a[key], b[key])
            assert a[key].dtype == np.float32
        assert (a[STATE].shape, a[GOAL].shape) == ((30,), (2, 30))
        np.testing.assert_array_equal(a[GOAL][0], a[GOAL][1])
        assert len(task.asked) == 4
        assert task.done_in(a[GOAL][1]) == task.asked
        assert info["metrics"] == {"reward": 0.0, "result": 0.0}
        assert task.done_in(a[STATE]) == set(), "nothing is done at the start"
        # Elements that are not asked for stay as they begin.
        for name in set(ELEMENTS) - task.asked:
            where = list(ELEMENTS[name][0])
            np.testing.assert_allclose(a[GOAL][0, where], a[STATE][where], atol=2e-3)
        sets.add(task.asked)
    assert len(sets) > 8
    assert set().union(*sets) == set(ELEMENTS)


def test_equal_seeds_and_actions_give_equal_episodes(task) -> None:
    def states(kitchen: Kitchen) -> np.ndarray:
        kitchen.reset(seed=3)
        actions = np.random.default_rng(0).uniform(-1, 1, (15, 9))
        return np.array([kitchen.step(a)[0][STATE] for a in actions])

    first = states(task)
    task.reset(seed=4)
    task.step(STAY)
    np.testing.assert_array_equal(states(task), first)
    np.testing.assert_array_equal(states(Kitchen()), first)
    assert np.abs(first[-1, :7] - first[0, :7]).max() > 0.05, "the arm moves"


def test_metrics_by_hand(task) -> None:
    task.reset(seed=0)
    goal = task.goal_of(frozenset({"microwave", "slide cabinet"}))
    _, info = task.reset(seed=0, options={"goal": goal})
    assert task.asked == {"microwave", "slide cabinet"}
    assert info["success"] is False
    put(task, "microwave", "hinge cabinet")
    _, reward, over, _, info = task.step(STAY)
    assert reward == 0.5
    assert info["metrics"] == {"reward": 2.0, "result": 1.0}
    # Once done, done: also after the door was shut again.
    task.simulator.robot_env.set_state(np.array(task.simulator.robot_env.init_qpos), np.zeros(29))
    _, reward, over, _, info = task.step(STAY)
    assert (reward, info["metrics"]["reward"], info["success"], over) == (0.5, 2.0, False, False)
    put(task, "slide cabinet")
    _, reward, over, _, info = task.step(STAY)
    assert (reward, info["metrics"]["result"], info["success"], over) == (1.0, 2.0, True, False)
    put(task, *ELEMENTS)
    _, reward, over, _, info = task.step(STAY)
    assert (reward, info["metrics"]["reward"], over) == (1.0, 7.0, True)
    assert task.score(np.array([0.0, 0.5, 1.0])) == 1.0


def test_bad_goals_and_actions_are_refused(task) -> None:
    with pytest.raises(RobopolicyError, match=r"finite numbers \[2, 30\], found shape \[30\]"):
        task.reset(seed=0, options={"goal": np.zeros(30)})
    task.reset(seed=0)
    with pytest.raises(RobopolicyError, match="asks for nothing"):
        task.reset(seed=0, options={"goal": task.goal_of(frozenset())})
    with pytest.raises(RobopolicyError, match="kitchen action: expected 9 finite numbers"):
        task.step(np.full(9, np.inf))


def test_zero_velocity_holds_the_arm_but_for_its_weight(task) -> None:
    def travel(action: np.ndarray) -> float:
        task.reset(seed=0)
        before = task.simulator.data.qpos[:7].copy()
        for _ in range(10):
            task.step(action)
        return float(np.abs(task.simulator.data.qpos[:7] - before).max())

    # In 0.8 s: the simulator's set-point starts from where the joint was seen, so an arm under its weight creeps.
    held = task.hold_action(task.reset(seed=0)[0])
    assert travel(held) < 0.2
    assert travel(np.full(9, 0.5)) > 0.4
