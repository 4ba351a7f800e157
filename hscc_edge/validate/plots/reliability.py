"""Whether probabilities mean what they say."""

from __future__ import annotations

from hscc_edge.data.page import INK, STYLE, svg
from hscc_edge.errors import extra
from hscc_edge.validate.calibration import Bin, Calibration
from hscc_edge.validate.plots.style import CANDIDATE, REFERENCE, WIDTH, Look

with extra("workstation"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def reliability(reference: Calibration, candidate: Calibration) -> str:
    """The share that was right against the mean probability of each bin, with 95 % intervals, for both."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, found, look in zip(panels, (reference, candidate), (REFERENCE, CANDIDATE), strict=True):
            axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")
            _bins(axes, found.bins, look)
            axes.set_title(look.name.capitalize(), loc="left", fontweight="bold")
            axes.set_xlabel("mean probability of a bin")
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("share that was so, 95 % interval")
        return svg(figure, "Reliability diagrams of the original and of the compressed classifier")


def _bins(axes: Axes, bins: tuple[Bin, ...], look: Look) -> None:
    known = [(item.mean, item.observed.value, item.observed.low, item.observed.high) for item in bins
             if item.mean is not None and item.observed.value is not None]  # fmt: skip
    means, values = [row[0] for row in known], [row[1] for row in known]
    errors = [[value - (low or 0.0) for _, value, low, _ in known],
              [(1.0 if high is None else high) - value for _, value, _, high in known]]  # fmt: skip
    axes.errorbar(means, values, yerr=errors, fmt=look.marker, color=look.colour, capsize=3, markersize=5)
