"""The fx graph under construction, and one node of an ONNX graph being translated into it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.onnx_constants import Constant, Sizes, Value

with extra("workstation"):
    import onnx
    import torch
    from torch import fx, nn

Shape = tuple[int | None, ...]


def identifier(name: str) -> str:
    """`name` with everything that Python does not allow in a name replaced by one underscore."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    return f"n{plain}" if not plain or plain[0].isdigit() else plain


def tensor_of(array: NDArray[Any]) -> torch.Tensor:
    """A tensor of its own memory; the array is copied only if it is a view of the file or out of order."""
    return torch.from_numpy(np.require(array, requirements=["C", "W", "O"]))


@dataclass(slots=True)
class Builder:
    """The fx graph under construction.

    Attributes:
        shapes: what is known at import of each value's shape.
        consumers: the nodes that read each value; a graph output counts as one.
        constants: every initialiser and Constant node.
        batch: the size of the graph's first axis if it is fixed.
        merged: outputs of nodes that another node's layer has already computed.
    """

    opset: int
    shapes: Mapping[str, Shape]
    consumers: Mapping[str, Sequence[onnx.NodeProto | None]]
    constants: Mapping[str, Constant]
    batch: int | None
    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    merged: dict[str, fx.Node] = field(default_factory=dict)
    _buffers: dict[str, fx.Node] = field(default_factory=dict)
    _weights: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    _layers: dict[Any, str] = field(default_factory=dict)

    def emit(self, function: Callable[..., Any], *args: Any, **options: Any) -> fx.Node:
        """A call of `function` in the graph."""
        return self.graph.call_function(function, args, options)

    def free_name(self, wanted: str) -> str:
        """An attribute name that the network does not have yet."""
        name, count = identifier(wanted), 1
        while hasattr(self.root, name) or hasattr(fx.GraphModule, name):
            name, count = f"{identifier(wanted)}_{count}", count + 1
        return name

    def buffer(self, constant: Constant) -> fx.Node:
        """The constant as a buffer of the network, one for all that read it."""
        if constant.name not in self._buffers:
            name = self.free_name(constant.name)
            self.root.register_buffer(name, tensor_of(constant.array))
            self._buffers[constant.name] = self.graph.get_attr(name)
        return self._buffers[constant.name]

    def weight(self, constant: Constant, change: str, array: NDArray[Any]) -> torch.Tensor:
        """`array`, which is the constant changed as `change` tells, as one parameter for all layers that have it.

        A "statistic" is no parameter.
        """
        key = (constant.name, change)
        if key not in self._weights:
            tensor = tensor_of(array)
            self._weights[key] = tensor if change == "statistic" else nn.Parameter(tensor)
        return self._weights[key]

    def layer(self, name: str, kind: type[nn.Module], weights: Mapping[str, torch.Tensor | None], **sizes: Any) -> str:
        """The name of the layer with these very weights and sizes, made at the first call."""
        key = (kind, tuple((k, id(w)) for k, w in weights.items()), tuple(sorted(sizes.items())))
        if key not in self._layers:
            with torch.device("meta"):
                module = kind(**sizes)
            for attribute, weight in weights.items():
                setattr(module, attribute, weight)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.num_batches_tracked = torch.tensor(0)
            self._layers[key] = self.free_name(name)
            self.root.add_module(self._layers[key], module)
        return self._layers[key]


@dataclass(frozen=True, slots=True)
class Call:
    """A node whose inputs are known; `values` holds None for an optional input that is left out."""

    node: onnx.NodeProto
    values: tuple[Value | None, ...]
    attributes: Mapping[str, Any]
    builder: Builder

    @property
    def name(self) -> str:
        """The node's name, or its first output's."""
        return self.node.name or self.node.output[0]

    def fail(self, found: str, expected: str) -> NoReturn:
        """Refuse the node.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"the node {self.name} ({self.node.op_type}, opset {self.builder.opset}) has {found}: expected {expected}; "
            "export the network in another way"
        )

    def has(self, index: int) -> bool:
        """Whether the optional input is given."""
        return index < len(self.values) and self.values[index] is not None

    def emit(self, function: Callable[..., Any], *args: Any, **options: Any) -> fx.Node:
        """A call of `function` in the graph."""
        return self.builder.emit(function, *args, **options)

    def constant(self, index: int) -> Constant | None:
        """The input, if it is a constant."""
        value = self.values[index] if index < len(self.values) else None
        return value if isinstance(value, Constant) else None

    def operand(self, index: int) -> Any:
        """The input as a tensor, or as a plain number if it is one."""
        value = self.values[index]
        if isinstance(value, Constant) and value.array.size == 1 and value.array.ndim < 2:
            return value.array.item()
        if isinstance(value, Sizes) and value.items.size == 1:
            return value.items.item()
        return self.tensor(index)

    def tensor(self, index: int) -> fx.Node:
        """The input as a tensor."""
        value = self.values[index] if index < len(self.values) else None
        if isinstance(value, Constant):
            return self.builder.buffer(value)
        if isinstance(value, Sizes):
            kind = torch.int64 if value.whole else torch.float32
            return self.emit(torch.tensor, value.items.tolist(), dtype=kind)
        if value is None:
            self.fail(f"no input {index}", "one")
        return value

    def sizes(self, index: int, attribute: str = "") -> list[Any] | None:
        """Numbers, or fx nodes that give one each, from an attribute of old opsets or an input of newer ones."""
        if attribute in self.attributes:
            return list(self.attributes[attribute])
        if not self.has(index):
            return None
        value = self.values[index]
        if isinstance(value, Constant):
            return list(np.ravel(value.array).tolist())
        if isinstance(value, Sizes):
            return list(value.items.flat)
        self.fail(f"an input {index} that is computed from the image", "a constant")

    def shape(self, index: int = 0) -> Shape | None:
        """What is known at import of the input's shape; None if not even its rank is."""
        return self.builder.shapes.get(self.node.input[index])

    def rank(self, index: int = 0) -> int:
        """The input's number of axes."""
        shape = self.shape(index)
        if shape is None:
            self.fail("an input of unknown rank", "a graph with inferable shapes")
        return len(shape)

    def layer(self, kind: type[nn.Module], x: Any, weights: Mapping[str, torch.Tensor | None], **sizes: Any) -> fx.Node:
        """A call of the layer named after this node, or of the one that already has these weights."""
        name = self.builder.layer(self.name, kind, weights, **sizes)
        return self.builder.graph.call_module(name, (x,))
