"""Tucker-2 of the convolutions (Kim et al. 2016, arXiv 1511.06530) by tensorly; SVD where a kernel has one tap.

Weight-only, the same allocation as the other methods. The paper takes its ranks from variational Bayes (VBMF), which
gives one pair a layer and meets no budget; here they come from the energies of the two unfoldings. A candidate's loss
is the share of the energy that the truncated higher-order SVD drops (De Lathauwer et al. 2000), from which tensorly's
iteration starts, so that what is built is never worse.
"""

from __future__ import annotations

from functools import partial

from hscc_edge.compress import factors, global_svd
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.problem import Candidates, LayerwiseProposal, Problem, dense_option
from hscc_edge.compress.structures.tucker import cost
from hscc_edge.errors import extra
from hscc_edge.model.convolution import CONVOLUTIONS, Conv
from hscc_edge.model.layers import factorised
from hscc_edge.model.plan import LayerPlan

with extra("workstation"):
    import tensorly
    import torch
    from tensorly.decomposition import partial_tucker
    from torch import nn


def candidates(problem: Problem) -> LayerwiseProposal:
    """The options of every layer that can be factorised; the calibration cohort is not read."""
    found = {shape.name: _layer(problem, shape) for shape in problem.shapes if not shape.reason}
    return LayerwiseProposal("tucker", problem.network, problem.shapes, found)


def _layer(problem: Problem, shape: LayerShape) -> Candidates:
    dense = problem.network.get_submodule(shape.name)
    if not isinstance(dense, CONVOLUTIONS) or shape.taps == 1:
        return global_svd.layer_candidates(problem, shape)
    weight = dense.weight.detach().to(torch.float64)
    outer, inner, kept = _energies(weight)
    options = [dense_option(shape)]
    for first, second in _rank_pairs(shape, problem.settings.alignment, outer, inner):
        flops, params = cost(shape, first, second)
        if flops < shape.flops:
            loss = max(1.0 - float(kept[first - 1, second - 1]), 0.0)
            options.append(Option("tucker-2", (first, second), (), flops, params, loss))
    return Candidates(tuple(options), partial(_build, dense))


def _energies(weight: torch.Tensor) -> tuple[list[float], list[float], torch.Tensor]:
    """For W (m, C_in, ...): what each unfolding drops at rank 0, 1, ..., and what a core keeps at both ranks (m, C_in).

    All as shares of the energy of W.
    """
    total = float(weight.square().sum())
    first, second = (_directions(weight.movedim(mode, 0).flatten(1)) for mode in (0, 1))
    core = torch.einsum("mr,mct,cs->rst", first[1], weight.flatten(2), second[1])
    kept = core.square().sum(2).cumsum(0).cumsum(1) / max(total, 1e-300)
    return global_svd.tail_energy(first[0], total), global_svd.tail_energy(second[0], total), kept


def _directions(unfolded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values, falling, and left singular vectors."""
    squares, vectors = torch.linalg.eigh(unfolded @ unfolded.T)
    return squares.flip(0).clamp_min(0).sqrt(), vectors.flip(1)


def _rank_pairs(shape: LayerShape, step: int, outer: list[float], inner: list[float]) -> list[tuple[int, int]]:
    """(output rank, input rank): in the ratio of outputs to inputs, and with like energies dropped on both sides."""
    inners = list(range(step, shape.inputs + 1, step)) or [shape.inputs]
    pairs = set()
    for first in range(step, shape.outputs + 1, step):
        share = first * shape.inputs / shape.outputs
        pairs.add((first, min(inners, key=lambda rank: (abs(rank - share), rank))))
        pairs.add((first, next((rank for rank in inners if inner[rank] <= outer[first]), inners[-1])))
    return sorted(pairs)


def _build(dense: Conv, plan: LayerPlan) -> nn.Module:
    module = factorised(dense, plan)
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        found, _ = partial_tucker(dense.weight.detach(), rank=list(plan.ranks), modes=[0, 1], init="svd")
    core, (outer, inner) = found
    balanced, (last,) = factors.balance(core.flatten(1), [outer])
    with torch.no_grad():
        module[0].weight.copy_(inner.T.reshape(module[0].weight.shape))  # type: ignore[index]
    factors.write_pair(module[1:], balanced, last, factors.matrix_of(dense)[1])  # type: ignore[index]
    return module
