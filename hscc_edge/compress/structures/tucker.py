"""Tucker-2 in the two-sided metric: a pointwise convolution to s, a kernel from s to r, a pointwise one to m.

The input subspace is that of the gradient-weighed input covariance A^(1/2) (sum over taps of W_t^T G W_t) A^(1/2); the
output subspace is that of the layer's spectrum; the last factor is the regression of y on the measured features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hscc_edge.compress import factors
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.features import Features
from hscc_edge.compress.moments import rows_of
from hscc_edge.compress.solved import Solved, Structure
from hscc_edge.compress.spectrum import root_of
from hscc_edge.errors import extra
from hscc_edge.model.convolution import CONVOLUTIONS, conv_like
from hscc_edge.model.plan import LayerPlan

with extra("workstation"):
    import torch
    from torch import nn

SHARES = (0.25, 0.5, 0.75)


def cost(shape: LayerShape, outer: int, inner: int) -> tuple[int, int]:
    """(FLOPs, parameters) of a Tucker-2 layer."""
    core = shape.taps * inner * outer
    first, last = shape.inputs * inner, outer * shape.outputs
    flops = 2 * (_area(shape) * first + shape.area * (core + last)) * shape.calls
    return flops, first + core + last + shape.outputs


def _area(shape: LayerShape) -> int:
    area = 1
    for size in shape.input_positions:
        area *= size
    return area


def _inner_ranks(solved: Solved) -> list[int]:
    shape, step = solved.shape, solved.settings.alignment
    if shape.taps == 1 or not isinstance(solved.dense, CONVOLUTIONS) or shape.inputs < 2 * step:
        return []
    return sorted({max(round(share * shape.inputs / step), 1) * step for share in SHARES})


def features(solved: Solved) -> list[Features]:
    """For a few input ranks, the output channels of the core, most valuable first."""
    conv, inputs = solved.dense, solved.inputs
    if inputs is None or not isinstance(conv, CONVOLUTIONS):
        return []
    total = solved.total
    weight = conv.weight.detach().double().flatten(2)  # (m, C, taps)
    gradients = total.gradients / total.count
    pulled = torch.einsum("mct,mn,ndt->cd", weight, gradients, weight)
    root = root_of(inputs.channels[0].covariance, 1e-6)
    q = torch.linalg.eigh(root.root @ pulled @ root.root).eigenvectors.flip(1)
    found = []
    for inner in _inner_ranks(solved):
        first, back = q[:, :inner].T @ root.root, root.inverse @ q[:, :inner]  # (s, C), (C, s)
        outer = min(solved.shape.outputs, len(solved.whole.losses))
        core = torch.einsum("rm,mct,cs->rst", solved.whole.reduce[:outer], weight, back)
        core = core / core.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None]
        narrow = conv_like(conv, conv.in_channels, inner, kernel=1, stride=1, padding=0, dilation=1)
        middle = conv_like(conv, inner, outer)
        with torch.no_grad():
            narrow.weight.copy_(first.reshape(narrow.weight.shape))
            middle.weight.copy_(core.reshape(middle.weight.shape))
        pair = nn.Sequential(narrow, middle)
        found.append(Features(partial(_rows, pair), outer, None, (inner, pair)))
    return found


def _rows(pair: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return rows_of(pair(x), None, False)


def options(solved: Solved) -> Sequence[Option]:
    """Every aligned output rank on a few input ranks, where that is cheaper than the dense layer."""
    shape, step = solved.shape, solved.settings.alignment
    weight = solved.total.gradients * (0.5 / solved.statistics.images) if solved.features.get("tucker-2") else None
    found = []
    for entry in solved.features.get("tucker-2", []):
        kept, total = entry.captured(torch.as_tensor(weight))
        inner = entry.payload[0]
        for outer in range(step, entry.size + 1, step):
            flops, params = cost(shape, outer, inner)
            if flops < shape.flops:
                loss = max(total - float(kept[outer - 1]), 0.0)
                found.append(Option("tucker-2", (outer, inner), (), flops, params, loss))
    return found


def fill(module: nn.Module, solved: Solved, plan: LayerPlan) -> None:
    """Write the three factors."""
    outer, inner = plan.ranks
    entry = next(item for item in solved.features["tucker-2"] if item.payload[0] == inner)
    pair = entry.payload[1]
    expand, bias = entry.expand(outer)
    core = pair[1].weight.detach().double()[:outer]
    balanced, (last,) = factors.balance(core.flatten(1), [expand])
    with torch.no_grad():
        module[0].weight.copy_(pair[0].weight)  # type: ignore[index]
    factors.write_pair(module[1:], balanced, last, bias)  # type: ignore[index]


STRUCTURE = Structure(options, fill, features)
