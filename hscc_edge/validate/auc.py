"""Areas under ROC curves with their covariance over patients, and under precision-recall curves by bootstrap.

DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837, computed by midranks (Sun and Xu 2014, IEEE Signal
Processing Letters 21:1389); with several cases a patient the structural components are summed by patient first
(Obuchowski 1997, Biometrics 53:567), which is DeLong's where each patient has one case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit, stdtrit
from scipy.stats import rankdata

from hscc_edge.errors import InputError
from hscc_edge.validate.intervals import Estimate, effective, wilson
from hscc_edge.validate.resampling import CHUNK, LEVEL, Array, Clusters, weights

RESAMPLES_PR = 1_000
EDGE = 1e-9


@dataclass(frozen=True, slots=True)
class Areas:
    """AUCs (m,), their covariance (m, m); `cases`, `held` (m, 2): cases and patients with and without the finding."""

    values: Array
    covariance: Array
    cases: NDArray[np.int64]
    held: NDArray[np.int64]

    @property
    def patients(self) -> int:
        """The smallest number of patients that a variance was taken over."""
        return int(self.held.min())

    @property
    def independent(self) -> bool:
        """Whether no patient has several cases of a kind."""
        return bool((self.cases == self.held).all())

    def standard_error(self, weight: Sequence[float] | Array) -> float:
        """Of a weighted sum of the areas: `[1, -1]` is a difference, `[1 / m] * m` the macro average."""
        vector = np.asarray(weight, dtype=np.float64)
        return float(np.sqrt(max(float(vector @ self.covariance @ vector), 0.0)))


def areas(truth: NDArray[np.bool_], scores: Array, cases: Clusters) -> Areas:
    """AUC of each column and the covariance of all: classes of one classifier, or the same of two classifiers.

    Args:
        truth: (cases, m), whether the finding is there.
        scores: (cases, m), larger where it is more likely.

    Raises:
        InputError: if a column lacks cases with or without the finding.
    """
    positives = truth.sum(axis=0)
    if (positives == 0).any() or (positives == len(truth)).any():
        column = int(np.flatnonzero((positives == 0) | (positives == len(truth)))[0])
        raise InputError(
            f"column {column} has {positives[column]} of {len(truth)} cases with the finding: an AUC needs both kinds"
        )
    parts = [_components(truth[:, k], scores[:, k], cases) for k in range(truth.shape[1])]
    with_, without = (np.stack([part[side] for part in parts], axis=1) for side in (1, 2))
    held = np.array([[_count(cases, column == side) for side in (True, False)] for column in truth.T])
    first, second = (_correction(held[:, side]) for side in (0, 1))
    both = _correction(np.array([cases.count]))
    cross = with_.T @ without
    covariance = (
        first[:, None] * first * (with_.T @ with_)
        + second[:, None] * second * (without.T @ without)
        + both**2 * (cross + cross.T)
    )
    counts = np.stack([positives, len(truth) - positives], axis=1)
    return Areas(np.array([part[0] for part in parts]), covariance, counts, held)


def _components(truth: NDArray[np.bool_], scores: Array, cases: Clusters) -> tuple[float, Array, Array]:
    """The area, and by patient the summed deviations of the components with and without the finding, scaled."""
    count, others = int(truth.sum()), int((~truth).sum())
    ranks = rankdata(scores)
    high = (ranks[truth] - rankdata(scores[truth])) / others
    low = 1 - (ranks[~truth] - rankdata(scores[~truth])) / count
    area = float(high.mean())
    with_ = np.bincount(cases.owner[truth], weights=high - area, minlength=cases.count) / count
    without = np.bincount(cases.owner[~truth], weights=low - area, minlength=cases.count) / others
    return area, with_, without


def _count(cases: Clusters, kept: NDArray[np.bool_]) -> int:
    return len(np.unique(cases.owner[kept]))


def _correction(counts: NDArray[np.int64]) -> Array:
    """Square root of I / (I - 1)."""
    return np.asarray(np.sqrt(counts / np.maximum(counts - 1, 1)))


def area_interval(found: Areas, weight: Sequence[float] | Array, level: float = LEVEL) -> Estimate:
    """Of a weighted sum of the areas with weights that add up to 1: one area, or the macro average.

    The wider way out of two: DeLong's variance on the logit scale (Pepe 2003, section 5.2.5), and the interval that
    solves for the area's own variance (Newcombe 2006, Statistics in Medicine 25:559, method 5; Hanley and McNeil
    1982), enlarged by as much as DeLong's variance exceeds that one. The first alone is far too short near 1, where
    the cases at hand show too little variance.
    """
    vector = np.asarray(weight, dtype=np.float64)
    value, error = float(vector @ found.values), found.standard_error(vector)
    reach = float(stdtrit(max(found.patients - 1, 1), (1 + level) / 2))
    low, high = _score_interval(found, vector, value, error, reach)
    if 0 < value < 1 and error > 0:
        half = reach * error / (value * (1 - value))
        low = min(low, float(expit(logit(value) - half)))
        high = max(high, float(expit(logit(value) + half)))
    return Estimate(value, low, high, "DeLong and Newcombe" if found.independent else "Obuchowski and Newcombe")


def _score_interval(found: Areas, weight: Array, value: float, error: float, reach: float) -> tuple[float, float]:
    def variance(area: float, counts: NDArray[np.int64]) -> float:
        return float(weight**2 @ _hanley(area, counts))

    own = variance(value, found.cases)
    if own > 0 and error > 0:
        growth = max(error**2 / own, 1.0)
    else:  # no variance was seen: patients count once, and all columns err together
        growth = float((abs(weight) @ _hanley(0.9, found.held) ** 0.5) ** 2) / variance(0.9, found.cases)

    def excess(area: float) -> float:
        return (value - area) ** 2 - reach**2 * growth * variance(area, found.cases)

    low = brentq(excess, 0.0, max(value - EDGE, 0.0)) if value > EDGE else 0.0
    high = brentq(excess, min(value + EDGE, 1.0), 1.0) if value < 1 - EDGE else 1.0
    return float(low), float(high)


def _hanley(area: float, counts: NDArray[np.int64]) -> Array:
    """(m,): variance of an AUC for exponential scores, `counts` (m, 2) with and without the finding."""
    size = counts.sum(axis=1) / 2 - 1
    odds = (1 - area) / (2 - area) + area / (1 + area)
    return np.asarray(area * (1 - area) * (1 + size * odds) / counts.prod(axis=1))


def precision_areas(
    truth: NDArray[np.bool_],
    scores: Array,
    cases: Clusters,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES_PR,
    level: float = LEVEL,
) -> list[Estimate]:
    """Average precision of each column (cases, m), at the cohort's own prevalence, with intervals.

    Wilson's interval for as many independent cases as give the variance of a bootstrap over patients (not stratified,
    since the area depends on the prevalence), at most the cases with the finding (Boyd, Eng and Page 2013, ECML PKDD,
    recommend intervals of a share or a logit over the bootstrap's own).

    Raises:
        InputError: if no case has one of the findings.
    """
    if not truth.any(axis=0).all():
        raise InputError(f"{int((~truth.any(axis=0)).sum())} columns have no case with the finding: leave them out")
    whole = np.ones((1, len(truth)))
    columns = range(truth.shape[1])
    values = [float(average_precision(truth[:, k], scores[:, k], whole)[0]) for k in columns]
    draws: list[list[Array]] = [[] for _ in columns]
    for block in weights(np.zeros(cases.count, dtype=np.int64), resamples=resamples, seed=seed):
        for part in np.array_split(block, -(-len(block) * len(truth) // CHUNK)):
            drawn = part[:, cases.owner]
            for k in columns:
                draws[k].append(average_precision(truth[:, k], scores[:, k], drawn))
    errors = [float(np.nanstd(np.concatenate(drawn), ddof=1)) for drawn in draws]
    return [_precision_interval(values[k], errors[k], truth[:, k], cases, level) for k in columns]


def _precision_interval(
    value: float, error: float, truth: NDArray[np.bool_], cases: Clusters, level: float
) -> Estimate:
    positives, patients = int(truth.sum()), _count(cases, truth)
    error *= float(np.sqrt(patients / max(patients - 1, 1)))  # the bootstrap's variance is that of n, not of n - 1
    inner = (value * patients + 0.5) / (patients + 1)
    size = min(inner * (1 - inner) / error**2, positives) if error > 0 else float(patients)
    low, high = wilson(*effective(value * size, size, 1.0, patients, level), level)
    return Estimate(value, low, high, "Wilson, bootstrap over patients")


def average_precision(truth: NDArray[np.bool_], scores: Array, weight: Array) -> Array:
    """(rows,): average precision of one column under weights of the cases (rows, cases); ties count together."""
    order = np.argsort(-scores, kind="stable")
    if not truth.any():
        return np.full(len(weight), np.nan)
    sorted_scores, found = scores[order], np.flatnonzero(truth[order])
    ends = np.searchsorted(-sorted_scores, -sorted_scores[found], side="right") - 1
    drawn = weight[:, order]
    hits = drawn[:, found]
    true = np.cumsum(hits, axis=1)
    true_at_end = true[:, np.searchsorted(found, ends, side="right") - 1]
    all_at_end = np.cumsum(drawn, axis=1)[:, ends]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(all_at_end > 0, true_at_end / all_at_end, 0.0)
        return np.asarray((hits * precision).sum(axis=1) / true[:, -1])
