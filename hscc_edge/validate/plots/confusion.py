"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

from hscc_edge.data.page import INK, STYLE, svg
from hscc_edge.errors import extra
from hscc_edge.validate.metrics import Figures
from hscc_edge.validate.plots.style import WIDTH

with extra("workstation"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DARKEST = 1.8  # of a share: ink stays readable on every cell


def confusions(reference: Figures, candidate: Figures, labels: Sequence[str]) -> str:
    """Both confusion matrices side by side, with a column of cases without a decision if there are any."""
    undecided = bool(reference.undecided or candidate.undecided)
    columns = [*labels, *(["no decision"] if undecided else [])]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.6 + 0.65 * len(labels)), layout="constrained")
        panels = zip(figure.subplots(1, 2), (reference, candidate), ("Original", "Compressed"), strict=True)
        for axes, found, title in panels:
            _matrix(axes, found, labels, columns, title)
        return svg(figure, "Confusion matrices of the original and of the compressed classifier")


def _matrix(axes: Axes, found: Figures, labels: Sequence[str], columns: Sequence[str], title: str) -> None:
    rows = [row[: len(columns)] for row in found.confusion]
    shares = [[n / max(sum(row), 1) for n in row] for row in rows]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=DARKEST, aspect="auto")
    for i, row in enumerate(rows):
        for j, n in enumerate(row):
            weight = "bold" if i == j else "normal"
            axes.text(j, i, str(n), ha="center", va="center", color=INK, fontweight=weight)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("decided")
    axes.set_ylabel("true")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
