"""HSCC: spatial regions x rank-adaptive SVD in the two-sided metric (after arXiv 2604.23375), all in output space.

With one region this is data-aware global SVD. Own factors solve each region by itself; a shared reduce keeps one basis
B = L Q_r of the pooled problem and gives each region its best expand U = C B (B^T C B)^-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hscc_edge.compress import factors
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.problem import Candidates, Problem, aligned_ranks, dense_option, pair_option
from hscc_edge.compress.spectrum import Spectrum, cell_spectrum, pooled, root_of, sample_spectrum, spectrum
from hscc_edge.compress.statistics import LayerStatistics, Moments, collect
from hscc_edge.errors import extra
from hscc_edge.model.layers import OwnFactorsConv2d, SharedReduceConv2d, factorised
from hscc_edge.model.plan import LayerPlan

with extra("workstation"):
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Solved:
    """One layer's statistics and its spectra: of the whole map, and of each region if there are several."""

    whole: Spectrum
    regions: tuple[Spectrum, ...]
    statistics: LayerStatistics


def candidates(problem: Problem) -> dict[str, Candidates]:
    """The options of every layer that can be factorised; one pass over the calibration cohort."""
    statistics = collect(
        problem.network,
        problem.shapes,
        problem.batches(),
        problem.head,
        problem.settings.parts,
        problem.settings.seed,
        problem.progress,
    )
    shapes = {shape.name: shape for shape in problem.shapes}
    return {name: _layer(problem, shapes[name], _solve(entry)) for name, entry in statistics.items()}


def _solve(entry: LayerStatistics) -> Solved:
    if entry.samples is not None:
        return Solved(sample_spectrum(entry.samples), (), entry)
    covariance, gradients, mean, positions = pooled(entry)
    whole = spectrum(covariance, root_of(gradients), mean, positions)
    if len(entry.cells) == 1:
        return Solved(whole, (), entry)
    return Solved(whole, tuple(cell_spectrum(cell, entry.images) for cell in entry.cells), entry)


def _layer(problem: Problem, shape: LayerShape, solved: Solved) -> Candidates:
    dense = problem.network.get_submodule(shape.name)
    settings = problem.settings
    ranks = aligned_ranks(shape, settings.alignment, len(solved.whole.losses))
    options = [dense_option(shape)]
    if "one-region" in settings.structures:
        options += [pair_option(shape, rank, solved.whole.loss(rank)) for rank in ranks]
    if solved.regions and isinstance(dense, nn.Conv2d):
        if "shared-reduce" in settings.structures:
            options += _shared_options(shape, solved, ranks)
        if "own-factors" in settings.structures:
            options += _own_options(shape, solved, settings.alignment)
    return Candidates(tuple(options), partial(_build, dense, solved))


def _shared_options(shape: LayerShape, solved: Solved, ranks: list[int]) -> list[Option]:
    """B is nested, so each rank's gain in a region is one column of an orthonormal basis of C^(1/2) B."""
    boxes = solved.statistics.boxes
    basis = shared_basis(solved)
    gains = torch.zeros(basis.shape[1], dtype=torch.float64)
    total = 0.0
    for cell in solved.statistics.cells:
        half = _half(cell.covariance)
        weight = cell.gradients / cell.count * (0.5 * cell.count / solved.statistics.images)
        directions = half @ torch.linalg.qr(half @ basis).Q
        gains += ((weight @ directions) * directions).sum(0)
        total += float((weight * cell.covariance).sum())
    kept = torch.cumsum(gains, 0)
    return [
        Option("shared-reduce", (rank,), boxes, shape.pair_flops(rank), shape.pair_params(rank, len(boxes)),
               max(total - float(kept[rank - 1]), 0.0))
        for rank in ranks
    ]  # fmt: skip


def shared_basis(solved: Solved) -> torch.Tensor:
    """B (m, k) of the pooled problem: C averaged within the regions (each has its own mean), G summed over them."""
    cells = solved.statistics.cells
    count = sum(cell.count for cell in cells)
    covariance = torch.stack([cell.scatter for cell in cells]).sum(0) / count
    root = root_of(torch.stack([cell.gradients for cell in cells]).sum(0) / count)
    basis: torch.Tensor = spectrum(covariance, root, solved.whole.mean, 1.0).reduce.T
    return basis


def _half(covariance: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    roots = values.clamp_min(float(values[-1]) * 1e-12).sqrt()
    half: torch.Tensor = (vectors * roots) @ vectors.T
    return half


def _own_options(shape: LayerShape, solved: Solved, alignment: int) -> list[Option]:
    """A nested path: whichever region's next `alignment` ranks save most a FLOP comes next."""
    boxes, spectra = solved.statistics.boxes, solved.regions
    largest = aligned_ranks(shape, alignment, len(solved.whole.losses))[-1:]
    if not largest:
        return []
    steps = []
    for index, (box, region) in enumerate(zip(boxes, spectra, strict=True)):
        for rank in range(alignment, largest[0], alignment):
            gain = float(region.losses[rank : rank + alignment].sum())
            steps.append((gain / shape.pair_flops(alignment, box.area), index))
    ranks = [alignment] * len(boxes)
    options = [_own_option(shape, solved, ranks)]
    for _, index in sorted(steps, key=lambda step: -step[0]):
        ranks[index] += alignment
        options.append(_own_option(shape, solved, ranks))
    return options


def _own_option(shape: LayerShape, solved: Solved, ranks: list[int]) -> Option:
    boxes = solved.statistics.boxes
    flops = sum(shape.pair_flops(rank, box.area) for rank, box in zip(ranks, boxes, strict=True))
    params = sum(shape.pair_params(rank) for rank in ranks)
    loss = sum(region.loss(rank) for region, rank in zip(solved.regions, ranks, strict=True))
    return Option("own-factors", tuple(ranks), boxes, flops, params, loss)


def _build(dense: nn.Module, solved: Solved, plan: LayerPlan) -> nn.Module:
    module = factorised(dense, plan)
    matrix, bias = factors.matrix_of(dense)
    if isinstance(module, SharedReduceConv2d):
        _fill_shared(module, solved, matrix, bias)
    elif isinstance(module, OwnFactorsConv2d):
        parts = [_pair(region, rank, matrix, bias) for region, rank in zip(solved.regions, plan.ranks, strict=True)]
        factors.fill_own(module, *(list(part) for part in zip(*parts, strict=True)))
    else:
        factors.fill_pair(module, *_pair(solved.whole, plan.ranks[0], matrix, bias))
    return module


def _pair(
    region: Spectrum, rank: int, matrix: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(reduce (r, n), expand (m, r), bias (m,)); the bias absorbs the mean: b' = mu - U R (mu - b)."""
    left, expand = region.reduce[:rank], region.expand[:, :rank]
    return left @ matrix, expand, region.mean - expand @ (left @ (region.mean - bias))


def _fill_shared(module: SharedReduceConv2d, solved: Solved, matrix: torch.Tensor, bias: torch.Tensor) -> None:
    basis = shared_basis(solved)[:, : module.reduce.out_channels]
    expands, biases = [], []
    for cell in solved.statistics.cells:
        expand = _regress(cell, basis)
        expands.append(expand)
        biases.append(cell.mean - expand @ (basis.T @ (cell.mean - bias)))
    factors.fill_shared(module, basis.T @ matrix, expands, biases)


def _regress(cell: Moments, basis: torch.Tensor) -> torch.Tensor:
    """U = C B (B^T C B)^-1, the best expand (m, r) of z = B^T y in one region."""
    cross = cell.covariance @ basis
    gram = basis.T @ cross
    gram = gram + 1e-9 * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram), dtype=gram.dtype)
    expand: torch.Tensor = torch.linalg.solve(gram, cross.T).T
    return expand
