"""The ONNX operators with weights: convolutions, linear layers and norms, as torch's modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_edge.errors import extra
from hscc_edge.model.onnx_constants import Constant
from hscc_edge.model.onnx_graph import Call, Weight

with extra("workstation"):
    import onnx
    import torch
    from torch import fx, nn
    from torch.nn import functional

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
DYNAMIC = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def same_pads(size: int, kernel: int, stride: int, dilation: int, lower: bool) -> tuple[int, int]:
    """What SAME_UPPER or SAME_LOWER adds before and after an axis of `size`."""
    reach = (kernel - 1) * dilation + 1
    # No negative number is divided: ONNX would round it towards zero, torch towards minus infinity.
    steps = (size - 1) // stride
    total = torch.sym_max(steps * stride + reach - size, 0)  # type: ignore[no-untyped-call]
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


def pad_same(
    x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], lower: bool, value: float
) -> torch.Tensor:
    """Pad (B, C, *spatial) as SAME_UPPER or SAME_LOWER asks, from the sizes met."""
    pads: list[int] = []
    for axis in reversed(range(len(kernel))):
        pads += same_pads(x.shape[axis + 2], kernel[axis], stride[axis], dilation[axis], lower)
    return functional.pad(x, pads, value=value)


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window; `pads` is ((before, after), ...) by spatial axis, None if only the sizes met tell."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    lower: bool

    @property
    def even(self) -> tuple[int, ...] | None:
        """The padding by axis, if it is the same before and after."""
        if self.pads is None or any(before != after for before, after in self.pads):
            return None
        return tuple(before for before, _ in self.pads)

    def pad(self, call: Call, x: Any, value: float = 0.0) -> Any:
        """`x` with its padding made explicit."""
        if self.pads is None:
            return call.emit(pad_same, x, self.kernel, self.stride, self.dilation, self.lower, value)
        if not any(map(any, self.pads)):
            return x
        flat = [amount for pair in reversed(self.pads) for amount in pair]
        return call.emit(functional.pad, x, flat, value=value)


def window_of(call: Call, kernel: Sequence[int]) -> Window:
    """The node's window, with automatic padding worked out where the sizes are known."""
    n, mode = len(kernel), call.attributes.get("auto_pad", "NOTSET")
    stride = tuple(call.attributes.get("strides") or (1,) * n)
    dilation = tuple(call.attributes.get("dilations") or (1,) * n)
    flat = list(call.attributes.get("pads") or (0,) * (2 * n)) if mode in ("", "NOTSET") else [0] * (2 * n)
    pads: tuple[tuple[int, int], ...] | None = tuple((flat[i], flat[i + n]) for i in range(n))
    lower = mode == "SAME_LOWER"
    if mode.startswith("SAME"):
        shape = call.shape()
        # With a stride of 1 the padding is the same for every size: any will do.
        known = [(kernel[i] * dilation[i] if stride[i] == 1 else shape[i + 2]) for i in range(n)]
        sizes = [size for size in known if size is not None]
        pads = None
        if len(sizes) == n:
            pads = tuple(same_pads(sizes[i], kernel[i], stride[i], dilation[i], lower) for i in range(n))
    return Window(tuple(kernel), stride, dilation, pads, lower)


def _weight(call: Call, index: int) -> Weight | None:
    constant = call.constant(index)
    if constant is None:
        if call.has(index):
            call.fail(f"an input {index} that is computed from the image", "a constant")
        return None
    return Weight(constant.name, constant.array)


def conv(call: Call) -> fx.Node:
    """Conv: an nn.Conv1d, 2d or 3d if the weight is constant."""
    constant, x = call.constant(1), call.tensor(0)
    shape = constant.array.shape if constant else call.shape(1)
    if None in shape or not 3 <= len(shape) <= 5:
        call.fail(f"a weight of shape {shape}", "3, 4 or 5 known axes")
    kernel = [int(size or 0) for size in shape[2:]]
    window, groups = window_of(call, kernel), int(call.attributes.get("group", 1))
    padding = window.even
    if padding is None:
        x, padding = window.pad(call, x), (0,) * len(kernel)
    options: dict[str, Any] = {"stride": window.stride, "padding": padding, "dilation": window.dilation}
    if constant is None or (call.has(2) and call.constant(2) is None):
        bias = call.tensor(2) if call.has(2) else None
        return call.emit(DYNAMIC[len(kernel)], x, call.tensor(1), bias, groups=groups, **options)
    sizes = {"in_channels": constant.array.shape[1] * groups, "out_channels": constant.array.shape[0]}
    options |= {"kernel_size": tuple(kernel), "groups": groups}
    if call.has(2):
        weights = {"weight": _weight(call, 1), "bias": _weight(call, 2)}
        return call.layer(CONVOLUTIONS[len(kernel)], x, weights, **sizes, **options)
    return _with_bias(
        call, CONVOLUTIONS[len(kernel)], x, Weight(constant.name, constant.array), len(kernel), **sizes, **options
    )


def conv_transpose(call: Call) -> fx.Node:
    """ConvTranspose with numbers for its padding: an nn.ConvTranspose1d, 2d or 3d, cropped if that is uneven."""
    weight, a = _weight(call, 1), call.attributes
    if weight is None or a.get("auto_pad", "NOTSET") not in ("", "NOTSET") or "output_shape" in a:
        call.fail("a weight or a padding that is worked out from the image", "constants")
    kernel, groups = weight.array.shape[2:], int(a.get("group", 1))
    n, window = len(kernel), window_of(call, kernel)
    node = call.layer(
        TRANSPOSED[n], call.tensor(0), {"weight": weight, "bias": _weight(call, 2)}, in_channels=len(weight.array),
        out_channels=weight.array.shape[1] * groups, groups=groups, kernel_size=kernel, stride=window.stride,
        dilation=window.dilation, padding=window.even or (0,) * n, bias=call.has(2),
        output_padding=tuple(a.get("output_padding") or (0,) * n),
    )  # fmt: skip
    if window.even is not None:
        return node
    return call.emit(functional.pad, node, [-amount for pair in reversed(window.pads or ()) for amount in pair])


def matmul(call: Call) -> fx.Node:
    """MatMul: an nn.Linear if the second factor is a constant matrix, with the bias that an Add puts on it."""
    constant = call.constant(1)
    if constant is None or constant.array.ndim != 2 or constant.array.dtype.kind != "f":
        return call.emit(torch.matmul, call.tensor(0), call.tensor(1))
    columns, rows = constant.array.shape
    weight = Weight(f"{constant.name} turned", constant.array.T)
    return _with_bias(call, nn.Linear, call.tensor(0), weight, 0, in_features=columns, out_features=rows)


def _with_bias(call: Call, kind: type[nn.Module], x: Any, weight: Weight, after: int, **sizes: Any) -> fx.Node:
    """The layer, with the bias that an Add puts on it, if its only reader is one; `after` axes follow the channels."""
    found = _bias_after(call, weight.array.shape[0], after)
    bias = Weight(found[1].name, found[1].array.reshape(-1)) if found else None
    node = call.layer(kind, x, {"weight": weight, "bias": bias}, bias=bias is not None, **sizes)
    if found:
        call.builder.merged[found[0].output[0]] = node
    return node


def _bias_after(call: Call, width: int, after: int) -> tuple[onnx.NodeProto, Constant] | None:
    output = call.node.output[0]
    readers = call.builder.consumers.get(output, ())
    node = readers[0] if len(readers) == 1 else None
    if node is None or node.op_type != "Add":
        return None
    bias = call.builder.constants.get(node.input[1] if node.input[0] == output else node.input[0])
    if bias is None or bias.array.size != width or bias.array.shape[-after - 1 :] != (width, *(1,) * after):
        return None
    return (node, bias) if bias.array.ndim <= call.rank() else None


def gemm(call: Call) -> fx.Node:
    """Gemm: alpha A B + beta C; an nn.Linear if B is a constant matrix and C, if any, one row."""
    alpha, beta = float(call.attributes.get("alpha", 1.0)), float(call.attributes.get("beta", 1.0))
    turned, x = bool(call.attributes.get("transB", 0)), call.tensor(0)
    if call.attributes.get("transA", 0):
        x = call.emit(torch.t, x)
    second, third = call.constant(1), call.constant(2)
    if second is None:
        other = call.emit(torch.t, call.tensor(1)) if turned else call.tensor(1)
        return _plus(call, _scaled(call, call.emit(torch.matmul, x, other), alpha), beta)
    array = second.array if turned else second.array.T
    weight = Weight(f"{second.name} {turned} {alpha}", array if alpha == 1 else array * array.dtype.type(alpha))
    row = third is not None and third.array.size in (1, len(array)) and third.array.shape[:-1] in ((), (1,))
    if third is None or not row:
        return _plus(call, _linear(call, x, weight, None), beta)
    flat = np.broadcast_to(third.array.reshape(-1), (len(array),))
    return _linear(call, x, weight, Weight(f"{third.name} {beta}", flat if beta == 1 else flat * flat.dtype.type(beta)))


def _linear(call: Call, x: Any, weight: Weight, bias: Weight | None) -> fx.Node:
    rows, columns = weight.array.shape
    return call.layer(
        nn.Linear, x, {"weight": weight, "bias": bias}, in_features=columns, out_features=rows, bias=bias is not None
    )


def _scaled(call: Call, node: Any, factor: float) -> Any:
    return node if factor == 1 else call.emit(torch.mul, node, factor)


def _plus(call: Call, node: fx.Node, beta: float) -> fx.Node:
    return call.emit(torch.add, node, _scaled(call, call.tensor(2), beta)) if call.has(2) else node


def batch_norm(call: Call) -> fx.Node:
    """BatchNormalization with its stored statistics: an nn.BatchNorm1d, 2d or 3d."""
    if call.attributes.get("training_mode", 0):
        call.fail("training_mode 1", "0, a network exported in evaluation mode")
    mean, variance = call.constant(3), call.constant(4)
    if mean is None or variance is None:
        call.fail("statistics that are computed from the image", "constants")
    weights = {
        "weight": _weight(call, 1), "bias": _weight(call, 2),
        "running_mean": _weight(call, 3), "running_var": _weight(call, 4),
    }  # fmt: skip
    spatial = max(call.rank() - 2, 1)
    epsilon = float(call.attributes.get("epsilon", 1e-5))
    return call.layer(NORMS[spatial], call.tensor(0), weights, num_features=mean.array.size, eps=epsilon)


def layer_norm(call: Call) -> fx.Node:
    """LayerNormalization: an nn.LayerNorm."""
    scale, bias = call.constant(1), call.constant(2)
    axis, rank = int(call.attributes.get("axis", -1)), call.rank()
    if scale is None or scale.array.ndim != rank - axis % rank or (call.has(2) and bias is None):
        call.fail("a scale or bias that is no constant of the normalised axes", "constants of these axes")
    return call.layer(
        nn.LayerNorm, call.tensor(0), {"weight": _weight(call, 1), "bias": _weight(call, 2)},
        normalized_shape=scale.array.shape, eps=float(call.attributes.get("epsilon", 1e-5)), bias=bias is not None,
    )  # fmt: skip
