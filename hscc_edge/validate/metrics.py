"""Figures of decisions with 95 % intervals over patients: Wilson's, for as many independent cases as tell as much.

docs/statistics.md says what each figure is, where its formula is from and which library computes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import InputError
from hscc_edge.validate.intervals import (
    Estimate,
    Proportion,
    composite,
    correlation,
    estimate,
    ratio,
    share,
    share_where,
    wilson,
)
from hscc_edge.validate.outcomes import Outcomes, outcomes_of
from hscc_edge.validate.resampling import ROUNDING, Array, Clusters, Statistic


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class against the rest; `threshold` None stands for the decision that the daemon sends.

    Attributes:
        ppv, npv: at the cohort's own prevalence.
        positive_ratio, negative_ratio: likelihood ratios; the value None stands for infinity if `low` is known.
    """

    label: str
    sensitivity: Proportion
    specificity: Proportion
    ppv: Proportion
    npv: Proportion
    positive_ratio: Estimate
    negative_ratio: Estimate
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """One classifier on one cohort; `confusion` rows are true classes, columns decided ones, the last "no decision"."""

    accuracy: Proportion
    balanced_accuracy: Estimate
    macro_f1: Estimate
    micro_f1: Estimate
    kappa: Estimate
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[ClassFigures, ...]
    undecided: int


def proportion(count: int, of: int) -> Proportion:
    """The share with its Wilson interval, for cases of which no two are one patient's."""
    return Proportion(count, of, count / of, *wilson(count, of)) if of else Proportion(0, 0, None, None, None)


def figures(
    labels: Sequence[str],
    decided: Sequence[str | None],
    classes: Sequence[str],
    patients: Sequence[str],
) -> Figures:
    """Figures of decisions against labels; a case without a decision counts as wrong."""
    return figures_of(outcomes_of(labels, decided, classes, patients))


def figures_of(found: Outcomes) -> Figures:
    """Figures at the decisions that the daemon sends."""
    hits = np.asarray((found.truth == found.decided).all(axis=1) & found.decided.any(axis=1))
    classes = tuple(
        class_figures(label, found.truth[:, k], found.decided[:, k], found.cases)
        for k, label in enumerate(found.labels)
    )
    balanced, macro, micro, kappa = composites(found)
    return Figures(
        accuracy=share(hits, found.cases),
        balanced_accuracy=balanced,
        macro_f1=macro,
        micro_f1=micro,
        kappa=kappa,
        confusion=_confusion(found),
        classes=classes,
        undecided=int((~found.decided.any(axis=1)).sum()),
    )


def at_thresholds(found: Outcomes, points: Mapping[str, float]) -> tuple[ClassFigures, ...]:
    """Each label against the rest where it is called from its operating point upwards; cases without scores are not.

    Raises:
        InputError: if a label is unknown or a threshold is not a probability.
    """
    for label, threshold in points.items():
        if label not in found.labels or not 0 <= threshold <= 1:
            raise InputError(
                f"the operating point {label!r} = {threshold}: expected one of {list(found.labels)} and 0 to 1"
            )
    columns = [(found.labels.index(label), label, float(value)) for label, value in points.items()]
    return tuple(
        class_figures(label, found.truth[:, k], found.scores[:, k] >= value, found.cases, value)
        for k, label, value in columns
    )


def class_figures(
    label: str,
    truth: NDArray[np.bool_],
    called: NDArray[np.bool_],
    cases: Clusters,
    threshold: float | None = None,
) -> ClassFigures:
    """Of one finding: `truth` and `called` (cases,)."""
    sensitivity, specificity = share_where(called, truth, cases), share_where(~called, ~truth, cases)
    missed, false_alarms = share_where(~called, truth, cases), share_where(called, ~truth, cases)
    shared = correlation(_residuals(called, truth, cases), _residuals(called, ~truth, cases))
    return ClassFigures(
        label=label,
        sensitivity=sensitivity,
        specificity=specificity,
        ppv=share_where(truth, called, cases),
        npv=share_where(~truth, ~called, cases),
        positive_ratio=ratio(sensitivity, false_alarms, shared),
        negative_ratio=ratio(missed, specificity, shared),
        threshold=threshold,
    )


def _residuals(hits: NDArray[np.bool_], kept: NDArray[np.bool_], cases: Clusters) -> Array:
    """(clusters,): by patient, the hits among its kept cases beyond the mean share."""
    mean = hits[kept].mean() if kept.any() else 0.0
    return np.asarray(np.bincount(cases.owner[kept], weights=hits[kept] - mean, minlength=cases.count), np.float64)


def _confusion(found: Outcomes) -> tuple[tuple[int, ...], ...]:
    none = ~found.decided.any(axis=1, keepdims=True)
    table = found.truth.T.astype(np.int64) @ np.hstack([found.decided, none]).astype(np.int64)
    return tuple(tuple(int(n) for n in row) for row in table)


def composites(found: Outcomes) -> list[Estimate]:
    """Balanced accuracy, macro F1, micro F1 and kappa."""
    terms = np.hstack([found.truth & found.decided, found.decided, found.truth, np.ones((len(found.truth), 1), bool)])
    sums = found.cases.sums(terms)
    count, total, size = len(found.labels), sums.sum(axis=0), sums[:, -1]
    typical = total[2 * count : 3 * count] / total[-1] * float((size**2).sum() / size.sum())
    cases = [float(typical.sum())]
    added = np.concatenate([typical, typical, typical, cases]), np.concatenate([0 * typical, typical, typical, cases])
    rows = composite(sums, added, agreement(count), least_agreement(count), found.cases.count)
    name = "Wilson, jackknife" if found.cases.independent else "Wilson, jackknife over patients"
    return [estimate(*row, name) for row in rows]


def agreement(count: int) -> Statistic:
    """Balanced accuracy, macro F1, micro F1 and Cohen's kappa (rows, 4).

    Of totals (rows, 3K + 1): hits, decided and true by class, cases. A class that no case has is left out of balanced
    accuracy; its F1 is 0, as scikit-learn has it. Kappa (Cohen 1960) takes "no decision" as one more category.
    """

    def of(totals: Array) -> Array:
        hits, decided, true = (totals[:, part * count : (part + 1) * count] for part in range(3))
        cases, held = totals[:, -1], true > ROUNDING
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = np.where(held, hits / true, 0).sum(axis=1) / held.sum(axis=1)
            each = np.where(decided + true > ROUNDING, 2 * hits / (decided + true), 0).mean(axis=1)
            micro = 2 * hits.sum(axis=1) / (decided + true).sum(axis=1)
            chance = (decided * true).sum(axis=1) / cases**2
            kappa = (hits.sum(axis=1) / cases - chance) / (1 - chance)
        return np.stack([recall, each, micro, kappa], axis=1)

    return of


def least_agreement(count: int) -> Statistic:
    """The least that each of `agreement` could be: 0, and for kappa that of a classifier which is never right."""

    def of(totals: Array) -> Array:
        decided, true = totals[:, count : 2 * count], totals[:, 2 * count : 3 * count]
        chance = (decided * true).sum(axis=1) / totals[:, -1] ** 2
        least = np.full(len(totals), np.nan)
        np.divide(-chance, 1 - chance, out=least, where=chance < 1)
        none = np.zeros(len(totals))
        return np.stack([none, none, none, least], axis=1)

    return of
