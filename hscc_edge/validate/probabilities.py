"""Figures of a classifier's probabilities: areas under its curves, calibration, and what its operating points give.

A case whose probabilities could not be computed is left out of them, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import extra
from hscc_edge.model.head import Head
from hscc_edge.validate.auc import area_interval, areas, precision_areas
from hscc_edge.validate.calibration import Calibration, calibration, mean_estimate, squared_distance
from hscc_edge.validate.intervals import Estimate, some
from hscc_edge.validate.metrics import ClassFigures, at_thresholds
from hscc_edge.validate.outcomes import Outcomes
from hscc_edge.validate.resampling import Array

with extra("workstation"):
    from sklearn.metrics import roc_curve

POINTS = 100


@dataclass(frozen=True, slots=True)
class Curve:
    """A ROC curve from (0, 0) to (1, 1): shares of false alarms and of findings, at most POINTS points."""

    false_alarms: tuple[float, ...]
    findings: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LabelAreas:
    """One label against the rest.

    Attributes:
        auc: area under the ROC curve.
        precision: area under the precision-recall curve, at the cohort's own prevalence.
        prevalence: share of the cases with the finding, which is what guessing gives as `precision`.
    """

    label: str
    auc: Estimate
    precision: Estimate
    prevalence: float
    curve: Curve


@dataclass(frozen=True, slots=True)
class Probabilities:
    """Of one classifier; None or empty where no case has what a figure needs.

    Attributes:
        cases: that have probabilities.
        areas: of the labels that some of these cases have and some have not.
        macro_auc: mean of their AUCs.
        points: at the bundle's operating points.
    """

    cases: int
    areas: tuple[LabelAreas, ...]
    macro_auc: Estimate | None
    calibration: Calibration | None
    points: tuple[ClassFigures, ...]


def probabilities_of(found: Outcomes, head: Head, points: Mapping[str, float]) -> Probabilities:
    """Figures of one classifier; seconds for 20,000 cases, see benchmarks/statistics_cost.py.

    Raises:
        InputError: if an operating point is of no label.
    """
    scored = with_scores(found, found.scored)
    if scored is None:
        return Probabilities(0, (), None, None, ())
    each, macro = _areas(scored)
    return Probabilities(len(scored.truth), each, macro, calibration(scored, head), at_thresholds(scored, points))


def with_scores(found: Outcomes, kept: NDArray[np.bool_]) -> Outcomes | None:
    """The cases that are kept (cases,), or None if none is."""
    if not kept.any():
        return None
    cases = some(found.cases, kept)
    return Outcomes(found.labels, found.truth[kept], found.decided[kept], found.scores[kept], cases)


def _areas(found: Outcomes) -> tuple[tuple[LabelAreas, ...], Estimate | None]:
    told = np.asarray(found.truth.any(axis=0) & ~found.truth.all(axis=0))
    count = int(told.sum())
    if not count:
        return (), None
    truth, scores = found.truth[:, told], found.scores[:, told]
    curves, precision = areas(truth, scores, found.cases), precision_areas(truth, scores, found.cases)
    labels = [label for label, kept in zip(found.labels, told, strict=True) if kept]
    each = tuple(
        LabelAreas(label, area_interval(curves, np.eye(count)[k]), precision[k], float(truth[:, k].mean()),
                   curve(truth[:, k], scores[:, k]))
        for k, label in enumerate(labels)
    )  # fmt: skip
    return each, area_interval(curves, np.full(count, 1 / count))


def curve(truth: NDArray[np.bool_], scores: Array) -> Curve:
    """The ROC curve of one column (cases,), thinned evenly along its length."""
    false_alarms, findings, _ = roc_curve(truth, scores)
    along = np.append(0, np.cumsum(np.abs(np.diff(false_alarms)) + np.abs(np.diff(findings))))
    places = np.searchsorted(along, np.linspace(0, along[-1], POINTS))
    kept = np.unique(np.clip(places, 0, len(along) - 1))
    shown = ([round(float(value), 5) for value in part[kept]] for part in (false_alarms, findings))
    return Curve(*(tuple(part) for part in shown))


def brier_difference(first: Outcomes, second: Outcomes, head: Head) -> Estimate | None:
    """Brier score of the second less the first's, on the cases for which both have probabilities; below 0 is better."""
    kept = first.scored & second.scored
    old, new = with_scores(first, kept), with_scores(second, kept)
    if old is None or new is None:
        return None
    apart = squared_distance(new.truth, new.scores, head) - squared_distance(old.truth, old.scores, head)
    return mean_estimate(apart, old.cases)
