"""Subgroups."""

from __future__ import annotations

from collections.abc import Sequence

from hscc_edge.data.page import INK, STYLE, svg
from hscc_edge.errors import extra
from hscc_edge.validate.plots.style import CANDIDATE, WIDTH
from hscc_edge.validate.subgroups import Group

with extra("workstation"):
    import matplotlib
    from matplotlib.figure import Figure

MOST = 60


def forest(groups: Sequence[Group], margin: float | None = None) -> str:
    """The paired difference of every subgroup with its interval; hollow and grey where there are few patients."""
    shown = groups[:MOST]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + 0.28 * len(shown)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        if margin is not None:
            axes.axvline(-100 * margin, color=INK, linewidth=1.5, linestyle=":", label=f"margin {-100 * margin:g}")
            axes.legend(frameon=False, loc="upper right")
        for row, group in enumerate(shown):
            value, low, high = (100 * part for part in (group.difference, group.low, group.high))
            axes.errorbar([value], [row], xerr=[[value - low], [high - value]], fmt=CANDIDATE.marker, capsize=3,
                          markersize=5, color=CANDIDATE.colour, markerfacecolor="white" if group.small else None,
                          linestyle="none")  # fmt: skip
        axes.set_yticks(range(len(shown)), [f"{group.name} ({group.patients} patients)" for group in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("compressed minus original, points of accuracy, 95 % interval; hollow: few patients")
        axes.grid(axis="x", alpha=0.3)
        return svg(figure, "Paired difference of accuracy in every subgroup with its 95 % interval")
