"""A network made elsewhere: read from an ONNX graph, fed with our images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.onnx_import import Imported, translate
from hscc_edge.model.onnx_source import Port, read_source

with extra("workstation"):
    import torch
    from torch import fx, nn

NAME = "onnx"
Shape = tuple[int, ...]
LAYOUTS = {"NCHW": (0, 1, 2), "NHWC": (1, 2, 0)}
"""By layout, where channels, rows and columns of our images go behind the batch."""


class Foreign(nn.Module):
    """An imported network behind the door of every other: images (B, C, H, W) in, logits (B, n) out.

    Args:
        network: takes images in `layout`, and gives one tensor of logits.
        layout: one of LAYOUTS.
    """

    def __init__(self, network: fx.GraphModule, layout: str) -> None:
        super().__init__()
        self.network = network
        self.order = (0, *(axis + 1 for axis in LAYOUTS[layout]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> logits (B, n)."""
        if self.order != (0, 1, 2, 3):
            images = images.permute(self.order)
        logits: torch.Tensor = self.network(images)
        return logits.flatten(1) if logits.dim() > 1 else logits.unsqueeze(1)


def layout_of(port: Port, shape: Shape) -> str:
    """How an input takes images of our shape (C, H, W); NCHW where both would do.

    Raises:
        ModelError: if it does not take them.
    """
    for layout, order in LAYOUTS.items():
        turned = tuple(shape[axis] for axis in order)
        sizes = zip(port.shape[1:], turned, strict=False)
        if len(port.shape) == 4 and all(not isinstance(size, int) or size == own for size, own in sizes):
            return layout
    raise ModelError(
        f"the model's input {port.name} has the shape {_text(port)}: the recipe's preprocess gives (C, H, W) {shape}; "
        "change its steps channels and resize"
    )


def _text(port: Port) -> str:
    return "(" + ", ".join("any" if not isinstance(size, int) else str(size) for size in port.shape) + ")"


def as_given(images: NDArray[np.float32], port: Port, layout: str) -> NDArray[np.float32]:
    """Our images (B, C, H, W) as the file takes them; repeated where it fixes the batch."""
    batch = port.shape[0]
    if isinstance(batch, int):
        images = np.resize(images, (batch, *images.shape[1:]))
    turned = images.transpose(0, *(axis + 1 for axis in LAYOUTS[layout]))
    return np.ascontiguousarray(turned, dtype=np.dtype(port.dtype))


def read_graph(path: Path, shape: Shape, layout: str) -> Imported:
    """The network of a graph that was checked when it was imported, for our images of shape (C, H, W).

    Raises:
        ModelError: if the file is no such graph.
    """
    source = read_source(path)
    return translate(source, (as_given(np.zeros((2, *shape), np.float32), source.inputs[0], layout),))
