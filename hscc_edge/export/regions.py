"""Layers with regions as few kernels: positions become rows, and one batched multiplication makes all regions.

As exported, each region is a slice, a convolution and a piece of a concatenation: dozens of small kernels, between
which a runtime leaves its blocked layout and comes back. Here the positions of all regions are gathered once, region
after region, from the thin tensor, one MatMul over (regions, positions, channels) makes them, and a second gather puts
the rows where they belong. The function is the same: slices and concatenations are replayed on arrays of position
numbers to find both gathers. A ReLU goes behind the max pooling that follows it, where the map is smaller.

Where a reduce of stride 1 is thin enough, it too is one MatMul on rows, to all its taps, whose shifted rows are then
gathered and summed (kn2row: Vasudevan et al. 2017, arXiv 1704.04428).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import extra
from hscc_edge.export.onnx import check_onnx
from hscc_edge.export.regions_find import Factor, Graph, Layer, find, joins, read
from hscc_edge.export.regions_find import attributes as attributes_of

with extra("workstation"):
    import onnx
    from onnx import helper, numpy_helper

Array = NDArray[Any]
THIN = 2.0
"""Reduced channels times taps, at most, over input channels, for a reduce to be one MatMul."""
UNEVEN = 1.6
"""Regions whose areas differ by less share one multiplication, padded to the largest."""


def by_position(content: bytes) -> bytes:
    """The same function, its layers with regions as gathers and multiplications; a graph without regions as it is."""
    model = onnx.load_model_from_string(content)
    if not any(joins(node) for node in model.graph.node):
        return content
    graph = read(model)
    layers = list(find(graph))
    if not layers:
        return content
    for layer in layers:
        _replace(graph, layer)
    _prune(model)
    found: bytes = model.SerializeToString(deterministic=True)
    check_onnx(found)
    return found


@dataclass(slots=True)
class _Emitter:
    """New nodes of one layer, and their constants, under the layer's name."""

    graph: Graph
    name: str
    nodes: list[onnx.NodeProto]

    def constant(self, values: Array, word: str) -> str:
        name = f"{self.name}.{word}.{len(self.graph.model.graph.initializer)}"
        self.graph.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, operation: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        number = len(self.nodes)
        output = output or f"{self.name}.{operation}.{number}"
        name = f"{self.name}/{operation}_{number}"
        self.nodes.append(helper.make_node(operation, inputs, [output], name, **attributes))
        return output

    def numbers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), "numbers")

    def pad(self, rows: str, axes: int, axis: int, value: Array) -> str:
        """One more, of `value`, at the end of an axis."""
        pads = [0] * (2 * axes)
        pads[axes + axis] = 1
        return self.node("Pad", [rows, self.numbers(*pads), self.constant(value, "value")])


def _replace(graph: Graph, layer: Layer) -> None:
    emit = _Emitter(graph, layer.name, [])
    groups = _groups(layer)
    source = _reduced(emit, layer)
    parts = [_expanded(emit, layer, group, source) for group in groups]
    rows = parts[0] if len(parts) == 1 else emit.node("Concat", parts, axis=1)
    inverse = _inverse(layer, groups)
    rows = emit.node("Gather", [rows, emit.constant(inverse, "order")], axis=1)
    _finish(emit, layer, rows)
    nodes = graph.model.graph.node
    at = next(index for index, node in enumerate(nodes) if node.output[0] == layer.root)
    removed = {node.output[0] for node in layer.after}
    rest = [node for node in list(nodes)[at + 1 :] if node.output[0] not in removed]
    replaced = [*list(nodes)[:at], *emit.nodes, *rest]
    del nodes[:]
    nodes.extend(replaced)


def _groups(layer: Layer) -> list[list[int]]:
    """Tiles of like areas, smallest first."""
    groups: list[list[int]] = []
    for index in sorted(range(len(layer.tiles)), key=lambda i: len(layer.tiles[i].rows)):
        size = len(layer.tiles[index].rows)
        if groups and size <= UNEVEN * len(layer.tiles[groups[-1][0]].rows):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _stacked(arrays: list[Array]) -> Array:
    """(R, n, ...): position numbers of several tiles, shorter ones with their last repeated."""
    longest = max(len(array) for array in arrays)
    return np.stack([array[np.minimum(np.arange(longest), len(array) - 1)] for array in arrays])


def _rows(emit: _Emitter, tensor: str, spatial: tuple[int, ...], channels: int) -> str:
    """(B, C, *positions) -> (B, P, C)."""
    axes = len(spatial)
    last = emit.node("Transpose", [tensor], perm=[0, *range(2, axes + 2), 1])
    return emit.node("Reshape", [last, emit.numbers(0, math.prod(spatial), channels)])


def _reduced(emit: _Emitter, layer: Layer) -> str:
    """Rows of the thin tensor, or of all taps of its reduce."""
    factor = layer.reduce
    if factor is None or not _is_thin(factor):
        return _rows(emit, layer.source, layer.spatial, layer.channels)
    taps, rank, channels = factor.taps, factor.rank, factor.channels
    weight = factor.weight.reshape(rank, channels, taps).transpose(1, 2, 0).reshape(channels, taps * rank)
    rows = _rows(emit, factor.source, factor.spatial, channels)
    rows = emit.node("MatMul", [rows, emit.constant(weight, "reduce")])
    if taps == 1:
        return rows
    area = math.prod(factor.spatial)
    rows = emit.node("Reshape", [rows, emit.numbers(0, area * taps, rank)])
    return emit.pad(rows, 3, 1, np.zeros((), weight.dtype)) if (factor.windows < 0).any() else rows


def _is_thin(factor: Factor) -> bool:
    return factor.taps * factor.rank <= THIN * factor.channels


def _expanded(emit: _Emitter, layer: Layer, group: list[int], source: str) -> str:
    """(B, R n, m): one group of tiles, expanded."""
    tiles = [layer.tiles[index] for index in group]
    rows = _stacked([tile.rows for tile in tiles])
    offset = np.zeros(())
    if layer.reduce is not None and _is_thin(layer.reduce):
        z = _summed(emit, layer.reduce, source, rows)
        offset = layer.reduce.bias
    else:
        z = emit.node("Gather", [source, emit.constant(rows, "positions")], axis=1)
    biases = [tile.bias + (tile.expand @ offset if offset.ndim else 0.0) for tile in tiles]
    pairs = [np.vstack([tile.expand.T, bias]) for tile, bias in zip(tiles, biases, strict=True)]
    weights = np.stack(pairs).astype(tiles[0].expand.dtype)  # (R, r + 1, m)
    ones = emit.pad(z, 4, 3, np.ones((), weights.dtype))  # cheaper than adding a bias to the wide tensor
    y = emit.node("MatMul", [ones, emit.constant(weights, "expands")])
    return emit.node("Reshape", [y, emit.numbers(0, rows.shape[0] * rows.shape[1], layer.outputs)])


def _summed(emit: _Emitter, factor: Factor, source: str, rows: Array) -> str:
    """(B, R, n, r): the taps of a thin reduce at the positions that are wanted, added up."""
    if factor.taps == 1:
        return emit.node("Gather", [source, emit.constant(factor.windows[rows, 0], "positions")], axis=1)
    windows = factor.windows[rows]  # (R, n, taps)
    chosen = np.where(windows < 0, math.prod(factor.spatial) * factor.taps, windows * factor.taps)
    chosen = chosen + np.where(windows < 0, 0, np.arange(factor.taps))
    taps = emit.node("Gather", [source, emit.constant(chosen, "positions")], axis=1)
    return emit.node("ReduceSum", [taps, emit.numbers(3)], keepdims=0)


def _inverse(layer: Layer, groups: list[list[int]]) -> Array:
    """For each output position, the row that holds it once the groups are in one tensor."""
    starts, at = {}, 0
    for group in groups:
        longest = max(len(layer.tiles[index].rows) for index in group)
        for index in group:
            starts[index] = at
            at += longest
    tiles, offsets = layer.order
    first: Array = np.vectorize(starts.__getitem__, otypes=[np.int64])(tiles.ravel())
    return np.asarray(first + offsets.ravel())


def _finish(emit: _Emitter, layer: Layer, rows: str) -> None:
    """(B, P, m) -> (B, m, *positions), with the ReLU and max pooling that follow."""
    shape = layer.order[0].shape
    rows = emit.node("Reshape", [rows, emit.numbers(0, *shape, layer.outputs)])
    perm = [0, len(shape) + 1, *range(1, len(shape) + 1)]
    kinds = [node.op_type for node in layer.after]
    if kinds == ["Relu"]:
        rows = emit.node("Relu", [rows])
    if kinds != ["Relu", "MaxPool"]:
        emit.node("Transpose", [rows], layer.end, perm=perm)
        return
    maps = emit.node("Transpose", [rows], perm=perm)
    pooled = emit.node("MaxPool", [maps], **attributes_of(layer.after[1]))
    emit.node("Relu", [pooled], layer.end)


def _prune(model: onnx.ModelProto) -> None:
    """Take away nodes and constants that nothing reads any more, and the shapes of tensors that are gone."""
    graph = model.graph
    wanted = {item.name for item in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    constants = [item for item in graph.initializer if item.name in wanted]
    for old, new in ((graph.node, kept[::-1]), (graph.initializer, constants)):
        copies = list(new)
        del old[:]
        old.extend(copies)
    del graph.value_info[:]


def kernels(content: bytes) -> Mapping[str, int]:
    """How many nodes of each kind a graph has."""
    return Counter(node.op_type for node in check_onnx(content).graph.node)
