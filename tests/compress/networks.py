"""Small networks of every family, with answers that differ from image to image, and how each is called.

Exporting takes time by the number of layers, so that most are as shallow as their kind allows; EfficientNet-B0 and
VGG16 have their real depth. Of the widest only one structure is looked at, so that their graphs stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_edge.compress.cost import KINDS, TRANSPOSED
from hscc_edge.compress.problem import Call, Settings, call_image
from hscc_edge.model.head import Head, kl
from hscc_edge.model.layers import NORMS
from hscc_edge.model.zoo import build_network

CLASSES = ("a", "b", "c", "d", "e")
SOFTMAX = Head("softmax", CLASSES)
FINDINGS = Head("sigmoid", ("x", "y", "z"))
SPREAD = 1.0


@dataclass(frozen=True)
class Case:
    """One network: what makes it, the shape of its image, its heads, and what else a batch holds."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (1, 64, 64)
    heads: tuple[Head, ...] = (SOFTMAX,)
    call: Call = call_image
    extra: Mapping[str, int] | None = None
    structures: tuple[str, ...] = Settings().structures

    def batch(self, count: int, seed: int) -> dict[str, torch.Tensor]:
        """Smooth images: white noise teaches nothing about low rank."""
        generator = torch.Generator().manual_seed(seed)
        channels, *sides = self.shape
        coarse = torch.randn(count, channels, *(max(side // 8, 2) for side in sides), generator=generator)
        mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(sides)]
        found = {"image": nn.functional.interpolate(coarse, size=sides, mode=mode, align_corners=False)}
        for name, width in (self.extra or {}).items():
            found[name] = torch.randn(count, width, generator=generator)
        return found

    def network(self) -> nn.Module:
        """Fresh weights, made to tell images apart."""
        torch.manual_seed(0)
        network = self.make()
        settle(network, self.call, self.batch(64, 1))
        return network

    def logits(self, network: nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return self.call(network, batch)

    def kl(self, network: nn.Module, other: nn.Module) -> float:
        """Mean over images that calibrated nothing, summed over the heads."""
        batch = self.batch(48, 9)
        pairs = zip(self.heads, self.logits(network, batch), self.logits(other, batch), strict=True)
        return float(sum(np.mean(kl(head, first.numpy(), second.numpy())) for head, first, second in pairs))


def settle(network: nn.Module, call: Call, batch: Mapping[str, torch.Tensor]) -> None:
    """Make fresh weights act like trained ones.

    Singular values fall as i^-0.7, where those of fresh weights are nearly alike; batch norms' statistics are those of
    one pass in training mode; the last Linears are scaled to logits of deviation 1, since with fresh weights the logits
    are nearly the same for all images, and no compression could change an answer.
    """
    for module in network.modules():
        if isinstance(module, KINDS):
            _fall(module.weight)
    for module in network.modules():
        if isinstance(module, NORMS):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        network.train()
        dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
        for module in dropouts:
            module.eval()
        call(network, batch)
        network.eval()
        for head, logits in zip(_heads(network, call, batch), call(network, batch), strict=True):
            scale = SPREAD / logits.std(dim=0)
            head.weight.mul_(scale[:, None])
            head.bias.copy_((head.bias - logits.mean(dim=0)) * scale)


def _fall(weight: nn.Parameter) -> None:
    """Scale the singular values of (m, n), its norm kept."""
    with torch.no_grad():
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        falling = values * torch.arange(1, len(values) + 1) ** -0.7
        falling = falling * (values.norm() / falling.norm().clamp_min(1e-12))
        weight.copy_(((left * falling) @ right).reshape(weight.shape))


def _heads(network: nn.Module, call: Call, batch: Mapping[str, torch.Tensor]) -> list[nn.Linear]:
    """The Linears that give the logits."""
    made: dict[int, nn.Linear] = {}
    kept = []

    def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
        made[id(output)] = module
        kept.append(output)

    handles = [m.register_forward_hook(hook) for m in network.modules() if isinstance(m, nn.Linear)]
    found = [made[id(logits)] for logits in call(network, batch)]
    for handle in handles:
        handle.remove()
    return found


def counted(network: nn.Module, case: Case) -> int:
    """FLOPs of one image by the outputs that are made: every convolution and Linear, each region's by its positions."""
    total = 0

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        transposed = isinstance(module, TRANSPOSED)
        positions = args[0].numel() // module.in_channels if transposed else output.numel() // len(module.weight)
        total += 2 * positions * module.weight.numel()

    handles = [module.register_forward_hook(hook) for module in network.modules() if isinstance(module, KINDS)]
    case.logits(network, case.batch(1, 1))
    for handle in handles:
        handle.remove()
    return total


def zoo(name: str, **args: Any) -> Callable[[], nn.Module]:
    return lambda: build_network(name, 1, len(CLASSES), args)


class TwoInputs(nn.Module):
    """An image and a table of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 48), nn.ReLU(),
        )  # fmt: skip
        self.table = nn.Sequential(nn.Linear(10, 48), nn.ReLU())
        self.head = nn.Linear(96, len(CLASSES))

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.image(image), self.table(table)], dim=1))


class TwoOutputs(nn.Module):
    """Classes that exclude each other, and findings that do not, on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        )  # fmt: skip
        self.classes, self.findings = nn.Linear(512, len(CLASSES)), nn.Linear(512, len(FINDINGS.labels))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.trunk(image)
        return self.classes(features), self.findings(features)


def call_both(network: nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return (network(batch["image"], batch["table"]),)


THIN = [16, 32, 64, 128]
CHEAP = ("one-region",)
CASES: dict[str, Case] = {
    "AlexNet": Case(zoo("alexnet", pool=1, hidden=256, he=True, width=0.5)),
    "VGG16": Case(zoo("vgg16", width=0.25), (1, 32, 32)),
    "ResNet of basic blocks": Case(
        zoo("ResNet", block="basic", layers=[1, 2, 1, 1], block_inplanes=THIN, conv1_t_stride=2)
    ),
    "ResNet of bottlenecks": Case(
        zoo("ResNet", block="bottleneck", layers=[1, 2, 1, 1], block_inplanes=THIN, conv1_t_stride=2)
    ),
    "DenseNet": Case(zoo("DenseNet", init_features=16, growth_rate=16, block_config=(2, 3, 3, 2)), structures=CHEAP),
    "SEResNet": Case(zoo("SEResNet50", layers=(1, 1, 1, 1)), (1, 32, 32), structures=CHEAP),
    "EfficientNet-B0": Case(zoo("EfficientNetBN"), (1, 32, 32), structures=CHEAP),
    "ViT": Case(zoo("vit", size=32, patch=8, hidden_size=96, mlp_dim=192, num_layers=3, num_heads=4), (1, 32, 32)),
    "Swin": Case(zoo("swin", width=12, window=4, depths=(1, 2, 1, 1), heads=(2, 2, 4, 4)), (1, 32, 32)),
    "3-D ResNet": Case(
        zoo(
            "ResNet",
            block="basic",
            layers=[1, 1, 1, 1],
            block_inplanes=[8, 16, 32, 64],
            spatial_dims=3,
            conv1_t_stride=2,
            no_max_pool=True,
        ),
        (1, 16, 16, 16),
    ),
    "3-D DenseNet": Case(
        zoo("DenseNet", init_features=16, growth_rate=8, block_config=(2, 2, 2), spatial_dims=3), (1, 16, 16, 16)
    ),
    "two inputs": Case(TwoInputs, (1, 32, 32), call=call_both, extra={"table": 10}),
    "two outputs": Case(TwoOutputs, (1, 32, 32), (SOFTMAX, FINDINGS)),
}
