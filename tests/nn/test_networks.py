"""Network blocks: sizes, invariances and hand-computed outputs."""

import math

import pytest
import torch
from torch import nn

from robopolicy.nn import unet1d
from robopolicy.nn.embeddings import SinusoidalEmbedding
from robopolicy.nn.mlp import DirectMLP, ResidualMLP
from robopolicy.nn.transformer import DiffusionTransformer
from robopolicy.nn.unet1d import ConditionalUnet1D, Conv1d
from robopolicy.nn.vision import ImageEncoder, SpatialSoftmax, VisionConfig, crop_images


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes() -> None:
    # Chi et al. 2023 report about 2.5e8 parameters for the image U-Net and 1.1e7 for its vision encoder.
    assert _count(ConditionalUnet1D(2, 2 * 66, (512, 1024, 2048), 128)) == 251_511_938
    encoder = ImageEncoder(VisionConfig())
    assert _count(encoder) == 11_197_088
    assert _count(encoder.backbone) == 11_176_512, "ResNet-18 without its classifier"
    assert _count(ConditionalUnet1D(2, 40)) == 65_783_298


@pytest.mark.parametrize("horizon", [8, 16])
def test_every_denoiser_keeps_the_shape_and_listens_to_time_and_context(horizon: int) -> None:
    torch.manual_seed(0)
    nets = [
        ConditionalUnet1D(3, 2 * 5, (16, 32), 16),
        DiffusionTransformer(3, 5, horizon, 2, layers=2, heads=2, width=32),
        ResidualMLP(3, 2 * 5, horizon, 32, 2),
    ]
    x, time, context = torch.randn(4, horizon, 3), torch.tensor([1.0, 20.0, 50.0, 99.0]), torch.randn(4, 2, 5)
    for net in nets:
        net.eval()
        # Zero-initialised gates and heads would hide a missing connection.
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
        out = net(x, time, context)
        assert out.shape == x.shape
        assert not torch.allclose(out, net(x, time + 3, context))
        assert not torch.allclose(out, net(x, time, context + 1))
        assert torch.allclose(out[:2], net(x[:2], time[:2], context[:2]), atol=1e-4), "rows are independent"
    assert DirectMLP(3, 10, horizon, 16)(context).shape == (4, horizon, 3)


def test_short_convolutions_as_matrix_products_equal_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = Conv1d(6, 10, 5, padding=2), torch.randn(3, 6, 4, requires_grad=True)
    ours = layer(x)
    (ours**2).sum().backward()
    gradients = [p.grad.clone() for p in (x, layer.weight, layer.bias)]
    for p in (x, layer.weight, layer.bias):
        p.grad = None
    monkeypatch.setattr(unet1d, "GEMM_LENGTH", 0)
    library = layer(x)
    (library**2).sum().backward()
    assert torch.allclose(ours, library, atol=1e-5)
    for ours_grad, p in zip(gradients, (x, layer.weight, layer.bias), strict=True):
        assert torch.allclose(ours_grad, p.grad, atol=1e-3)


def test_transformer_is_causal_and_hides_later_observations() -> None:
    torch.manual_seed(0)
    net = DiffusionTransformer(2, 5, 6, 3, layers=2, heads=2, width=16).eval()
    x, time, context = torch.randn(1, 6, 2), torch.zeros(1), torch.randn(1, 3, 5)
    base = net(x, time, context)
    moved = x.clone()
    moved[:, 4] += 1
    assert torch.equal(net(moved, time, context)[:, :4], base[:, :4])
    assert not torch.allclose(net(moved, time, context)[:, 4], base[:, 4])
    later = context.clone()
    later[:, 2] += 1
    assert torch.equal(net(x, time, later)[:, :2], base[:, :2]), "row h sees observations 0..h"
    assert not torch.allclose(net(x, time, later)[:, 2], base[:, 2])


def test_sinusoidal_embedding_by_hand() -> None:
    out = SinusoidalEmbedding(4)(torch.tensor([2.0]))
    low = 2.0 * 1e-4
    assert torch.allclose(out, torch.tensor([[math.sin(2), math.sin(low), math.cos(2), math.cos(low)]]), atol=1e-6)
    scaled = SinusoidalEmbedding(4, scale=2.0)(torch.tensor([1.0]))
    assert torch.allclose(out, scaled)


def test_spatial_softmax_finds_a_peak() -> None:
    pool = SpatialSoftmax(1, 1)
    nn.init.ones_(pool.maps.weight)
    nn.init.zeros_(pool.maps.bias)
    image = torch.zeros(1, 1, 3, 5)
    image[0, 0, 2, 1] = 50.0
    # Column 1 of 5 is -0.5 and row 2 of 3 is 1 on the [-1, 1] grid; the output lists all x, then all y.
    assert torch.allclose(pool(image), torch.tensor([[-0.5, 1.0]]), atol=1e-4)


def test_crops_are_random_per_image_while_training_and_centred_otherwise() -> None:
    rows = torch.arange(8, dtype=torch.uint8).view(1, 8, 1, 1).expand(200, 8, 8, 1)
    columns = rows.transpose(1, 2)
    images = torch.cat([rows, columns], dim=-1).contiguous()
    crops = crop_images(images, 5, torch.Generator().manual_seed(0))
    assert crops.shape == (200, 5, 5, 2)
    corners = {(int(c[0, 0, 0]), int(c[0, 0, 1])) for c in crops}
    assert corners == {(r, c) for r in range(4) for c in range(4)}, "all 16 offsets, rows and columns independent"
    for crop in crops[:20]:
        assert torch.equal(crop[:, 0, 0], crop[0, 0, 0] + torch.arange(5)), "rows stay consecutive"
    again = crop_images(images, 5, torch.Generator().manual_seed(0))
    assert torch.equal(crops, again)
    centred = crop_images(images, 5, None)
    assert centred[0, 0, 0].tolist() == [1, 1]
