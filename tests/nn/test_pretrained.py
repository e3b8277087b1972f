"""Pretrained ResNet-18 from a file: equal to torchvision's own, and one line for every file that is something else."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resnet_files import r3m_weights, random_resnet18, save_torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18, resnet34, resnet50
from torchvision.transforms.functional import normalize

from robopolicy.errors import RobopolicyError
from robopolicy.features import Feature
from robopolicy.nn.normalizer import Normalizer
from robopolicy.nn.pretrained import load_backbones, read_resnet18
from robopolicy.nn.vision import ImageEncoder, VisionConfig

torch.set_num_threads(1)
CAMERA = Feature("observation.images.top", (96, 96, 3), "uint8", "image")


def _loaded(path: Path) -> ImageEncoder:
    encoder = ImageEncoder(VisionConfig(weights=path))
    load_backbones(encoder, path)
    return encoder


def test_features_equal_torchvisions_resnet18_on_the_same_picture(tmp_path: Path) -> None:
    encoder, net = _loaded(save_torchvision(tmp_path)), random_resnet18()
    pictures = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = encoder.train().maps(Normalizer((CAMERA,)).normalize(CAMERA.key, pictures))
    # As torchvision and R3M prepare pictures.
    scaled = normalize(pictures.movedim(-1, -3) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert ours.shape == (2, 512, 3, 3)
    assert torch.allclose(net.fc(ours.mean(dim=(2, 3))), net(scaled), atol=1e-4)
    assert not torch.allclose(net.fc(ours.mean(dim=(2, 3))), net(pictures.movedim(-1, -3) / 127.5 - 1), atol=1e-2)


def test_only_a_file_brings_batch_norm_and_it_is_frozen(tmp_path: Path) -> None:
    encoder, scratch = _loaded(save_torchvision(tmp_path)), ImageEncoder(VisionConfig())
    assert not [m for m in scratch.modules() if "BatchNorm" in type(m).__name__]
    assert not list(scratch.buffers())
    assert not [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    trained = [n for n, _ in encoder.backbone.named_parameters()]
    assert len(trained) == 20
    assert all(p.ndim == 4 for p in encoder.backbone.parameters()), "convolutions only"
    before = {n: b.clone() for n, b in encoder.named_buffers()}
    assert len(before) == 2 + 4 * 20
    encoder.train()(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(b, before[n]) for n, b in encoder.named_buffers())


def test_a_backbone_that_was_never_loaded_gives_nan() -> None:
    encoder = ImageEncoder(VisionConfig(weights=Path("elsewhere.pth")))
    assert encoder(torch.zeros(1, 3, 64, 64)).isnan().all()


def _tensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({k: v.contiguous() for k, v in state.items()}, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("model.pt", lambda path: torch.save({"r3m": r3m_weights(), "global_step": 5}, path)),
        ("model.pt", lambda path: torch.save(r3m_weights(), path)),
        ("model.pt", lambda path: torch.save({f"r3m.{k}": v for k, v in r3m_weights().items()}, path)),
        ("half.pth", lambda path: torch.save(OrderedDict(random_resnet18().half().state_dict()), path)),
        (
            "old.pth",
            lambda path: torch.save(random_resnet18().state_dict(), path, _use_new_zipfile_serialization=False),
        ),
        ("model.safetensors", lambda path: _tensors(path, random_resnet18().state_dict())),
        ("r3m.safetensors", lambda path: _tensors(path, r3m_weights())),
    ],
)
def test_every_form_of_the_file_gives_the_same_weights(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / name)
    read, expected = read_resnet18(tmp_path / name), random_resnet18().state_dict()
    assert set(read) == {k for k in expected if not k.startswith("fc.") and "num_batches" not in k}
    assert all(v.dtype == torch.float32 for v in read.values())
    assert all(torch.allclose(v, expected[k], atol=1e-3 if name == "half.pth" else 0) for k, v in read.items())


def _without(key: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in random_resnet18().state_dict().items() if k != key}


def _group_norm() -> nn.Module:
    return resnet18(weights=None, norm_layer=lambda c: nn.GroupNorm(c // 16, c))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: resnet50(weights=None).state_dict(), r"layer1\.0\.conv3\.weight is no part of a ResNet-18"),
        (lambda: resnet34(weights=None).state_dict(), r"layer1\.2\.conv1\.weight is no part of a ResNet-18"),
        (lambda: _group_norm().state_dict(), r"bn1\.running_mean is missing, which a ResNet-18 with BatchNorm has"),
        (lambda: _without("layer3.1.bn2.running_var"), r"layer3\.1\.bn2\.running_var is missing"),
        (
            lambda: random_resnet18().state_dict() | {"conv1.weight": torch.zeros(64, 1, 7, 7)},
            r"conv1\.weight should have shape \[64, 3, 7, 7\], found \[64, 1, 7, 7\]",
        ),
        (lambda: random_resnet18().state_dict() | {"bn1.bias": torch.full((64,), torch.nan)}, r"bn1\.bias holds NaN"),
        (lambda: random_resnet18().state_dict() | {"bn1.running_var": -torch.ones(64)}, r"bn1\.running_var holds"),
        (
            lambda: random_resnet18().state_dict() | {"bn1.bias": torch.zeros(64).long()},
            r"bn1\.bias should be a dense",
        ),
        (lambda: random_resnet18().state_dict() | {"bn1.bias": "zero"}, r"bn1\.bias should be .* found str"),
        (lambda: {"visual.proj": torch.zeros(3)}, r"no weights of a ResNet-18 \(conv1\.weight is missing\)"),
        (lambda: [1, 2], "holds list, expected a table of weights by name"),
        (lambda: Path("x"), "no readable table of weights"),
    ],
)
def test_another_network_gets_one_line_with_file_and_key(
    content: Callable[[], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.pth"
    torch.save(content(), path)
    with pytest.raises(RobopolicyError, match=f"policy.vision.weights .*other.pth: {message}") as error:
        read_resnet18(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_a_file_that_holds_no_weights_gets_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("weights")
    with pytest.raises(RobopolicyError, match=f"{name}: no readable table of weights") as error:
        read_resnet18(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_policy_without_images_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(RobopolicyError, match=r"policy.vision.weights .*nowhere.pth: no such file"):
        read_resnet18(tmp_path / "nowhere.pth")
    with pytest.raises(RobopolicyError, match="this policy observes no images"):
        load_backbones(nn.Linear(2, 2), save_torchvision(tmp_path))
