"""What an ONNX graph computes from constants and from shapes alone, worked out at import."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ModelError, extra

with extra("workstation"):
    import onnx
    import torch
    from onnx import helper, numpy_helper
    from torch import fx

LARGE = 1024
WHOLE = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
Emit = Callable[..., Any]
Items = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Constant:
    """An array known at import; `name` is the value it first had in the graph, whatever it is called later."""

    name: str
    array: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """A small array with elements known only when the network runs: fx nodes that give one number each.

    Attributes:
        items: numbers and fx nodes, of any shape.
        whole: whether they are integers, so that a division drops the remainder.
    """

    items: Items
    whole: bool = True


Value = Constant | Sizes | fx.Node


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes by name: numbers, lists, str instead of bytes, and TensorProto."""
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def read_tensor(tensor: onnx.TensorProto) -> NDArray[Any]:
    """A view of the tensor's bytes where their encoding allows it."""
    return np.asarray(numpy_helper.to_array(tensor))


def read_constant(node: onnx.NodeProto) -> NDArray[Any]:
    """The array of a Constant node.

    Raises:
        ModelError: if it is a string or sparse.
    """
    ((name, value),) = attributes_of(node).items()
    if name == "value":
        return read_tensor(value)
    if name not in ("value_float", "value_floats", "value_int", "value_ints"):
        raise ModelError(f"the node {node.name or node.output[0]} is a Constant with {name}: expected numbers")
    return np.asarray(value, dtype=np.float32 if "float" in name else np.int64)


def fold(node: onnx.NodeProto, constants: Sequence[Constant | None], opset: int) -> list[NDArray[Any]]:
    """The outputs of a node of which every input is constant, by ONNX's own reference implementation."""
    with extra("workstation"):
        from onnx.reference import ReferenceEvaluator

    given = {name: item.array for name, item in zip(node.input, constants, strict=True) if item is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "constant", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, given)]


def array_of_items(items: Any) -> Items:
    """An object array of numbers and fx nodes; a scalar gets the shape ()."""
    return np.asarray(items, dtype=object)


def lift(value: Constant | Sizes) -> Sizes:
    """A constant as sizes."""
    if isinstance(value, Sizes):
        return value
    return Sizes(array_of_items(value.array), bool(np.issubdtype(value.array.dtype, np.integer)))


def settle(name: str, sizes: Sizes) -> Constant | Sizes:
    """A constant, if no element of the sizes waits for the network to run."""
    if any(isinstance(item, fx.Node) for item in sizes.items.flat):
        return sizes
    kind: type = np.int64 if sizes.whole else np.float32
    if sizes.items.size and all(isinstance(item, bool) for item in sizes.items.flat):
        kind = np.bool_
    return Constant(name, sizes.items.astype(kind))


def divide_sizes(first: Any, second: Any) -> Any:
    """Divide two integers of which neither is negative, and drop the remainder."""
    return first // second


def _combine(emit: Emit, function: Callable[..., Any], *operands: Items) -> Items:
    def one(*items: Any) -> Any:
        waits = any(isinstance(item, fx.Node) for item in items)
        return emit(function, *items) if waits else function(*items)

    return array_of_items(np.frompyfunc(one, len(operands), 1)(*operands))


def _equal(first: Any, second: Any) -> bool:
    waits = [item for item in (first, second) if isinstance(item, fx.Node)]
    if not waits:
        return bool(first == second)
    if first is second:
        return True
    fixed = second if first is waits[0] else first
    if not isinstance(fixed, fx.Node) and fixed <= 0:  # -1 and 0 are marks; a size is positive
        return False
    raise ValueError("two sizes that differ from input to input are compared")


def _integers(items: Items) -> list[int]:
    if any(isinstance(item, fx.Node) for item in items.flat):
        raise ValueError("an index depends on the input's size")
    return [int(item) for item in items.flat]


def _slice(values: Sequence[Items], attributes: Mapping[str, Any]) -> Items:
    if "starts" in attributes:
        starts, ends, axes = attributes["starts"], attributes["ends"], attributes.get("axes")
        steps = None
    else:
        starts, ends = _integers(values[1]), _integers(values[2])
        axes = _integers(values[3]) if len(values) > 3 else None
        steps = _integers(values[4]) if len(values) > 4 else None
    found = values[0]
    for i, axis in enumerate(axes or range(len(starts))):
        window = [slice(None)] * found.ndim
        window[axis] = slice(starts[i], max(ends[i], -LARGE), steps[i] if steps else 1)
        found = found[tuple(window)]
    return found


def _squeeze(values: Sequence[Items], attributes: Mapping[str, Any]) -> Items:
    axes = attributes.get("axes") or (_integers(values[1]) if len(values) > 1 else None)
    return np.squeeze(values[0], axis=tuple(axes) if axes else None)


def _unsqueeze(values: Sequence[Items], attributes: Mapping[str, Any]) -> Items:
    axes = attributes.get("axes") or _integers(values[1])
    return np.expand_dims(values[0], tuple(axes))


def _reduce(emit: Emit, function: Callable[..., Any], values: Sequence[Items], attributes: Mapping[str, Any]) -> Items:
    found: Any = values[0].flat[0]
    for item in list(values[0].flat)[1:]:
        found = _combine(emit, function, array_of_items(found), array_of_items(item)).item()
    return array_of_items([found] if attributes.get("keepdims", 1) else found)


def _chain(function: Callable[..., Any]) -> Callable[..., Items]:
    def apply(emit: Emit, values: Sequence[Items], attributes: Mapping[str, Any]) -> Items:
        found = values[0]
        for value in values[1:]:
            found = _combine(emit, function, found, value)
        return found

    return apply


def _where(emit: Emit, values: Sequence[Items], attributes: Mapping[str, Any]) -> Items:
    return array_of_items(np.where(values[0].astype(bool), values[1], values[2]))


SIZE_OPERATORS: dict[str, Callable[[Emit, Sequence[Items], Mapping[str, Any]], Items]] = {
    "Add": _chain(operator.add),
    "Sub": _chain(operator.sub),
    "Mul": _chain(operator.mul),
    "Mod": _chain(operator.mod),
    "Min": _chain(torch.sym_min),
    "Max": _chain(torch.sym_max),
    "Neg": lambda emit, v, a: _combine(emit, operator.neg, v[0]),
    "Floor": lambda emit, v, a: _combine(emit, math.floor, v[0]),
    "Ceil": lambda emit, v, a: _combine(emit, math.ceil, v[0]),
    "Equal": lambda emit, v, a: array_of_items(np.frompyfunc(_equal, 2, 1)(v[0], v[1])),
    "Where": _where,
    "Gather": lambda emit, v, a: array_of_items(
        np.take(v[0], np.reshape(_integers(v[1]), v[1].shape).astype(int), axis=a.get("axis", 0))
    ),
    "Concat": lambda emit, v, a: np.concatenate(v, axis=a["axis"]),
    "Slice": lambda emit, v, a: _slice(v, a),
    "Squeeze": lambda emit, v, a: _squeeze(v, a),
    "Unsqueeze": lambda emit, v, a: _unsqueeze(v, a),
    "Reshape": lambda emit, v, a: np.reshape(v[0], _integers(v[1])),
    "ReduceProd": lambda emit, v, a: _reduce(emit, operator.mul, v, a),
    "ReduceSum": lambda emit, v, a: _reduce(emit, operator.add, v, a),
    "ReduceMax": lambda emit, v, a: _reduce(emit, torch.sym_max, v, a),
    "ReduceMin": lambda emit, v, a: _reduce(emit, torch.sym_min, v, a),
}


def work_sizes(emit: Emit, node: onnx.NodeProto, operands: Sequence[Constant | Sizes]) -> Constant | Sizes | None:
    """The output of a node that computes with sizes; None if it has to be computed with tensors.

    Raises:
        ValueError: if the node's result depends on the input's size in a way that cannot be written down.
    """
    lifted = [lift(operand) for operand in operands]
    values, attributes = [item.items for item in lifted], attributes_of(node)
    whole = all(item.whole for item in lifted if item.items.size)
    name, kind = node.output[0], node.op_type
    if kind == "Cast":
        whole = attributes["to"] in WHOLE
        exact = lifted[0].whole or not whole
        return settle(name, Sizes(values[0] if exact else _combine(emit, torch.sym_int, values[0]), whole))
    if kind == "Shape":
        return Constant(name, np.asarray(values[0].shape, dtype=np.int64))
    if kind == "Div":
        return settle(name, Sizes(_combine(emit, divide_sizes if whole else operator.truediv, *values), whole))
    if kind in ("Where", "Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape"):
        whole = lifted[1 if kind == "Where" else 0].whole
    if kind not in SIZE_OPERATORS:
        return None
    return settle(name, Sizes(array_of_items(SIZE_OPERATORS[kind](emit, values, attributes)), whole))
