"""HSCC: spatial regions x channel clusters x rank-adaptive SVD in the two-sided metric (after arXiv 2604.23375).

Each layer offers every structure that `settings.structures` names, with its predicted loss in one unit and its cost;
one allocation picks structure and ranks for all layers. With one region and one cluster this is data-aware global SVD.
"""

from __future__ import annotations

from functools import partial

from hscc_edge.compress.allocate import Option
from hscc_edge.compress.features import collect_inputs, measure
from hscc_edge.compress.problem import Candidates, LayerwiseProposal, Problem, dense_option
from hscc_edge.compress.solved import Solved
from hscc_edge.compress.statistics import collect
from hscc_edge.compress.structures import STRUCTURES
from hscc_edge.errors import InputError, extra
from hscc_edge.model.convolution import CONVOLUTIONS
from hscc_edge.model.layers import factorised
from hscc_edge.model.plan import Box, LayerPlan

with extra("workstation"):
    import torch
    from torch import nn


def candidates(problem: Problem) -> LayerwiseProposal:
    """The options of every layer that can be factorised.

    One pass forward and backward over the calibration cohort; structures whose loss has no closed form take two more
    forward passes over a few batches.

    Raises:
        InputError: if a structure is unknown.
    """
    for name in problem.settings.structures:
        if name not in STRUCTURES:
            raise InputError(f"the structure {name!r} is unknown: expected some of {', '.join(STRUCTURES)}")
    solved = solve(problem)
    found = {name: Candidates(_options(entry), partial(_build, entry)) for name, entry in solved.items()}
    metric = partial(_gradients, solved)
    return LayerwiseProposal("hscc", problem.network, problem.shapes, found, metric=metric)


def solve(problem: Problem) -> dict[str, Solved]:
    """Each layer's statistics, and the measured features of the structures that need them."""
    statistics = collect(problem, problem.settings.cells)
    shapes = {shape.name: shape for shape in problem.shapes}
    solved = {
        name: Solved(problem.network.get_submodule(name), shapes[name], entry, problem.settings)
        for name, entry in statistics.items()
    }
    wanted = {
        name: STRUCTURES[name].features for name in problem.settings.structures if STRUCTURES[name].features is not None
    }
    spatial = [name for name, entry in solved.items() if isinstance(entry.dense, CONVOLUTIONS) and entry.shape.taps > 1]
    if not wanted or not spatial:
        return solved
    for name, inputs in collect_inputs(problem, spatial, {}).items():
        solved[name].inputs = inputs
        for structure, features in wanted.items():
            solved[name].features[structure] = features(solved[name]) if features is not None else []
    measure(problem, {name: [item for part in solved[name].features.values() for item in part] for name in spatial})
    return solved


def _gradients(solved: dict[str, Solved], name: str, box: Box | None) -> torch.Tensor | None:
    """G per output position; None of a layer whose statistics are not of its outputs."""
    entry = solved[name]
    if entry.statistics.dual or entry.statistics.samples is not None:
        return None
    moments = entry.total if box is None else entry.moments(box)
    return moments.gradients / moments.count


def _options(solved: Solved) -> tuple[Option, ...]:
    found = [dense_option(solved.shape)]
    for name in solved.settings.structures:
        found += STRUCTURES[name].options(solved)
    return tuple(found)


def _build(solved: Solved, plan: LayerPlan) -> nn.Module:
    module = factorised(solved.dense, plan)
    STRUCTURES[plan.structure].fill(module, solved, plan)
    return module
