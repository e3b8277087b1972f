"""Files as torchvision and R3M publish them, with weights drawn at random."""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet18


def random_resnet18() -> nn.Module:
    """torchvision's ResNet-18 in evaluation mode, every scale, shift and statistic of its BatchNorm drawn."""
    torch.manual_seed(0)
    net = resnet18(weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(7)
    return net.eval()


def save_torchvision(folder: Path) -> Path:
    path = folder / "resnet18-f37072fd.pth"
    torch.save(random_resnet18().state_dict(), path)
    return path


def r3m_weights() -> dict[str, torch.Tensor]:
    """The state of R3M inside DataParallel: without a classifier, beside networks for language."""
    state = {f"module.convnet.{k}": v for k, v in random_resnet18().state_dict().items() if not k.startswith("fc.")}
    return state | {"module.lang_rew.pred.0.weight": torch.zeros(4, 3), "module.lang_enc.ids": torch.zeros(2).long()}
