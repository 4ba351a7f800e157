"""Shared reduce, region expand: one basis B = L Q_r of the pooled problem, per region U = C B (B^T C B)^-1.

The same FLOPs as one region, no halo, slices only of the thin tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

from hscc_edge.compress import factors
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.gram import contributions, regress
from hscc_edge.compress.problem import aligned_ranks
from hscc_edge.compress.regions import split_path
from hscc_edge.compress.solved import Solved, Structure
from hscc_edge.compress.spectrum import root_of, spectrum
from hscc_edge.errors import extra
from hscc_edge.model.plan import Box, LayerPlan
from hscc_edge.model.regional import SharedReduce

with extra("workstation"):
    import torch
    from torch import nn

REFERENCE_RATIO = 6.0
SIZES = (2, 3, 4, 6, 9, 12, 16, 25, 36)


def options(solved: Solved) -> Sequence[Option]:
    """Every aligned rank on each of a path of nested guillotine splits."""
    shape, ranks = solved.shape, aligned_ranks(solved.shape, solved.settings.alignment, solved.shape.outputs)
    if not solved.has_regions or not ranks:
        return []
    basis = shared_basis(solved)[:, : ranks[-1]]
    found = []
    for boxes in region_sets(solved):
        total = sum(_energy(solved, box) for box in boxes)
        curve = torch.stack([captured(solved, box, basis) for box in boxes]).sum(0)
        found += [
            Option("shared-reduce", (rank,), boxes, shape.pair_flops(rank), shape.pair_params(rank, len(boxes)),
                   max(total - float(curve[rank - 1]), 0.0))
            for rank in ranks
        ]  # fmt: skip
    return found


def region_sets(solved: Solved) -> list[tuple[Box, ...]]:
    """Some of the nested guillotine splits of the map, from 2 regions to `settings.regions`.

    A cut is worth what the regions' own expands lose less, at a sixth of the dense cost.
    """
    if solved.splits is None:
        rank = max(round(solved.shape.flops / REFERENCE_RATIO / max(solved.shape.pair_flops(1), 1)), 1)
        basis = shared_basis(solved)[:, : min(rank, solved.shape.outputs)]
        cells, largest = solved.statistics.boxes, solved.settings.regions
        solved.splits = split_path(
            cells, lambda box: float(captured(solved, box, basis)[-1]) - _energy(solved, box), largest
        )
    return [boxes for boxes in solved.splits if len(boxes) in {*SIZES, solved.settings.regions}]


def shared_basis(solved: Solved) -> torch.Tensor:
    """B (m, m) of the pooled problem: C averaged within the cells (each has its own mean), G summed over them."""
    cells = solved.statistics.cells
    count = sum(cell.count for cell in cells)
    covariance = torch.stack([cell.scatter for cell in cells]).sum(0) / count
    root = root_of(torch.stack([cell.gradients for cell in cells]).sum(0) / count, solved.settings.damping)
    basis: torch.Tensor = spectrum(covariance, root, solved.whole.mean, 1.0).reduce.T
    return basis


def _weight(solved: Solved, box: Box) -> torch.Tensor:
    """G of a region, so that tr(weight Cov(y - y^)) is its predicted loss per image."""
    return solved.moments(box).gradients * (0.5 / solved.statistics.images)


def _energy(solved: Solved, box: Box) -> float:
    moments = solved.moments(box)
    return float((_weight(solved, box) * moments.covariance).sum())


def captured(solved: Solved, box: Box, basis: torch.Tensor) -> torch.Tensor:
    """(k,): what the region's own expand keeps with the first 1, 2, ... k columns of the basis."""
    cross = solved.moments(box).covariance @ basis  # (m, k)
    return torch.cumsum(contributions(basis.T @ cross, cross, _weight(solved, box)), 0)


def fill(module: nn.Module, solved: Solved, plan: LayerPlan) -> None:
    """Write the shared basis and each region's expand."""
    matrix, bias = solved.matrix
    basis = shared_basis(solved)[:, : plan.ranks[0]]
    expands, biases = [], []
    for box in plan.regions:
        moments = solved.moments(box)
        cross = moments.covariance @ basis
        expand = regress(basis.T @ cross, cross)
        expands.append(expand)
        biases.append(moments.mean - expand @ (basis.T @ (moments.mean - bias)))
    if isinstance(module, SharedReduce):
        factors.fill_shared(module, basis.T @ matrix, expands, biases)


STRUCTURE = Structure(options, fill)
