"""Accuracy of both classifiers against the strength of each fault, as one SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hscc_edge.data.page import STYLE, svg
from hscc_edge.errors import extra
from hscc_edge.validate.plots.style import CANDIDATE, REFERENCE

with extra("workstation"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

COLUMNS = 4


def draw(record: Mapping[str, Any]) -> str:
    """Small multiples, a fault each, of a record that `hscc-edge robustness` wrote."""
    curves = record["curves"]
    rows = -(-len(curves) // COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 2.5 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False).reshape(-1)
        for axes, curve in zip(grid, curves, strict=False):
            _panel(axes, curve)
        for axes in grid[len(curves) :]:
            axes.set_visible(False)
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
        return svg(figure, "Accuracy of the original and of the compressed classifier as pictures get worse")


def _panel(axes: Axes, curve: Mapping[str, Any]) -> None:
    places = range(len(curve["strengths"]) + 1)
    for values, look in ((curve["reference"], REFERENCE), (curve["candidate"], CANDIDATE)):
        axes.plot(places, values, look.line, marker=look.marker, color=look.colour, label=look.name, markersize=4)
    axes.set_title(curve["fault"], loc="left", fontsize="medium")
    axes.set_xticks(places, ["none", *(f"{value:g}" for value in curve["strengths"])])
    axes.tick_params(axis="x", labelsize="x-small")
    axes.set_xlabel(curve["unit"], fontsize="x-small")
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", alpha=0.3)
