"""Finds layers with regions in an exported graph: a tree of concatenations over pointwise convolutions of slices.

Nothing is assumed of the regions' shapes: slices and concatenations are replayed on arrays of position numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import extra

with extra("workstation"):
    import onnx
    from onnx import helper, numpy_helper, shape_inference

Array = NDArray[Any]
LAST = 2**31


class _OtherForm(Exception):
    """This is no layer with regions, or one that is made otherwise."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A model by name: constants, shapes without the batch (None where unknown), the maker and readers of tensors."""

    model: onnx.ModelProto
    constants: dict[str, Array]
    shapes: dict[str, tuple[int | None, ...]]
    makers: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]


@dataclass(frozen=True, slots=True)
class Factor:
    """A convolution, and which input position each tap reads at each output position: (P, taps), -1 for a zero."""

    source: str
    spatial: tuple[int, ...]
    weight: Array
    bias: Array
    windows: Array

    @property
    def taps(self) -> int:
        """prod(kernel)."""
        size: int = self.windows.shape[1]
        return size

    @property
    def rank(self) -> int:
        """Output channels."""
        return len(self.weight)

    @property
    def channels(self) -> int:
        """Input channels."""
        size: int = self.weight.shape[1]
        return size


@dataclass(frozen=True, slots=True)
class Tile:
    """One region.

    Attributes:
        rows: position numbers in the thin tensor, (n,).
        expand: (m, r).
        bias: (m,).
    """

    rows: Array
    expand: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with regions.

    Attributes:
        root: the tensor that the last concatenation makes.
        end: the tensor after the nodes that are taken along.
        source: the thin tensor.
        spatial: its positions, an axis each.
        channels: its channels.
        order: for each output position the tile and the row in it that hold it.
        reduce: what makes the thin tensor, if nothing else reads that.
        after: a ReLU, and a max pooling behind it, if nothing else reads what they do.
    """

    name: str
    root: str
    end: str
    source: str
    spatial: tuple[int, ...]
    channels: int
    outputs: int
    tiles: tuple[Tile, ...]
    order: tuple[Array, Array]
    reduce: Factor | None
    after: tuple[onnx.NodeProto, ...]


@dataclass(slots=True)
class _Search:
    """What is gathered on the way down a tree of concatenations."""

    sources: set[str] = field(default_factory=set)
    tiles: list[Tile] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def read(model: onnx.ModelProto) -> Graph:
    """Index a model."""
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        item.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in item.type.tensor_type.shape.dim[1:])
        for item in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    readers: dict[str, list[onnx.NodeProto]] = {item.name: [] for item in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    return Graph(model, constants, shapes, makers, readers)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def find(graph: Graph) -> Iterator[Layer]:
    """Every layer with regions."""
    for node in graph.model.graph.node:
        if joins(node) and not any(joins(reader) for reader in graph.readers.get(node.output[0], [])):
            try:
                yield _layer(graph, node)
            except _OtherForm:
                continue


def joins(node: onnx.NodeProto) -> bool:
    """Whether a node concatenates maps along an axis of positions."""
    return node.op_type == "Concat" and int(attributes(node)["axis"]) >= 2


def _layer(graph: Graph, root: onnx.NodeProto) -> Layer:
    search = _Search()
    numbers = _tree(graph, root.output[0], search)
    if len(search.sources) != 1 or len({tile.expand.shape for tile in search.tiles}) != 1:
        raise _OtherForm
    (source,) = search.sources
    spatial, channels = _map_of(graph, source)
    lengths = np.array([len(tile.rows) for tile in search.tiles])
    starts = np.cumsum(lengths) - lengths
    tiles = np.searchsorted(starts, numbers, side="right") - 1
    after = _after(graph, root.output[0])
    return Layer(
        search.names[0], root.output[0], after[-1].output[0] if after else root.output[0], source, spatial, channels,
        len(search.tiles[0].bias), tuple(search.tiles), (tiles, numbers - starts[tiles]), _reduce(graph, source), after,
    )  # fmt: skip


def _tree(graph: Graph, name: str, search: _Search) -> Array:
    """Row numbers of a block of output positions, tiles numbered as they are met."""
    node = graph.makers.get(name)
    if node is not None and joins(node):
        parts = [_tree(graph, part, search) for part in node.input]
        return np.concatenate(parts, axis=int(attributes(node)["axis"]) - 2)
    if node is None or node.op_type != "Conv":
        raise _OtherForm
    start = sum(len(tile.rows) for tile in search.tiles)
    shape = _tile(graph, node, search)
    return start + np.arange(math.prod(shape)).reshape(shape)


def _tile(graph: Graph, expand: onnx.NodeProto, search: _Search) -> tuple[int, ...]:
    """Add one region; returns the shape of its block."""
    weight, bias = _constants_of(graph, expand)
    if any(size != 1 for size in weight.shape[2:]) or not _is_plain(expand):
        raise _OtherForm
    source, positions = _positions(graph, expand.input[0])
    search.sources.add(source)
    search.names.append(_name(expand))
    search.tiles.append(Tile(positions.ravel(), weight.reshape(weight.shape[:2]), bias))
    return positions.shape


def _name(expand: onnx.NodeProto) -> str:
    """The layer's dotted name, of "features.3.expands.0.weight"."""
    return str(expand.input[1]).rsplit(".expands.", 1)[0]


def _constants_of(graph: Graph, conv: onnx.NodeProto) -> tuple[Array, Array]:
    """Weight and bias of a convolution without groups."""
    weight = graph.constants.get(conv.input[1])
    bias = graph.constants.get(conv.input[2]) if len(conv.input) > 2 else None
    unknown = len(conv.input) > 2 and bias is None
    if weight is None or unknown or attributes(conv).get("group", 1) != 1:
        raise _OtherForm
    return weight, np.zeros(len(weight), weight.dtype) if bias is None else bias


def _is_plain(conv: onnx.NodeProto) -> bool:
    found = attributes(conv)
    return not any(found.get("pads", [])) and all(step == 1 for step in found.get("strides", []))


def _map_of(graph: Graph, name: str) -> tuple[tuple[int, ...], int]:
    """Positions, an axis each, and channels of a tensor of maps."""
    shape = graph.shapes.get(name, ())
    sizes = [size for size in shape if size is not None]
    if len(shape) < 2 or len(sizes) != len(shape):
        raise _OtherForm
    return tuple(sizes[1:]), sizes[0]


def _positions(graph: Graph, name: str) -> tuple[str, Array]:
    """The tensor behind slices, and which of its positions are left."""
    node = graph.makers.get(name)
    if node is None or node.op_type != "Slice":
        spatial, _ = _map_of(graph, name)
        return name, np.arange(math.prod(spatial)).reshape(spatial)
    source, positions = _positions(graph, node.input[0])
    given = [graph.constants.get(item) for item in node.input[1:] if item]
    if any(item is None for item in given):
        raise _OtherForm
    values = [np.atleast_1d(item) for item in given if item is not None]
    starts, ends = values[0], values[1]
    axes = values[2] if len(values) > 2 else np.arange(len(starts))
    steps = values[3] if len(values) > 3 else np.ones(len(starts), int)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis < 2 and (start, step) == (0, 1) and end >= LAST:
            continue
        if axis < 2 or step < 1:
            raise _OtherForm
        cut = slice(int(start), int(end) if end < LAST else None, int(step))
        positions = positions[(slice(None),) * (int(axis) - 2) + (cut,)]
    return source, positions


def _windows(conv: onnx.NodeProto, positions: Array) -> Array:
    """(*output positions, taps): what each tap reads, taps in the kernel's order."""
    found, axes = attributes(conv), positions.ndim
    pads = found.get("pads", [0] * (2 * axes))
    strides, dilations = found.get("strides", [1] * axes), found.get("dilations", [1] * axes)
    if found.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise _OtherForm
    padded = np.pad(positions, [(pads[axis], pads[axes + axis]) for axis in range(axes)], constant_values=-1)
    kernel = found["kernel_shape"]
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, reach)
    cut = tuple(slice(None, None, step) for step in (*strides, *dilations))
    windows = view[cut]
    return windows.reshape(*windows.shape[:axes], math.prod(kernel))


def _reduce(graph: Graph, thin: str) -> Factor | None:
    """The convolution of stride 1 that makes a thin tensor which slices alone read; None if it is another."""
    node = graph.makers.get(thin)
    if node is None or node.op_type != "Conv" or any(step != 1 for step in attributes(node).get("strides", [])):
        return None
    if any(reader.op_type not in ("Slice", "Conv") for reader in graph.readers[thin]):
        return None
    try:
        weight, bias = _constants_of(graph, node)
        spatial, _ = _map_of(graph, node.input[0])
        windows = _windows(node, np.arange(math.prod(spatial)).reshape(spatial))
    except _OtherForm:
        return None
    return Factor(node.input[0], spatial, weight, bias, windows.reshape(-1, windows.shape[-1]))


def _after(graph: Graph, name: str) -> tuple[onnx.NodeProto, ...]:
    """A ReLU that alone reads `name`, and a max pooling that alone reads the ReLU."""
    found: list[onnx.NodeProto] = []
    for kind in ("Relu", "MaxPool"):
        readers = graph.readers.get(name, [])
        outputs = {item.name for item in graph.model.graph.output}
        if len(readers) != 1 or readers[0].op_type != kind or name in outputs or len(readers[0].output) != 1:
            break
        found.append(readers[0])
        name = readers[0].output[0]
    return tuple(found)
