"""One region: a k x k convolution to r, a pointwise one to m; for a Linear, a pair: global SVD, with data."""

from __future__ import annotations

from collections.abc import Sequence

from hscc_edge.compress import factors
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.problem import aligned_ranks, pair_option
from hscc_edge.compress.solved import Solved, Structure
from hscc_edge.errors import extra
from hscc_edge.model.plan import LayerPlan

with extra("workstation"):
    from torch import nn


def options(solved: Solved) -> Sequence[Option]:
    """Every aligned rank that is cheaper than the dense layer."""
    ranks = aligned_ranks(solved.shape, solved.settings.alignment, len(solved.whole.losses))
    return [pair_option(solved.shape, rank, solved.whole.loss(rank)) for rank in ranks]


def fill(module: nn.Module, solved: Solved, plan: LayerPlan) -> None:
    """Write the leading factors."""
    factors.fill_pair(module, *solved.whole.factors(plan.ranks[0], *solved.matrix))


STRUCTURE = Structure(options, fill)
