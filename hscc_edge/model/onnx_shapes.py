"""The ONNX operators that change a tensor's shape, or pick from it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hscc_edge.errors import extra
from hscc_edge.model.onnx_constants import Constant, Sizes, Value, read_tensor
from hscc_edge.model.onnx_graph import Call

with extra("workstation"):
    import torch
    from onnx import helper
    from torch import fx

END = 2**31 - 1


def _flatten(call: Call) -> Value | tuple[Value, ...]:
    axis, shape = int(call.attributes.get("axis", 1)), call.shape()
    if axis == 1 and len(shape) > 1:
        return call.emit(torch.flatten, call.tensor(0), 1)
    return call.emit(flatten_at, call.tensor(0), axis)


def flatten_at(x: torch.Tensor, axis: int) -> torch.Tensor:
    """A matrix: the axes before `axis` become its rows."""
    axis = axis + x.dim() if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


def _reshape(call: Call) -> Value | tuple[Value, ...]:
    wanted, shape = call.sizes(1, "shape") or [], call.shape()
    keep_zero = bool(call.attributes.get("allowzero", 0))
    target = [
        call.size(axis) if isinstance(size, int) and size == 0 and not keep_zero else size
        for axis, size in enumerate(wanted)
    ]
    batch = call.builder.batch
    # The batch that a graph was exported with is no reason to refuse another.
    if batch is not None and wanted and wanted[0] == batch and shape and shape[0] in (None, batch):
        target[0] = call.size(0)
    return call.emit(torch.reshape, call.tensor(0), target)


def _shape(call: Call) -> Value | tuple[Value, ...]:
    shape = call.shape()
    start, end = int(call.attributes.get("start", 0)), call.attributes.get("end")
    # The first axis is read while the network runs even if the graph fixes it, so that any batch passes.
    known = (None, *shape[1:]) if shape else ()
    items = [call.size(axis) if size is None else size for axis, size in enumerate(known)]
    return Sizes(np.asarray(items, dtype=object)[start:end])


def _squeeze(call: Call) -> Value | tuple[Value, ...]:
    axes, shape = call.sizes(1, "axes"), call.shape()
    if axes is None:
        axes = [axis for axis, size in enumerate(shape) if size == 1]
    return call.emit(torch.squeeze, call.tensor(0), tuple(axes))


def _unsqueeze(call: Call) -> Value | tuple[Value, ...]:
    axes, found = call.sizes(1, "axes") or [], call.tensor(0)
    if len(axes) > 1 and min(axes) < 0:
        axes = [axis % (call.rank() + len(axes)) for axis in axes]
    for axis in sorted(axes):
        found = call.emit(torch.unsqueeze, found, axis)
    return found


def _transpose(call: Call) -> Value | tuple[Value, ...]:
    order = call.attributes.get("perm") or list(reversed(range(call.rank())))
    return call.emit(torch.permute, call.tensor(0), tuple(order))


def _concat(call: Call) -> Value | tuple[Value, ...]:
    axis, tensors = int(call.attributes["axis"]) % call.rank(), [call.tensor(i) for i in range(len(call.values))]
    images = [i for i, value in enumerate(call.values) if isinstance(value, fx.Node)]
    for i, value in enumerate(call.values):
        # A class token of a graph with a batch of one is meant for every image.
        if axis > 0 and images and isinstance(value, Constant) and value.array.shape[0] == 1:
            batch = call.builder.method("size", tensors[images[0]], 0)
            tensors[i] = call.builder.method("expand", tensors[i], batch, *value.array.shape[1:])
    return call.emit(torch.cat, tensors, axis)


def split_evenly(x: torch.Tensor, parts: int, axis: int) -> tuple[torch.Tensor, ...]:
    """Split into `parts`, of which the last may be smaller."""
    return torch.split(x, (x.shape[axis] + parts - 1) // parts, axis)


def _split(call: Call) -> Value | tuple[Value, ...]:
    axis, sizes, count = int(call.attributes.get("axis", 0)), call.sizes(1, "split"), len(call.node.output)
    if sizes:
        parts = call.emit(torch.split, call.tensor(0), sizes, axis)
    else:
        parts = call.emit(split_evenly, call.tensor(0), count, axis)
    return tuple(call.emit(operator.getitem, parts, i) for i in range(count))


def _slice(call: Call) -> Value | tuple[Value, ...]:
    starts, ends = call.sizes(1, "starts") or [], call.sizes(2, "ends") or []
    axes, steps = call.sizes(3, "axes") or list(range(len(starts))), call.sizes(4) or [1] * len(starts)
    if min(axes) < 0:
        axes = [axis % call.rank() for axis in axes]
    window: list[Any] = [slice(None)] * (max(axes) + 1)
    x = call.tensor(0)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            if step != -1 or not (start == -1 or start >= END) or end > -END:
                call.fail(f"the step {step} from {start} to {end}", "a positive step, or the whole axis turned over")
            x = call.emit(torch.flip, x, (axis,))
            continue
        last = None if isinstance(end, int) and end >= END else end
        window[axis] = slice(0 if isinstance(start, int) and start < -END else start, last, step)
    return x if window == [slice(None)] * len(window) else call.emit(operator.getitem, x, tuple(window))


def gather(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """Gather along `axis` with an index of any shape, negative numbers counting from the end."""
    axis = axis % x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = torch.index_select(x, axis, index.reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _gather(call: Call) -> Value | tuple[Value, ...]:
    axis, index = int(call.attributes.get("axis", 0)), call.constant(1)
    if index is not None and index.array.ndim == 0:
        return call.emit(torch.select, call.tensor(0), axis, int(index.array))
    return call.emit(gather, call.tensor(0), call.tensor(1), axis)


def _gather_elements(call: Call) -> Value | tuple[Value, ...]:
    return call.emit(torch.gather, call.tensor(0), call.attributes.get("axis", 0), call.tensor(1))


def gather_points(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """GatherND: the last axis of `index` picks from the first axes of `x`."""
    return x[tuple(index.unbind(-1))]


def _gather_points(call: Call) -> Value | tuple[Value, ...]:
    if call.attributes.get("batch_dims", 0):
        call.fail(f"batch_dims {call.attributes['batch_dims']}", "0")
    return call.emit(gather_points, call.tensor(0), call.tensor(1))


def expand(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Broadcast both ways, as ONNX's Expand does."""
    lead = len(shape) - x.dim()
    x = x.reshape((1,) * max(lead, 0) + tuple(x.shape))
    full = [-1] * max(-lead, 0) + [-1 if isinstance(size, int) and size == 1 else size for size in shape]
    return x.expand(full)


def _expand(call: Call) -> Value | tuple[Value, ...]:
    return call.emit(expand, call.tensor(0), call.sizes(1) or [])


def _tile(call: Call) -> Value | tuple[Value, ...]:
    return call.emit(torch.tile, call.tensor(0), call.sizes(1) or [])


def _type(number: int) -> torch.dtype:
    name = helper.tensor_dtype_to_np_dtype(number).name
    return torch.from_numpy(np.zeros((), dtype=name)).dtype


def _cast(call: Call) -> Value | tuple[Value, ...]:
    return call.builder.method("to", call.tensor(0), _type(call.attributes["to"]))


def _constant_of_shape(call: Call) -> Value | tuple[Value, ...]:
    value = call.attributes.get("value")
    filling = helper.make_tensor("", 1, [1], [0.0]) if value is None else value
    number = np.ravel(read_tensor(filling))[0].item()
    return call.emit(torch.full, call.sizes(0) or [], number, dtype=_type(filling.data_type))


def _range(call: Call) -> Value | tuple[Value, ...]:
    numbers = [call.operand(i) for i in range(3)]
    return call.emit(torch.arange, *numbers)


SHAPES: dict[str, Callable[[Call], Value | tuple[Value, ...]]] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Shape": _shape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_points,
    "Expand": _expand,
    "Tile": _tile,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
}
"""By operator."""
