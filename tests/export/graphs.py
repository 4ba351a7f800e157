"""Small graphs, images and a way to run a graph: for the tests of precision."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from hscc_edge.export.onnx import export_onnx
from hscc_edge.export.sensitivity import logits
from hscc_edge.model.plan import Box
from hscc_edge.model.regional import OwnFactors, SharedReduce

BOXES = (Box((0, 0), (4, 5)), Box((0, 5), (4, 9)), Box((4, 0), (9, 9)))
REGIONAL = (1, 17, 18)


@cache
def regional() -> bytes:
    """REGIONAL -> 4 logits, with a shared reduce, own factors a region and a factorised Linear; made by torch."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 6, 3, stride=2, padding=1)
    second = nn.Conv2d(6, 8, 3, padding=2, dilation=2)
    network = nn.Sequential(
        SharedReduce(first, 3, BOXES), nn.ReLU(), OwnFactors(second, (2, 3, 4), BOXES), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3, bias=False), nn.Linear(3, 4),
    )  # fmt: skip
    return export_onnx(network.eval(), REGIONAL)


def graph(
    shape: Sequence[int], nodes: Sequence[onnx.NodeProto], weights: Mapping[str, np.ndarray], classes: int
) -> bytes:
    """A graph from "image" (batch, *shape) to "logits" (batch, classes); nodes are named by their outputs."""
    for node in nodes:
        node.name = f"node_{node.output[0]}"
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    kind = onnx.TensorProto.FLOAT
    ends = (("image", ["batch", *shape]), ("logits", ["batch", classes]))
    first, last = (helper.make_tensor_value_info(name, kind, sizes) for name, sizes in ends)
    made = helper.make_graph(nodes, "graph", [first], [last], tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def chain(*scales: float) -> bytes:
    """(1, 2, 2) -> 4 logits by Gemm nodes without biases, whose weights are all one number each."""
    names = ["flat", *(f"layer{index}" for index in range(1, len(scales))), "logits"]
    gemms = [
        helper.make_node("Gemm", [source, f"weight{index}"], [target], transB=1)
        for index, (source, target) in enumerate(pairwise(names))
    ]
    weights = {f"weight{index}": np.full((4, 4), scale, np.float32) for index, scale in enumerate(scales)}
    return graph((1, 2, 2), [helper.make_node("Flatten", ["image"], ["flat"]), *gemms], weights, 4)


def convolution() -> bytes:
    """(1, 6, 6) -> 2 logits: Conv to 3 maps, Relu, Gemm."""
    generator = np.random.default_rng(0)
    shapes = {"kernel": (3, 1, 3, 3), "bias": (3,), "weight": (2, 48)}
    weights = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], transB=1),
    ]
    return graph((1, 6, 6), nodes, weights, 2)


class Tokens(nn.Module):
    """Attention over pixels: shapes are computed inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) -> (B, 3)."""
        x = self.conv(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head((torch.softmax(x @ x.transpose(1, 2), -1) @ x)[:, 0])


def noise(count: int, shape: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    """Images of normal noise."""
    return list(np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32))


def run(content: bytes, images: Collection[np.ndarray]) -> np.ndarray:
    """Logits of images, on ONNX Runtime's CPU."""
    return logits(content, images)
