"""The cohort report's plots, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hscc_edge.data.cohort_sample import PERCENTILES, Sample
from hscc_edge.data.page import COLOURS, MARKERS, STYLE, svg
from hscc_edge.data.split import SPLITS
from hscc_edge.data.subgroups import Cell
from hscc_edge.errors import extra

with extra("workstation"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def patients(cells: Sequence[Cell], columns: Sequence[str]) -> str:
    """Patients by value and split, a panel a column; "" if no column is known."""
    panels = [(column, [cell for cell in cells if cell.column == column]) for column in columns]
    panels = [(column, found) for column, found in panels if len(found) > 1]
    if not panels:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.9 + 0.32 * max(len(found) for _, found in panels)), layout="constrained")
        for axes, (column, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _bars(axes, column, found)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(SPLITS), frameon=False)
        return svg(figure, "Patients by " + ", ".join(column.replace("_", " ") for column, _ in panels))


def _bars(axes: Axes, column: str, cells: Sequence[Cell]) -> None:
    left = np.zeros(len(cells))
    names = [cell.value if len(cell.value) <= 24 else cell.value[:23] + "…" for cell in cells]
    for split, colour in zip(SPLITS, COLOURS, strict=False):
        counts = np.array([cell.by_split.get(split, 0) for cell in cells])
        axes.barh(range(len(cells)), counts, left=left, label=split, color=colour, edgecolor="white")
        left += counts
    axes.set_yticks(range(len(cells)), names)
    axes.invert_yaxis()
    axes.set_title(column.replace("_", " "), loc="left", fontweight="bold", fontsize=10)
    axes.set_xlabel("patients")


def grey_values(samples: Sequence[Sample]) -> str:
    """Percentiles of the grey values of every class, the mean over its sampled images."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for found, colour, mark in zip(samples, COLOURS, MARKERS, strict=False):
            if len(found.quantiles):
                axes.plot(PERCENTILES, found.quantiles.mean(axis=0), color=colour, marker=mark, label=found.label)
        axes.set_xlabel("percentile of an image's pixels")
        axes.set_ylabel("value")
        axes.legend(frameon=False)
        return svg(figure, "Percentiles of the grey values of every class")
