"""A single layer, dense or factorised, as an ONNX graph with fresh weights: what a runtime needs to time it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.convolution import CONVOLUTIONS, numbers, padding_of

with extra("workstation"):
    import onnx
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from torch import fx, nn
    from torch.nn import functional

OPSET = 18
BLOCK = 8  # channels that ONNX Runtime and TensorRT keep together; maps of fewer stay as they are


@dataclass(slots=True)
class _Graph:
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, values: object) -> str:
        name = f"constant{len(self.constants)}"
        array = values.detach().numpy() if isinstance(values, torch.Tensor) else np.asarray(values, dtype=np.int64)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operation: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operation, list(inputs), [output], **attributes))


def layer_graph(module: nn.Module, shape: Sequence[int], *, between: bool = False) -> bytes:
    """The graph of one layer: input "image" of this shape, batch first, output "logits".

    Args:
        between: set a layer of maps between a 1 x 1 depthwise convolution and a mean, so that its maps come and go as
            they do in a network, in the runtime's own layout. A graph of a ReLU alone then takes what is not the layer.

    Raises:
        ModelError: if the layer computes something that is not known here.
    """
    traced, graph = fx.symbolic_trace(module.eval()), _Graph()
    maps = between and len(shape) > 2
    for node in traced.graph.nodes:
        if node.op == "output":
            graph.node("GlobalAveragePool" if maps else "Identity", [node.args[0].name], "logits")
        elif node.op == "placeholder" and maps and shape[1] % BLOCK == 0:
            ones = graph.constant(torch.ones(shape[1], 1, *[1] * (len(shape) - 2)))
            graph.node("Conv", ["image", ones], node.name, group=shape[1], kernel_shape=[1] * (len(shape) - 2))
        elif node.op == "placeholder":
            graph.node("Identity", ["image"], node.name)
        elif node.op != "get_attr":
            _emit(graph, traced, node)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, "layer", [helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None] * len(shape))], graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10,
    )  # fmt: skip
    content: bytes = model.SerializeToString()
    return content


def _emit(graph: _Graph, traced: fx.GraphModule, node: fx.Node) -> None:
    if node.op == "call_module":
        _module(graph, traced.get_submodule(str(node.target)), _names(node.args)[0], node.name)
    elif node.target in FUNCTIONS:
        FUNCTIONS[node.target](graph, traced, node)
    else:
        raise ModelError(f"a layer with {node.target} cannot be timed: leave its structure out of the search")


def _module(graph: _Graph, module: nn.Module, given: str, output: str) -> None:
    if isinstance(module, CONVOLUTIONS):
        pads = padding_of(module)
        graph.node(
            "Conv", [given, *_weights(graph, module)], output, kernel_shape=list(module.kernel_size),
            strides=list(numbers(module.stride)), dilations=list(numbers(module.dilation)), group=module.groups,
            pads=[*pads, *pads],
        )  # fmt: skip
    elif isinstance(module, nn.Linear):
        graph.node("Gemm", [given, *_weights(graph, module)], output, transB=1)
    elif isinstance(module, nn.ReLU):
        graph.node("Relu", [given], output)
    else:
        raise ModelError(f"a layer with {type(module).__name__} cannot be timed: leave its structure out of the search")


def _weights(graph: _Graph, module: nn.Module) -> list[str]:
    bias = module.bias
    return [graph.constant(module.weight), *([graph.constant(bias)] if bias is not None else [])]


def _names(arguments: Any) -> list[str]:
    return [item.name for item in arguments if isinstance(item, fx.Node)]


def _slice(graph: _Graph, traced: fx.GraphModule, node: fx.Node) -> None:
    arguments: Any = node.args
    cuts = [(axis, part) for axis, part in enumerate(arguments[1]) if part != slice(None)]
    starts, ends, axes = [cut.start for _, cut in cuts], [cut.stop for _, cut in cuts], [axis for axis, _ in cuts]
    inputs = [*_names(arguments), *(graph.constant(values) for values in (starts, ends, axes))]
    graph.node("Slice", inputs, node.name)


def _pad(graph: _Graph, traced: fx.GraphModule, node: fx.Node) -> None:
    arguments: Any = node.args
    widths = arguments[1]
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    pads = [0, 0, *(low for low, _ in pairs), 0, 0, *(high for _, high in pairs)]
    graph.node("Pad", [*_names(arguments), graph.constant(pads)], node.name)


def _concat(graph: _Graph, traced: fx.GraphModule, node: fx.Node) -> None:
    arguments: Any = node.args
    axis = node.kwargs.get("dim", arguments[1] if len(arguments) > 1 else 0)
    graph.node("Concat", _names(arguments[0]), node.name, axis=axis)


def _gather(graph: _Graph, traced: fx.GraphModule, node: fx.Node) -> None:
    arguments: Any = node.args
    values = traced.get_buffer(arguments[2].target)
    graph.node("Gather", [arguments[0].name, graph.constant(values)], node.name, axis=arguments[1])


FUNCTIONS: dict[object, Callable[[_Graph, fx.GraphModule, fx.Node], None]] = {
    operator.getitem: _slice,
    functional.pad: _pad,
    torch.cat: _concat,
    "index_select": _gather,
}
