"""Networks by name: AlexNet, and every MONAI network that classifies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hscc_edge.errors import ModelError, extra

with extra("workstation"):
    import torch
    from monai.networks import nets
    from torch import nn


class AlexNet(nn.Module):
    """AlexNet with the layer sizes of "One weird trick" (Krizhevsky 2014, arXiv 1404.5997).

    Args:
        channels: input channels; the map must be at least 64 x 64.
        classes: logits.
        pool: side of the map that the first Linear sees (6 at 224 x 224; an input of 128 x 128 gives 3).
        hidden: width of the two hidden Linear layers.
        dropout: before each hidden Linear.
    """

    def __init__(
        self, channels: int = 3, classes: int = 1000, pool: int = 6, hidden: int = 4096, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * pool * pool, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) -> logits (B, classes)."""
        maps = self.pool(self.features(images))  # (B, 256, pool, pool)
        return torch.as_tensor(self.classifier(maps.flatten(1)))


MONAI_ARGUMENTS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "DenseNet121": lambda channels, classes: {"spatial_dims": 2, "in_channels": channels, "out_channels": classes},
    "DenseNet169": lambda channels, classes: {"spatial_dims": 2, "in_channels": channels, "out_channels": classes},
    "DenseNet201": lambda channels, classes: {"spatial_dims": 2, "in_channels": channels, "out_channels": classes},
    "EfficientNetBN": lambda channels, classes: {
        "model_name": "efficientnet-b0", "spatial_dims": 2, "in_channels": channels, "num_classes": classes,
        "pretrained": False,
    },
    "SEResNet50": lambda channels, classes: {"spatial_dims": 2, "in_channels": channels, "num_classes": classes},
    "SEResNet101": lambda channels, classes: {"spatial_dims": 2, "in_channels": channels, "num_classes": classes},
    "resnet10": lambda channels, classes: {"spatial_dims": 2, "n_input_channels": channels, "num_classes": classes},
    "resnet18": lambda channels, classes: {"spatial_dims": 2, "n_input_channels": channels, "num_classes": classes},
    "resnet34": lambda channels, classes: {"spatial_dims": 2, "n_input_channels": channels, "num_classes": classes},
    "resnet50": lambda channels, classes: {"spatial_dims": 2, "n_input_channels": channels, "num_classes": classes},
}  # fmt: skip


def network_names() -> tuple[str, ...]:
    """Every name that `build_network` knows."""
    return ("alexnet", *MONAI_ARGUMENTS)


def build_network(name: str, channels: int, classes: int, args: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights from torch's global random state.

    Args:
        name: "alexnet" or a network of `monai.networks.nets` as MONAI spells it.
        args: further arguments of its constructor.

    Raises:
        ModelError: if the name is unknown or the arguments do not fit.
    """
    try:
        if name == "alexnet":
            return AlexNet(channels=channels, classes=classes, **args)
        if name in MONAI_ARGUMENTS:
            network: nn.Module = getattr(nets, name)(**{**MONAI_ARGUMENTS[name](channels, classes), **args})
            return network
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the network {name} refuses its arguments {dict(args)} ({error}): mend the recipe"
        ) from error
    raise ModelError(f"the network {name!r} is unknown: expected one of {', '.join(network_names())}")
