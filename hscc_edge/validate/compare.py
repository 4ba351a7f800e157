"""A classifier against its reference on the same cases: paired difference, McNemar, flips, AUC, divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from hscc_edge.errors import InputError
from hscc_edge.model.head import Head, kl
from hscc_edge.validate.auc import areas
from hscc_edge.validate.intervals import linear_variance
from hscc_edge.validate.paired import Pairs, interval, mcnemar, pairs
from hscc_edge.validate.predict import Case
from hscc_edge.validate.resampling import LEVEL as LEVEL
from hscc_edge.validate.resampling import Clusters, clusters


@dataclass(frozen=True, slots=True)
class AreaDifference:
    """Macro-averaged one-vs-rest AUC, candidate minus reference: DeLong for correlated areas, over patients.

    Attributes:
        low, high, p_value: None where the two order all cases alike, since no variance is left then.
    """

    value: float
    low: float | None
    high: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidate minus reference.

    Attributes:
        difference, low, high: of accuracy, with the two-sided interval at `level` of `paired.py`, over patients.
        only_reference, only_candidate: cases that just one of them decides rightly.
        p_value, mid_p: McNemar's test of equal accuracy, exact and mid-p; None where cases of one patient make it
            invalid.
        agreement: share of cases with the same decision.
        other_wrong: cases that both decide wrongly, each in its own way.
        kl, kl_se: mean divergence, in nats an image, from the reference's distribution; its standard error over
            patients. Of images with finite logits; NaN where there are none.
        overflowed: images to which the candidate gives a logit that is not finite.
        logit_mean, logit_largest: absolute difference of a logit, over the other images.
        area: None where a case has no decision or all cases are of one class.
    """

    difference: float
    low: float
    high: float
    cases: int
    patients: int
    only_reference: int
    only_candidate: int
    p_value: float | None
    agreement: float
    kl: float
    kl_se: float
    mid_p: float | None
    other_wrong: int
    overflowed: int
    logit_mean: float
    logit_largest: float
    area: AreaDifference | None
    pairs: Pairs
    level: float = LEVEL


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of the candidate's logits from the reference's; for the fields see `Comparison`."""

    kl: float
    kl_se: float
    overflowed: int
    logit_mean: float
    logit_largest: float


def compare(reference: Sequence[Case], candidate: Sequence[Case], head: Head, level: float = LEVEL) -> Comparison:
    """Compare the decisions of two classifiers on the same cases, in the same order; intervals at `level`.

    Seconds for 20,000 cases; memory grows with their logits.

    Raises:
        InputError: if they are not of the same cases.
    """
    check_paired(reference, candidate)
    owners = clusters([case.patient for case in reference])
    first, second = right(reference), right(candidate)
    found = pairs(first, second, owners)
    low, high = interval(found, level)
    exact, mid = (None, None) if found.clustered else mcnemar(found.loss, found.gain)
    same = np.array([a.decision.label == b.decision.label for a, b in zip(reference, candidate, strict=True)])
    apart = divergence(reference, candidate, head, owners)
    return Comparison(
        difference=found.difference,
        low=low,
        high=high,
        cases=found.cases,
        patients=found.patients,
        only_reference=found.loss,
        only_candidate=found.gain,
        p_value=exact,
        mid_p=mid,
        agreement=float(same.mean()),
        other_wrong=int((~same & ~first & ~second).sum()),
        kl=apart.kl,
        kl_se=apart.kl_se,
        overflowed=apart.overflowed,
        logit_mean=apart.logit_mean,
        logit_largest=apart.logit_largest,
        area=area_difference(reference, candidate, head, owners, level),
        pairs=found,
        level=level,
    )


def check_paired(reference: Sequence[Case], candidate: Sequence[Case]) -> None:
    """Refuse decisions on other cases.

    Raises:
        InputError: if there is no case, or they are not the same ones in the same order.
    """
    if [case.key for case in reference] != [case.key for case in candidate] or not reference:
        raise InputError(
            f"{len(reference)} cases of the reference and {len(candidate)} of the candidate are not the same cases in "
            "the same order: run both on the same split"
        )


def right(cases: Sequence[Case]) -> NDArray[np.bool_]:
    """(cases,): whether each was decided rightly; no decision is wrong."""
    return np.array([case.decision.label == case.label for case in cases])


def divergence(reference: Sequence[Case], candidate: Sequence[Case], head: Head, owners: Clusters) -> Divergence:
    """How far the logits are apart, image by image; standard errors over patients."""
    first, second = (np.concatenate([case.logits for case in cases]) for cases in (reference, candidate))
    owner = np.repeat(owners.owner, [len(case.logits) for case in reference])
    kept = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    overflowed = int((~np.isfinite(second).all(axis=1)).sum())
    if not kept.any():
        return Divergence(np.nan, np.nan, overflowed, np.nan, np.nan)
    apart = np.abs(first[kept].astype(np.float64) - second[kept])
    terms = np.stack([kl(head, first[kept], second[kept]), np.ones(int(kept.sum()))], axis=1)
    sums = Clusters(owner[kept], owners.strata).sums(terms)
    mean = float(sums[:, 0].sum() / sums[:, 1].sum())
    error = linear_variance(sums[:, 0] - mean * sums[:, 1], float(sums[:, 1].sum())) ** 0.5
    return Divergence(mean, error, overflowed, float(apart.mean()), float(apart.max()))


def area_difference(
    reference: Sequence[Case], candidate: Sequence[Case], head: Head, owners: Clusters, level: float = LEVEL
) -> AreaDifference | None:
    """Of the AUCs of each class against the rest, averaged over the classes that some cases are of and some not."""
    truth = np.array([[case.label == label for label in head.labels] for case in reference])
    told = [case.decision.probabilities for cases in (reference, candidate) for case in cases]
    kept = truth.any(axis=0) & ~truth.all(axis=0)
    if not kept.any() or not all(told):
        return None
    scores = np.array(told).reshape(2, len(reference), -1)[:, :, kept]
    count = int(kept.sum())
    found = areas(np.tile(truth[:, kept], 2), np.concatenate([scores[0], scores[1]], axis=1), owners)
    weight = np.repeat([-1 / count, 1 / count], count)
    value, error = float(weight @ found.values), found.standard_error(weight)
    if error < np.finfo(np.float32).eps:
        return AreaDifference(value, None, None, None)
    degrees = max(found.patients - 1, 1)
    reach = float(t.ppf((1 + level) / 2, degrees)) * error
    p_value = 2 * float(t.sf(abs(value) / error, degrees))
    return AreaDifference(value, max(value - reach, -1.0), min(value + reach, 1.0), p_value)
