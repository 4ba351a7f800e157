"""Tucker-2 of the convolutions (Kim et al. 2016, arXiv 1511.06530) by tensorly; SVD where a kernel has one tap.

Weight-only, the same allocation as the other methods. The two ranks keep the layer's ratio of outputs to inputs; a
candidate's loss is bounded by the dropped shares of the two unfoldings (De Lathauwer et al. 2000).
"""

from __future__ import annotations

from functools import partial

from hscc_edge.compress import factors, global_svd
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.problem import Candidates, Problem, dense_option
from hscc_edge.errors import extra
from hscc_edge.model.layers import factorised
from hscc_edge.model.plan import LayerPlan

with extra("workstation"):
    import tensorly
    import torch
    from tensorly.decomposition import partial_tucker
    from torch import nn


def candidates(problem: Problem) -> dict[str, Candidates]:
    """The options of every layer that can be factorised; the calibration cohort is not read."""
    return {shape.name: _layer(problem, shape) for shape in problem.shapes if not shape.reason}


def _layer(problem: Problem, shape: LayerShape) -> Candidates:
    dense = problem.network.get_submodule(shape.name)
    if not isinstance(dense, nn.Conv2d) or shape.taps == 1:
        return global_svd.layer_candidates(problem, shape)
    weight = dense.weight.detach().to(torch.float64)
    tails = [_unfolding_tail(weight, mode) for mode in (0, 1)]
    options = [dense_option(shape)]
    for outer, inner in _rank_pairs(shape, problem.settings.alignment):
        option = _option(shape, outer, inner, min(tails[0][outer] + tails[1][inner], 1.0))
        if option.flops < shape.flops:
            options.append(option)
    return Candidates(tuple(options), partial(_build, dense))


def _unfolding_tail(weight: torch.Tensor, mode: int) -> list[float]:
    unfolded = weight.movedim(mode, 0).flatten(1)
    return global_svd.tail_energy(torch.linalg.svdvals(unfolded), float(weight.square().sum()))


def _rank_pairs(shape: LayerShape, alignment: int) -> list[tuple[int, int]]:
    """(output rank, input rank), in the ratio of outputs to inputs; a thin input keeps all its channels."""
    pairs = []
    for outer in range(alignment, shape.outputs + 1, alignment):
        share = outer * shape.inputs / shape.outputs
        inner = max(round(share / alignment), 1) * alignment
        pairs.append((outer, min(inner, shape.inputs)))
    return pairs


def _option(shape: LayerShape, outer: int, inner: int, loss: float) -> Option:
    core = shape.taps * inner * outer
    first, last = shape.inputs * inner, outer * shape.outputs
    flops = 2 * (shape.input_positions * first + shape.area * (core + last))
    return Option("tucker-2", (outer, inner), (), flops, first + core + last + shape.outputs, loss)


def _build(dense: nn.Conv2d, plan: LayerPlan) -> nn.Module:
    module = factorised(dense, plan)
    weight = dense.weight.detach()
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        (core, (outer, inner)), _ = partial_tucker(weight, rank=list(plan.ranks), modes=[0, 1], init="svd")
    with torch.no_grad():
        module[0].weight.copy_(inner.T[:, :, None, None])  # type: ignore[index]
        module[1].weight.copy_(core)  # type: ignore[index]
        module[2].weight.copy_(outer[:, :, None, None])  # type: ignore[index]
        module[2].bias.copy_(factors.matrix_of(dense)[1])  # type: ignore[index]
    return module
