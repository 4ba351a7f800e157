"""The ONNX operators that an imported graph may have, each a small function from a node to torch's own."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from hscc_edge.errors import extra
from hscc_edge.model.onnx_constants import Value
from hscc_edge.model.onnx_graph import Call
from hscc_edge.model.onnx_layers import batch_norm, conv, conv_transpose, gemm, layer_norm, matmul
from hscc_edge.model.onnx_pools import average_pool, max_pool, pad, pool_all, resize
from hscc_edge.model.onnx_shapes import SHAPES

with extra("workstation"):
    import torch
    from torch.nn import functional

Result = Value | tuple[Value, ...]
Operator = Callable[[Call], Result]


def _unary(function: Callable[..., Any]) -> Operator:
    return lambda call: call.emit(function, call.tensor(0))


def _binary(function: Callable[..., Any]) -> Operator:
    return lambda call: call.emit(function, call.operand(0), call.operand(1))


def _fold(function: Callable[..., Any]) -> Operator:
    def apply(call: Call) -> Result:
        found = call.tensor(0)
        for index in range(1, len(call.values)):
            found = call.emit(function, found, call.tensor(index))
        return found

    return apply


def divide(first: Any, second: Any) -> Any:
    """ONNX's Div: integers are divided towards zero."""
    sample = first if isinstance(first, torch.Tensor) else second
    if sample.is_floating_point():
        return first / second
    return torch.div(first, second, rounding_mode="trunc")


def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """PRelu with a slope that is broadcast to `x`."""
    return torch.where(x < 0, slope * x, x)


def _leaky(call: Call) -> Result:
    return call.emit(functional.leaky_relu, call.tensor(0), float(call.attributes.get("alpha", 0.01)))


def _elu(call: Call) -> Result:
    return call.emit(functional.elu, call.tensor(0), float(call.attributes.get("alpha", 1.0)))


def _selu(call: Call) -> Result:
    alpha = float(call.attributes.get("alpha", 1.6732631921768188))
    gamma = float(call.attributes.get("gamma", 1.0507010221481323))
    return call.emit(operator.mul, call.emit(functional.elu, call.tensor(0), alpha), gamma)


def hard_sigmoid(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """max(0, min(1, alpha x + beta))."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _hard_sigmoid(call: Call) -> Result:
    alpha, beta = float(call.attributes.get("alpha", 0.2)), float(call.attributes.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return call.emit(functional.hardsigmoid, call.tensor(0))
    return call.emit(hard_sigmoid, call.tensor(0), alpha, beta)


def _gelu(call: Call) -> Result:
    return call.emit(functional.gelu, call.tensor(0), approximate=call.attributes.get("approximate", "none"))


def _clip(call: Call) -> Result:
    limits = [
        call.attributes[name] if name in call.attributes else call.operand(index) if call.has(index) else None
        for index, name in ((1, "min"), (2, "max"))
    ]
    return call.tensor(0) if limits == [None, None] else call.emit(torch.clamp, call.tensor(0), *limits)


def flat_softmax(x: torch.Tensor, axis: int, log: bool) -> torch.Tensor:
    """Softmax as before opset 13: over `axis` and all that follow it together."""
    function = functional.log_softmax if log else functional.softmax
    axis = axis % x.dim()
    return function(x.flatten(axis), dim=-1).reshape(x.shape)


def _softmax(log: bool) -> Operator:
    def apply(call: Call) -> Result:
        old = call.builder.opset < 13
        axis, shape = int(call.attributes.get("axis", 1 if old else -1)), call.shape()
        if old and axis not in (-1, len(shape) - 1):
            return call.emit(flat_softmax, call.tensor(0), axis, log)
        return call.emit(functional.log_softmax if log else functional.softmax, call.tensor(0), dim=axis)

    return apply


def square_sum(x: torch.Tensor, dim: Any, keepdim: bool) -> torch.Tensor:
    """ReduceSumSquare."""
    return torch.sum(x * x, dim, keepdim)


def absolute_sum(x: torch.Tensor, dim: Any, keepdim: bool) -> torch.Tensor:
    """ReduceL1."""
    return torch.sum(torch.abs(x), dim, keepdim)


def euclid(x: torch.Tensor, dim: Any, keepdim: bool) -> torch.Tensor:
    """ReduceL2."""
    return torch.sqrt(torch.sum(x * x, dim, keepdim))


def _reduce(function: Callable[..., Any]) -> Operator:
    def apply(call: Call) -> Result:
        axes = call.sizes(1, "axes")
        if not axes:
            if call.attributes.get("noop_with_empty_axes", 0):
                return call.tensor(0)
            axes = list(range(call.rank()))
        return call.emit(function, call.tensor(0), tuple(axes), bool(call.attributes.get("keepdims", 1)))

    return apply


def _argument(function: Callable[..., Any]) -> Operator:
    def apply(call: Call) -> Result:
        keep = bool(call.attributes.get("keepdims", 1))
        return call.emit(function, call.tensor(0), call.attributes.get("axis", 0), keep)

    return apply


def _instance_norm(call: Call) -> Result:
    epsilon = float(call.attributes.get("epsilon", 1e-5))
    return call.emit(functional.instance_norm, call.tensor(0), weight=call.tensor(1), bias=call.tensor(2), eps=epsilon)


def group_norm(x: torch.Tensor, groups: int, scale: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """GroupNormalization with a scale by channel or, as in opset 18, by group."""
    repeats = x.shape[1] // scale.shape[0]
    scale, bias = (item.repeat_interleave(repeats) if repeats > 1 else item for item in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, epsilon)


def _group_norm(call: Call) -> Result:
    groups, epsilon = int(call.attributes["num_groups"]), float(call.attributes.get("epsilon", 1e-5))
    return call.emit(group_norm, call.tensor(0), groups, call.tensor(1), call.tensor(2), epsilon)


def _local_response(call: Call) -> Result:
    a = call.attributes
    values = (a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0))
    return call.emit(functional.local_response_norm, call.tensor(0), a["size"], *map(float, values))


def where(condition: torch.Tensor, first: Any, second: Any) -> torch.Tensor:
    """Where, with numbers taking the type of the tensor beside them."""
    if not isinstance(first, torch.Tensor) and not isinstance(second, torch.Tensor):
        first = torch.tensor(first)
    return torch.where(condition, first, second)


def _where(call: Call) -> Result:
    return call.emit(where, call.tensor(0), call.operand(1), call.operand(2))


def _einsum(call: Call) -> Result:
    return call.emit(torch.einsum, call.attributes["equation"], *(call.tensor(i) for i in range(len(call.values))))


def _pass(call: Call) -> Result:
    return call.tensor(0)


OPERATORS: dict[str, Operator] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MatMul": matmul,
    "Gemm": gemm,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LRN": _local_response,
    "Relu": _unary(functional.relu),
    "LeakyRelu": _leaky,
    "PRelu": lambda call: call.emit(prelu, call.tensor(0), call.tensor(1)),
    "Elu": _elu,
    "Selu": _selu,
    "Sigmoid": _unary(torch.sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Softplus": _unary(functional.softplus),
    "Mish": _unary(functional.mish),
    "Gelu": _gelu,
    "Clip": _clip,
    "Softmax": _softmax(log=False),
    "LogSoftmax": _softmax(log=True),
    "Tanh": _unary(torch.tanh),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Sqrt": _unary(torch.sqrt),
    "Neg": _unary(torch.neg),
    "Abs": _unary(torch.abs),
    "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil),
    "Reciprocal": _unary(torch.reciprocal),
    "IsNaN": _unary(torch.isnan),
    "Not": _unary(torch.logical_not),
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(divide),
    "Pow": _binary(operator.pow),
    "Equal": _binary(operator.eq),
    "Greater": _binary(operator.gt),
    "GreaterOrEqual": _binary(operator.ge),
    "Less": _binary(operator.lt),
    "LessOrEqual": _binary(operator.le),
    "And": _fold(torch.logical_and),
    "Or": _fold(torch.logical_or),
    "Min": _fold(torch.minimum),
    "Max": _fold(torch.maximum),
    "Sum": _fold(torch.add),
    "Where": _where,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL1": _reduce(absolute_sum),
    "ReduceL2": _reduce(euclid),
    "ReduceSumSquare": _reduce(square_sum),
    "ArgMax": _argument(torch.argmax),
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": pool_all(torch.mean),
    "GlobalMaxPool": pool_all(torch.amax),
    "Pad": pad,
    "Resize": resize,
    "Upsample": resize,
    "Identity": _pass,
    "Dropout": _pass,
    "Einsum": _einsum,
    **SHAPES,
}
"""By operator; each function returns one value, or as many as the node has outputs."""
