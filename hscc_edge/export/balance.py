"""The freedom of a factor pair, used: `U V = (U T^-1) (T V)` for any invertible T (r, r).

With S the second moment of `z = V x` on calibration images and M the Gram matrix of U's columns, the noise of rounding
z and U to equal steps is about `max diag(T S T^T) tr(M') + max diag(M') tr(T S T^T)`, `M' = T^-T M T^-1`. It is least
where both matrices are one and the same (a balanced realisation, Moore 1981) and have a constant diagonal (a rotation):
no rank is much larger or smaller than another, in activations or in weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import extra
from hscc_edge.export.calibrate import Images, second_moments
from hscc_edge.export.onnx import check_onnx, parse_onnx

with extra("workstation"):
    import onnx
    from onnx import numpy_helper

Matrix = NDArray[np.float64]
RIDGE = 1e-6
MULTIPLYING = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Pair:
    """Nodes by name: `reduce` makes the tensor `middle`, which the `expands` alone read, whole or sliced."""

    middle: str
    reduce: str
    expands: tuple[str, ...]


def balance(content: bytes, images: Images, *, rotate: bool = True) -> bytes:
    """The same function with every factor pair balanced; O(r^3) a pair, and one pass over the images.

    Args:
        images: gives a fresh pass over the calibration images (C, H, W) at each call.
        rotate: also make the diagonals constant; False leaves ranks sorted by what they carry.
    """
    model = parse_onnx(content)
    found = pairs(model)
    if not found:
        return content
    nodes = {node.name: node for node in model.graph.node}
    channels = {pair.middle: 1 if nodes[pair.reduce].op_type == "Conv" else -1 for pair in found}
    moments = second_moments(content, images, channels)
    weights = _weights(model)
    changes = {}
    for pair in found:
        gram = sum((_gram(weights[nodes[name].input[1]], _axes(nodes[name])[1]) for name in pair.expands), np.zeros(()))
        changes[pair.middle] = balancing(moments[pair.middle], gram, rotate=rotate)
    return transformed(content, changes)


def balancing(moment: Matrix, gram: Matrix, *, rotate: bool = True) -> Matrix:
    """T (r, r) for the second moment of z and the Gram matrix of U's columns, both (r, r)."""
    scale = np.sqrt(np.where(np.diag(moment) > 0, np.diag(moment), 1.0))  # ranks of any size, before any damping
    lower = np.linalg.cholesky(_damped(moment / np.outer(scale, scale)))
    values, vectors = np.linalg.eigh(lower.T @ _damped(gram * np.outer(scale, scale)) @ lower)
    change: Matrix = values[:, None] ** 0.25 * np.linalg.solve(lower.T, vectors).T / scale
    return hartley(len(change)) @ change if rotate else change


def hartley(size: int) -> Matrix:
    """An orthogonal (size, size) matrix without small rows: cos + sin of 2 pi j k / size (Hartley 1942)."""
    angle = 2.0 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    found: Matrix = (np.cos(angle) + np.sin(angle)) / np.sqrt(size)
    return found


def pairs(model: onnx.ModelProto) -> list[Pair]:
    """Every pair of linear nodes with nothing but slices of positions between them, in the graph's order."""
    graph, weights = model.graph, _weights(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {item.name for item in graph.output}
    found = []
    for node in graph.node:
        middle = node.output[0]
        if not _is_linear(node, weights, readers) or middle in outputs:
            continue
        maps = node.op_type == "Conv"
        ends = _ends(middle, maps, readers, weights)
        if ends and all(_is_linear(end, weights, readers) and (end.op_type == "Conv") == maps for end in ends):
            found.append(Pair(middle, node.name, tuple(end.name for end in ends)))
    return found


def transformed(content: bytes, changes: Mapping[str, Matrix]) -> bytes:
    """The graph with T applied to the pairs around the named tensors."""
    model = parse_onnx(content)
    nodes = {node.name: node for node in model.graph.node}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for pair in (pair for pair in pairs(model) if pair.middle in changes):
        change, first = changes[pair.middle], nodes[pair.reduce]
        _apply(tensors[first.input[1]], change, _axes(first)[0])
        if len(first.input) > 2:
            _apply(tensors[first.input[2]], change, 0)
        inverse = np.asarray(np.linalg.inv(change), np.float64)
        for name in pair.expands:
            _apply(tensors[nodes[name].input[1]], inverse.T, _axes(nodes[name])[1])
    written: bytes = model.SerializeToString(deterministic=True)
    check_onnx(written)
    return written


def _ends(
    tensor: str, maps: bool, readers: Mapping[str, list[onnx.NodeProto]], weights: Mapping[str, NDArray[np.float32]]
) -> list[onnx.NodeProto]:
    """The nodes that read a tensor, slices of its positions looked through."""
    found: list[onnx.NodeProto] = []
    for node in readers.get(tensor, []):
        if node.op_type == "Slice" and maps and len(node.input) > 3 and 1 not in weights.get(node.input[3], [1]):
            found += _ends(node.output[0], maps, readers, weights)
        else:
            found.append(node)
    return found


def _is_linear(
    node: onnx.NodeProto, weights: Mapping[str, NDArray[np.float32]], readers: Mapping[str, list[onnx.NodeProto]]
) -> bool:
    """Whether it multiplies by constants of its own, without groups or factors."""
    own = [name for name in node.input[1:] if name]
    if node.op_type not in MULTIPLYING or any(name not in weights or len(readers[name]) > 1 for name in own):
        return False
    plain = {"group": 1, "alpha": 1.0, "beta": 1.0, "transA": 0}
    values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return weights[own[0]].ndim >= 2 and all(values.get(name, value) == value for name, value in plain.items())


def _axes(node: onnx.NodeProto) -> tuple[int, int]:
    """Which axes of its weight are outputs and inputs."""
    flags = {item.name: item.i for item in node.attribute}
    return (0, 1) if node.op_type == "Conv" or flags.get("transB") else (1, 0)


def _weights(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _gram(weight: NDArray[np.float32], axis: int) -> Matrix:
    columns = np.moveaxis(weight.astype(np.float64), axis, 0).reshape(weight.shape[axis], -1)
    return np.asarray(columns @ columns.T)


def _damped(matrix: Matrix) -> Matrix:
    mean = max(float(np.trace(matrix)) / len(matrix), np.finfo(float).tiny * 1e20)
    return matrix + RIDGE * mean * np.eye(len(matrix))


def _apply(tensor: onnx.TensorProto, change: Matrix, axis: int) -> None:
    values = numpy_helper.to_array(tensor).astype(np.float64)
    moved = np.moveaxis(np.tensordot(change, values, axes=(1, axis)), 0, axis)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(moved.astype(np.float32)), tensor.name))
