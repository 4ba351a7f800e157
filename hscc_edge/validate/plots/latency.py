"""Call times."""

from __future__ import annotations

from hscc_edge.data.page import STYLE, svg
from hscc_edge.errors import extra
from hscc_edge.validate.latency import Race
from hscc_edge.validate.plots.style import CANDIDATE, REFERENCE, WIDTH

with extra("workstation"):
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, ScalarFormatter


def latencies(race: Race) -> str:
    """Cumulative shares of the call times of both."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        for samples, look in ((race.reference_ms, REFERENCE), (race.candidate_ms, CANDIDATE)):
            axes.ecdf(samples, color=look.colour, label=look.name, linewidth=2, linestyle=look.line)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(ScalarFormatter())
        axes.tick_params(axis="x", which="minor", labelsize="x-small")
        axes.set_xlabel("milliseconds a call (log scale), batch 1, model alone")
        axes.set_ylabel("share of calls")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.3, which="both")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
        return svg(figure, "Cumulative distribution of latency for both classifiers")
