"""An ONNX file read, in float32 and cut at its logits: what the importer translates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.onnx_constants import LARGE, attributes_of, read_tensor

with extra("workstation"):
    import onnx
    import onnx.inliner
    from onnx import helper, numpy_helper

OPSETS = (9, 24)
TAILS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
TAIL_PASSES = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze")
Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: an axis is a size, the name of a size that varies, or None; `dtype` is numpy's name."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Source:
    """A graph in float32 that ends in its logits.

    Attributes:
        tail: by output the activation that was cut off: "softmax", "sigmoid" or "".
        shapes: what ONNX's shape inference finds.
        halves: whether the file has float16.
    """

    path: Path
    model: onnx.ModelProto
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tail: tuple[str, ...]
    opset: int
    shapes: Mapping[str, Shape]
    halves: bool

    @property
    def plain(self) -> bool:
        """Whether `model` is what the file holds, nothing widened and nothing cut off."""
        return not self.halves and not any(self.tail)


def read_source(path: Path) -> Source:
    """Read an ONNX file, with its external data.

    Raises:
        ModelError: if it is missing or no ONNX model, or has another opset, other domains or graphs within nodes.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist: give the path of an ONNX file")
    model = _parse(path)
    opset = _opset(path, model)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _refuse_strange(path, model.graph)
    held = {item.name for item in model.graph.initializer}
    inputs = tuple(_port(path, item) for item in model.graph.input if item.name not in held)
    outputs = tuple(_port(path, item) for item in model.graph.output)
    if not inputs or not outputs:
        raise ModelError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs: expected one or more of each")
    halves = _widen(model)
    shapes = _shapes(model)
    tail = tuple(_cut_tail(model.graph, port.name, opset, shapes) for port in outputs)
    return Source(path, model, inputs, outputs, tail, opset, shapes, halves)


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto | None]]:
    """The nodes that read each value; None stands for the graph's own output."""
    found: dict[str, list[onnx.NodeProto | None]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    for item in graph.output:
        found.setdefault(item.name, []).append(None)
    return found


def first_line(error: Exception) -> str:
    """The error's class and the beginning of its text."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def _parse(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's and onnx's exceptions share no narrower class
        raise ModelError(
            f"{path} cannot be read as an ONNX model ({first_line(error)}): give an ONNX file, with its external data "
            "beside it"
        ) from error
    if not model.graph.node:
        raise ModelError(f"{path} holds no ONNX graph with nodes: give the file that the network was exported to")
    return model


def _opset(path: Path, model: onnx.ModelProto) -> int:
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ModelError(
            f"{path} has opset {opset}: expected {OPSETS[0]} to {OPSETS[1]}; export the network with another opset"
        )
    return opset


def _refuse_strange(path: Path, graph: onnx.GraphProto) -> None:
    for node in graph.node:
        name = node.name or (node.output[0] if node.output else "without a name")
        if any(item.HasField("g") or item.graphs for item in node.attribute):
            raise ModelError(
                f"the node {name} of {path} ({node.op_type}) holds a graph of its own: expected a network without "
                "branches and loops; export it without them"
            )
        if node.domain not in ("", "ai.onnx"):
            raise ModelError(
                f"the node {name} of {path} has the operator {node.op_type} of the domain {node.domain}: expected "
                "ONNX's own operators; export the network without that runtime's optimisations"
            )


def _port(path: Path, item: onnx.ValueInfoProto) -> Port:
    kind = item.type.tensor_type
    if not item.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise ModelError(
            f"{item.name} of {path} is no tensor of known rank: expected inputs and outputs that are; export the "
            "network again"
        )
    shape = tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else axis.dim_param or None
        for axis in kind.shape.dim
    )
    return Port(item.name, shape, str(helper.tensor_dtype_to_np_dtype(kind.elem_type).name))


def _widen(model: onnx.ModelProto) -> bool:
    """Turn all that is float16 into float32; whether there was any."""
    half, full, graph = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, model.graph
    attributes = [(node.op_type, item) for node in graph.node for item in node.attribute]
    targets = [item for kind, item in attributes if kind == "Cast" and item.name == "to" and item.i == half]
    tensors = [*graph.initializer, *(item.t for _, item in attributes if item.HasField("t"))]
    tensors = [tensor for tensor in tensors if tensor.data_type == half]
    values = [
        item for item in (*graph.input, *graph.output, *graph.value_info) if item.type.tensor_type.elem_type == half
    ]
    for item in targets:
        item.i = full
    for tensor in tensors:
        tensor.CopyFrom(numpy_helper.from_array(read_tensor(tensor).astype(np.float32), tensor.name))
    for value in values:
        value.type.tensor_type.elem_type = full
    return bool(targets or tensors or values)


def _cut_tail(graph: onnx.GraphProto, output: str, opset: int, shapes: Mapping[str, Shape]) -> str:
    """Let a last Softmax or Sigmoid pass its input on, through reshapings that leave a (B, n) output as it is."""
    makers = {name: node for node in graph.node for name in node.output}
    readers, rank, name, moved = consumers(graph), len(shapes.get(output, ())), output, False
    while name in makers and len(readers.get(name, ())) == 1:
        node = makers[name]
        if node.op_type in TAILS:
            if node.op_type == "Softmax" and not _over_classes(node, rank, opset, moved):
                return ""
            found = TAILS[node.op_type]
            node.op_type = "Identity"
            del node.attribute[:]
            return found
        if node.op_type not in TAIL_PASSES:
            return ""
        moved = moved or node.op_type not in ("Identity", "Cast")
        name = node.input[0]
    return ""


def _over_classes(node: onnx.NodeProto, rank: int, opset: int, moved: bool) -> bool:
    """Whether a softmax over the output's last axis is the same as this node."""
    axis = int(attributes_of(node).get("axis", 1 if opset < 13 else -1))
    if moved:  # (B, n, 1, 1) softmax, then flattened to (B, n)
        return rank == 2 and axis == 1
    return axis in (-1, rank - 1)


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """What ONNX's shape inference finds; large weights are left out, so that none is copied."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.graph.name = "graph"
    graph, listed = model.graph, {item.name for item in model.graph.input}
    skeleton.graph.node.extend(graph.node)
    skeleton.graph.output.extend(onnx.ValueInfoProto(name=item.name) for item in graph.output)
    skeleton.graph.input.extend(graph.input)
    for tensor in graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) <= LARGE:
            skeleton.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            skeleton.graph.input.append(info)
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except Exception:  # no narrower class; a graph of which less is known may still be translated
        graph = model.graph
    values: Sequence[onnx.ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    known = {item.name: _shape_of(item) for item in values if item.type.tensor_type.HasField("shape")}
    return known | {item.name: tuple(item.dims) for item in model.graph.initializer}


def _shape_of(item: onnx.ValueInfoProto) -> Shape:
    axes = item.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None for axis in axes)
