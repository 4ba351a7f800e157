"""The report's plots, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from hscc_edge.data.page import INK, STYLE, svg
from hscc_edge.errors import extra
from hscc_edge.validate.intervals import Proportion
from hscc_edge.validate.latency import Race
from hscc_edge.validate.metrics import Figures
from hscc_edge.validate.subgroups import Group

with extra("workstation"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

REFERENCE, CANDIDATE = "#5b6b7b", "#0b6e99"


def confusions(reference: Figures, candidate: Figures, labels: Sequence[str]) -> str:
    """Both confusion matrices side by side."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.2), layout="constrained")
        for axes, found, title in zip(
            figure.subplots(1, 2), (reference, candidate), ("Original", "Compressed"), strict=True
        ):
            _matrix(axes, found, labels, title)
        return svg(figure, "Confusion matrices of the original and of the compressed classifier")


def _matrix(axes: Axes, found: Figures, labels: Sequence[str], title: str) -> None:
    rows = [row[: len(labels)] for row in found.confusion]
    shares = [[n / max(sum(row), 1) for n in row] for row in rows]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(rows):
        for j, n in enumerate(row):
            axes.text(j, i, str(n), ha="center", va="center", color="white" if shares[i][j] > 0.55 else INK)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("decided")
    axes.set_ylabel("true")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[:].set_visible(False)


def per_class(reference: Figures, candidate: Figures) -> str:
    """Sensitivity and specificity of each class with 95 % intervals."""
    with matplotlib.rc_context(STYLE):
        count = len(reference.classes)
        figure = Figure(figsize=(9.2, 1.4 + 0.55 * count), layout="constrained")
        for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("sensitivity", "specificity"), strict=True):
            for found, shift, colour, name in (
                (reference, -0.13, REFERENCE, "original"),
                (candidate, 0.13, CANDIDATE, "compressed"),
            ):
                shares = [getattr(item, kind) for item in found.classes]
                _intervals(axes, shares, shift, colour, name)
            axes.set_yticks(range(count), [item.label for item in reference.classes])
            axes.set_xlabel(f"{kind}, 95 % interval")
            axes.grid(axis="x", alpha=0.3)
        figure.axes[0].invert_yaxis()
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
        return svg(figure, "Sensitivity and specificity of each class with 95 % intervals")


def _intervals(axes: Axes, shares: Sequence[Proportion], shift: float, colour: str, name: str) -> None:
    known = [(i, p.value, p.low, p.high) for i, p in enumerate(shares)
             if p.value is not None and p.low is not None and p.high is not None]  # fmt: skip
    values = [value for _, value, _, _ in known]
    errors = [[value - low for _, value, low, _ in known], [high - value for _, value, _, high in known]]
    rows = [i + shift for i, *_ in known]
    axes.errorbar(values, rows, xerr=errors, fmt="o", color=colour, label=name, capsize=3, markersize=5)


def latencies(race: Race) -> str:
    """Cumulative shares of the call times of both."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.2), layout="constrained")
        axes = figure.subplots()
        for samples, colour, name in (
            (race.candidate_ms, CANDIDATE, "compressed"),
            (race.reference_ms, REFERENCE, "original"),
        ):
            axes.ecdf(samples, color=colour, label=name, linewidth=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(ScalarFormatter())
        axes.set_xlabel("milliseconds a call (log scale), batch 1, model alone")
        axes.set_ylabel("share of calls")
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False, loc="lower right")
        return svg(figure, "Cumulative distribution of latency for both classifiers")


def difference(value: float, low: float, high: float) -> str:
    """The paired difference of accuracy with its interval, in points."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 1.5), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        error = [[100 * (value - low)], [100 * (high - value)]]
        axes.errorbar([100 * value], [0], xerr=error, fmt="o", color=CANDIDATE, capsize=5, markersize=7)
        reach = max(abs(low), abs(high), 0.02) * 115
        axes.set_xlim(-reach, reach)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("accuracy of the compressed classifier minus the original's, points, 95 % interval")
        return svg(figure, "Paired difference of accuracy with its 95 % interval")


def forest(groups: Sequence[Group]) -> str:
    """The paired difference of every subgroup with its interval; hollow where there are few patients."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 1.2 + 0.3 * len(groups)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        for row, group in enumerate(groups):
            value, low, high = (100 * part for part in (group.difference, group.low, group.high))
            face = "white" if group.small else CANDIDATE
            axes.errorbar([value], [row], xerr=[[value - low], [high - value]], fmt="o", color=CANDIDATE,
                          markerfacecolor=face, capsize=3, markersize=5)  # fmt: skip
        axes.set_yticks(range(len(groups)), [f"{group.name} ({group.patients})" for group in groups])
        axes.invert_yaxis()
        axes.set_xlabel("compressed minus original, points of accuracy, 95 % interval; patients; hollow: too few")
        axes.grid(axis="x", alpha=0.3)
        return svg(figure, "Paired difference of accuracy in every subgroup with its 95 % interval")
