import multiprocessing
import os
import signal

import pytest
from evaluation_fakes import PointTask
from evaluation_policies import PointPolicy

from robopolicy.evaluation.rollout import evaluate

SEEDS = range(100_000, 100_009)


class KillingPolicy(PointPolicy):
    """Kills a worker process of the evaluation at some of its calls."""

    def __init__(self, kills):
        super().__init__(0.4)
        self.kills = kills
        self.killed = []

    def predict(self, observation, generator):
        if len(self.calls) in self.kills:
            victim = min(multiprocessing.active_children(), key=lambda p: p.name)
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            self.killed.append(victim.name)
        return super().predict(observation, generator)


def run(policy):
    options = {"n_envs": 4, "workers": 2, "record_video": 1, "pictures": 3, "progress": False}
    return evaluate(policy, PointTask, SEEDS, **options)


def test_episodes_of_a_killed_worker_are_run_again_with_the_same_result(caplog):
    undisturbed = run(PointPolicy(0.4))
    assert undisturbed.info.notes == []
    policy = KillingPolicy({1, 4})
    disturbed = run(policy)
    assert policy.killed == ["worker-0", "worker-0"]
    assert disturbed.episodes == undisturbed.episodes
    assert disturbed.pictures == undisturbed.pictures
    first, second = disturbed.info.notes
    assert first == (
        "worker-0 died with exit code -9; episodes under way there were run again from their seeds: 100000, 100002"
    )
    assert second.startswith("worker-0 died with exit code -9")
    assert [r.getMessage() for r in caplog.records] == disturbed.info.notes
    assert [e.seed for e in disturbed.episodes] == list(SEEDS)


class BreakingTask(PointTask):
    """A step beyond 0 kills the process, whichever process it is."""

    def step(self, action):
        if self.x > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def test_an_episode_that_kills_every_worker_ends_the_evaluation():
    with pytest.raises(RuntimeError, match=r"worker-0 died with exit code -9"):
        evaluate(PointPolicy(), BreakingTask, [100_000], workers=1, record_video=0, pictures=0, progress=False)
