import numpy as np
import pytest
import torch

from robopolicy.diffusion.noise import randn
from robopolicy.errors import FeatureMismatch, RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec
from robopolicy.inference.chunking import Chunk, ensemble, newest
from robopolicy.inference.runner import PolicyRunner
from robopolicy.nn.normalizer import Normalizer
from robopolicy.policies.base import Policy, PolicyConfig


def spec(control=None, rate=10.0):
    return FeatureSpec(
        (
            Feature("observation.state", (1,)),
            Feature("observation.images.top", (2, 3, 3), "uint8", "image"),
            Feature("action", (2,), kind="action", control=control),
        ),
        rate,
    )


class EchoPolicy(Policy):
    """Row r of a chunk is (newest observed state, r): the state is the step, so actions name request and row."""

    def __init__(self, n_obs_steps=2, horizon=16, n_action_steps=8, first=None, features=None):
        features = features or spec()
        super().__init__(PolicyConfig(n_obs_steps, horizon, n_action_steps), features, Normalizer(()))
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.first = n_obs_steps - 1 if first is None else first
        self.seen = []

    @property
    def first_action(self):
        return self.first

    def loss(self, batch, generator):
        raise NotImplementedError

    def predict(self, observation, generator):
        self.seen.append({k: v.clone() for k, v in observation.items()})
        newest_state = observation["observation.state"][:, -1]
        n, horizon = len(newest_state), self.config.horizon
        rows = torch.arange(horizon, dtype=torch.float32).expand(n, horizon)
        return torch.stack([newest_state.expand(n, horizon), rows], dim=-1)


class NoisyPolicy(EchoPolicy):
    """Stochastic, with a matrix product, so that batching may change rounding."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = torch.nn.Linear(self.config.n_obs_steps, self.config.horizon * 2)

    def predict(self, observation, generator):
        self.seen.append(observation)
        out = self.net(observation["observation.state"][..., 0]).reshape(-1, self.config.horizon, 2)
        return out + randn(out.shape, generator, self.device)


def observe(*steps):
    return {
        "observation.state": np.array(steps, dtype=np.float32)[:, None],
        "observation.images.top": np.zeros((len(steps), 2, 3, 3), dtype=np.uint8),
    }


def trace(runner, steps, hold=None, start=0):
    """(request step, row) executed at each step of one environment."""
    return [tuple(runner.step(observe(t), hold=hold)[0]) for t in range(start, start + steps)]


def test_receding_horizon_executes_rows_first_action_to_first_action_plus_t_a():
    policy = EchoPolicy(n_obs_steps=2, horizon=16, n_action_steps=3)
    executed = trace(PolicyRunner(policy), 7)
    assert executed == [(0, 1), (0, 2), (0, 3), (3, 1), (3, 2), (3, 3), (6, 1)]
    assert len(policy.seen) == 3


def test_history_repeats_the_first_observation_and_then_slides():
    policy = EchoPolicy(n_obs_steps=3, n_action_steps=1)
    trace(PolicyRunner(policy), 4, start=5)
    seen = [s["observation.state"][0, :, 0].tolist() for s in policy.seen]
    assert seen == [[5, 5, 5], [5, 5, 6], [5, 6, 7], [6, 7, 8]]
    assert policy.seen[0]["observation.images.top"].dtype == torch.uint8
    assert policy.seen[0]["observation.images.top"].shape == (1, 3, 2, 3, 3)


def test_latency_holds_first_and_then_skips_the_rows_that_have_passed():
    policy = EchoPolicy(n_obs_steps=1, horizon=6, n_action_steps=4, first=0)
    hold = np.array([[-1.0, -1.0]], dtype=np.float32)
    executed = trace(PolicyRunner(policy, latency_steps=2), 12, hold)
    # Requests at 0, 4, 8 arrive at 2, 6, 10; each executes rows d .. d + T_a - 1 = 2..5.
    assert executed[:2] == [(-1, -1)] * 2
    assert executed[2:10] == [(0, 2), (0, 3), (0, 4), (0, 5), (4, 2), (4, 3), (4, 4), (4, 5)]
    assert executed[10:] == [(8, 2), (8, 3)]


def test_latency_longer_than_the_executed_part_keeps_several_requests_under_way():
    policy = EchoPolicy(n_obs_steps=1, horizon=5, n_action_steps=2, first=0)
    hold = np.zeros((1, 2), dtype=np.float32)
    executed = trace(PolicyRunner(policy, latency_steps=3), 9, hold)
    assert executed[3:] == [(0, 3), (0, 4), (2, 3), (2, 4), (4, 3), (4, 4)]


def test_jitter_is_seeded_stays_within_its_range_and_never_runs_dry():
    def run(seed):
        policy = EchoPolicy(n_obs_steps=1, horizon=8, n_action_steps=4, first=0)
        runner = PolicyRunner(policy, latency_steps=1, latency_jitter_steps=3, seeds=[seed])
        return trace(runner, 400, np.full((1, 2), -1, dtype=np.float32))

    executed = run(3)
    assert executed == run(3)
    assert executed != run(4)
    # Time consistency: the row is always the age of the observation.
    assert all(request + row == t for t, (request, row) in enumerate(executed) if request >= 0)
    arrivals = {t - q for t, (q, _) in enumerate(executed) if q >= 0 and executed[t - 1][0] != q}
    assert arrivals == {1, 2, 3, 4}
    first = next(t for t, (q, _) in enumerate(executed) if q >= 0)
    assert all(q >= 0 for q, _ in executed[first:])


def test_too_little_horizon_for_the_latency_names_the_numbers():
    policy = EchoPolicy(n_obs_steps=2, horizon=16, n_action_steps=8)
    PolicyRunner(policy, latency_steps=7)
    with pytest.raises(
        RobopolicyError, match=r"horizon 16 minus first_action 1 leaves 15 rows.*8 action.*8 latency.*16"
    ):
        PolicyRunner(policy, latency_steps=5, latency_jitter_steps=3)


def test_hold_action_is_required_latched_and_released():
    policy = EchoPolicy(n_obs_steps=1, horizon=4, n_action_steps=2, first=0)
    runner = PolicyRunner(policy, latency_steps=2)
    with pytest.raises(RobopolicyError, match=r"no chunk has arrived .*hold_action"):
        runner.step(observe(0))
    runner.reset()
    held = [runner.step(observe(t), hold=np.full((1, 2), 10.0 + t))[0].tolist() for t in range(3)]
    # The arm sags (hold proposals drift), the command does not.
    assert held == [[10, 10], [10, 10], [0, 2]]


def test_time_in_seconds_skips_the_rows_of_missed_ticks():
    policy = EchoPolicy(n_obs_steps=3, horizon=8, n_action_steps=4, first=0)
    runner = PolicyRunner(policy)
    times = [100.0, 100.1, 100.301, 100.38, 100.99]
    executed = [tuple(runner.step(observe(10 * s), time=[s])[0]) for s in times]
    # Steps 0, 1, 3, 4, 10.
    np.testing.assert_allclose(executed, [(1000, 0), (1000, 1), (1000, 3), (1003.8, 0), (1009.9, 0)])
    # The gap in the history holds the last known observation.
    np.testing.assert_allclose(policy.seen[1]["observation.state"][0, :, 0], [1001, 1003.01, 1003.8])
    np.testing.assert_allclose(policy.seen[2]["observation.state"][0, :, 0], [1003.8, 1003.8, 1009.9])
    with pytest.raises(RobopolicyError, match=r"time went back from step 10 to step 9"):
        runner.step(observe(0), time=100.9)


def test_ensemble_by_hand():
    policy = EchoPolicy(n_obs_steps=1, horizon=3, n_action_steps=3, first=0)
    executed = trace(PolicyRunner(policy, strategy="ensemble", ensemble_decay=0.5), 5)
    w = np.exp(-0.5 * np.arange(3))
    # Step 4: chunks of steps 2, 3, 4 (oldest first) give rows 2, 1, 0.
    expected = [
        (0, 0),
        np.array([(0, 1), (1, 0)]).T @ w[:2] / w[:2].sum(),
        np.array([(0, 2), (1, 1), (2, 0)]).T @ w / w.sum(),
        np.array([(1, 2), (2, 1), (3, 0)]).T @ w / w.sum(),
        np.array([(2, 2), (3, 1), (4, 0)]).T @ w / w.sum(),
    ]
    np.testing.assert_allclose(executed, expected, rtol=1e-6)
    # The reversed order (newest weight 1) is a plausible mistake that this catches.
    assert abs(executed[4][0] - np.array([4, 3, 2]) @ w / w.sum()) > 0.1


def test_ensemble_with_latency_averages_what_has_arrived():
    policy = EchoPolicy(n_obs_steps=1, horizon=3, n_action_steps=3, first=0)
    runner = PolicyRunner(policy, strategy="ensemble", ensemble_decay=0.0, latency_steps=1)
    executed = trace(runner, 4, np.full((1, 2), -1.0))
    np.testing.assert_allclose(executed, [(-1, -1), (0, 1), (0.5, 1.5), (1.5, 1.5)])


def test_chunk_selection_prefers_the_latest_request_that_has_arrived():
    old, late = (Chunk(np.full((8, 1), v), o, a) for v, o, a in ((1.0, 0, 4), (2.0, 2, 3)))
    assert newest([old, late], 2) is None
    assert newest([old, late], 3) == [2.0]
    assert newest([old, late], 5) == [2.0]
    assert ensemble([], 0, 0.1) is None


class RememberingPolicy(EchoPolicy):
    uses_past_actions = True


def test_executed_actions_come_back_newest_last():
    policy = RememberingPolicy(n_obs_steps=4, horizon=6, n_action_steps=2)
    runner = PolicyRunner(policy, 2)
    executed = [runner.step(observe(t, t + 10)) for t in range(7)]
    # Asked at steps 0, 2, 4 and 6.
    assert [s["past.length"].tolist() for s in policy.seen] == [[1, 1], [3, 3], [4, 4], [4, 4]]
    for request, step in ((1, 2), (2, 4), (3, 6)):
        past = policy.seen[request]["past.action"]
        assert past.shape == (2, 3, 2)
        expected = np.stack(executed[max(step - 3, 0) : step], axis=1)
        assert np.array_equal(past[:, 3 - min(step, 3) :].numpy(), expected)
    runner.reset([1])
    runner.step(observe(7, 0))
    runner.step(observe(8, 1))
    assert policy.seen[-2]["past.length"].tolist() == [1]
    assert policy.seen[-2]["past.action"].abs().max() == 0, "nothing is left of the episode before"
    assert policy.seen[-1]["past.length"].tolist() == [4]


def test_held_actions_and_missed_ticks_are_executed_actions():
    policy = RememberingPolicy(n_obs_steps=4, horizon=8, n_action_steps=1)
    runner = PolicyRunner(policy, 1, latency_steps=1)
    hold = np.array([[-5.0, -6.0]], np.float32)
    runner.step(observe(0), time=0.0, hold=hold)
    second = runner.step(observe(1), time=0.1, hold=hold)[0]
    runner.step(observe(4), time=0.4, hold=hold)
    past = policy.seen[-1]["past.action"][0]
    assert policy.seen[-1]["past.length"].tolist() == [4]
    assert past.tolist() == [second.tolist()] * 3, "the action of step 1 goes on through the missed steps 2 and 3"
    assert policy.seen[1]["past.action"][0, -1].tolist() == [-5.0, -6.0]


def test_other_policies_are_not_given_executed_actions():
    policy = EchoPolicy()
    PolicyRunner(policy, 1).step(observe(0))
    assert set(policy.seen[0]) == {"observation.state", "observation.images.top"}


def test_environments_have_their_own_clocks_and_share_one_call():
    policy = EchoPolicy(n_obs_steps=1, horizon=4, n_action_steps=2, first=0)
    runner = PolicyRunner(policy, n_envs=3)
    runner.step(observe(0, 0), [0, 2])
    assert runner.asked == 2
    # Environment 1 starts when 0 and 2 are in the middle of their chunks.
    actions = runner.step(observe(1, 50, 1))
    assert actions.tolist() == [[0, 1], [50, 0], [0, 1]]
    assert runner.asked == 1
    actions = runner.step(observe(2, 51, 2), [2, 1, 0])
    assert actions.tolist() == [[2, 0], [50, 1], [2, 0]]
    assert [len(s["observation.state"]) for s in policy.seen] == [2, 1, 2]
    runner.reset([0])
    assert runner.step(observe(9), [0]).tolist() == [[9, 0]]


@pytest.mark.parametrize("strategy", ["receding", "ensemble"])
def test_an_episode_does_not_depend_on_its_neighbours(strategy):
    def run(seeds, rows):
        policy = NoisyPolicy(horizon=8, n_action_steps=3)
        runner = PolicyRunner(policy, n_envs=len(seeds), strategy=strategy, seeds=seeds)
        return np.stack([runner.step(observe(*(r + 0.1 * t for r in rows))) for t in range(12)], axis=1)

    together = run([7, 8, 9], [0.0, 0.5, 1.0])
    alone = run([8], [0.5])
    np.testing.assert_allclose(together[1], alone[0], atol=1e-4)
    assert np.abs(together[1] - run([5], [0.5])[0]).max() > 0.1

    # With one generator for the whole batch the noise would depend on the neighbours.
    assert np.abs(together[0] - alone[0]).max() > 0.1


def test_reset_with_the_same_seed_repeats_the_noise():
    runner = PolicyRunner(NoisyPolicy(), seeds=[4])
    first = trace(runner, 20)
    runner.reset()
    assert trace(runner, 20) == first
    runner.reset(seeds=[5])
    assert trace(runner, 20) != first


def test_predict_runs_without_autograd():
    class Checked(EchoPolicy):
        def predict(self, observation, generator):
            assert torch.is_inference_mode_enabled()
            assert len(generator) == 1
            return super().predict(observation, generator) + self.anchor

    PolicyRunner(Checked()).step(observe(0))


def test_wrong_observations_are_refused():
    runner = PolicyRunner(EchoPolicy())
    good = observe(0)
    with pytest.raises(FeatureMismatch, match=r"needs 'observation.images.top'.*Did you mean 'observation.image.top'"):
        runner.step({"observation.state": good["observation.state"], "observation.image.top": np.zeros(1)})
    with pytest.raises(FeatureMismatch, match=r"'observation.state' must have shape \[1, 1\] .*got \[1, 2\]"):
        runner.step(good | {"observation.state": np.zeros((1, 2), np.float32)})
    with pytest.raises(FeatureMismatch, match=r"'observation.images.top' must be uint8, got float32"):
        runner.step(good | {"observation.images.top": np.zeros((1, 2, 3, 3), np.float32)})
    with pytest.raises(FeatureMismatch, match=r"hold actions must be \[1, 2\]"):
        runner.step(good, hold=np.zeros(2))
    runner.step(good | {"observation.extra": np.zeros(1)})


def test_wrong_settings_are_refused():
    with pytest.raises(RobopolicyError, match=r"unknown strategy 'receeding'. Did you mean 'receding'"):
        PolicyRunner(EchoPolicy(), strategy="receeding")
    with pytest.raises(RobopolicyError, match=r"n_action_steps 4 has no use"):
        PolicyRunner(EchoPolicy(), strategy="ensemble", n_action_steps=4)
    with pytest.raises(RobopolicyError, match=r"0 action steps"):
        PolicyRunner(EchoPolicy(), n_action_steps=0)
    with pytest.raises(RobopolicyError, match=r"distinct and within 0..1, got \[0, 2\]"):
        PolicyRunner(EchoPolicy(), n_envs=2).step(observe(0, 0), [0, 2])
    with pytest.raises(RobopolicyError, match=r"2 seeds"):
        PolicyRunner(EchoPolicy(), n_envs=2, seeds=[1])
    with pytest.raises(RobopolicyError, match=r"no rate_hz"):
        PolicyRunner(EchoPolicy(features=spec(rate=None))).step(observe(0), time=0.0)
    absolute = Control("end_effector_pose", "absolute", rotation="quat_wxyz")
    with pytest.raises(RobopolicyError, match=r"absolute quat_wxyz"):
        PolicyRunner(EchoPolicy(features=spec(absolute)), strategy="ensemble")


def test_wrong_policies_are_refused():
    class Short(EchoPolicy):
        def predict(self, observation, generator):
            return super().predict(observation, generator)[:, :3]

    class Diverged(EchoPolicy):
        def predict(self, observation, generator):
            return super().predict(observation, generator) * float("nan")

    with pytest.raises(FeatureMismatch, match=r"shape \(1, 3, 2\), expected \(1, 16, 2\)"):
        PolicyRunner(Short()).step(observe(0))
    with pytest.raises(RobopolicyError, match=r"environment 0, step 0: .*NaN"):
        PolicyRunner(Diverged()).step(observe(0))
