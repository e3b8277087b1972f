"""BC-RNN-GMM: mixtures, sequences, forgetting, and equality with robomimic's own networks."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributions
from toys import SPEC, train

from robopolicy.configs import to_dict
from robopolicy.errors import RobopolicyError
from robopolicy.features import Feature, FeatureSpec
from robopolicy.inference.runner import PolicyRunner
from robopolicy.policies.bc_rnn import BCRNNConfig, BCRNNPolicy, Mixture, SequenceNetwork
from robopolicy.training import checkpoint
from robopolicy.training.checkpoint import build
from robopolicy.training.data import window_shape

TINY = BCRNNConfig(n_obs_steps=4, horizon=4, hidden=16)


def make(config: BCRNNConfig = TINY, spec: FeatureSpec = SPEC, **changes: Any) -> BCRNNPolicy:
    """An untrained policy with identity scaling, and weights large enough for every input to show."""
    torch.manual_seed(0)
    policy = build(to_dict(replace(config, **changes)), spec)
    for feature in spec:
        policy.normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "identity", feature)
    for parameter in policy.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy.eval()  # type: ignore[return-value]


def random_mixture(*shape: int) -> Mixture:
    """[*shape, 5 modes, 7 dimensions]"""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(*shape, 5, 7, generator=generator)
    std = torch.rand(*shape, 5, 7, generator=generator) + 0.1
    return Mixture(mean, std, torch.randn(*shape, 5, generator=generator))


def of_torch(mixture: Mixture) -> distributions.Distribution:
    """As robomimic builds it."""
    normal = distributions.Independent(distributions.Normal(mixture.mean, mixture.std), 1)
    return distributions.MixtureSameFamily(distributions.Categorical(logits=mixture.logits), normal)


def test_published_sizes() -> None:
    # Counted by robomimic 0.3.0 with its published settings; 19 and 23 are the numbers in Lift's and Can's states.
    def size(states: int, **changes: Any) -> int:
        network = SequenceNetwork(replace(BCRNNConfig(), **changes), states, 7)
        return sum(p.numel() for p in network.parameters())

    assert size(19) == 1_986_875
    assert size(23) == 1_993_275
    assert size(19, cell="none", mlp=(1024, 1024), head="deterministic") == 1_077_255


def test_density_by_hand() -> None:
    # Two modes at -1 and 1 with shares 1/4 and 3/4 and deviations 1 and 2, at 0.
    mixture = Mixture(
        torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [2.0]]), torch.tensor([0.25, 0.75]).log() + 3
    )
    first = math.exp(-1 / 2) / math.sqrt(2 * math.pi)
    second = math.exp(-1 / 8) / math.sqrt(2 * math.pi) / 2
    assert mixture.log_prob(torch.zeros(1)).item() == pytest.approx(math.log(0.25 * first + 0.75 * second), abs=1e-6)


def test_density_is_that_of_torch() -> None:
    mixture = random_mixture(3, 6)
    actions = torch.randn(3, 6, 7)
    expected = of_torch(mixture).log_prob(actions)
    assert expected.shape == (3, 6)
    torch.testing.assert_close(mixture.log_prob(actions), expected)


def test_samples_have_the_shares_and_the_spread_of_the_modes() -> None:
    mean, std = torch.tensor([[-1.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.1, 0.2], [0.3, 0.05]])
    mixture = Mixture(*(v.expand(20_000, *v.shape) for v in (mean, std, torch.tensor([0.3, 0.7]).log())))
    samples = mixture.sample(torch.Generator().manual_seed(0))
    second = samples[:, 0] > 0.5
    assert second.float().mean().item() == pytest.approx(0.7, abs=0.015)
    for mode, chosen in enumerate((~second, second)):
        torch.testing.assert_close(samples[chosen].mean(0), mean[mode], atol=0.01, rtol=0)
        torch.testing.assert_close(samples[chosen].std(0), std[mode], atol=0.01, rtol=0)


@pytest.mark.parametrize("mask", [False, True])
def test_loss_is_the_likelihood_of_every_step_of_the_sequence(mask: bool) -> None:
    policy = make(mask_padding=mask)
    batch = {
        "observation.state": torch.randn(5, 4, 2),
        "action": torch.rand(5, 4, 2) * 2 - 1,
        "action_is_pad": torch.tensor([[False, False, True, True]]).repeat(5, 1),
    }
    loss, _ = policy.loss(batch, torch.Generator())
    each = of_torch(policy.network(batch["observation.state"])).log_prob(batch["action"])
    torch.testing.assert_close(loss, -(each[:, :2] if mask else each).mean())


def stepwise(policy: BCRNNPolicy, states: list[torch.Tensor], every: int) -> list[torch.Tensor]:
    """robomimic's evaluation: the recurrent state is carried from step to step and forgotten after `every`."""
    actions, memory = [], None
    for step, state in enumerate(states):
        if step % every == 0:
            memory = None
        known, memory = policy.network.recurrent(state[None, None], memory)
        actions.append(policy.network.mixture(known).mean[0, 0, 0])
    return actions


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_actions_are_those_of_a_carried_recurrent_state(cell: str) -> None:
    policy = make(cell=cell, head="deterministic", n_obs_steps=5, horizon=5)
    states = torch.randn(3, 17, 2)
    runner = PolicyRunner(policy, 3)
    executed: list[list[np.ndarray]] = [[], [], []]
    for step in range(17):
        # The third episode begins later, the first starts again in between: every environment has its own clock.
        if step == 7:
            runner.reset([0])
        ids = [0, 1] if step < 3 else [0, 1, 2]
        actions = runner.step({"observation.state": states[ids, step].numpy()}, env_ids=ids)
        for row, i in enumerate(ids):
            executed[i].append(actions[row])
    with torch.inference_mode():
        expected = [
            stepwise(policy, list(states[0, :7]), 5) + stepwise(policy, list(states[0, 7:]), 5),
            stepwise(policy, list(states[1]), 5),
            stepwise(policy, list(states[2, 3:]), 5),
        ]
    for ours, theirs in zip(executed, expected, strict=True):
        np.testing.assert_allclose(np.stack(ours), torch.stack(theirs).numpy(), atol=1e-6)


def test_an_episode_does_not_depend_on_the_others() -> None:
    policy = make(low_noise=False)
    observation = {"observation.state": torch.randn(3, 4, 2), "past.steps": torch.tensor([1, 7, 4])}
    with torch.inference_mode():
        together = policy.predict(observation, [torch.Generator().manual_seed(i) for i in range(3)])
        for row in range(3):
            one = {k: v[row : row + 1] for k, v in observation.items()}
            alone = policy.predict(one, [torch.Generator().manual_seed(row)])
            torch.testing.assert_close(alone[0, -1], together[row, -1], atol=1e-5, rtol=0)


def test_low_noise_acts_with_the_mean_of_a_mode() -> None:
    policy = make()
    state = torch.randn(1, 4, 2).repeat(64, 1, 1)
    with torch.inference_mode():
        means = policy.network(state[:1]).mean[0, -1]
        actions = policy.predict({"observation.state": state}, torch.Generator().manual_seed(0))[:, -1]
        distance = (actions[:, None] - means).norm(dim=-1)
        assert distance.amin(dim=1).max() < 6 * 1e-4
        assert len(distance.argmin(dim=1).unique()) > 1
        policy.config.low_noise = False
        wide = policy.predict({"observation.state": state}, torch.Generator().manual_seed(0))[:, -1]
    assert (wide[:, None] - means).norm(dim=-1).amin(dim=1).mean() > 0.05


def test_both_modes_of_an_action_are_kept() -> None:
    policy = make(hidden=32)

    def batch(step: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        side = torch.randint(0, 2, (128, 1, 1), generator=generator) * 2.0 - 1.0
        action = 0.6 * side + 0.03 * torch.randn(128, 4, 2, generator=generator)
        pad = torch.zeros(128, 4, dtype=torch.bool)
        return {"observation.state": torch.zeros(128, 4, 2), "action": action, "action_is_pad": pad}

    train(policy, batch, 300)
    with torch.inference_mode():
        chunk = policy.predict({"observation.state": torch.zeros(200, 4, 2)}, torch.Generator().manual_seed(1))
    # Each step draws its mode anew, so only the executed action is looked at.
    action = chunk[:, policy.first_action]
    left, right = ((action - side).abs().amax(dim=1) < 0.1 for side in (-0.6, 0.6))
    assert left.float().mean() > 0.35
    assert right.float().mean() > 0.35
    assert (left | right).float().mean() > 0.97


def test_training_windows_start_at_every_step_of_an_episode_and_end_padded() -> None:
    from robopolicy.datasets.episodes import Episodes
    from robopolicy.datasets.windows import WindowSampler

    arrays = {"observation.state": np.arange(18.0, dtype=np.float32).reshape(9, 2), "action": np.zeros((9, 2))}
    episodes = Episodes(arrays, np.array([6, 9]), SPEC, Path("rows"), "episodes")
    sampler = WindowSampler(episodes, window_shape(make()), ["observation.state"])
    batch = sampler.batch(np.arange(len(sampler)))
    rows = (batch["observation.state"][..., 0] / 2).astype(int).tolist()
    # robomimic: one sequence per step, the last row repeated; the second episode is shorter than a sequence.
    first = [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 5], [4, 5, 5, 5], [5, 5, 5, 5]]
    assert rows == [*first, [6, 7, 8, 8], [7, 8, 8, 8], [8, 8, 8, 8]]
    assert batch["action_is_pad"][4].tolist() == [False, False, True, True]


def test_saved_and_loaded(tmp_path: Path) -> None:
    policy = make()
    observation = {"observation.state": torch.randn(1, 4, 2)}
    checkpoint.save(tmp_path / "one", policy, "pusht", observation, {})
    loaded, _ = checkpoint.load(tmp_path / "one")
    outputs = [p.golden(observation, torch.Generator()) for p in (policy, loaded)]
    assert torch.equal(*outputs)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            kept = parameter.clone()
            parameter += 0.1
            assert not torch.equal(policy.golden(observation, torch.Generator()), outputs[0]), f"{name} does not show"
            parameter.copy_(kept)
        policy.normalizer.scale_action *= 2
        assert not torch.equal(policy.golden(observation, torch.Generator()), outputs[0])


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(RobopolicyError, match="horizon 8 must be n_obs_steps 4"):
        make(horizon=8)
    policy = make()
    policy.fit(np.array([[1.0, -1.0]]))
    with pytest.raises(RobopolicyError, match=r"scaled actions reach 512: set policy\.normalization\.action to"):
        policy.fit(np.array([[100.0, 512.0]]))
    # Chunks hold no actions for the time that latency costs.
    with pytest.raises(RobopolicyError, match="leaves 1 rows"):
        PolicyRunner(policy, latency_steps=1)


@pytest.mark.parametrize(
    ("algo", "changes"),
    [
        ({"rnn.enabled": True, "gmm.enabled": True, "actor_layer_dims": ()}, {}),
        (
            {"rnn.enabled": True, "gmm.enabled": True, "actor_layer_dims": (30,), "rnn.rnn_type": "GRU"},
            {"cell": "gru"},
        ),
        ({"gmm.enabled": True, "actor_layer_dims": (40, 30)}, {"cell": "none", "mlp": (40, 30)}),
        ({"actor_layer_dims": (40,)}, {"cell": "none", "mlp": (40,), "head": "deterministic"}),
    ],
)
def test_networks_equal_those_of_robomimic(tmp_path: Path, algo: dict[str, Any], changes: dict[str, Any]) -> None:
    pytest.importorskip("robomimic")
    from robomimic_networks import OBSERVATIONS, algorithm, configuration

    from robopolicy.training.robomimic import mapped_weights

    config = configuration(tmp_path, algo | {"rnn.hidden_dim": 24})
    theirs = algorithm(config).nets["policy"].train()
    recurrent = config.algo.rnn.enabled
    mlp = tuple(algo["actor_layer_dims"])
    ours = SequenceNetwork(replace(BCRNNConfig(hidden=24, mlp=mlp), **(changes | {"mlp": mlp})), 19, 7)
    ours.load_state_dict(mapped_weights({f"policy.{k}": v for k, v in theirs.state_dict().items()}))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    observed = {k: torch.randn(6, 10, size) for k, size in sorted(OBSERVATIONS.items())}
    if not recurrent:
        observed = {k: v[:, 0] for k, v in observed.items()}
    mixture = ours(torch.cat(list(observed.values()), dim=-1))
    if not config.algo.gmm.enabled:
        torch.testing.assert_close(mixture.mean[..., 0, :], theirs(observed))
        return
    expected = theirs.forward_train(observed)
    torch.testing.assert_close(mixture.mean, expected.component_distribution.base_dist.loc)
    torch.testing.assert_close(mixture.std, expected.component_distribution.base_dist.scale)
    torch.testing.assert_close(mixture.logits.log_softmax(-1), expected.mixture_distribution.logits)


def test_encoder_order_is_that_of_the_features() -> None:
    spec = FeatureSpec((Feature("observation.b", (1,)), Feature("observation.a", (1,)), SPEC.action), 10)
    policy = make(spec=spec)
    values = {"observation.a": torch.ones(1, 4, 1), "observation.b": torch.zeros(1, 4, 1)}
    assert policy.encoder(values, policy.normalizer)[0, 0].tolist() == [0.0, 1.0]
