"""The fx graph under construction, and one node of an ONNX graph being translated into it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.onnx_constants import Constant, Sizes, Value
from hscc_edge.model.onnx_source import Shape

with extra("workstation"):
    import onnx
    import torch
    from torch import fx, nn


def identifier(name: str) -> str:
    """`name` with everything that Python does not allow in a name replaced by one underscore."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    return f"n{plain}" if not plain or plain[0].isdigit() or keyword.iskeyword(plain) else plain


@dataclass(frozen=True, slots=True)
class Weight:
    """An array that a layer gets; equal keys mean equal arrays."""

    key: str
    array: NDArray[Any]


Weights = Mapping[str, Weight | None]


@dataclass(slots=True)
class Builder:
    """The fx graph under construction; every node is also run on meta tensors, so that its rank is known.

    Attributes:
        shapes: what ONNX's inference knows of each value's shape.
        consumers: the nodes that read each value; a graph output counts as one.
        constants: every value that depends on no input.
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
    _layers: dict[Any, str] = field(default_factory=dict)
    _found: dict[fx.Node, Any] = field(default_factory=dict)

    def input(self, name: str, example: torch.Tensor) -> fx.Node:
        """An input of the network."""
        node = self.graph.placeholder(identifier(name))
        self._found[node] = example.to("meta")
        return node

    def emit(self, function: Callable[..., Any], *args: Any, **options: Any) -> fx.Node:
        """A call of `function` in the graph."""
        return self._run(self.graph.call_function(function, args, options), function)

    def method(self, name: str, x: fx.Node, *args: Any) -> fx.Node:
        """A call of the tensor's own method."""
        return self._run(self.graph.call_method(name, (x, *args)), getattr(torch.Tensor, name))

    def _run(self, node: fx.Node, function: Callable[..., Any]) -> fx.Node:
        with torch.no_grad(), torch.device("meta"):
            args, options = fx.map_arg((node.args, node.kwargs), self._found.__getitem__)
            self._found[node] = function(*args, **options)
        return node

    def rank(self, node: fx.Node) -> int:
        """The number of a tensor's axes."""
        return int(self._found[node].dim())

    def free_name(self, wanted: str) -> str:
        """An attribute name that the network does not have yet."""
        name, count = identifier(wanted), 1
        while hasattr(self.root, name) or hasattr(fx.GraphModule, name):
            name, count = f"{identifier(wanted)}_{count}", count + 1
        return name

    def buffer(self, constant: Constant) -> fx.Node:
        """The constant as a buffer of the network, one for all that read it."""
        if constant.name not in self._buffers:
            name, tensor = self.free_name(constant.name), _tensor(constant.array)
            self.root.register_buffer(name, tensor)
            self._buffers[constant.name] = node = self.graph.get_attr(name)
            self._found[node] = tensor.to("meta")
        return self._buffers[constant.name]

    def layer(self, name: str, kind: type[nn.Module], x: fx.Node, weights: Weights, **sizes: Any) -> fx.Node:
        """A call of the layer with these very weights and sizes, made and named at the first call."""
        key = (kind, *(weight and weight.key for weight in weights.values()), *sorted(sizes.items()))
        if key not in self._layers:
            self._layers[key] = self.free_name(name)
            self.root.add_module(self._layers[key], _layer(kind, weights, sizes))
        found = self._layers[key]
        on_meta = {name: tensor.to("meta") for name, tensor in self.root.get_submodule(found).state_dict().items()}

        def run(x: torch.Tensor) -> Any:
            return torch.func.functional_call(self.root.get_submodule(found), on_meta, (x,))

        return self._run(self.graph.call_module(found, (x,)), run)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C"))


def _layer(kind: type[nn.Module], weights: Weights, sizes: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        module = kind(**sizes)
    for attribute, weight in weights.items():
        if weight is not None:
            tensor = _tensor(weight.array)
            setattr(module, attribute, nn.Parameter(tensor) if attribute in module._parameters else tensor)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_batches_tracked = torch.tensor(0)
    return module.eval()


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

    def shape(self, index: int = 0) -> Shape:
        """What is known at import of the input's shape: its rank, and the sizes that no input changes."""
        shape = self.builder.shapes.get(self.node.input[index])
        if shape is None:
            return (None,) * self.builder.rank(self.tensor(index))
        return shape

    def rank(self, index: int = 0) -> int:
        """The input's number of axes."""
        return len(self.shape(index))

    def size(self, axis: int) -> fx.Node:
        """The first input's size, read when the network runs."""
        return self.builder.method("size", self.tensor(0), axis)

    def layer(self, kind: type[nn.Module], x: fx.Node, weights: Weights, **sizes: Any) -> fx.Node:
        """A call of the layer named after this node, or of the one that already has these weights."""
        return self.builder.layer(self.name, kind, x, weights, **sizes)
