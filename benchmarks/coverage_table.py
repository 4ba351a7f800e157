"""docs/coverage.md from the state of benchmarks/coverage.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOMINAL, FLOOR = 0.95, 0.94
OURS = {
    "share": ("Wilson", "ours"), "area": ("ours",), "brier": ("ours",), "calibration": ("ours",),
    "precision": ("ours",), "decisions": None,
}  # fmt: skip
TITLES = {
    "share": "Shares: accuracy, sensitivity, specificity, predictive values (true: the share)",
    "area": "Area under the ROC curve (true: the area)",
    "decisions": "Figures of decisions among three classes (true: the share decided rightly; one class: 20 %)",
    "brier": "Brier score",
    "calibration": "Expected calibration error (true: the slope; 1 is calibrated, an error of 0)",
    "precision": "Average precision (true: the AUC)",
}


def floor_of(simulations: int) -> float:
    """94 % less three Monte-Carlo standard errors."""
    return FLOOR - 3 * float((FLOOR * (1 - FLOOR) / simulations) ** 0.5)


def judged(cell: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """The rows of a cell that the product reports; the others stand there for contrast."""
    names = OURS[cell["kind"]]
    return [(name, row) for name, row in cell["rows"].items() if names is None or name in names]


def failures(state: Mapping[str, Any]) -> list[str]:
    """Intervals of ours that cover too seldom."""
    return [
        f"{key}: {name} {100 * row['coverage']:.2f} %"
        for key, cell in state["cells"].items()
        for name, row in judged(cell)
        if row["coverage"] < floor_of(cell["simulations"])
    ]


def render(state: Mapping[str, Any], waiting: Sequence[str]) -> str:
    """The page."""
    return "\n".join([*_head(state, waiting), *(line for kind in TITLES for line in _section(state, kind))]) + "\n"


def _head(state: Mapping[str, Any], waiting: Sequence[str]) -> Iterator[str]:
    rows = [row["coverage"] for cell in state["cells"].values() for _, row in judged(cell)]
    made, bad = state["made"], failures(state)
    counts = sorted({cell["simulations"] for cell in state["cells"].values()})
    floors = ", ".join(f"{100 * floor_of(count):.2f} % for {count:,}" for count in counts)
    yield "# Coverage of the 95 % intervals"
    yield ""
    yield (
        f"`benchmarks/coverage.py`, {made['date']}, {made['machine']}, Python {made['python']}, numpy "
        f"{made['versions']['numpy']}. Wanted: at least 94 % less three Monte-Carlo standard errors, which is, by the "
        f"simulations of a cell, {floors}."
    )
    yield ""
    yield (
        f"{len(rows)} intervals in {len(state['cells'])} cells: {len(rows) - len(bad)} hold it, {len(bad)} do not. "
        f"Coverage from {100 * min(rows):.2f} to {100 * max(rows):.2f} %; {sum(r > 0.96 for r in rows)} cover more "
        f"than 96 % (conservative). Where each interval is from: [statistics.md](statistics.md)."
    )
    yield ""
    yield from (f"- too seldom: {line}" for line in bad)
    yield from (f"- not run: {name}" for name in waiting)
    yield ""
    yield (
        "A row is a sampling situation: patients, mean cases a patient (uniform from 1 to twice the mean less 1, or "
        "log-normal where uneven), the true value, the intra-class correlation of a patient's cases. Below each other "
        "in per cent: how often the interval holds the truth, **bold** where too seldom; in brackets its median width. "
        "An undefined interval does not hold. Wilson's coverage for one case a patient is exact, by enumeration, "
        "and its width a mean. Columns other than ours are for contrast and reported nowhere: "
        "*naive* takes a patient's cases as independent."
    )
    yield ""


def _section(state: Mapping[str, Any], kind: str) -> Iterator[str]:
    cells = [cell for cell in state["cells"].values() if cell["kind"] == kind]
    if not cells:
        return
    names = list(dict.fromkeys(name for cell in cells for name in cell["rows"]))
    yield f"## {TITLES[kind]}"
    yield ""
    yield "| patients | cases | true | ICC | " + " | ".join(names) + " |"
    yield "|" + "---|" * (4 + len(names))
    for cell in cells:
        sizes = f"{cell['size']}, uneven" if cell["uneven"] else str(cell["size"])
        found = [_entry(cell["rows"].get(name), cell["simulations"]) for name in names]
        yield f"| {cell['patients']} | {sizes} | {cell['truth']} | {cell['icc']} | " + " | ".join(found) + " |"
    yield ""


def _entry(row: Mapping[str, float] | None, simulations: int) -> str:
    if row is None:
        return ""
    text = f"{100 * row['coverage']:.2f}"
    marked = f"**{text}**" if row["coverage"] < floor_of(simulations) else text
    return f"{marked} ({row['width']:.3g})"
