"""Confidence intervals of shares: Wilson's where each patient has one case, adjusted for patients where not.

With several cases a patient the number of cases is divided by the design effect, the factor by which the share's
variance over patients exceeds that of as many independent cases (Rao and Scott 1992, Biometrics 48:577), and by
`(t / z)^2` for the number of patients (Korn and Graubard 1998, Survey Methodology 24:193). The usual estimate of the
design effect is far too small where few patients have an error; here it is never below 1, and one patient decided
wholly rightly and one wholly wrongly, each of the size of a mean case's patient, are added for it, as Agresti and
Coull (1998, The American Statistician 52:119) add two successes and two failures. docs/coverage.md compares them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from hscc_edge.errors import InputError, extra
from hscc_edge.validate.resampling import LEVEL, Array, Clusters, Statistic, jackknife

with extra("workstation"):
    from statsmodels.stats.proportion import proportion_confint


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval and how that was found; None where the data leave one undefined."""

    value: float | None
    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share `count / of` with its interval; all None where `of` is 0.

    Attributes:
        method: "Wilson", or "Wilson, clustered" if a patient has several of the cases.
        patients: who have the `of` cases; 0 if not known to be fewer than the cases.
        design_effect: `of` cases tell as much as `of / design_effect` independent ones.
        naive_low, naive_high: Wilson's interval as if the cases were independent, which it understates: for contrast,
            None where it holds.
    """

    count: int
    of: int
    value: float | None
    low: float | None
    high: float | None
    method: str = "Wilson"
    patients: int = 0
    design_effect: float = 1.0
    naive_low: float | None = None
    naive_high: float | None = None


def check_independent(patients: Sequence[str]) -> None:
    """Refuse to treat cases as independent where a patient has several.

    Raises:
        InputError: if one has.
    """
    count, distinct = len(patients), len(set(patients))
    if distinct < count:
        raise InputError(
            f"{count} cases of {distinct} patients are not independent: give the patients, so that the interval is "
            "taken over them"
        )


def wilson(count: float, of: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval (1927; statsmodels) of `count` out of `of` > 0 independent cases, which may be fractional."""
    low, high = proportion_confint(count, of, alpha=1 - level, method="wilson")
    share = count / of
    return min(max(float(low), 0.0), share), max(min(float(high), 1.0), share)


def share(hits: NDArray[np.bool_], cases: Clusters, level: float = LEVEL) -> Proportion:
    """The share of hits (cases,), clustered by patient where needed."""
    count, of = int(hits.sum()), len(hits)
    if of == 0:
        return Proportion(0, 0, None, None, None)
    if cases.independent:
        return Proportion(count, of, count / of, *wilson(count, of, level), patients=of)
    effect = design_effect(hits, cases)
    low, high = wilson(*effective(count, of, effect, cases.count, level), level)
    return Proportion(
        count, of, count / of, low, high, "Wilson, clustered", cases.count, effect, *wilson(count, of, level)
    )


def some(cases: Clusters, kept: NDArray[np.bool_]) -> Clusters:
    """The clusters of the kept cases (cases,) alone."""
    held, owner = np.unique(cases.owner[kept], return_inverse=True)
    return Clusters(owner.reshape(-1), cases.strata[held])


def share_where(hits: NDArray[np.bool_], kept: NDArray[np.bool_], cases: Clusters, level: float = LEVEL) -> Proportion:
    """The share of hits among the kept cases, both (cases,)."""
    return share(hits[kept], some(cases, kept), level)


def effective(count: float, of: float, effect: float, patients: int, level: float = LEVEL) -> tuple[float, float]:
    """Count and number of the independent cases that tell as much; `patients` gives t's degrees of freedom."""
    if patients < 2:
        size = min(of / effect, 1.0)
    else:
        upper = (1 + level) / 2
        size = of / effect * float(ndtri(upper) / stdtrit(patients - 1, upper)) ** 2
    return count / of * size, size


def design_effect(hits: NDArray[np.bool_], cases: Clusters) -> float:
    """By how much the variance of the share of hits exceeds that of independent cases; at least 1. See the module."""
    if cases.independent:
        return 1.0
    sums = cases.sums(np.stack([hits, np.ones(len(hits))], axis=1))
    right, size = sums[:, 0], sums[:, 1]
    mean_size = float((size**2).sum() / size.sum())
    right, size = np.append(right, [mean_size, 0.0]), np.append(size, [mean_size, mean_size])
    rate = float(right.sum() / size.sum())
    variance = linear_variance(right - rate * size, float(size.sum()))
    return max(variance * float(size.sum()) / (rate * (1 - rate)), 1.0)


def composite(
    sums: Array,
    patient: tuple[Array, Array],
    statistic: Statistic,
    lowest: Statistic,
    patients: int,
    level: float = LEVEL,
) -> list[tuple[float, float, float]]:
    """Values with Wilson limits of m statistics that have a largest value of 1, such as F1 and kappa.

    The size is that of as many independent cases as give the statistic's jackknife variance over patients, taken with
    one patient wholly right and one wholly wrong added, so that a classifier without an error has an interval too.

    Args:
        sums: (clusters, k), see `Clusters.sums`.
        patient: sums (k,) of the two added.
        statistic, lowest: totals (rows, k) -> (rows, m), the statistic and the least that it could be.
    """
    total, more = sums.sum(axis=0, keepdims=True), np.vstack([sums, *patient])
    padded = more.sum(axis=0, keepdims=True)
    left_out = jackknife(more, statistic)
    count = len(more)
    with np.errstate(invalid="ignore"):
        variance = (count - 1) / count * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0)
    value, floor, inner = statistic(total)[0], lowest(total)[0], statistic(padded)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = (inner - floor) * (1 - inner) / variance
    return [_above(float(value[k]), float(floor[k]), float(sizes[k]), patients, level) for k in range(len(value))]


def _above(value: float, floor: float, size: float, patients: int, level: float) -> tuple[float, float, float]:
    """A value between `floor` and 1 with Wilson's limits for `size` cases; NaN where it is undefined."""
    if not np.isfinite(value) or not 0 < size < float("inf"):
        return value, float("nan"), float("nan")
    share = (value - floor) / (1 - floor)
    low, high = wilson(*effective(share * size, size, 1.0, patients, level), level)
    return value, floor + (1 - floor) * low, floor + (1 - floor) * high


def linear_variance(residuals: Array, scale: float) -> float:
    """Variance of `sum(residuals) / scale` over clusters (clusters,), with the correction for their number."""
    count = len(residuals)
    return float((residuals**2).sum() / scale**2 * count / max(count - 1, 1))


def ratio(first: Proportion, second: Proportion, correlation: float = 0.0) -> Estimate:
    """The ratio of two shares, for likelihood ratios; None as upper limit stands for infinity.

    Its limits follow from those of the shares (MOVER-R: Donner and Zou 2012, Statistical Methods in Medical Research
    21:347), so that no cell of the table need be other than 0, and patients count as they do there. statsmodels' score
    interval breaks down at shares of 0 and 1, its "log" (Katz 1978; Simel 1991) at 0.

    Args:
        correlation: of the two shares, not 0 where patients stand in both; see `correlation`.
    """
    method = f"MOVER-R of {first.method}"
    if first.value is None or second.value is None or first.value == second.value == 0:
        return Estimate(None, None, None, method)
    low = _ratio_low(first, second, correlation)
    inverse = _ratio_low(second, first, correlation)
    value = first.value / second.value if second.value else None
    return Estimate(value, low, 1 / inverse if inverse else None, method)


def _ratio_low(first: Proportion, second: Proportion, correlation: float) -> float:
    (p, low, _), (q, _, high) = limits(first), limits(second)
    centre = p * q - correlation * (p - low) * (high - q)
    spread = low * (2 * p - low)
    root = max(centre**2 - spread * high * (2 * q - high), 0.0) ** 0.5
    return spread / (centre + root) if spread else 0.0


def limits(item: Proportion | Estimate) -> tuple[float, float, float]:
    """Value and limits of a figure that is known.

    Raises:
        InputError: if it is not.
    """
    if item.value is None or item.low is None or item.high is None:
        raise InputError("a figure is undefined, since no case counts towards it: ask before taking its limits")
    return item.value, item.low, item.high


def correlation(first: Array, second: Array) -> float:
    """Of two estimates from their residuals by patient, (clusters,) each; 0 where no patient stands in both."""
    scale = float(((first**2).sum() * (second**2).sum()) ** 0.5)
    return float((first * second).sum()) / scale if scale else 0.0


def estimate(value: float, low: float, high: float, method: str) -> Estimate:
    """An `Estimate` of floats, None for NaN."""
    found = [None if np.isnan(part) else float(part) for part in (value, low, high)]
    return Estimate(found[0], found[1], found[2], method)
