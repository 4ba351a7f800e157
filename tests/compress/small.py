"""A small network with every kind of layer, smooth images, and a prepared problem, for the tests beside this file."""

import torch
from torch import nn

from hscc_edge.compress.compression import Prepared, prepare
from hscc_edge.compress.problem import Settings
from hscc_edge.model.head import Head, kl

HEAD = Head("softmax", ("a", "b", "c", "d"))
SHAPE = (2, 24, 24)
KEPT: dict[object, tuple[nn.Module, Prepared]] = {}


class Small(nn.Module):
    """Strided, dilated, bias-free, pointwise and grouped convolutions, an in-place ReLU, and two Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 16, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 1),
            nn.Conv2d(32, 32, 3, groups=4, padding=1),
            nn.AdaptiveAvgPool2d(3),
        )
        self.head = nn.Sequential(nn.Linear(288, 64), nn.ReLU(inplace=True), nn.Linear(64, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).flatten(1))


def small_network() -> nn.Module:
    """Fresh weights; the head is scaled so that its answers differ from image to image."""
    torch.manual_seed(0)
    small = Small().eval()
    with torch.no_grad():
        small.head[2].weight.mul_(20)
    return small


def smooth_images(count: int, seed: int) -> torch.Tensor:
    """Images with the strong correlations of real ones: white noise teaches nothing about low rank."""
    noise = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, size=SHAPE[1:], mode="bicubic", align_corners=False)


def prepared(network: nn.Module, method: str = "hscc", **settings: object) -> Prepared:
    """What `method` finds on 96 images; ranks in fours. Kept: several tests ask for the same."""
    key = (id(network), method, tuple(sorted(settings.items())))
    if key not in KEPT:
        batches = [{"image": part} for part in smooth_images(96, 0).split(32)]
        chosen = Settings(**{"alignment": 4, "cells": (2, 2), "regions": 4, **settings})
        KEPT[key] = (network, prepare(method, network, (HEAD,), lambda: batches, chosen))
    return KEPT[key][1]


def mean_kl(network: nn.Module, other: nn.Module) -> float:
    """On images that calibrated nothing."""
    images = smooth_images(128, 9)
    with torch.no_grad():
        return float(kl(HEAD, network(images).numpy(), other(images).numpy()).mean())
