"""Real-time chunking: what is committed, and that chunks meet where receding horizon jumps from mode to mode."""

import math

import numpy as np
import pytest
import torch

from robopolicy.errors import RobopolicyError
from robopolicy.features import Feature, FeatureSpec
from robopolicy.inference.chunking import prefix_weights
from robopolicy.inference.runner import PolicyRunner
from robopolicy.nn.normalizer import Normalizer
from robopolicy.policies.base import Policy, PolicyConfig
from robopolicy.policies.composed import compose
from robopolicy.policies.diffusion import DiffusionConfig, DiffusionPolicy, SamplerConfig, VPConfig
from robopolicy.policies.flow import FlowConfig, FlowPolicy

SPEC = FeatureSpec((Feature("observation.state", (1,)), Feature("action", (1,), kind="action")), 10)
HOLD = np.zeros((1, 1), np.float32)


def test_weights_by_hand():
    """d = 2, five rows covered, s = 3 new ones: c = 3/4, 2/4, 1/4 and c (e^c - 1) / (e - 1)."""
    c = np.array([3, 2, 1]) / 4
    expected = [1, 1, *(c * (np.exp(c) - 1) / (math.e - 1)), 0, 0, 0]
    np.testing.assert_allclose(prefix_weights(2, 5, 8), expected)
    assert prefix_weights(0, 0, 3).tolist() == [0, 0, 0]
    assert prefix_weights(3, 3, 4).tolist() == [1, 1, 1, 0]
    assert prefix_weights(3, 2, 4).tolist() == [1, 1, 0, 0], "what no chunk covers is not committed"


class Watched(Policy):
    """Row r of chunk n is 100 n + r; it keeps what it was given."""

    def __init__(self, n_obs_steps=2, horizon=10, n_action_steps=4):
        super().__init__(PolicyConfig(n_obs_steps, horizon, n_action_steps), SPEC, Normalizer(()))
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    @property
    def first_action(self):
        return self.config.n_obs_steps - 1

    @property
    def inpaints(self):
        return True

    def loss(self, batch, generator):
        raise NotImplementedError

    def predict(self, observation, generator):
        assert torch.is_inference_mode_enabled() != ("prefix.action" in observation)
        self.seen.append({k: v.numpy().copy() for k, v in observation.items()})
        rows = torch.arange(self.config.horizon).float() + 100 * len(self.seen)
        return rows[None, :, None].repeat(len(observation["observation.state"]), 1, 1)


def _observation(t):
    return {"observation.state": np.array([[t]], np.float32)}


def test_the_prefix_is_what_was_and_will_be_executed():
    policy = Watched()
    runner = PolicyRunner(policy, strategy="realtime", latency_steps=2)
    executed = [float(runner.step(_observation(t), hold=HOLD)[0, 0]) for t in range(9)]
    # Chunk 1 of step 0 arrives at 2 with row first_action + 2; chunk 2 of step 4 at 6; chunk 3 of step 8 at 10.
    assert executed == [0, 0, 103, 104, 105, 106, 203, 204, 205]
    first, second, third = policy.seen
    assert "prefix.action" not in first
    # At step 4 the past row is step 3's action, then rows 5.. of chunk 1 are committed or on their way out.
    assert second["prefix.action"][0, :6, 0].tolist() == [104, 105, 106, 107, 108, 109]
    expected = np.concatenate([[1], prefix_weights(2, 5, 9)])
    np.testing.assert_allclose(second["prefix.weight"][0], expected, rtol=1e-6)
    assert third["prefix.action"][0, :6, 0].tolist() == [204, 205, 206, 207, 208, 209]


def test_each_environment_has_its_own_prefix_and_reset_forgets_it():
    policy = Watched()
    runner = PolicyRunner(policy, 2, strategy="realtime")
    state = {"observation.state": np.zeros((2, 1), np.float32)}
    for _ in range(4):
        runner.step(state)
    runner.reset([1])
    runner.step(state)
    assert policy.seen[-1]["prefix.weight"].any(axis=1).tolist() == [True, False]
    runner.reset()
    runner.step(state)
    assert "prefix.action" not in policy.seen[-1]


def test_delays_and_strides_that_do_not_fit_are_refused():
    for latency, stride in ((5, 4), (3, 7), (1, 9)):
        with pytest.raises(RobopolicyError, match=rf"d <= action steps s .*d = {latency}, s = {stride}, H' = 9"):
            PolicyRunner(Watched(), strategy="realtime", latency_steps=latency, n_action_steps=stride)
    runner = PolicyRunner(Watched(), strategy="realtime", latency_steps=4, n_action_steps=5)
    assert runner.max_latency_steps == 4
    with pytest.raises(RobopolicyError, match=r"d = 5, s = 5"):
        runner.latency_steps = 5
    assert runner.latency_steps == 4
    with pytest.raises(RobopolicyError, match=r"d = 5, s = 4"):
        PolicyRunner(Watched(), strategy="realtime", latency_steps=3, latency_jitter_steps=2)

    class Plain(Watched):
        inpaints = False

    with pytest.raises(RobopolicyError, match=r"'realtime' needs a diffusion or flow policy.*Plain does not"):
        PolicyRunner(Plain(), strategy="realtime")


def test_plan_is_what_would_be_executed_from_now_on():
    runner = PolicyRunner(Watched(), latency_steps=1)
    runner.step(_observation(0), hold=HOLD)
    assert runner.plan()[:, 0].tolist() == [101, 102, 103, 104, 105, 106, 107, 108, 109]
    assert runner.step(_observation(1), hold=HOLD)[0] == runner.plan()[0] == 102
    ensemble = PolicyRunner(Watched(), strategy="ensemble", ensemble_decay=0.0)
    ensemble.step(_observation(0))
    ensemble.step(_observation(1))
    # Chunks 1 and 2 have rows 2.. and 1.. for step 1; the last row is chunk 2's alone.
    np.testing.assert_allclose(ensemble.plan()[:, 0], [*(0.5 * (np.arange(102, 110) + np.arange(201, 209))), 209])


def test_a_robot_that_fell_behind_catches_up_without_asking():
    policy = Watched(n_obs_steps=3)
    runner = PolicyRunner(policy)
    runner.step(_observation(0))
    for t in range(1, 6):
        runner.step(_observation(t), ask=False)
    runner.step(_observation(6))
    assert len(policy.seen) == 2
    assert policy.seen[1]["observation.state"][0, :, 0].tolist() == [4, 5, 6]


class TwoModes(FlowPolicy):
    """Chunks are all +1 or all -1, each half of the time, with a little noise: the exact denoiser, no network."""

    spread = 0.05

    def __init__(self, config):
        normalizer = Normalizer(SPEC.features)
        for feature in SPEC:
            normalizer.fit(feature.key, np.zeros((1, 1)), "identity", feature)
        Policy.__init__(self, config, SPEC, normalizer)
        self.process = config.process.build()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def denoiser(self, observation):
        def denoise(x, sigma):
            variance = self.spread**2 + sigma**2
            mode = torch.tanh((x / variance).sum(dim=(1, 2), keepdim=True))
            return mode + self.spread**2 / variance * (x - mode)

        if getattr(self.process, "clip", None):
            return lambda x, sigma: denoise(x, sigma).clamp(-self.process.clip, self.process.clip)
        return denoise


def _jumps(policy, strategy, seed, latency=3, steps=120):
    runner = PolicyRunner(policy, strategy=strategy, latency_steps=latency, n_action_steps=5, seeds=[seed])
    actions = np.array([runner.step(_observation(t), hold=HOLD)[0, 0] for t in range(steps)])
    return np.abs(np.diff(actions[latency:]))


@pytest.mark.parametrize("name", ["flow", "ddpm", "composed"])
def test_chunks_meet_where_receding_horizon_changes_its_mode(name):
    sizes = {"n_obs_steps": 2, "horizon": 12, "n_action_steps": 5}
    flow = TwoModes(FlowConfig(**sizes, sampler=SamplerConfig("euler", 10)))
    policy = {
        "flow": lambda: flow,
        "ddpm": lambda: TwoModes(DiffusionConfig(**sizes, process=VPConfig(clip=1.2))),
        "composed": lambda: compose([flow, TwoModes(FlowConfig(**sizes))], sampler=SamplerConfig("euler", 10)),
    }[name]()
    receding = np.concatenate([_jumps(policy, "receding", seed) for seed in range(4)])
    realtime = np.concatenate([_jumps(policy, "realtime", seed) for seed in range(4)])
    # About half of the 23 borders of each receding run are jumps of 2. Guidance starts late in a flow of ten steps,
    # where a sample may already lie so deep in one mode that nothing pulls it out.
    assert (receding > 1).sum() > 30
    assert (realtime > 1).sum() <= 3
    assert realtime.mean() < receding.mean() / 4


def test_without_committed_actions_nothing_changes():
    policy = TwoModes(FlowConfig(n_obs_steps=2, horizon=12, n_action_steps=6))
    first = [PolicyRunner(policy, strategy=s, seeds=[3]).step(_observation(0)) for s in ("receding", "realtime")]
    assert np.array_equal(*first)
    # A stride that leaves nothing of the chunk before: the past row alone is known, and it is where it was.
    runs = [PolicyRunner(policy, strategy=s, n_action_steps=11, seeds=[3]) for s in ("receding", "realtime")]
    chunks = [np.array([r.step(_observation(t))[0, 0] for t in range(11)]) for r in runs]
    assert np.array_equal(*chunks)


def test_real_networks_continue_under_gradients_and_leave_none_behind():
    from robopolicy.configs import to_dict
    from robopolicy.policies.diffusion import MLPConfig
    from robopolicy.training.checkpoint import build

    for process, sampling in ((VPConfig(), SamplerConfig("ddpm", 100)), (None, SamplerConfig("euler", 8))):
        sizes = {"n_obs_steps": 2, "horizon": 12, "n_action_steps": 5, "network": MLPConfig(16, 1)}
        config = DiffusionConfig(**sizes, process=process, sampler=sampling) if process else FlowConfig(**sizes)
        policy = build(to_dict(config), SPEC)
        for feature in SPEC:
            policy.normalizer.fit(feature.key, np.zeros((1, 1)), "identity", feature)
        policy.eval()
        runner = PolicyRunner(policy, strategy="realtime", latency_steps=2)
        actions = np.array([runner.step(_observation(t), hold=HOLD) for t in range(30)])
        assert np.isfinite(actions).all()
        assert all(p.grad is None for p in policy.parameters())
        assert isinstance(policy, DiffusionPolicy)
