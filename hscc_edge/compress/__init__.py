"""The compressor: a method proposes options for each layer, one allocation picks, the factors are written."""

from __future__ import annotations

from hscc_edge.compress import hscc
from hscc_edge.compress.problem import Method

METHODS: dict[str, Method] = {
    "hscc": hscc.candidates,
}
