"""CARP end to end: both stages, the floor set by its tokenizer, modes, passes, execution, bad input."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import ACTION, SPEC, STATE

from robopolicy.configs import to_dict
from robopolicy.errors import RobopolicyError
from robopolicy.features import TASK_INDEX, Feature, FeatureSpec
from robopolicy.inference.runner import PolicyRunner
from robopolicy.nn.vq import TokenizerConfig
from robopolicy.policies.base import NormalizationConfig
from robopolicy.policies.carp import CarpConfig, CarpPolicy
from robopolicy.training.checkpoint import build, load, save

CONFIG = CarpConfig(
    tokenizer=TokenizerConfig(codes=64), depth=4, width=32, normalization=NormalizationConfig("identity", "identity")
)


def make(config: CarpConfig = CONFIG, spec: FeatureSpec = SPEC) -> CarpPolicy:
    torch.manual_seed(0)
    policy = build(to_dict(config), spec)
    assert isinstance(policy, CarpPolicy)
    for feature in spec:
        if feature.kind != "language":
            policy.normalizer.fit(feature.key, np.zeros((1, *feature.shape)), "identity", feature)
    return policy


def train(policy: CarpPolicy, batch_of, steps: tuple[int, int], lr: float = 3e-3) -> None:
    generator = torch.Generator().manual_seed(0)
    policy.train()
    for stage, count in enumerate(steps):
        policy.stage = stage
        optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
        for step in range(count):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / count)
            loss, _ = policy.loss(batch_of(step), generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    policy.eval()


def ramps(size: int = 8) -> dict[str, torch.Tensor]:
    """A distinct straight line for every state."""
    state = torch.linspace(-0.6, 0.6, size)[:, None, None] * torch.tensor([1.0, -1.0])
    times = torch.linspace(-0.3, 0.3, 16)[None, :, None]
    return {
        "observation.state": state.expand(size, 2, 2).clone(),
        "action": state + times * torch.tensor([1.0, 0.5]),
        "action_is_pad": torch.zeros(size, 16, dtype=torch.bool),
    }


def test_memorises_to_the_floor_of_its_tokenizer() -> None:
    policy, batch = make(), ramps()
    repeated = {k: v.repeat_interleave(8, 0) for k, v in batch.items()}
    train(policy, lambda _: repeated, (400, 300))
    with torch.inference_mode():
        _, metrics = policy.loss(batch, torch.Generator())
        assert metrics["token_accuracy"] > 0.99
        chunk, ids = policy.predict_ids(batch, torch.Generator())
        floor = policy.tokenizer.reconstruction_by_scale(batch["action"])[-1]
    error = (chunk - batch["action"]).square().mean()
    assert error >= floor - 1e-6, "a policy cannot be better than its tokens"
    assert error < 1.5 * floor + 1e-5
    assert floor < 0.01
    assert [i.shape for i in ids] == [(8, n, 2) for n in (1, 2, 3, 4)]


def test_the_tokenizer_is_frozen_in_the_second_stage() -> None:
    policy, batch = make(), ramps()
    policy.train()
    policy.stage = 1
    policy.loss(batch, torch.Generator())[0].backward()
    assert all(p.grad is None for p in policy.tokenizer.parameters())
    policy.zero_grad()
    policy.stage = 0
    policy.loss(batch, torch.Generator())[0].backward()
    assert all(p.grad is None for p in policy.network.parameters())


@pytest.mark.parametrize("scales", [(1, 2, 3, 4), (1, 2, 4), (2, 4), (4,)])
def test_a_chunk_costs_one_pass_per_scale(scales: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(replace(CONFIG, tokenizer=TokenizerConfig(scales=scales, codes=16))).eval()
    passes = 0
    step = policy.network.step

    def counted(*args: object) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(policy.network, "step", counted)
    with torch.inference_mode():
        assert policy.predict({"observation.state": torch.zeros(3, 2, 2)}, torch.Generator()).shape == (3, 16, 2)
    assert passes == len(scales)


def test_sampled_ids_fed_back_are_what_teacher_forcing_predicts() -> None:
    policy = make().eval()
    for parameter in policy.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    observation = {"observation.state": torch.rand(16, 2, 2)}
    with torch.inference_mode():
        _, ids = policy.predict_ids(observation, torch.Generator())
        logits = policy.network(policy._condition(observation), policy.tokenizer.teacher_inputs(ids))
    assert torch.equal(logits.argmax(-1), torch.cat([i.flatten(1) for i in ids], 1))


def two_modes(joint: bool):
    def batch(step: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        side = torch.randint(0, 2, (64, 1), generator=generator) * 2.0 - 1.0
        bow = 0.6 * torch.sin(torch.linspace(0, 3.14159, 16))
        action = torch.zeros(64, 16, 2)
        action[..., 0] = side * bow
        if joint:
            action[..., 1] = side * bow
        return {
            "observation.state": torch.zeros(64, 2, 2),
            "action": action + 0.01 * torch.randn(64, 16, 2, generator=generator),
            "action_is_pad": torch.zeros(64, 16, dtype=torch.bool),
        }

    return batch


def sides(policy: CarpPolicy, n: int = 400) -> torch.Tensor:
    """[n, 2] peak of each dimension of sampled chunks."""
    with torch.inference_mode():
        chunk = policy.predict({"observation.state": torch.zeros(n, 2, 2)}, torch.Generator().manual_seed(1))
    return chunk[:, 7:9].mean(1)


def test_sampling_keeps_both_modes_of_one_dimension_and_the_best_token_takes_one() -> None:
    policy = make()
    train(policy, two_modes(joint=False), (300, 150))
    policy.config.top_k = 5
    peaks = sides(policy)[:, 0]
    assert (peaks > 0.45).float().mean() >= 0.25
    assert (peaks < -0.45).float().mean() >= 0.25
    assert (peaks.abs() < 0.3).float().mean() < 0.05
    policy.config.top_k = 1
    best = sides(policy)[:, 0]
    assert best.std() < 1e-6
    assert best.abs().min() > 0.45, "one full mode, not the mean of both"


def test_modes_of_two_dimensions_mix_because_tokens_of_a_scale_are_independent() -> None:
    policy = make()
    train(policy, two_modes(joint=True), (300, 150))
    policy.config.top_k = 5
    peaks = sides(policy)
    mixed = (peaks[:, 0] * peaks[:, 1] < 0).float().mean()
    # A property of the method (Gong et al. draw all tokens of a scale at once): about half mix.
    assert 0.3 < mixed < 0.7


def test_sampling_comes_from_the_generators_alone() -> None:
    policy = make(replace(CONFIG, top_k=8)).eval()
    observation = {"observation.state": torch.rand(3, 2, 2)}
    with torch.inference_mode():
        first = policy.predict(observation, torch.Generator().manual_seed(5))
        torch.manual_seed(99)
        assert torch.equal(first, policy.predict(observation, torch.Generator().manual_seed(5)))
        assert not torch.equal(first, policy.predict(observation, torch.Generator().manual_seed(6)))
        rows = policy.predict(observation, [torch.Generator().manual_seed(i) for i in (7, 8, 9)])
        alone = policy.predict({k: v[1:2] for k, v in observation.items()}, [torch.Generator().manual_seed(8)])
    torch.testing.assert_close(rows[1], alone[0], atol=1e-4, rtol=0)


def test_gumbel_draws_follow_the_softmax_of_the_top_k() -> None:
    policy = make(replace(CONFIG, top_k=2))
    logits = torch.full((20_000, 1, 64), -9.0)
    logits[..., 3], logits[..., 7] = 1.0, 0.0
    drawn = policy._pick(logits, torch.Generator().manual_seed(0)).flatten()
    share = (drawn == 3).float().mean().item()
    assert set(drawn.tolist()) == {3, 7}
    assert share == pytest.approx(1 / (1 + np.exp(-1)), abs=0.012)


def test_the_runner_executes_the_rows_from_the_newest_observation_on() -> None:
    policy = make()
    times = torch.arange(16.0) / 16
    batch = ramps() | {"action": times[None, :, None].expand(8, 16, 2)}
    repeated = {k: v.repeat_interleave(8, 0) for k, v in batch.items()}
    train(policy, lambda _: repeated, (400, 200))
    runner = PolicyRunner(policy, 1)
    taken = [runner.step({"observation.state": np.zeros((1, 2), np.float32)})[0, 0] for _ in range(8)]
    np.testing.assert_allclose(taken, times[1:9], atol=0.03)


def test_a_checkpoint_gives_the_same_chunk_and_shows_every_change(tmp_path: Path) -> None:
    policy = make().eval()
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    observation = {"observation.state": torch.rand(1, 2, 2)}
    save(tmp_path / "c", policy, "pusht", observation, {})
    again, _ = load(tmp_path / "c")
    assert again.config == policy.config
    with torch.inference_mode():
        assert torch.equal(
            again.predict(observation, torch.Generator()), policy.predict(observation, torch.Generator())
        )
        before = policy.golden(observation, torch.Generator().manual_seed(0))
        for name, parameter in policy.named_parameters():
            kept = parameter.detach().clone()
            # Not by a constant: a norm after a bias takes that out again.
            parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()).view_as(parameter))
            after = policy.golden(observation, torch.Generator().manual_seed(0))
            assert not torch.equal(before, after), f"{name} does not show"
            parameter.copy_(kept)


def test_instructions_reach_the_chunk() -> None:
    spec = FeatureSpec((STATE, Feature(TASK_INDEX, (), "int64", "language"), ACTION), rate_hz=10)
    policy = make(replace(CONFIG, tasks=2), spec)

    def batch(step: int) -> dict[str, torch.Tensor]:
        task = torch.arange(32) % 2
        bow = 0.6 * torch.sin(torch.linspace(0, 3.14159, 16))[None, :, None]
        return {
            "observation.state": torch.zeros(32, 2, 2),
            TASK_INDEX: task[:, None].expand(32, 2),
            "action": (task * 2.0 - 1)[:, None, None] * bow.expand(32, 16, 2),
            "action_is_pad": torch.zeros(32, 16, dtype=torch.bool),
        }

    train(policy, batch, (300, 150))
    with torch.inference_mode():
        observation = {k: v for k, v in batch(0).items() if not k.startswith("action")}
        peaks = policy.predict(observation, torch.Generator())[:, 7:9].mean((1, 2))
    assert (peaks[::2] < -0.4).all()
    assert (peaks[1::2] > 0.4).all()
    with pytest.raises(RobopolicyError, match="task_index"):
        make(replace(CONFIG, tasks=2))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(RobopolicyError, match="horizon 14 is not a multiple"):
        make(replace(CONFIG, horizon=14))
    with pytest.raises(RobopolicyError, match=r"policy.top_k 65 should be within 1..64"):
        make(replace(CONFIG, top_k=65))
    with pytest.raises(RobopolicyError, match=r"tokenizer.steps 100 should be within 1..99"):
        make(replace(CONFIG, tokenizer=TokenizerConfig(steps=100))).stages(100)


def test_an_anchored_chunk_is_measured_from_the_newest_state() -> None:
    policy = make(replace(CONFIG, anchor=(1, 0), anchor_range=0.5))
    observation = {"observation.state": torch.tensor([[[9.0, 9.0], [0.1, 0.3]]])}
    actions = torch.tensor([0.4, 0.2]).expand(1, 16, 2)
    scaled = policy.scale(actions, observation)
    # Dimension 0 of the action from dimension 1 of the newest state: (0.4 - 0.3) / 0.5; and (0.2 - 0.1) / 0.5.
    assert torch.allclose(scaled, torch.tensor([0.2, 0.2]))
    assert torch.allclose(policy.unscale(scaled, observation), actions)
    with torch.inference_mode():
        chunk, ids = policy.predict_ids(observation, torch.Generator())
        total = None
        for k, i in enumerate(ids):
            total = policy.tokenizer.accumulate(k, i, total)
        assert torch.allclose(chunk, 0.5 * policy.tokenizer.decode(total) + torch.tensor([0.3, 0.1]), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor": (0,)}, r"anchor \[0\]: expected 2 dimensions of observation.state"),
        ({"anchor": (0, 2)}, r"each within 0\.\.1"),
        ({"anchor": (0, 1), "anchor_range": 0.0}, "anchor_range should be above 0, got 0"),
    ],
)
def test_anchors_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RobopolicyError, match=message):
        make(replace(CONFIG, **change))
