"""Sensitivity and specificity of every class."""

from __future__ import annotations

from hscc_edge.data.page import STYLE, svg
from hscc_edge.errors import extra
from hscc_edge.validate.metrics import Figures
from hscc_edge.validate.plots.style import CANDIDATE, REFERENCE, WIDTH, intervals

with extra("workstation"):
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter


def per_class(reference: Figures, candidate: Figures) -> str:
    """Sensitivity and specificity of each class with 95 % intervals."""
    with matplotlib.rc_context(STYLE):
        count = len(reference.classes)
        figure = Figure(figsize=(WIDTH, 1.4 + 0.5 * count), layout="constrained")
        for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("sensitivity", "specificity"), strict=True):
            for found, look in ((reference, REFERENCE), (candidate, CANDIDATE)):
                intervals(axes, [getattr(item, kind) for item in found.classes], look)
            axes.set_yticks(range(count), [item.label for item in reference.classes])
            axes.set_xlabel(f"{kind}, 95 % interval")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.grid(axis="x", alpha=0.3)
        figure.axes[0].invert_yaxis()
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
        return svg(figure, "Sensitivity and specificity of each class with 95 % intervals")
