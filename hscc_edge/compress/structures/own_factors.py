"""Own factors: each region is a problem by itself, with its own reduce, rank and expand."""

from __future__ import annotations

from collections.abc import Sequence

from hscc_edge.compress import factors
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.problem import aligned_ranks
from hscc_edge.compress.solved import Solved, Structure
from hscc_edge.compress.structures.shared_reduce import region_sets
from hscc_edge.errors import extra
from hscc_edge.model.plan import Box, LayerPlan
from hscc_edge.model.regional import OwnFactors

with extra("workstation"):
    from torch import nn


def options(solved: Solved) -> Sequence[Option]:
    """For each split, a nested path: whichever region's next aligned ranks save most a FLOP comes next."""
    shape, alignment = solved.shape, solved.settings.alignment
    padding = getattr(solved.dense, "padding_mode", "zeros")
    largest = aligned_ranks(shape, alignment, shape.outputs)[-1:]
    if not solved.has_regions or padding != "zeros" or not largest or largest[0] < alignment:
        return []
    found: list[Option] = []
    for boxes in region_sets(solved):
        found += _path(solved, boxes, largest[0])
    return found


def _path(solved: Solved, boxes: tuple[Box, ...], largest: int) -> list[Option]:
    shape, alignment = solved.shape, solved.settings.alignment
    steps = []
    for index, box in enumerate(boxes):
        losses = solved.spectrum(box).losses
        for rank in range(alignment, largest, alignment):
            gain = float(losses[rank : rank + alignment].sum())
            steps.append((gain / shape.pair_flops(alignment, box.area), index))
    ranks = [alignment] * len(boxes)
    found = [_option(solved, boxes, ranks)]
    for _, index in sorted(steps, key=lambda step: -step[0]):
        ranks[index] += alignment
        found.append(_option(solved, boxes, ranks))
    return found


def _option(solved: Solved, boxes: tuple[Box, ...], ranks: list[int]) -> Option:
    shape = solved.shape
    flops = sum(shape.pair_flops(rank, box.area) for rank, box in zip(ranks, boxes, strict=True))
    params = sum(shape.pair_params(rank) for rank in ranks)
    loss = sum(solved.spectrum(box).loss(rank) for box, rank in zip(boxes, ranks, strict=True))
    return Option("own-factors", tuple(ranks), boxes, flops, params, loss)


def fill(module: nn.Module, solved: Solved, plan: LayerPlan) -> None:
    """Write each region's leading factors."""
    pairs = zip(plan.regions, plan.ranks, strict=True)
    parts = [solved.spectrum(box).factors(rank, *solved.matrix) for box, rank in pairs]
    if isinstance(module, OwnFactors):
        factors.fill_own(module, *(list(part) for part in zip(*parts, strict=True)))


STRUCTURE = Structure(options, fill)
