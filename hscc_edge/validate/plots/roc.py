"""ROC curves."""

from __future__ import annotations

from hscc_edge.data.page import INK, STYLE, svg
from hscc_edge.errors import extra
from hscc_edge.validate.plots.style import CANDIDATE, REFERENCE, WIDTH
from hscc_edge.validate.probabilities import Probabilities

with extra("workstation"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4


def roc(reference: Probabilities, candidate: Probabilities) -> str:
    """Small multiples, a label each."""
    labels = [item.label for item in reference.areas]
    columns = min(max(len(labels), 2), COLUMNS)
    rows = -(-len(labels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, (WIDTH / columns + 0.3) * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).reshape(-1)
        for axes, label in zip(grid, labels, strict=False):
            _panel(axes, label, reference, candidate)
        for axes in grid[len(labels) :]:
            axes.set_visible(False)
        grid[0].set_ylabel("sensitivity")
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
        return svg(figure, "ROC curves of each class against the rest, for both classifiers")


def _panel(axes: Axes, label: str, reference: Probabilities, candidate: Probabilities) -> None:
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")
    for found, look in ((reference, REFERENCE), (candidate, CANDIDATE)):
        curve = next((item.curve for item in found.areas if item.label == label), None)
        if curve is not None:
            axes.plot(curve.false_alarms, curve.findings, color=look.colour, linestyle=look.line, label=look.name)
    axes.set_title(label, loc="left", fontsize="medium")
    axes.set_xlabel("1 - specificity", fontsize="small")
    axes.grid(alpha=0.3)
