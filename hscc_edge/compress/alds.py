"""ALDS: automatic layer-wise decomposition selection (Liebenwein et al. 2021, arXiv 2107.11442). Weight-only.

A layer's input channels are cut into k contiguous groups, and each group's part W_i of the weight gets its own SVD of
rank j; emitted as a convolution with k groups and one pointwise convolution. The relative error in the spectral norm
is bounded by sqrt(k) max_i sigma_{j+1}(W_i) / sigma_1(W) (Theorem 1), exact for k = 1; the plan has the least maximum
of it over the layers. A Linear has k = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from hscc_edge.compress import factors
from hscc_edge.compress.allocate import Budget, Option, check_reach, efficient
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.global_svd import Svd, leading_svd
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

LARGEST_GROUPS = 8


@dataclass(frozen=True, slots=True)
class MinimaxProposal(LayerwiseProposal):
    """Options for each layer, planned so that the largest error of any layer is least."""

    def _choose(self, options: Sequence[Sequence[Option]], fixed: float, budget: Budget, dense: float) -> list[Option]:
        """What is left of the budget goes to the layers of the largest error."""
        room = budget.ceiling(dense) - fixed
        check_reach(options, fixed, budget, dense)
        frontiers = [efficient(layer, budget.cost) for layer in options]
        return _fill(frontiers, _minimax(frontiers, budget.cost, room), budget.cost, room)


def candidates(problem: Problem) -> MinimaxProposal:
    """The options of every layer that can be factorised; the calibration cohort is not read.

    Time grows with the sum over layers and numbers of groups k of k min(m, n/k)^2 max(m, n/k).
    """
    found = {shape.name: _layer(problem, shape) for shape in problem.shapes if not shape.reason}
    return MinimaxProposal("alds", problem.network, problem.shapes, found)


def _layer(problem: Problem, shape: LayerShape) -> Candidates:
    dense = problem.network.get_submodule(shape.name)
    matrix, _ = factors.matrix_of(dense)
    step = problem.settings.alignment
    whole = _singular_values(matrix)
    scale = max(float(whole[0]), 1e-300)
    options = [dense_option(shape)]
    for rank in aligned_ranks(shape, step, len(whole)):
        options.append(pair_option(shape, rank, _next_value(whole, rank) / scale))
    for groups in _group_counts(shape):
        values = torch.stack([_singular_values(part) for part in matrix.chunk(groups, dim=1)]).amax(0)
        for rank in range(step, len(values) + 1, step):
            option = _option(shape, groups, rank, math.sqrt(groups) * _next_value(values, rank) / scale)
            if option.flops < shape.flops:
                options.append(option)
    return Candidates(tuple(options), partial(_build, dense, cache(partial(_decompose, matrix))))


def _decompose(matrix: torch.Tensor, groups: int) -> list[Svd]:
    """The SVD of each group's part; kept by `cache` for the next budget, 8 (m + n) min(m, n) bytes a layer."""
    return [leading_svd(part) for part in matrix.chunk(groups, dim=1)]


def _group_counts(shape: LayerShape) -> list[int]:
    """Numbers of groups beside one; none for a Linear, which has no groups to emit."""
    if not shape.kernel:
        return []
    return [groups for groups in range(2, LARGEST_GROUPS + 1) if shape.inputs % groups == 0]


def _singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """(k,), falling, by way of the smaller Gram matrix."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values: torch.Tensor = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()
    return values


def _next_value(values: torch.Tensor, rank: int) -> float:
    """sigma_{rank + 1}, zero past the end."""
    return float(values[rank]) if rank < len(values) else 0.0


def _option(shape: LayerShape, groups: int, rank: int, loss: float) -> Option:
    """k groups of rank j: each reduces n / k inputs, one expand joins them."""
    total, part = groups * rank, shape.patch // groups
    flops = 2 * shape.area * total * (part + shape.outputs) * shape.calls
    params = total * part + (total + 1) * shape.outputs
    return Option("channel-groups", (rank,) * groups, (), flops, params, loss)


def _build(dense: nn.Module, pieces: Callable[[int], list[Svd]], plan: LayerPlan) -> nn.Module:
    module = factorised(dense, plan)
    _, bias = factors.matrix_of(dense)
    reduces, expands = [], []
    for (left, values, right), rank in zip(pieces(len(plan.ranks)), plan.ranks, strict=True):
        expands.append(left[:, :rank] * values[:rank])
        reduces.append(right[:rank])
    factors.fill_pair(module, torch.cat(reduces), torch.cat(expands, dim=1), bias)
    return module


def _minimax(frontiers: Sequence[Sequence[Option]], cost: str, room: float) -> list[Option]:
    """For the least error that fits: the cheapest option of each layer within it."""
    errors = sorted({option.loss for options in frontiers for option in options})
    low, high = 0, len(errors) - 1
    while low < high:
        middle = (low + high) // 2
        if sum(option.cost(cost) for option in _within(frontiers, errors[middle])) <= room:
            high = middle
        else:
            low = middle + 1
    return _within(frontiers, errors[low])


def _within(frontiers: Sequence[Sequence[Option]], error: float) -> list[Option]:
    """The frontiers rise in cost and fall in loss, so the first that is within the error is the cheapest."""
    return [next(option for option in options if option.loss <= error) for options in frontiers]


def _fill(frontiers: Sequence[Sequence[Option]], chosen: list[Option], cost: str, room: float) -> list[Option]:
    """The next better option for the layer of the largest error whose next one still fits, until none does."""
    places = [options.index(option) for options, option in zip(frontiers, chosen, strict=True)]
    while True:
        left = room - sum(options[place].cost(cost) for options, place in zip(frontiers, places, strict=True))
        open_layers = [
            index
            for index, (options, place) in enumerate(zip(frontiers, places, strict=True))
            if place + 1 < len(options) and options[place + 1].cost(cost) - options[place].cost(cost) <= left
        ]
        if not open_layers:
            return [options[place] for options, place in zip(frontiers, places, strict=True)]
        worst = max(open_layers, key=lambda index: frontiers[index][places[index]].loss)
        places[worst] += 1
