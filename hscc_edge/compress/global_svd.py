"""Weight-only Global SVD: the truncated SVD of each weight matrix, one allocation over all layers, no data.

A layer's loss is the share of its own weight energy that is dropped, so that layers of unlike scale compare.
"""

from __future__ import annotations

from functools import partial

from hscc_edge.compress import factors
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.problem import (
    Candidates,
    LayerwiseProposal,
    Problem,
    aligned_ranks,
    dense_option,
    pair_option,
)
from hscc_edge.errors import extra
from hscc_edge.model.layers import factorised
from hscc_edge.model.plan import LayerPlan

with extra("workstation"):
    import torch
    from torch import nn

Svd = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def candidates(problem: Problem) -> LayerwiseProposal:
    """The options of every layer that can be factorised; the calibration cohort is not read.

    Time grows with the sum over layers of min(m, n)^2 max(m, n).
    """
    found = {shape.name: layer_candidates(problem, shape) for shape in problem.shapes if not shape.reason}
    return LayerwiseProposal("svd", problem.network, problem.shapes, found)


def layer_candidates(problem: Problem, shape: LayerShape) -> Candidates:
    """A layer's options: dense, or a pair of any aligned rank."""
    dense = problem.network.get_submodule(shape.name)
    matrix, _ = factors.matrix_of(dense)
    left, values, right = leading_svd(matrix)
    tail = tail_energy(values, float(matrix.square().sum()))
    ranks = aligned_ranks(shape, problem.settings.alignment, len(values))
    options = (dense_option(shape), *(pair_option(shape, rank, tail[rank]) for rank in ranks))
    return Candidates(options, partial(_build, dense, left * values, right))


def leading_svd(matrix: torch.Tensor) -> Svd:
    """(m, k), (k,), (k, n) by way of the smaller Gram matrix, in float64."""
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = leading_svd(matrix.T)
        return right.T, values, left.T
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    values = squares.clamp_min(0).flip(0).sqrt()
    left = vectors.flip(1)
    safe = values.clamp_min(float(values[0]) * 1e-12 + 1e-300)
    return left, values, (left.T @ matrix) / safe[:, None]


def tail_energy(values: torch.Tensor, total: float) -> list[float]:
    """Share of the energy outside the first r values, for r = 0 .. k."""
    kept = torch.cumsum(torch.cat([torch.zeros(1, dtype=values.dtype), values.square()]), 0)
    return [max(1.0 - float(part) / total, 0.0) if total > 0 else 0.0 for part in kept]


def _build(dense: nn.Module, expand: torch.Tensor, reduce: torch.Tensor, plan: LayerPlan) -> nn.Module:
    module = factorised(dense, plan)
    (rank,) = plan.ranks
    _, bias = factors.matrix_of(dense)
    factors.fill_pair(module, reduce[:rank], expand[:, :rank], bias)
    return module
