"""The report of calibration.py: KL against images by method, against random, and what each choice covers."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.stats import ttest_ind

from hscc_edge import durable
from hscc_edge.compress.front_plots import COLOURS, MARKERS, STYLE
from hscc_edge.data.subset import METHODS
from hscc_edge.errors import InputError
from hscc_edge.validate.machine import machine_facts

ONE = "random"
SIZES, SEEDS = (32, 128, 512), 5
Rows = dict[tuple[int, str], list[dict[str, Any]]]


def write(out: Path, report: Path, budget: str) -> None:
    """Write REPORT.json, REPORT.md and REPORT.svg from OUT/rows."""
    rows = read(out / "rows")
    facts = machine_facts()
    facts["versions"] |= {"torch": version("torch")}
    found = {"budget": budget, "network": "brain-mri-alexnet", **facts, "summary": summary(rows),
             "rows": [row for _, part in sorted(rows.items()) for row in part]}  # fmt: skip
    durable.write_json(report.with_suffix(".json"), found)
    durable.write_text(report.with_suffix(".md"), page(found))
    draw(found["summary"], report.with_suffix(".svg"), budget)


def read(directory: Path) -> Rows:
    """The rows that are done, by images and method, in order of seed.

    Raises:
        InputError: if there are none, or they are of several networks or cohorts.
    """
    found: Rows = defaultdict(list)
    for path in sorted(directory.glob("*.json")):
        row = json.loads(path.read_text())
        found[row["images"], row["method"]].append(row)
    kinds = {(row["bundle"], row["cohort"]) for part in found.values() for row in part}
    if len(kinds) != 1:
        raise InputError(f"{directory} has rows of {len(kinds)} networks and cohorts: expected those of one")
    return {key: sorted(part, key=lambda row: row["seed"]) for key, part in found.items()}


def summary(rows: Rows) -> list[dict[str, Any]]:
    """One entry a method and number of images: mean and SE over seeds, and the ratio to random."""
    found = []
    for (images, method), part in sorted(rows.items(), key=lambda item: (item[0][0], list(METHODS).index(item[0][1]))):
        kl = np.array([row["kl"] for row in part])
        entry = {
            "images": images, "method": method, "seeds": len(part), "kl": float(kl.mean()),
            "kl_se": float(kl.std(ddof=1) / math.sqrt(len(kl))) if len(kl) > 1 else None,
            **{name: float(np.mean([row["coverage"][name] for row in part])) for name in ("nearest", "span", "radius")},
            "choose_s": float(np.mean([row["choose_s"] for row in part])),
        }  # fmt: skip
        found.append(entry | ratio(part, rows.get((images, ONE), ())) if method != ONE else entry)
    return found


def ratio(part: Sequence[Mapping[str, Any]], random: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Geometric mean of KL over that of random, with Welch's 95 % interval of the logarithms' difference."""
    if min(len(part), len(random)) < 2:
        return {}
    one, other = (np.log([row["kl"] for row in rows]) for rows in (part, random))
    tested = ttest_ind(one, other, equal_var=False)
    interval = tested.confidence_interval(0.95)
    values = (float(one.mean() - other.mean()), float(interval.low), float(interval.high))
    return {"ratio": [math.exp(value) for value in values], "p": float(tested.pvalue)}


def page(found: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# How calibration images are chosen",
        "",
        f"HSCC at `{found['budget']}` on AlexNet, the public brain MRI pictures; images from the train split, KL (nats",
        "an image, mean over the test split) as the mean over so many seeds and its standard error. The ratio is the",
        "geometric mean over random's, with Welch's 95 % interval for one comparison; below 1 betters random.",
        "`nearest` and `span` are shares of the features' variance (`data/coverage.py`).",
        f"{found['machine']}; {found['date']}; torch {found['versions']['torch']}. `python benchmarks/calibration.py`.",
        "",
        "| images | choice | seeds | KL (SE) | over random's (95 %) | nearest | span | choosing s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["summary"]:
        spread = "-" if row["kl_se"] is None else f"{row['kl_se']:.5f}"
        against = "{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"]) if "ratio" in row else "-"
        lines.append(
            f"| {row['images']} | {row['method']} | {row['seeds']} | {row['kl']:.5f} ({spread}) | {against} | "
            f"{row['nearest']:.2f} | {row['span']:.3f} | {row['choose_s']:.1f} |"
        )
    done = {(row["images"], row["method"]): row["seeds"] for row in found["summary"]}
    left = [
        f"{method} at {images}: {SEEDS - done.get((images, method), 0)}"
        for images in SIZES for method in METHODS if done.get((images, method), 0) < SEEDS
    ]  # fmt: skip
    tested = [row for row in found["summary"] if "p" in row]
    least = 0.05 / max(len(tested), 1)
    named = [f"{row['method']} at {row['images']}" for row in tested if row["p"] < least and row["ratio"][0] < 1]
    worse = [f"{row['method']} at {row['images']}" for row in tested if row["p"] < least and row["ratio"][0] > 1]
    return "\n".join([
        *lines, "",
        f"After Bonferroni over {len(tested)} comparisons, better than random: {', '.join(named) or 'none'}; worse: "
        f"{', '.join(worse) or 'none'}.",
        "",
        f"Not run, of {SEEDS} seeds: {'; '.join(left) or 'none'}.",
        "",
    ])  # fmt: skip


def draw(entries: Sequence[Mapping[str, Any]], out: Path, budget: str) -> None:
    """KL against images, a line a method, bars of one standard error."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 5.2), layout="constrained")
        axes = figure.subplots()
        for place, method in enumerate(METHODS):
            part = [row for row in entries if row["method"] == method]
            if part:
                axes.errorbar(
                    [row["images"] for row in part], [row["kl"] for row in part],
                    [row["kl_se"] or 0.0 for row in part], label=method, color=COLOURS[place % len(COLOURS)],
                    marker=MARKERS[place % len(MARKERS)], linewidth=2.2 if method == ONE else 1.0, capsize=3,
                )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        sizes = sorted({row["images"] for row in entries})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("calibration images")
        axes.set_ylabel("KL from the original, nats an image (log scale)")
        axes.set_title(f"HSCC at {budget}, AlexNet on brain MRI: mean over seeds, bars of one standard error")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.savefig(out, metadata={"Date": None})
