"""How the two classifiers look in every plot: told apart by colour, mark and line, so that grey print does as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hscc_edge.data.page import COLOURS, MARKERS
from hscc_edge.errors import extra
from hscc_edge.validate.intervals import Proportion

with extra("workstation"):
    from matplotlib.axes import Axes

WIDTH = 9.2  # inches


@dataclass(frozen=True, slots=True)
class Look:
    """Of one classifier."""

    name: str
    colour: str
    marker: str
    line: str
    shift: float


REFERENCE = Look("original", COLOURS[1], MARKERS[1], "--", -0.13)
CANDIDATE = Look("compressed", COLOURS[0], MARKERS[0], "-", 0.13)


def intervals(axes: Axes, shares: Sequence[Proportion], look: Look) -> None:
    """Shares with their 95 % intervals, a row each; those of no case are left out."""
    known = [(i + look.shift, p.value, p.low, p.high) for i, p in enumerate(shares)
             if p.value is not None and p.low is not None and p.high is not None]  # fmt: skip
    values = [value for _, value, _, _ in known]
    errors = [[value - low for _, value, low, _ in known], [high - value for _, value, _, high in known]]
    axes.errorbar(values, [row for row, *_ in known], xerr=errors, fmt=look.marker, color=look.colour,
                  label=look.name, capsize=3, markersize=5)  # fmt: skip
