"""Data-aware Global SVD: V of rank r that minimises E||(W - V)(x - mu)||^2, with one allocation over all layers.

The optimum projects the outputs on the leading eigenvectors of their covariance C = W A W^T; the bias absorbs the
mean (Zhang et al. 2015, arXiv 1505.06798, without the nonlinearity). One region, and one-sided: no gradient says
which outputs matter. A layer's loss is the dropped share of its own outputs' variance, so that layers compare.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

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
from hscc_edge.compress.spectrum import Spectrum, dual_spectrum, moments_spectrum, sample_spectrum, total_moments
from hscc_edge.compress.statistics import LayerStatistics, collect
from hscc_edge.errors import extra
from hscc_edge.model.layers import factorised
from hscc_edge.model.plan import LayerPlan

with extra("workstation"):
    import torch
    from torch import nn


def candidates(problem: Problem) -> LayerwiseProposal:
    """The options of every layer that can be factorised; one pass over the calibration cohort, as `collect` says."""
    statistics = collect(dataclasses.replace(problem, cache=_cache_of(problem.cache)), (1, 1))
    found = {shape.name: _layer(problem, shape, statistics[shape.name]) for shape in problem.shapes if not shape.reason}
    return LayerwiseProposal("data-svd", problem.network, problem.shapes, found)


def _cache_of(cache: Path | None) -> Path | None:
    """A file of its own: statistics of the whole map are not those of its cells."""
    return None if cache is None else cache.with_name(f"{cache.stem}-whole{cache.suffix}")


def _layer(problem: Problem, shape: LayerShape, statistics: LayerStatistics) -> Candidates:
    dense = problem.network.get_submodule(shape.name)
    found = output_spectrum(statistics, factors.matrix_of(dense)[0])
    ranks = aligned_ranks(shape, problem.settings.alignment, len(found.losses))
    options = (dense_option(shape), *(pair_option(shape, rank, found.loss(rank)) for rank in ranks))
    return Candidates(options, partial(_build, dense, found))


def output_spectrum(statistics: LayerStatistics, matrix: torch.Tensor) -> Spectrum:
    """What each rank keeps of the outputs' variance, as a share; W is `matrix` (m, n)."""
    if statistics.samples is not None:
        return sample_spectrum(statistics.samples, two_sided=False)
    total = total_moments(statistics)
    if statistics.dual:
        return dual_spectrum(total, statistics.images, matrix, two_sided=False)
    return moments_spectrum(total, statistics.images, two_sided=False)


def _build(dense: nn.Module, found: Spectrum, plan: LayerPlan) -> nn.Module:
    module = factorised(dense, plan)
    (rank,) = plan.ranks
    factors.fill_pair(module, *found.factors(rank, *factors.matrix_of(dense)))
    return module
