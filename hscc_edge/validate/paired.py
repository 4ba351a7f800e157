"""The difference of two shares on the same cases: Tango's score interval, clustered by patient, and McNemar's test.

Tango (1998), Statistics in Medicine 17:891: the variance is taken at each hypothesis, so that neither a difference of
zero nor few discordant cases make the interval too short. With several cases a patient the statistic is divided by the
root of the design effect and held against Student's t for the number of patients. As in `intervals.py` the design
effect is never below 1, and one patient who loses every case and one who gains every case are added for it: the plain
estimate is far too small where few patients have a discordant case. docs/noninferiority.md compares the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm, t

from hscc_edge.validate.resampling import LEVEL, Array, Clusters

HALVINGS = 60
Counts = Any  # a float or an array of them


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two classifiers on the same cases.

    Attributes:
        gain, loss: cases that only the second, and only the first, decides rightly.
        design_effect: `cases` tell as much as `cases / design_effect` independent ones.
        clustered: whether a patient has several of the cases.
    """

    gain: int
    loss: int
    cases: int
    patients: int
    design_effect: float = 1.0
    clustered: bool = False

    @property
    def difference(self) -> float:
        """Share that the second decides rightly, minus the first's."""
        return (self.gain - self.loss) / self.cases

    @property
    def discordance(self) -> float:
        """Share of cases that just one of the two decides rightly."""
        return (self.gain + self.loss) / self.cases


def pairs(first: NDArray[np.bool_], second: NDArray[np.bool_], cases: Clusters) -> Pairs:
    """Count what each decides rightly, (cases,) both."""
    gain, loss = second & ~first, first & ~second
    effect = 1.0 if cases.independent else design_effect(gain, loss, cases)
    return Pairs(int(gain.sum()), int(loss.sum()), len(first), cases.count, effect, not cases.independent)


def design_effect(gain: NDArray[np.bool_], loss: NDArray[np.bool_], cases: Clusters) -> float:
    """By how much the variance of the difference exceeds that of independent cases; at least 1. See the module."""
    return float(effect_of(cases.sums(np.stack([gain, loss, np.ones(len(gain))], axis=1))))


def effect_of(sums: Array) -> Array:
    """The design effect from every patient's gains, losses and cases, (..., patients, 3)."""
    size = sums[..., 2]
    mean = (size**2).sum(axis=-1) / size.sum(axis=-1)
    none = np.zeros_like(mean)
    added = np.stack([np.stack([mean, none, mean], axis=-1), np.stack([none, mean, mean], axis=-1)], axis=-2)
    parts = np.concatenate([sums, added], axis=-2)
    total, net = parts[..., 2].sum(axis=-1), parts[..., 0] - parts[..., 1]
    difference = net.sum(axis=-1) / total
    spread = parts[..., :2].sum(axis=(-1, -2)) / total - difference**2
    square = ((net - difference[..., None] * parts[..., 2]) ** 2).sum(axis=-1)
    count = parts.shape[-2]
    return np.asarray(np.maximum(square / (total * spread) * count / (count - 1), 1.0))


def interval(found: Pairs, level: float = LEVEL) -> tuple[float, float]:
    """The two-sided interval of the difference."""
    if found.clustered and found.patients < 2:
        return -1.0, 1.0
    low, high = tango(found.gain, found.loss, found.cases, critical(found, level) * found.design_effect**0.5)
    return float(low), float(high)


def critical(found: Pairs, level: float = LEVEL) -> float:
    """The quantile that a two-sided interval at `level` takes: the normal's, or Student's for clustered cases."""
    tail = (1 + level) / 2
    return float(t.ppf(tail, found.patients - 1) if found.clustered else norm.ppf(tail))


def p_above(found: Pairs, bound: float) -> float:
    """One-sided p-value of "the difference is at most `bound`"; below alpha where the interval ends above `bound`."""
    if found.clustered and found.patients < 2:
        return 1.0
    statistic = float(score(found.gain, found.loss, found.cases, bound)) / found.design_effect**0.5
    return float(t.sf(statistic, found.patients - 1) if found.clustered else norm.sf(statistic))


def p_below(found: Pairs, bound: float) -> float:
    """One-sided p-value of "the difference is at least `bound`"."""
    mirrored = Pairs(found.loss, found.gain, found.cases, found.patients, found.design_effect, found.clustered)
    return p_above(mirrored, -bound)


def score(gain: Counts, loss: Counts, cases: Counts, difference: Counts) -> NDArray[np.float64]:
    """Tango's statistic for the hypothesis that P(gain) - P(loss) is `difference`, between -1 and 1."""
    variance = cases * (2 * loss_share(gain, loss, cases, difference) + difference * (1 - difference))
    return np.asarray((gain - loss - cases * difference) / np.sqrt(np.maximum(variance, np.finfo(float).tiny)))


def loss_share(gain: Counts, loss: Counts, cases: Counts, difference: Counts) -> NDArray[np.float64]:
    """Most likely P(loss) where P(gain) - P(loss) is `difference` (Tango 1998, equation 12)."""
    linear = (2 * cases - gain + loss) * difference - gain - loss
    constant = -loss * difference * (1 - difference)
    root = np.sqrt(np.maximum(linear**2 - 8 * cases * constant, 0.0))
    return np.asarray(np.maximum((root - linear) / (4 * cases), 0.0))


def tango(gain: Counts, loss: Counts, cases: Counts, quantile: Counts) -> tuple[Counts, Counts]:
    """Where the score is `quantile` and `-quantile`, by bisection; arrays of one shape are solved together."""
    low = _root(gain, loss, cases, quantile)
    return low, -_root(loss, gain, cases, quantile)


def _root(gain: Counts, loss: Counts, cases: Counts, quantile: Counts) -> NDArray[np.float64]:
    """The lower end: the score falls as the hypothesis rises towards the estimate."""
    above = np.asarray((gain - loss) / cases, dtype=np.float64)
    below = np.full(above.shape, -1.0)
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        far = score(gain, loss, cases, middle) > quantile
        below, above = np.where(far, middle, below), np.where(far, above, middle)
    return np.asarray((below + above) / 2)


def mcnemar(loss: int, gain: int) -> tuple[float, float]:
    """p-values of "both are right equally often", cases independent: exact, and mid-p.

    Binomial on the discordant cases; mid-p counts what was observed half (Fagerland, Lydersen and Laake 2013, BMC
    Medical Research Methodology 13:91). statsmodels has the exact one, which is the peer of the tests.
    """
    total, fewer = loss + gain, min(loss, gain)
    if loss == gain:
        return 1.0, 1.0 - float(binom.pmf(fewer, total, 0.5)) / 2 if total else 1.0
    exact = 2 * float(binom.cdf(fewer, total, 0.5))
    return min(exact, 1.0), exact - float(binom.pmf(fewer, total, 0.5))
