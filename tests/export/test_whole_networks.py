"""Engines of whole networks, as deep and as wide as they are used, by a real builder: `make test-networks`."""

from collections.abc import Callable

import pytest
import torch
from monai.networks import nets
from test_engine_networks import built, hscc
from torch import nn

from hscc_edge.model.zoo import AlexNet, ViT

WHOLE = {"spatial_dims": 2, "in_channels": 1}
SMALL, SQUARE = (1, 64, 64), (3, 224, 224)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "densenet121": (lambda: nets.DenseNet121(**WHOLE, out_channels=4), SMALL),
    "resnet50": (lambda: nets.resnet50(spatial_dims=2, n_input_channels=1, num_classes=4), SMALL),
    "efficientnet-b0": (
        lambda: nets.EfficientNetBN("efficientnet-b0", **WHOLE, num_classes=4, pretrained=False), SMALL,
    ),
    "seresnet50": (lambda: nets.SEResNet50(**WHOLE, num_classes=4), SMALL),
    "alexnet": (lambda: AlexNet(3, 4), SQUARE),
    "hscc-alexnet": (lambda: hscc(AlexNet(3, 4), side=13, rank=48), SQUARE),
    "vit-b16": (lambda: ViT(3, 4), SQUARE),
    "densenet121-3d": (lambda: nets.DenseNet121(spatial_dims=3, in_channels=1, out_channels=4), (1, 64, 64, 64)),
}  # fmt: skip
LONG = ("alexnet", "hscc-alexnet", "vit-b16", "densenet121-3d")  # small ones of their kinds are in test_engine_networks


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in NETWORKS]
)
def test_an_engine_has_the_precision_that_was_asked_for(name, tmp_path):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    assert built(make(), shape, tmp_path) > 20
