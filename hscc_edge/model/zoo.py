"""Networks by name: AlexNet, VGG16, and every MONAI network that classifies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hscc_edge.errors import ModelError, extra

with extra("workstation"):
    import torch
    from monai.networks import nets
    from monai.networks.nets.swin_unetr import SwinTransformer
    from torch import nn


class AlexNet(nn.Module):
    """AlexNet with the layer sizes of "One weird trick" (Krizhevsky 2014, arXiv 1404.5997).

    Args:
        channels: input channels; the map must be at least 64 x 64.
        classes: logits.
        pool: side of the map that the first Linear sees (6 at 224 x 224; an input of 128 x 128 gives 3).
        hidden: width of the two hidden Linear layers.
        dropout: before each hidden Linear.
        he: start from He's normal initialisation (He et al. 2015, arXiv 1502.01852) instead of torch's own, which
            shrinks the signal layer by layer; short schedules need it.
        width: of every convolution, as a share of the paper's.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 1000,
        pool: int = 6,
        hidden: int = 4096,
        dropout: float = 0.5,
        he: bool = False,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        first, second, third, last = (round(width * size) for size in (64, 192, 384, 256))
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(second, third, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(third, last, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(last, last, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(last * pool * pool, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )
        if he:
            self.apply(_start_by_he)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) -> logits (B, classes)."""
        maps = self.pool(self.features(images))  # (B, last, pool, pool)
        return torch.as_tensor(self.classifier(maps.flatten(1)))


VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """VGG16's thirteen convolutions with batch norm and a linear head (Simonyan and Zisserman 2015, arXiv 1409.1556).

    The maps are averaged before the head, so that any input of at least 32 x 32 will do.

    Args:
        channels: input channels.
        classes: logits.
        dropout: before the head.
        width: of every layer, as a share of the paper's.
    """

    def __init__(self, channels: int = 3, classes: int = 1000, dropout: float = 0.2, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in VGG16_WIDTHS:
            for outputs in (round(width * size) for size in stage):
                layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) -> logits (B, classes)."""
        return torch.as_tensor(self.classifier(self.pool(self.features(images)).flatten(1)))


class ViT(nn.Module):
    """MONAI's vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), which gives its logits alone.

    Args:
        size: side of the image, the same on every axis.
        patch: side of a patch; it divides `size`.
        options: further arguments of `monai.networks.nets.ViT`, such as hidden_size and num_layers.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 1000,
        size: int = 224,
        patch: int = 16,
        spatial_dims: int = 2,
        **options: Any,
    ) -> None:
        super().__init__()
        found = {
            "in_channels": channels, "img_size": (size,) * spatial_dims, "patch_size": (patch,) * spatial_dims,
            "spatial_dims": spatial_dims, "classification": True, "num_classes": classes, "post_activation": "",
        }  # fmt: skip
        self.transformer: nn.Module = getattr(nets, "ViT")(**{**found, **options})  # noqa: B009 (not in MONAI's types)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, channels, *sides) -> logits (B, classes)."""
        return torch.as_tensor(self.transformer(images)[0])


class Swin(nn.Module):
    """MONAI's Swin encoder of four stages (Liu et al. 2021, arXiv 2103.14030), pooled, with a linear head.

    Args:
        width: channels of the first stage; the last map has sixteen times as many.
        patch: side of a patch.
        window: side of the windows that attention sees.
        options: further arguments of MONAI's SwinTransformer, such as mlp_ratio.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 1000,
        width: int = 24,
        patch: int = 2,
        window: int = 7,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        spatial_dims: int = 2,
        **options: Any,
    ) -> None:
        super().__init__()
        sides = ((window,) * spatial_dims, (patch,) * spatial_dims)
        self.encoder = SwinTransformer(
            channels, width, *sides, depths=depths, num_heads=heads, spatial_dims=spatial_dims, **options
        )
        self.head = nn.Linear(16 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, channels, *sides) -> logits (B, classes)."""
        maps = self.encoder(images)[-1]  # (B, 16 width, *positions)
        return torch.as_tensor(self.head(maps.flatten(2).mean(dim=2)))


def _start_by_he(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


PLAIN = {"spatial_dims": 2, "in_channels": "{channels}", "num_classes": "{classes}"}
RESNET = {"spatial_dims": 2, "n_input_channels": "{channels}", "num_classes": "{classes}"}
DENSENET = {"spatial_dims": 2, "in_channels": "{channels}", "out_channels": "{classes}"}
EFFICIENTNET = {**PLAIN, "model_name": "efficientnet-b0", "pretrained": False}

MONAI_ARGUMENTS: dict[str, dict[str, Any]] = {
    "DenseNet121": DENSENET,
    "DenseNet169": DENSENET,
    "DenseNet201": DENSENET,
    "DenseNet": DENSENET,
    "EfficientNetBN": EFFICIENTNET,
    "ResNet": RESNET,
    "SEResNet50": PLAIN,
    "SEResNet101": PLAIN,
    "resnet10": RESNET,
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
}


OWN: dict[str, Callable[..., nn.Module]] = {"alexnet": AlexNet, "vgg16": VGG16, "vit": ViT, "swin": Swin}


def network_names() -> tuple[str, ...]:
    """Every name that `build_network` knows."""
    return (*OWN, *MONAI_ARGUMENTS)


def build_network(name: str, channels: int, classes: int, args: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights from torch's global random state.

    Args:
        name: one of OWN or a network of `monai.networks.nets` as MONAI spells it.
        args: further arguments of its constructor.

    Raises:
        ModelError: if the name is unknown or the arguments do not fit.
    """
    try:
        if name in OWN:
            return OWN[name](channels=channels, classes=classes, **args)
        if name in MONAI_ARGUMENTS:
            sizes = {"{channels}": channels, "{classes}": classes}
            own = {key: sizes.get(value, value) for key, value in MONAI_ARGUMENTS[name].items()}
            network: nn.Module = getattr(nets, name)(**{**own, **args})
            return network
    except (TypeError, ValueError) as error:
        raise ModelError(f"the network {name} refuses its arguments {dict(args)} ({error}): mend the recipe") from error
    raise ModelError(f"the network {name!r} is unknown: expected one of {', '.join(network_names())}")
