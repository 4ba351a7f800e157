"""The compressor: a method proposes options for each layer, one allocation picks, the factors are written."""

from __future__ import annotations

from hscc_edge.compress import alds, channel_pruning, cp, data_svd, global_svd, hscc, paper, tucker
from hscc_edge.compress.problem import Method

METHODS: dict[str, Method] = {
    "hscc": hscc.candidates,
    "paper": paper.candidates,
    "svd": global_svd.candidates,
    "data-svd": data_svd.candidates,
    "tucker": tucker.candidates,
    "alds": alds.candidates,
    "cp": cp.candidates,
    "pruning": channel_pruning.candidates,
}
AS_PUBLISHED = ("paper",)
"""Methods that are refitted only on request."""
