"""CP of the convolutions (Lebedev et al. 2015, arXiv 1412.6553) by tensorly; SVD where a kernel has one tap.

The weight as a 3-way tensor (m, C_in, taps) is a sum of r outer products, found by alternating least squares: a
pointwise convolution to r, a depthwise k x k one, a pointwise one to m. Weight-only, the same allocation as the other
methods; a layer's loss is its relative squared error, so that it compares with that of `svd`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from hscc_edge.compress import factors, global_svd
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.problem import Candidates, LayerwiseProposal, Problem, dense_option
from hscc_edge.errors import extra
from hscc_edge.model.convolution import CONVOLUTIONS, Conv
from hscc_edge.model.layers import factorised
from hscc_edge.model.plan import LayerPlan

with extra("workstation"):
    import tensorly
    import torch
    from tensorly.decomposition import parafac
    from torch import nn

SHARES = (0.06, 0.12, 0.2, 0.35, 0.6)
SWEEPS = 25
RIDGE = 1e-9


@dataclass(frozen=True, slots=True)
class Components:
    """Factors (m, r), (C_in, r) and (taps, r), and what share of the weight's energy they miss."""

    outputs: torch.Tensor
    inputs: torch.Tensor
    taps: torch.Tensor
    loss: float


def candidates(problem: Problem) -> LayerwiseProposal:
    """The options of every layer that can be factorised; the calibration cohort is not read.

    Time grows with the sum over layers of 3 SWEEPS m n r for each of its five ranks.
    """
    found = {shape.name: _layer(problem, shape) for shape in problem.shapes if not shape.reason}
    return LayerwiseProposal("cp", problem.network, problem.shapes, found)


def _layer(problem: Problem, shape: LayerShape) -> Candidates:
    dense = problem.network.get_submodule(shape.name)
    if not isinstance(dense, CONVOLUTIONS) or shape.taps == 1:
        return global_svd.layer_candidates(problem, shape)
    weight = dense.weight.detach().to(torch.float64).flatten(2)
    found = {rank: decompose(weight, rank, problem.settings.seed) for rank in _ranks(shape, problem.settings.alignment)}
    options = [_option(shape, rank, parts.loss) for rank, parts in found.items()]
    return Candidates((dense_option(shape), *options), partial(_build, dense, found))


def _ranks(shape: LayerShape, step: int) -> list[int]:
    """Aligned ranks at SHARES of the dense FLOPs; none where even one step costs more than the dense layer."""
    one = _option(shape, 1, 0.0).flops
    ranks = {max(math.floor(share * shape.flops / (one * step)), 1) * step for share in SHARES}
    return sorted(rank for rank in ranks if rank * one < shape.flops)


def _option(shape: LayerShape, rank: int, loss: float) -> Option:
    first, last = shape.inputs * rank, (shape.taps + shape.outputs) * rank
    flops = 2 * (math.prod(shape.input_positions) * first + shape.area * last) * shape.calls
    return Option("cp", (rank,), (), flops, first + last + shape.outputs, loss)


def decompose(weight: torch.Tensor, rank: int, seed: int) -> Components:
    """CP of a weight (m, C_in, taps) in at most SWEEPS sweeps; the norms of each component are shared out evenly.

    The sweeps see the weight at norm 1, so that RIDGE, which keeps them solvable, means the same for every layer.
    """
    norm = weight.norm().clamp_min(1e-300)
    unit = weight / norm
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        _, (outputs, inputs, taps) = parafac(
            unit, rank, n_iter_max=SWEEPS, init="random", tol=1e-6, random_state=seed, l2_reg=RIDGE
        )
    loss = float((torch.einsum("mr,cr,tr->mct", outputs, inputs, taps) - unit).square().sum())
    norms = torch.stack([part.norm(dim=0).clamp_min(1e-100) for part in (outputs, inputs, taps)])
    even = (norms.prod(dim=0) * norm).pow(1 / 3) / norms
    return Components(outputs * even[0], inputs * even[1], taps * even[2], loss)


def _build(dense: Conv, found: dict[int, Components], plan: LayerPlan) -> nn.Module:
    module = factorised(dense, plan)
    parts = found[plan.ranks[0]]
    with torch.no_grad():
        module[0].weight.copy_(parts.inputs.T.reshape(module[0].weight.shape))  # type: ignore[index]
        module[1].weight.copy_(parts.taps.T.reshape(module[1].weight.shape))  # type: ignore[index]
    factors.write(module[2], parts.outputs, factors.matrix_of(dense)[1])  # type: ignore[index]
    return module
