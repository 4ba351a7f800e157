"""The plots of a front, as inline SVG; colours after Okabe and Ito, with a marker of its own for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hscc_edge.compress.front import LEAST_KL, Average, Entry, Front, pareto
from hscc_edge.data.page import COLOURS, INK, MARKERS, STYLE, svg
from hscc_edge.errors import extra

with extra("workstation"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter


def looks(front: Front) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, in order of appearance."""
    methods = list(dict.fromkeys(entry.method for entry in front.entries))
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, name in enumerate(methods)
    }


def scatter(front: Front, cost: str, words: str) -> str:
    """KL against how many times cheaper, both logarithmic; empty if nothing has that cost.

    Args:
        cost: of an outcome, a share of the dense network's.
        words: the horizontal axis.
    """
    entries = [entry for entry in front.entries if entry.outcome is not None and entry.outcome[cost] is not None]
    if not entries:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 5.2), layout="constrained")
        axes = figure.subplots()
        points = [(1.0 / _of(entry)[cost], max(_of(entry)["kl"], LEAST_KL)) for entry in entries]
        _front_line(axes, points)
        for method, (colour, marker) in looks(front).items():
            _method(axes, method, colour, marker, entries, points)
            _means(axes, [item for item in front.averages if item.method == method], cost, colour)
        logarithmic(axes)
        axes.set_xlabel(words)
        axes.set_ylabel("KL from the original, nats an image (log scale)")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return svg(figure, f"KL divergence against {words}")


def _of(entry: Entry) -> Mapping[str, Any]:
    return entry.outcome or {}


def _method(
    axes: Axes, name: str, colour: str, marker: str, entries: Sequence[Entry], points: Sequence[tuple[float, float]]
) -> None:
    """Trials of the grid are filled, those of the search hollow and smaller."""
    for stage, size, filled in (("grid", 34.0, True), ("search", 18.0, False)):
        own = [
            point for entry, point in zip(entries, points, strict=True) if entry.method == name and entry.stage == stage
        ]
        if own:
            label = name if stage == "grid" else f"{name}, search"
            across, up = zip(*own, strict=True)
            axes.scatter(across, up, s=size, marker=marker, edgecolors=colour, linewidths=1.0,
                         facecolors=colour if filled else "none", alpha=0.85, label=label, zorder=3)  # fmt: skip


def _means(axes: Axes, averages: Sequence[Average], cost: str, colour: str) -> None:
    """A thin line through the means over seeds."""
    found = [(getattr(item, cost), max(item.kl, LEAST_KL)) for item in averages]
    line = sorted((1.0 / share, value) for share, value in found if share is not None)
    if len(line) > 1:
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=1, alpha=0.5, zorder=2)


def _front_line(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """The trials that none beats in these two, joined in steps: at any ratio, the least KL seen there or beyond."""
    good = pareto([(-ratio, value) for ratio, value in points])
    line = sorted(point for point, kept in zip(points, good, strict=True) if kept)
    across, up = zip(*line, strict=True)
    axes.step(across, up, where="pre", color=INK, linewidth=1.4, label="Pareto front", zorder=1)
    axes.scatter(across, up, s=110, facecolors="none", edgecolors=INK, linewidths=0.9, zorder=4)


def logarithmic(axes: Axes) -> None:
    """Both axes, with ratios across and plain numbers up."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def bars(shares: Mapping[str, float], words: str) -> str:
    """Importances, the largest on top."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.9 + 0.34 * len(ordered)), layout="constrained")
        axes = figure.subplots()
        drawn = axes.barh([name for name, _ in ordered], [100 * share for _, share in ordered], color=COLOURS[0])
        axes.bar_label(drawn, fmt="%.0f %%", padding=3)
        axes.set_xlim(0, 108 * max(shares.values()))
        axes.set_xlabel(words)
        return svg(figure, words)
