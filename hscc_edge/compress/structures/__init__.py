"""The structures that HSCC chooses from: each proposes options for a layer and fills the module of any of them."""

from __future__ import annotations

from hscc_edge.compress.solved import Structure
from hscc_edge.compress.structures import clustered, one_region, own_factors, separable, shared_reduce, tucker

STRUCTURES: dict[str, Structure] = {
    "one-region": one_region.STRUCTURE,
    "shared-reduce": shared_reduce.STRUCTURE,
    "own-factors": own_factors.STRUCTURE,
    "separable": separable.STRUCTURE,
    "tucker-2": tucker.STRUCTURE,
    "clustered": clustered.STRUCTURE,
}
