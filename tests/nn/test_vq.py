"""The multi-scale tokenizer against the numbers of CARP's published modules and hand-made cases."""

from dataclasses import replace

import pytest
import torch

from robopolicy.errors import RobopolicyError
from robopolicy.nn.vq import CODE_DIM, MultiScaleTokenizer, PerDimension, TokenizerConfig, best, resampling

CONFIG = TokenizerConfig()


def make(dims: int = 3, **changes: object) -> MultiScaleTokenizer:
    torch.manual_seed(0)
    return MultiScaleTokenizer(dims, 16, replace(CONFIG, **changes))  # type: ignore[arg-type]


def curves(batch: int, dims: int, generator: torch.Generator) -> torch.Tensor:
    """Smooth 16-step curves of variance .142, [batch, 16, dims]: a Gaussian process of length scale 12 steps."""
    t = torch.arange(16.0)
    covariance = torch.exp(-0.5 * ((t[:, None] - t) / 12) ** 2) + 1e-4 * torch.eye(16)
    noise = torch.randn(batch, dims, 16, generator=generator)
    return 0.142**0.5 * (noise @ torch.linalg.cholesky(covariance).T).permute(0, 2, 1)


def train(tokenizer: MultiScaleTokenizer, steps: int, batch: int = 256) -> None:
    trained = [p for p in tokenizer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, betas=(0.5, 0.9), weight_decay=0.005)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        loss, _ = tokenizer.loss(curves(batch, tokenizer.dims, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_shapes_and_token_counts() -> None:
    tokenizer = make()
    ids = tokenizer.encode(torch.rand(5, 16, 3) - 0.5)
    assert [tuple(i.shape) for i in ids] == [(5, 1, 3), (5, 2, 3), (5, 3, 3), (5, 4, 3)]
    assert all(0 <= int(i.min()) <= int(i.max()) < 512 for i in ids)
    total = None
    for k, i in enumerate(ids):
        total = tokenizer.accumulate(k, i, total)
    assert total is not None
    assert total.shape == (3, 5, 4, CODE_DIM)
    assert tokenizer.decode(total).shape == (5, 16, 3)


def test_parameter_count_is_the_published_one_without_side_columns() -> None:
    # The published 10,401 per dimension hold six 3x3 convolutions 8 -> 8 whose side columns (2 x 3 x 64) never act.
    assert sum(p.numel() for p in make(1).parameters()) == 10_401 - 6 * 2 * 3 * 64
    assert sum(p.numel() for p in make(10).parameters()) == 10 * (10_401 - 6 * 2 * 3 * 64)


def test_resampling_constants() -> None:
    area = resampling(4, 3, "area") @ torch.tensor([0.0, 1.0, 2.0, 3.0])
    torch.testing.assert_close(area, torch.tensor([0.5, 1.5, 2.5]))
    one, two, three = (resampling(n, 4, "bicubic") for n in (1, 2, 3))
    torch.testing.assert_close(one[:, 0], torch.ones(4))
    torch.testing.assert_close(two[:, 0], torch.tensor([1.1055, 0.7734, 0.2266, -0.1055]), atol=1e-4, rtol=0)
    torch.testing.assert_close(two[:, 1], two[:, 0].flip(0))
    torch.testing.assert_close(three[:, 0], torch.tensor([1.0718, 0.3604, -0.1099, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(three[:, 1], torch.tensor([-0.0718, 0.7495, 0.7495, -0.0718]), atol=1e-4, rtol=0)
    torch.testing.assert_close(three[:, 2], three[:, 0].flip(0))


@pytest.mark.parametrize("stride", [1, 2])
def test_layers_equal_torch_convolutions_dimension_by_dimension(stride: int) -> None:
    torch.manual_seed(0)
    layer, x = PerDimension(3, 2, 4, 8, stride), torch.randn(3, 5, 8, 2)
    torch.nn.init.normal_(layer.bias)
    out = layer(x)
    for d in range(3):
        weight = layer.weight[d].view(3, 2, 4).permute(2, 1, 0)
        padded = torch.nn.functional.pad(x[d].mT, (1, 1) if stride == 1 else (0, 1))
        expected = torch.nn.functional.conv1d(padded, weight, layer.bias[d, 0], stride)
        torch.testing.assert_close(out[d].mT, expected)


def test_upsampling_equals_torch_transposed_convolution() -> None:
    torch.manual_seed(0)
    layer, x = PerDimension(2, 3, 5, 4, stride=0.5), torch.randn(2, 7, 4, 3)
    torch.nn.init.normal_(layer.bias)
    out = layer(x)
    for d in range(2):
        weight = layer.weight[d].view(3, 3, 5).permute(1, 2, 0)
        expected = torch.nn.functional.conv_transpose1d(
            x[d].mT, weight, layer.bias[d, 0], stride=2, padding=1, output_padding=1
        )
        torch.testing.assert_close(out[d].mT, expected)


def test_exact_residual_at_the_last_scale_telescopes() -> None:
    tokenizer = make()
    latent = torch.randn(3, 6, 4, CODE_DIM)
    _, totals, _ = tokenizer.quantise(latent)
    # What the last scale is asked for is exactly what the scales before it left.
    rest = tokenizer.quantise(latent)[2][-1]
    torch.testing.assert_close(totals[-2] + rest, latent, atol=1e-6, rtol=0)


@pytest.mark.parametrize("matching", ["cosine", "euclidean"])
def test_nearest_code_by_brute_force(matching: str) -> None:
    tokenizer = make(2, matching=matching, codes=96)
    torch.nn.init.normal_(tokenizer.codebook)
    vectors = torch.randn(2, 7, 3, CODE_DIM)
    found = tokenizer.nearest(vectors)
    for d in range(2):
        for b in range(7):
            for n in range(3):
                v, codes = vectors[d, b, n], tokenizer.codebook[d]
                if matching == "cosine":
                    nearest = torch.cosine_similarity(v[None], codes).argmax()
                else:
                    nearest = (codes - v).square().sum(-1).argmin()
                assert found[d, b, n] == nearest


def test_best_is_argmax() -> None:
    scores = torch.randn(3, 40, 512, generator=torch.Generator().manual_seed(0))
    assert torch.equal(best(scores), scores.argmax(-1))
    assert torch.equal(best(scores[..., :33]), scores[..., :33].argmax(-1))


def test_straight_through_and_the_only_way_to_the_codebook() -> None:
    tokenizer, actions = make(), torch.rand(8, 16, 3) - 0.5
    latent = tokenizer.latent(actions)
    totals = tokenizer.quantise(latent)[1]
    reconstruction = (tokenizer.decode(latent + (totals[-1] - latent).detach()) - actions).square().mean()
    reconstruction.backward()
    assert tokenizer.codebook.grad is None
    assert all(p.grad is None for p in tokenizer.phi.parameters())
    assert tokenizer.encoder[0].weight.grad.abs().sum() > 0
    tokenizer.zero_grad()
    tokenizer.loss(actions)[0].backward()
    assert tokenizer.codebook.grad.abs().sum() > 0


def test_dimensions_do_not_see_each_other() -> None:
    tokenizer, actions = make(), torch.rand(4, 16, 3) - 0.5
    changed = actions.clone()
    changed[:, :, 1] += 0.3
    for a, b in zip(tokenizer.encode(actions), tokenizer.encode(changed), strict=True):
        assert torch.equal(a[..., [0, 2]], b[..., [0, 2]])
    assert any(
        not torch.equal(a, b) for a, b in zip(tokenizer.encode(actions), tokenizer.encode(changed), strict=True)
    )


def test_teacher_inputs_are_the_pooled_sums_of_the_encoder() -> None:
    tokenizer, actions = make(), torch.rand(4, 16, 3) - 0.5
    totals = tokenizer.quantise(tokenizer.latent(actions))[1]
    inputs = tokenizer.teacher_inputs(tokenizer.encode(actions))
    assert [tuple(i.shape) for i in inputs] == [(4, n, 3, CODE_DIM) for n in (2, 3, 4)]
    for k, found in enumerate(inputs):
        expected = tokenizer.pool(totals[k], (2, 3, 4)[k]).permute(1, 2, 0, 3)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_every_scale_lowers_the_error_and_codes_are_used(codebook: str) -> None:
    tokenizer = make(1, codebook=codebook)
    train(tokenizer, 500)
    held_out = curves(4096, 1, torch.Generator().manual_seed(1))
    errors = tokenizer.reconstruction_by_scale(held_out)
    assert (errors[1:] < errors[:-1]).all(), errors
    # The published modules have .0147 with all four scales after 300 steps and .0036 after 1000.
    assert errors[-1] < 0.0147, errors
    ids = [i.flatten().unique() for i in tokenizer.encode(held_out)]
    assert len(torch.cat(ids).unique()) > 256
    assert len(ids[0]) < len(ids[-1])


def test_constant_dimensions_stay_finite() -> None:
    tokenizer = make(2)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-4)
    actions = torch.zeros(64, 16, 2)
    for _ in range(50):
        loss, _ = tokenizer.loss(actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    assert tokenizer.reconstruction_by_scale(actions)[-1] < 1e-2
    assert all(len(i[..., 0].unique()) == 1 for i in tokenizer.encode(actions)[:1]), "one code for one curve"


def test_shapes_that_cannot_work_are_refused() -> None:
    with pytest.raises(RobopolicyError, match="horizon 18 is not a multiple of the latent stride 4"):
        MultiScaleTokenizer(2, 18, CONFIG)
    with pytest.raises(RobopolicyError, match=r"scales \(1, 2, 3\).* latent length 4"):
        MultiScaleTokenizer(2, 16, replace(CONFIG, scales=(1, 2, 3)))
    with pytest.raises(RobopolicyError, match="cosine"):
        MultiScaleTokenizer(2, 16, replace(CONFIG, matching="cosin"))  # type: ignore[arg-type]
