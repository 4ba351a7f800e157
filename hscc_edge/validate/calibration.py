"""Whether probabilities mean what they say: Brier score, expected calibration error, temperature scaling.

Brier 1950, Monthly Weather Review 78:1; Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural
Networks" (expected calibration error with equal bins of the decided label's probability; temperature scaling).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from hscc_edge.errors import InputError
from hscc_edge.model.head import Head, Logits
from hscc_edge.validate.intervals import Estimate, Proportion, estimate, share_where
from hscc_edge.validate.outcomes import Outcomes
from hscc_edge.validate.resampling import LEVEL, RESAMPLES, Array, Clusters, bootstrap, resample

BINS = 15
TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True, slots=True)
class Bin:
    """Cases whose probability is in (low, high]: their mean probability, and the share for which it was right."""

    low: float
    high: float
    mean: float | None
    observed: Proportion


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of the cases that have probabilities.

    Attributes:
        brier: mean squared distance of the probabilities from the truth, summed over the labels of a softmax or
            single-logit head (0 to 2; two labels: twice the binary score), the mean over those of a sigmoid head.
        error: expected calibration error, with `bins`; of the decided label, or over all labels of a sigmoid head.
        bins: the reliability diagram.
    """

    brier: Estimate
    error: Estimate
    bins: tuple[Bin, ...]
    cases: int


def calibration(
    found: Outcomes, head: Head, seed: int = 0, resamples: int = RESAMPLES, bins: int = BINS
) -> Calibration:
    """Calibration of one classifier with 95 % intervals over patients; seconds for 20,000 cases.

    Raises:
        InputError: if no case has probabilities.
    """
    kept = found.scored
    if not kept.any():
        raise InputError(f"none of {len(kept)} cases has probabilities: calibration needs decided cases")
    held, owner = np.unique(found.cases.owner[kept], return_inverse=True)
    cases = Clusters(owner.reshape(-1), found.cases.strata[held])
    truth, scores = found.truth[kept], found.scores[kept]
    claims = _claims(truth, scores, head)
    return Calibration(
        brier=mean_estimate(squared_distance(truth, scores, head), cases, seed, resamples),
        error=calibration_error(*claims, cases, seed, resamples, bins),
        bins=reliability(*claims, cases, bins),
        cases=int(kept.sum()),
    )


def squared_distance(truth: NDArray[np.bool_], scores: Array, head: Head) -> Array:
    """(cases,): what the Brier score is the mean of; see `Calibration`."""
    squares = (scores - truth) ** 2
    return np.asarray(squares.mean(axis=1) if head.kind == "sigmoid" else squares.sum(axis=1))


def _claims(truth: NDArray[np.bool_], scores: Array, head: Head) -> tuple[Array, NDArray[np.bool_]]:
    """What was claimed with which probability, and whether it was so: (cases, claims) each."""
    if head.kind == "sigmoid":
        return scores, truth
    if head.kind == "single_logit":
        return scores[:, 1:], truth[:, 1:]
    top = scores.argmax(axis=1)[:, None]
    return np.take_along_axis(scores, top, axis=1), np.take_along_axis(truth, top, axis=1)


def mean_estimate(values: Array, cases: Clusters, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean of `values` (cases,) with its BCa interval over patients."""
    sums = cases.sums(np.stack([values, np.ones(len(values))], axis=1))
    found = bootstrap(sums, _mean, strata=cases.strata, seed=seed, resamples=resamples)
    return estimate(found.value[0], found.low[0], found.high[0], "BCa bootstrap over patients")


def _mean(totals: Array) -> Array:
    return totals[:, :-1] / totals[:, -1:]


def calibration_error(
    scores: Array,
    right: NDArray[np.bool_],
    cases: Clusters,
    seed: int = 0,
    resamples: int = RESAMPLES,
    bins: int = BINS,
) -> Estimate:
    """Expected calibration error of claims (cases, claims).

    The plug-in estimate is too large, the more so the better the calibration, and a bootstrap of it doubles that bias.
    The interval is `estimate -+ q`, q the 95 % quantile of the resampled bins' total distance from the sample's: by
    the triangle inequality it covers at least as often, and its lower limit is 0 where perfect calibration cannot be
    excluded. A bin's distances are enlarged where they vary less than right or wrong would by chance at its
    probabilities, as those of bins with few cases may.
    """
    where = _bin_of(scores, bins)
    gaps = np.zeros((len(scores), bins + 1))
    for column in range(scores.shape[1]):
        np.add.at(gaps, (np.arange(len(scores)), where[:, column]), scores[:, column] - right[:, column])
    gaps[:, -1] = scores.shape[1]
    sums = cases.sums(gaps)
    value = _mean(sums.sum(axis=0, keepdims=True))
    away = np.abs(resample(sums, _mean, strata=cases.strata, seed=seed, resamples=resamples) - value)
    chance = np.bincount(where.reshape(-1), weights=(scores * (1 - scores)).reshape(-1), minlength=bins)
    seen = (away**2).mean(axis=0)
    growth = np.sqrt(np.maximum(chance / sums[:, -1].sum() ** 2 / np.where(seen > 0, seen, np.inf), 1))
    reach = float(np.quantile((away * growth).sum(axis=1), LEVEL))
    error = float(np.abs(value).sum())
    return Estimate(
        error, max(error - reach, 0.0), min(error + reach, 1.0), "bootstrap over patients, distance of bins"
    )


def _bin_of(scores: Array, bins: int) -> NDArray[np.int64]:
    return np.asarray(np.clip(np.ceil(scores * bins).astype(np.int64) - 1, 0, bins - 1))


def reliability(scores: Array, right: NDArray[np.bool_], cases: Clusters, bins: int = BINS) -> tuple[Bin, ...]:
    """The reliability diagram of claims (cases, claims), with intervals over patients."""
    wide = Clusters(np.repeat(cases.owner, scores.shape[1]), cases.strata)
    where, hits, flat = _bin_of(scores, bins).reshape(-1), right.reshape(-1), scores.reshape(-1)
    return tuple(
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            mean=float(flat[where == index].mean()) if (where == index).any() else None,
            observed=share_where(hits, where == index, wide),
        )
        for index in range(bins)
    )


def temperature(logits: Logits, truth: NDArray[np.bool_], head: Head) -> float:
    """The temperature that minimises the log loss of `logits / temperature`, fitted on the calibration split alone.

    Args:
        logits: (images, n), `truth`: (images, labels) of a split that is never tested on.

    Raises:
        InputError: if there is no image, or the logits are not finite.
    """
    if not len(logits) or not np.isfinite(logits).all():
        raise InputError(f"{len(logits)} images, or logits that are not finite: temperature scaling needs both")
    wide = np.asarray(logits, dtype=np.float64)
    low, high = np.log(TEMPERATURES)
    fitted = minimize_scalar(
        lambda log: log_loss(wide / np.exp(log), truth, head), bounds=(low, high), method="bounded",
        options={"xatol": 1e-6},
    )  # fmt: skip
    return float(np.exp(fitted.x))


def log_loss(logits: Logits, truth: NDArray[np.bool_], head: Head) -> float:
    """Mean negative log likelihood, nats an image; summed over the labels of a sigmoid head."""
    if head.kind == "softmax":
        return float(-log_softmax(logits, axis=1)[truth].mean())
    wanted = truth[:, 1:] if head.kind == "single_logit" else truth
    return float(-np.where(wanted, log_expit(logits), log_expit(-logits)).sum(axis=1).mean())
