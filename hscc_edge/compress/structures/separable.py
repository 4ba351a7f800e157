"""Spatially separable: a kernel column to r channels, then a kernel row to m (Jaderberg et al. 2014, arXiv 1405.3866).

The subspace is that of the SVD of W rearranged to (m kernel-width) x (C_in kernel-height), weighed by G on the left and
by the covariance of the column patches on the right; the row is the regression of y on the measured features.
"""

from __future__ import annotations

from collections.abc import Sequence

from hscc_edge.compress import factors
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.features import Features
from hscc_edge.compress.solved import Solved, Structure
from hscc_edge.compress.spectrum import root_of
from hscc_edge.errors import extra
from hscc_edge.model.convolution import numbers, padding_of
from hscc_edge.model.plan import LayerPlan

with extra("workstation"):
    import torch
    from torch import nn
    from torch.nn import functional

WORTHWHILE = 1.5


def flops(shape: LayerShape, rank: int) -> int:
    """Of the column (output rows x input columns) and of the row."""
    column = shape.positions[0] * shape.input_positions[1] * shape.inputs * shape.kernel[0]
    row = shape.area * shape.kernel[1] * shape.outputs
    return 2 * rank * (column + row) * shape.calls


def params(shape: LayerShape, rank: int) -> int:
    """Weights of both and the bias."""
    return rank * (shape.inputs * shape.kernel[0] + shape.outputs * shape.kernel[1]) + shape.outputs


def _ranks(solved: Solved) -> list[int]:
    shape, step = solved.shape, solved.settings.alignment
    if not applies(solved):
        return []
    largest = min(shape.inputs * shape.kernel[0], shape.outputs * shape.kernel[1])
    return [rank for rank in range(step, largest + 1, step) if WORTHWHILE * flops(shape, rank) < shape.flops]


def applies(solved: Solved) -> bool:
    """A 2-D kernel with more than one tap on each axis, zeros around."""
    conv = solved.dense
    return isinstance(conv, nn.Conv2d) and min(conv.kernel_size) > 1 and conv.padding_mode == "zeros"


def features(solved: Solved) -> list[Features]:
    """The column's channels, most valuable first, seen through the row's kernel."""
    conv, ranks = solved.dense, _ranks(solved)
    if not ranks or not isinstance(conv, nn.Conv2d) or solved.inputs is None or solved.inputs.columns is None:
        return []
    weight = conv.weight.detach().double()  # (m, C, kh, kw)
    m, c, height, width = weight.shape
    total = solved.total
    left = root_of(total.gradients / total.count, solved.settings.damping)
    right = root_of(solved.inputs.columns.covariance, 1e-6)
    arranged = torch.einsum("ab,bckw->awck", left.root, weight).reshape(m * width, c * height) @ right.root
    gram = arranged.T @ arranged
    q = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, : ranks[-1]]  # (C kh, R)
    column = (q.T @ right.root).reshape(-1, c, height, 1)
    column = (column / column.flatten(1).norm(dim=1)[:, None, None, None]).float()
    return [Features(_Rows(conv, column), ranks[-1] * width, None, column)]


class _Rows:
    """x -> rows (N, R kernel-width), the channels slow and the taps fast."""

    def __init__(self, conv: nn.Conv2d, column: torch.Tensor) -> None:
        self.conv, self.column = conv, column

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        (down, right), (top, left) = numbers(self.conv.stride), padding_of(self.conv)
        (tall, wide), width = numbers(self.conv.dilation), self.conv.kernel_size[1]
        z = functional.conv2d(x, self.column, stride=(down, 1), padding=(top, 0), dilation=(tall, 1))
        patches = functional.unfold(z, (1, width), dilation=(1, wide), padding=(0, left), stride=(1, right))
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def options(solved: Solved) -> Sequence[Option]:
    """Every aligned rank that is cheaper than the dense layer."""
    shape, ranks = solved.shape, _ranks(solved)
    if not ranks or not solved.features.get("separable"):
        return []
    (entry,) = solved.features["separable"]
    kept, total = entry.captured(solved.total.gradients * (0.5 / solved.statistics.images))
    width = shape.kernel[1]
    return [
        Option("separable", (rank,), (), flops(shape, rank), params(shape, rank),
               max(total - float(kept[rank * width - 1]), 0.0))
        for rank in ranks
    ]  # fmt: skip


def fill(module: nn.Module, solved: Solved, plan: LayerPlan) -> None:
    """Write the column and the regressed row."""
    (rank,), width = plan.ranks, solved.shape.kernel[1]
    (entry,) = solved.features["separable"]
    row, bias = entry.expand(rank * width)
    column = torch.as_tensor(entry.payload).double()[:rank]
    m = len(row)
    # scale each rank so that column and row have like norms
    slow = row.reshape(m, rank, width).permute(0, 2, 1).reshape(m * width, rank)
    first, (second,) = factors.balance(column.flatten(1), [slow])
    ordered = second.reshape(m, width, rank).permute(0, 2, 1)
    factors.write_pair(module, first, ordered, bias)


STRUCTURE = Structure(options, fill, features)
