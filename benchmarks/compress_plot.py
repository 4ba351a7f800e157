"""KL against measured speed-up, a line for each method, from the table of compress.py; which method is beaten where.

python benchmarks/compress_plot.py results/table.json --out docs/compress-alexnet.svg
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hscc_edge.compress.front import LEAST_KL
from hscc_edge.compress.front_plots import COLOURS, MARKERS, STYLE, logarithmic

OURS = "hscc"
RECOVERED = " + distillation"


def main() -> None:
    """Draw the front, and print which rows no row of ours beats in both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="an SVG or PNG file")
    arguments = parser.parse_args()
    table = json.loads(arguments.table.read_text())
    draw(table, arguments.out)
    for row in unbeaten(table["rows"]):
        print(f"not beaten by {OURS}: {row['label']} {row['budget']}, {row['speedup']:.2f}x, KL {row['kl']:.4f}")


def methods(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The measured rows of each method's first calibration seed, ours first; variants of ours are left out."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list, {OURS: []})
    for row in rows:
        own_variant = row["method"] == OURS and row["label"].removesuffix(RECOVERED) != OURS
        if "speedup" in row and row["seed"] == 0 and not own_variant:
            found[row["label"].removesuffix(RECOVERED)].append(row)
    return dict(found)


def unbeaten(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of other methods for which no row of ours with as much recovery or less is as fast and as true."""
    found = methods(rows)
    ours = found.pop(OURS)
    return [
        row
        for others in found.values()
        for row in others
        if not any(
            own["speedup"] >= row["speedup"] and own["kl"] <= row["kl"] and own["recovery_s"] <= row["recovery_s"]
            for own in ours
        )
    ]


def draw(table: Mapping[str, Any], out: Path) -> None:
    """Lines without recovery, hollow marks with it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 5.2), layout="constrained")
        axes = figure.subplots()
        for place, (label, rows) in enumerate(methods(table["rows"]).items()):
            marker = MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]
            line(axes, label, rows, COLOURS[place % len(COLOURS)], marker)
        logarithmic(axes)
        axes.set_xlabel(f"measured speed-up (ONNX Runtime, one thread, {table['rounds']} rounds in turn)")
        axes.set_ylabel("KL from the original, nats an image (log scale)")
        axes.set_title(f"{table['network']}, {table['test_images']} test pictures; hollow: after distillation")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def line(axes: Axes, label: str, rows: Sequence[Mapping[str, Any]], colour: str, marker: str) -> None:
    """One method: its points that none of its own beats are joined."""
    plain = sorted((row["speedup"], max(row["kl"], LEAST_KL)) for row in rows if not row["recovery_s"])
    recovered = [(row["speedup"], max(row["kl"], LEAST_KL)) for row in rows if row["recovery_s"]]
    best = [(x, y) for x, y in plain if not any(u > x and v < y for u, v in plain)]
    width = 2.2 if label == OURS else 1.0
    axes.plot(*zip(*best, strict=True), color=colour, linewidth=width, zorder=2)
    axes.scatter(*zip(*plain, strict=True), s=34, marker=marker, color=colour, label=label, zorder=3)
    if recovered:
        axes.scatter(*zip(*recovered, strict=True), s=60, marker=marker, facecolors="none", edgecolors=colour, zorder=4)


if __name__ == "__main__":
    main()
