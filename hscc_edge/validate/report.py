"""The evidence as a page that a medical physicist can read, file and print; self-contained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hscc_edge.data import page
from hscc_edge.errors import extra
from hscc_edge.validate import noninferiority, plots, uses
from hscc_edge.validate.evidence import Evidence
from hscc_edge.validate.intervals import Proportion

with extra("workstation"):
    from markupsafe import Markup


def render(evidence: Evidence) -> str:
    """HTML with inline style and SVG; nothing is loaded from elsewhere."""
    filters: dict[str, Callable[[Any], object]] = {
        "share": share, "points": points, "ms": ms, "count": count,
        "p_value": p_value, "verdict_words": noninferiority.sentence, "uses_words": uses.sentence,
    }  # fmt: skip
    return page.render(
        "hscc_edge.validate",
        "report.html.j2",
        filters,
        e=evidence,
        verdict=verdict(evidence),
        plots=_plots(evidence),
        classes=_classes(evidence),
    )


def verdict(evidence: Evidence) -> str:
    """What was found, in one sentence that claims no more than the interval allows."""
    found, cases = evidence.comparison, evidence.cohort["cases"]
    if found.low > 0:
        claim = "decided more cases rightly than the original"
    elif found.high < 0:
        claim = "decided fewer cases rightly than the original"
    else:
        claim = "could not be told apart from the original in accuracy"
    return (
        f"On {cases} cases the compressed classifier {claim}: a difference of {points(found.difference)} points "
        f"(95 % interval {points(found.low)} to {points(found.high)})."
    )


def share(value: Proportion) -> str:
    """A proportion in per cent with its interval."""
    if value.value is None or value.low is None or value.high is None:
        return "no case"
    return f"{100 * value.value:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def p_value(value: float | None) -> str:
    """A p-value, or a dash."""
    return "-" if value is None else "below 0.001" if value < 0.001 else f"{value:.3f}"


def ms(value: float) -> str:
    """Milliseconds with three digits."""
    return f"{value:.3g} ms"


def count(value: int | None) -> str:
    """An integer with thin grouping, or a dash."""
    return "-" if value is None else f"{value:,}"


def _plots(evidence: Evidence) -> dict[str, Markup]:
    first, second = evidence.reference_figures, evidence.candidate_figures
    found = evidence.comparison
    return {
        "difference": Markup(plots.difference(found.difference, found.low, found.high)),
        "confusions": Markup(plots.confusions(first, second, evidence.cohort["classes"])),
        "per_class": Markup(plots.per_class(first, second)),
        "forest": Markup(plots.forest(evidence.groups) if evidence.groups else ""),
        "latencies": Markup(plots.latencies(evidence.race)),
    }


def _classes(evidence: Evidence) -> list[dict[str, Any]]:
    pairs = zip(evidence.reference_figures.classes, evidence.candidate_figures.classes, strict=True)
    return [{"label": a.label, "first": a, "second": b} for a, b in pairs]
