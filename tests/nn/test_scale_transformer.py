"""The coarse-to-fine transformer: sizes, causality by scale, caching, conditioning."""

import math

import pytest
import torch

from robopolicy.nn.scale_transformer import Cache, ScaleTransformer
from robopolicy.nn.vq import CODE_DIM

SCALES = (1, 2, 3, 4)


def make(dims: int = 3, scales: tuple[int, ...] = SCALES, spread: float = 0.15) -> ScaleTransformer:
    """Small, with weights large enough that every connection shows."""
    torch.manual_seed(0)
    network = ScaleTransformer(scales, dims, 5, 32, 2, 4, 16).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return network


def inputs(dims: int = 3, batch: int = 2, scales: tuple[int, ...] = SCALES) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(batch, n, dims, CODE_DIM, generator=generator) for n in scales[1:]]
    return torch.randn(batch, 5, generator=generator), parts


@pytest.mark.parametrize(
    ("depth", "width", "codes", "dims", "cond_dim", "expected"),
    [
        (8, 64, 512, 10, 2 * 23, 649_536),
        (8, 160, 512, 9, 2 * 60, 3_875_616),
        (16, 160, 512, 10, 137, 7_584_608),
        (32, 160, 1024, 10, 137 + 3, 15_076_928),
    ],
)
def test_published_parameter_counts(
    depth: int, width: int, codes: int, dims: int, cond_dim: int, expected: int
) -> None:
    network = ScaleTransformer(SCALES, dims, cond_dim, codes, depth, depth, width)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_a_scale_sees_itself_and_coarser_scales_only() -> None:
    network = make()
    observation, parts = inputs()
    before = network(observation, parts)
    for k in range(1, 4):
        changed = [p + 1 if i == k - 1 else p for i, p in enumerate(parts)]
        difference = (network(observation, changed) - before).abs()
        first, last = network.offsets[k], network.offsets[k + 1]
        assert difference[:, :first].max() == 0
        assert difference[:, first:last].max() > 0.01
        if k < 3:
            assert difference[:, last:].max() > 0.001


def test_attention_within_a_scale_is_dense() -> None:
    network = make()
    observation, parts = inputs()
    before = network(observation, parts)
    changed = [p.clone() for p in parts]
    changed[1][:, 2, 1] += 1  # The last position of scale 3, dimension 1.
    moved = (network(observation, changed) - before).abs().amax(-1)[0]
    scale = moved[network.offsets[2] : network.offsets[3]]
    assert (scale > 0).all(), "tokens before and after it, of every dimension"


def test_cached_steps_equal_the_masked_pass() -> None:
    network = make()
    observation, parts = inputs()
    condition = network.condition(observation)
    cache: Cache = []
    steps = [
        network.step(k, condition, None if k == 0 else parts[k - 1], network.modulations(condition), cache)
        for k in range(4)
    ]
    torch.testing.assert_close(torch.cat(steps, 1), network(observation, parts), atol=1e-5, rtol=1e-5)
    assert cache[0][0].shape[2] == 10 * 3


def test_the_condition_acts_beyond_the_start_tokens() -> None:
    network = make()
    observation, parts = inputs()
    condition = network.condition(observation)
    modulations = [network.modulations(c) for c in (condition, condition + 1)]
    a, b = (network.step(0, condition, None, m, []) for m in modulations)
    assert (a - b).abs().max() > 1e-3
    assert (network(observation, parts) - network(observation + 1, parts)).abs().max() > 1e-3


def test_queries_and_keys_have_unit_length() -> None:
    network = make()
    for block in network.blocks:
        torch.nn.init.zeros_(block.attention.q_bias)
    observation, parts = inputs()
    before = network(observation, parts)
    for block in network.blocks:
        width = block.attention.qkv.in_features
        block.attention.qkv.weight.data[: 2 * width] *= 10
    torch.testing.assert_close(network(observation, parts), before, atol=1e-4, rtol=1e-4)
    for block in network.blocks:
        block.attention.log_scale.data.fill_(math.log(100.0))
    at_limit = network(observation, parts)
    for block in network.blocks:
        block.attention.log_scale.data.fill_(9.0)
    torch.testing.assert_close(network(observation, parts), at_limit)


def test_a_new_network_is_nearly_indifferent() -> None:
    torch.manual_seed(0)
    network = ScaleTransformer(SCALES, 10, 46, 512, 8, 8, 64).eval()
    parts = [torch.randn(16, n, 10, CODE_DIM) for n in (2, 3, 4)]
    logits = network(torch.randn(16, 46), parts)
    target = torch.randint(0, 512, (16 * 100,), generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target)
    assert loss.item() == pytest.approx(math.log(512), abs=0.05)
