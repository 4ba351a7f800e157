"""The evidence as a page that a medical physicist can read, file and print; self-contained."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hscc_edge.data import page
from hscc_edge.errors import extra
from hscc_edge.validate import claim, noninferiority, tables, timing, uses, wording
from hscc_edge.validate.evidence import Evidence
from hscc_edge.validate.gate import FAIL
from hscc_edge.validate.plots.classes import per_class
from hscc_edge.validate.plots.confusion import confusions
from hscc_edge.validate.plots.difference import difference
from hscc_edge.validate.plots.forest import forest
from hscc_edge.validate.plots.latency import latencies
from hscc_edge.validate.plots.reliability import reliability
from hscc_edge.validate.plots.roc import roc

with extra("workstation"):
    from markupsafe import Markup, escape

INTERVAL = re.compile(r"\([^()]* to [^()]*\)")
LOOKS = {noninferiority.NON_INFERIOR: "", noninferiority.INFERIOR: "bad"}
FILTERS: dict[str, Callable[..., object]] = {
    "share": wording.share, "points": wording.points, "count": wording.count, "p_value": wording.p_value,
    "decimal": wording.decimal, "sentence": lambda text: f"{text[:1].upper()}{text[1:]}.",
    "tidy": lambda text: tidy(text),
}  # fmt: skip


def render(evidence: Evidence) -> str:
    """HTML with inline style and SVG; nothing is loaded from elsewhere."""
    old, new = evidence.reference_probabilities, evidence.candidate_probabilities
    images, cases = evidence.cohort["images"], evidence.cohort["cases"]
    return page.render(
        "hscc_edge.validate",
        "report.html.j2",
        FILTERS,
        e=evidence,
        word=claim.word(evidence),
        answer=claim.answer(evidence),
        claim=claim.claim(evidence),
        ability=claim.ability(evidence),
        look=look(evidence),
        plots={name: Markup(drawn) for name, drawn in _plots(evidence).items()},
        figures=tables.figures(evidence),
        empty=[item.label for item in evidence.reference_figures.classes if not item.sensitivity.of],
        reasons=tables.reasons(evidence),
        classes=tables.classes(evidence.reference_figures.classes, evidence.candidate_figures.classes),
        points=tables.classes(old.points, new.points) if old and new else [],
        contrast=tables.contrast(evidence),
        bins=tables.bins(evidence),
        percentiles=tables.percentiles(evidence),
        clock=timing.rows(evidence.timing, images / max(cases, 1)) if evidence.timing else [],
        device=timing.device(evidence.timing) if evidence.timing else [],
        looked=uses.sentence(evidence.uses),
    )


def tidy(text: str) -> Markup:
    """Text whose intervals stay on one line."""
    return Markup(INTERVAL.sub(r'<span class="ci">\g<0></span>', str(escape(text))))


def look(evidence: Evidence) -> str:
    """The class of the verdict's box: "", "bad" or "unsure"."""
    if evidence.gate is not None and evidence.gate.state == FAIL:
        return "bad"
    return LOOKS.get(claim.word(evidence), "unsure")


def _plots(evidence: Evidence) -> dict[str, str]:
    first, second, found = evidence.reference_figures, evidence.candidate_figures, evidence.comparison
    margin = None if evidence.verdict is None else evidence.verdict.margin
    return {
        "difference": difference(found.difference, found.low, found.high, margin),
        "confusions": confusions(first, second, evidence.cohort["classes"]),
        "per_class": per_class(first, second),
        "forest": forest(evidence.groups, evidence.group_margin) if evidence.groups else "",
        "latencies": latencies(evidence.race),
        **_of_probabilities(evidence),
    }


def _of_probabilities(evidence: Evidence) -> dict[str, Any]:
    old, new = evidence.reference_probabilities, evidence.candidate_probabilities
    drawn = {"roc": "", "reliability": ""}
    if old is None or new is None:
        return drawn
    if old.areas:
        drawn["roc"] = roc(old, new)
    if old.calibration is not None and new.calibration is not None:
        drawn["reliability"] = reliability(old.calibration, new.calibration)
    return drawn
