"""The page of type_one.py: tables, findings in words, and the plot."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hscc_edge.data.page import COLOURS, MARKERS, STYLE

ALPHA = 0.025


def plot(found: Mapping[str, Any]) -> str:
    """Type-I error at the margin, and power."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 5.0), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _errors(left, found)
        _power(right, found)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()


def _errors(axes: Axes, found: Mapping[str, Any]) -> None:
    rows = found["clustered"]
    names = ["independent, exact", *dict.fromkeys(row["patients"] for row in rows)]
    noise = 3 * 100 * (ALPHA * (1 - ALPHA) / found["simulations"]) ** 0.5
    axes.axvspan(100 * ALPHA, 100 * ALPHA + noise, color="#dddddd", label="3 Monte-Carlo standard errors")
    axes.axvline(100 * ALPHA, color="black", linewidth=1)
    exact = [100 * row["type_one"] for row in found["exact"]]
    axes.scatter(exact, [0.0] * len(exact), s=16, color=COLOURS[0], marker=MARKERS[0], label="the gate")
    for key, shift, colour, marker in (
        ("type_one", -0.12, COLOURS[0], MARKERS[0]), ("type_one_as_independent", 0.12, COLOURS[1], "x"),
    ):  # fmt: skip
        label = None if key == "type_one" else "as if cases were independent"
        places = [names.index(row["patients"]) + shift for row in rows]
        axes.scatter([100 * row[key] for row in rows], places, s=20, color=colour, marker=marker, label=label)
    axes.set_xscale("symlog", linthresh=5)
    axes.set_xlim(-0.1, 60)
    axes.set_xticks([0, 1, 2.5, 5, 10, 20, 50], ["0", "1", "2.5", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("passed although the loss is exactly the margin, per cent")
    axes.set_title("Type-I error at the margin", loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=3, columnspacing=1.0)


def _power(axes: Axes, found: Mapping[str, Any]) -> None:
    by_margin: dict[float, list[Mapping[str, Any]]] = defaultdict(list)
    for row in found["power"]:
        by_margin[row["margin"]].append(row)
    for place, (margin, rows) in enumerate(by_margin.items()):
        cases = [row["cases"] for row in rows]
        axes.plot(
            cases, [100 * row["predicted"] for row in rows], color=COLOURS[place], label=f"{100 * margin:g} points"
        )
        axes.scatter(cases, [100 * row["exact"] for row in rows], color=COLOURS[place], marker=MARKERS[place], s=28)
    axes.axhline(80, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks([50, 100, 200, 500, 1000, 2000], ["50", "100", "200", "500", "1,000", "2,000"])
    axes.minorticks_off()
    axes.set_xlabel("independent cases (log scale)")
    axes.set_ylabel("passed where both are equally good, per cent")
    axes.set_title("Power, 5 % of cases discordant", loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="lower right", title="margin; marks: exact")
    axes.grid(alpha=0.3)


def markdown(found: Mapping[str, Any]) -> str:
    """Findings and tables."""
    return "\n".join([*_head(found), *_exact(found), *_clustered(found), *_coverage(found), *_candidates(found)]) + "\n"


def _head(found: Mapping[str, Any]) -> list[str]:
    return [
        "# The non-inferiority test: errors, power and coverage", "",
        f"`python benchmarks/type_one.py --out docs/noninferiority`; {found['date']}; {found['machine']}; Python "
        f"{found['python']}, {', '.join(f'{name} {value}' for name, value in found['versions'].items())}; "
        f"{found['simulations']:,} simulations a cell, {found['seconds']} s.", "",
        "The difference of two classifiers' accuracy on the same cases gets Tango's score interval, with the design "
        "effect of several cases a patient (`hscc_edge/validate/paired.py`). A candidate is non-inferior if the lower "
        "end of the two-sided 95 % interval is above minus the margin. At worst the loss is just the margin: then "
        "it may pass in 2.5 % of test sets.", "",
        "![Type-I error at the margin, and power](noninferiority.svg)", "",
    ]  # fmt: skip


def _exact(found: Mapping[str, Any]) -> list[str]:
    rows, worst = found["exact"], max(found["exact"], key=lambda row: row["type_one"])
    cases = sorted({row["cases"] for row in rows})
    margins = sorted({row["margin"] for row in rows})
    lines = [
        "## Independent cases, exact", "",
        f"All tables of the sample are added up, so that nothing is simulated. Over {len(rows)} cells (margins of "
        f"{', '.join(f'{100 * margin:g}' for margin in margins)} points, discordance from the margin itself to 10 "
        f"points more) the largest type-I error is **{100 * worst['type_one']:.2f} %**, at {worst['cases']} cases, a "
        f"margin of {100 * worst['margin']:g} points and {100 * worst['discordance']:g} % discordant. The table gives "
        "the largest over the discordances, per cent.", "",
        "| cases | " + " | ".join(f"margin {100 * margin:g}" for margin in margins) + " |",
        "|---|" + "---|" * len(margins),
    ]  # fmt: skip
    for count in cases:
        largest = [
            max(row["type_one"] for row in rows if (row["cases"], row["margin"]) == (count, margin))
            for margin in margins
        ]
        lines.append(f"| {count:,} | " + " | ".join(f"{100 * value:.2f}" for value in largest) + " |")
    return [*lines, ""]


def _clustered(found: Mapping[str, Any]) -> list[str]:
    rows, simulations = found["clustered"], found["simulations"]
    allowed = ALPHA + 3 * (ALPHA * (1 - ALPHA) / simulations) ** 0.5
    worst = max(row["type_one"] for row in rows)
    beyond = [row for row in rows if row["type_one"] > allowed]
    naive = sum(row["type_one_as_independent"] > allowed for row in rows)
    told = "no cell is beyond" if not beyond else f"{len(beyond)} of {len(rows)} cells are beyond"
    lines = [
        "## Several cases a patient, simulated", "",
        f"Largest type-I error over {len(rows)} cells: **{100 * worst:.2f} %**; {told} 2.5 % by more than three "
        f"Monte-Carlo standard errors ({100 * allowed:.2f} %). Had the cases been taken as independent, {naive} would "
        f"be, up to {100 * max(row['type_one_as_independent'] for row in rows):.0f} %. The price is power where "
        "patients are few and large: the test cannot know that their errors are not alike. `power` is simulated at no "
        "difference, `at best` what the true design effect would give.", "",
        "| patients | correlation | margin | discordant | type I | as independent | power | at best |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        shares = (
            row[key] for key in ("type_one", "type_one_as_independent", "power", "power_of_the_true_design_effect")
        )
        lines.append(
            f"| {row['patients']} | {row['correlation']:g} | {100 * row['margin']:g} | "
            f"{100 * row['discordance']:g} % | " + " | ".join(f"{100 * value:.2f} %" for value in shares) + " |"
        )  # fmt: skip
    return [*lines, ""]


def _coverage(found: Mapping[str, Any]) -> list[str]:
    rows, simulations = found["coverage"], found["simulations"]
    floor = 0.94 - 3 * (0.94 * 0.06 / simulations) ** 0.5
    worst = min(rows, key=lambda row: row["coverage"])
    below = sum(row["coverage"] < floor for row in rows)
    lines = [
        "## Coverage of the interval", "",
        f"{simulations:,} simulations a cell. Lowest: **{100 * worst['coverage']:.2f} %** ({worst['patients']}, "
        f"correlation {worst['correlation']:g}); {below} of {len(rows)} cells are below {100 * floor:.2f} % (94 % less "
        f"three Monte-Carlo standard errors). Over-coverage: {sum(row['coverage'] > 0.97 for row in rows)} cells are "
        "above 97 %, those with few expected discordant cases or large patients without correlation. `as independent`: "
        "Tango's interval of the cases, on the same draws.", "",
        "| patients | correlation | gains, losses | coverage | as independent |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        lines.append(
            f"| {row['patients']} | {row['correlation']:g} | {100 * row['gain']:g} %, {100 * row['loss']:g} % | "
            f"{100 * row['coverage']:.2f} % | {100 * row['as_independent']:.2f} % |"
        )
    return [*lines, ""]


def _candidates(found: Mapping[str, Any]) -> list[str]:
    rows = [row for row in found["coverage"] if row["candidates"]]
    groups = {
        "independent": [row for row in rows if row["patients"].endswith(" of 1")],
        "clustered": [row for row in rows if not row["patients"].endswith(" of 1")],
    }
    lines = [
        "## The candidates", "",
        f"Over {len(rows)} of these cells (1 % gains, 3 % losses), {found['slow_simulations']:,} "
        "simulations each (bootstraps: 1,000 resamples): "
        "lowest coverage; the most often that the lower end was above the truth, the error that passes a worse "
        "classifier, which should be at most 2.5 %; how often an interval had no width; mean width in points.", "",
        "| interval | cells | lowest coverage | lower end too high | no width | width |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in rows[0]["candidates"]:
        for group, members in groups.items():
            lines.append(f"| {name} | {group} | {_summary([row['candidates'][name] for row in members])} |")
    return [*lines, "", *WHY]


def _summary(parts: Sequence[Mapping[str, float]]) -> str:
    low, high = min(part["coverage"] for part in parts), max(part["low_above"] for part in parts)
    empty, width = (float(np.mean([part[key] for part in parts])) for key in ("zero_width", "width"))
    return f"{100 * low:.1f} % | {100 * high:.1f} % | {100 * empty:.1f} % | {100 * width:.2f}"


WHY = [
    "Wald's interval and the bootstraps have no width where no case is discordant, and are too short where few are; "
    "intervals of the cases fail as soon as cases of a patient are alike. Tango's score over patients is the only "
    "candidate that keeps its errors in all cells, and is Tango's own interval where each patient has one case.",
]
