"""The paired difference of accuracy."""

from __future__ import annotations

from hscc_edge.data.page import INK, STYLE, svg
from hscc_edge.errors import extra
from hscc_edge.validate.plots.style import CANDIDATE, WIDTH

with extra("workstation"):
    import matplotlib
    from matplotlib.figure import Figure


def difference(value: float, low: float, high: float, margin: float | None = None) -> str:
    """With its interval, in points; the margin, if one was declared, as a line that the interval must stay right of."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.6), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        error = [[100 * (value - low)], [100 * (high - value)]]
        axes.errorbar([100 * value], [0], xerr=error, fmt=CANDIDATE.marker, color=CANDIDATE.colour, capsize=5,
                      markersize=7)  # fmt: skip
        if margin is not None:
            axes.axvline(-100 * margin, color=INK, linewidth=1.5, linestyle=":")
            axes.annotate(f"margin {-100 * margin:g}", (-100 * margin, 1), xycoords=("data", "axes fraction"),
                          xytext=(-4, -2), textcoords="offset points", va="top", ha="right")  # fmt: skip
        reach = max(abs(low), abs(high), 0.02, margin or 0) * 115
        axes.set_xlim(-reach, reach)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("accuracy of the compressed classifier minus the original's, points, 95 % interval")
        return svg(figure, "Paired difference of accuracy with its 95 % interval")
