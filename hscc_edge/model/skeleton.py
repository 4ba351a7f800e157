"""An ONNX graph without its large weights: what a bundle carries to rebuild a network whose weights it has anyway."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hscc_edge.errors import extra
from hscc_edge.model.onnx_constants import LARGE

with extra("workstation"):
    import onnx
    from onnx import helper, numpy_helper

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def skeleton(path: Path) -> bytes:
    """The file's graph and names, with ConstantOfShape where a float weight has more than 1024 elements.

    It is valid ONNX, as large as its nodes; external data is not needed any more.
    """
    model = onnx.load(path)
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    large = [tensor for tensor in graph.initializer if _is_large(tensor)]
    names = {tensor.name for tensor in large}
    made = [_zeros(tensor, tensor.name, "") for tensor in large]
    nodes = [node for _, node in made]
    shapes = [shape for shape, _ in made]
    for node in graph.node:
        node.doc_string = ""
        value = next((item.t for item in node.attribute if item.name == "value"), None)
        if node.op_type == "Constant" and value is not None and _is_large(value):
            shape, node = _zeros(value, node.output[0], node.name)
            shapes.append(shape)
        nodes.append(node)
    _fill(graph.initializer, [*(item for item in graph.initializer if item.name not in names), *shapes])
    _fill(graph.input, [item for item in graph.input if item.name not in names])
    _fill(graph.node, nodes)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _is_large(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in FLOATS and int(np.prod(tensor.dims, dtype=np.int64)) > LARGE


def _zeros(tensor: onnx.TensorProto, output: str, name: str) -> tuple[onnx.TensorProto, onnx.NodeProto]:
    """A constant with the shape, and the node that makes so many zeros; no two weights share the constant."""
    shape = numpy_helper.from_array(np.array(tensor.dims, dtype=np.int64), f"{output}/shape")
    zero = helper.make_tensor("value", tensor.data_type, [1], [0.0])
    return shape, helper.make_node("ConstantOfShape", [shape.name], [output], name=name, value=zero)


def _fill(field: Any, items: Sequence[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)
