"""The report's tables: every figure of both classifiers as text, with its interval and how that was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hscc_edge.validate.compare import AreaDifference
from hscc_edge.validate.evidence import Evidence
from hscc_edge.validate.intervals import Estimate, Proportion
from hscc_edge.validate.latency import SHARES, percentile
from hscc_edge.validate.metrics import ClassFigures
from hscc_edge.validate.refusals import Refusals
from hscc_edge.validate.wording import NONE, estimate, naive, ratio, share, span
from hscc_edge.validate.wording import percentile as percentile_text


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of both, and their paired difference where there is one."""

    name: str
    reference: str
    candidate: str
    difference: str = NONE
    method: str = ""


def figures(evidence: Evidence) -> list[Row]:
    """All figures that are one number a classifier."""
    return [*_decisions(evidence), *_probabilities(evidence), *_refusals(evidence)]


def _decisions(evidence: Evidence) -> Iterator[Row]:
    old, new, found = evidence.reference_figures, evidence.candidate_figures, evidence.comparison
    apart = f"{100 * found.difference:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    yield Row("Accuracy", share(old.accuracy), share(new.accuracy), apart, f"{old.accuracy.method}; difference: Tango")
    for name in ("balanced_accuracy", "macro_f1", "micro_f1", "kappa"):
        first, second = getattr(old, name), getattr(new, name)
        yield _row(NAMES[name], first, second)


NAMES = {
    "balanced_accuracy": "Balanced accuracy", "macro_f1": "F1, macro", "micro_f1": "F1, micro",
    "kappa": "Cohen's kappa",
}  # fmt: skip


def _row(name: str, first: Estimate | None, second: Estimate | None, difference: str = NONE, how: str = "") -> Row:
    known = first or second
    method = "" if known is None else known.method
    return Row(name, estimate(first), estimate(second), difference, f"{method}; difference: {how}" if how else method)


def _probabilities(evidence: Evidence) -> Iterator[Row]:
    old, new = evidence.reference_probabilities, evidence.candidate_probabilities
    if old is None or new is None:
        return
    area = evidence.comparison.area
    yield _row("AUC, macro", old.macro_auc, new.macro_auc, _area(area), "DeLong" if area else "")
    first, second = ({item.label: item for item in found.areas} for found in (old, new))
    both = [label for label in first if label in second]
    for label in both:
        yield _row(f"AUC, {label}", first[label].auc, second[label].auc)
    for label in both:
        name = f"PR-AUC, {label} (prevalence {100 * first[label].prevalence:.0f} %)"
        yield _row(name, first[label].precision, second[label].precision)
    brier = evidence.brier_difference
    apart = NONE if brier is None or brier.value is None else span(brier.value, brier.low, brier.high)
    before, after = old.calibration, new.calibration
    if before is not None and after is not None:
        how = "" if brier is None else "the same, paired"
        yield _row("Brier score (lower is better)", before.brier, after.brier, apart, how)
        yield _row("Expected calibration error (lower is better)", before.error, after.error)


def _area(found: AreaDifference | None) -> str:
    return NONE if found is None else span(found.value, found.low, found.high)


def _refusals(evidence: Evidence) -> Iterator[Row]:
    old, new = evidence.reference_refusals, evidence.candidate_refusals
    if old is None or new is None:
        return
    yield Row("Turned away, counted as wrong", share(old.share), share(new.share), method=old.share.method)
    if old.alarms is not None or new.alarms is not None:
        yield Row("Beyond the limit of free energy", _alarms(old), _alarms(new), method=old.share.method)


def _alarms(found: Refusals) -> str:
    return "no limit" if found.alarms is None else share(found.alarms)


def reasons(evidence: Evidence) -> list[Row]:
    """Why cases were turned away, and how many."""
    old, new = (found.reasons if found else {} for found in (evidence.reference_refusals, evidence.candidate_refusals))
    return [Row(name, str(old.get(name, 0)), str(new.get(name, 0))) for name in dict.fromkeys((*old, *new))]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class against the rest, by one classifier."""

    label: str
    classifier: str
    cases: int
    sensitivity: str
    specificity: str
    ppv: str
    npv: str
    positive_ratio: str
    negative_ratio: str


def classes(reference: Sequence[ClassFigures], candidate: Sequence[ClassFigures]) -> list[ClassRow]:
    """Two rows a class, the original's first; at operating points the label says from which probability upwards."""
    both = {("original", item.label): item for item in reference}
    both |= {("compressed", item.label): item for item in candidate}
    labels = dict.fromkeys(label for _, label in both)
    keys = [(name, label) for label in labels for name in ("original", "compressed") if (name, label) in both]
    return [_class(name, both[name, label]) for name, label in keys]


def _class(name: str, found: ClassFigures) -> ClassRow:
    place = "" if found.threshold is None else f", from {found.threshold:g}"
    return ClassRow(
        f"{found.label}{place}", name, found.sensitivity.of, share(found.sensitivity), share(found.specificity),
        share(found.ppv), share(found.npv), ratio(found.positive_ratio), ratio(found.negative_ratio),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NaiveRow:
    """An interval over patients beside the one that takes cases as independent."""

    name: str
    clustered: str
    independent: str
    design_effect: str


def contrast(evidence: Evidence) -> list[NaiveRow]:
    """Shares of which a patient has several cases; empty if none has."""
    found: list[tuple[str, Proportion]] = []
    sides = (("original", evidence.reference_figures), ("compressed", evidence.candidate_figures))
    for name, side in sides:
        found.append((f"accuracy, {name}", side.accuracy))
        found += [(f"sensitivity of {item.label}, {name}", item.sensitivity) for item in side.classes]
    return [
        NaiveRow(name, share(item), naive(item), f"{item.design_effect:.2f}")
        for name, item in found
        if item.naive_low is not None
    ]


def percentiles(evidence: Evidence) -> list[Row]:
    """Percentiles of a call's time, from the median on."""
    sides = [np.array(side) for side in (evidence.race.reference_ms, evidence.race.candidate_ms)]
    texts = [[percentile_text(percentile(side, part)) for side in sides] for part in SHARES]
    return [Row(f"{100 * part:g}th percentile", *pair) for part, pair in zip(SHARES, texts, strict=True)]


@dataclass(frozen=True, slots=True)
class BinRow:
    """A bin of the reliability diagram."""

    span: str
    reference_mean: str
    reference: str
    candidate_mean: str
    candidate: str


def bins(evidence: Evidence) -> list[BinRow]:
    """The bins that hold a case."""
    sides = evidence.reference_probabilities, evidence.candidate_probabilities
    old, new = (None if side is None else side.calibration for side in sides)
    if old is None or new is None:
        return []
    return [
        BinRow(f"{first.low:.2f} to {first.high:.2f}", _mean(first.mean), _observed(first.observed),
               _mean(second.mean), _observed(second.observed))
        for first, second in zip(old.bins, new.bins, strict=True)
        if first.observed.of or second.observed.of
    ]  # fmt: skip


def _mean(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _observed(value: Proportion) -> str:
    return f"{share(value)}, {value.of} cases" if value.of else NONE
