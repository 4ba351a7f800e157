"""Bootstrap over patients, seeded and in bounded memory; a statistic is a function of sums over cases.

Whatever can be written with sums (accuracy, F1, kappa, a mean loss, a difference of two classifiers' accuracies) is
resampled by adding each patient's sums as often as that patient was drawn, so that 10,000 resamples of 10,000 cases
take seconds. `scipy.stats.bootstrap` draws single observations and copies them; it is the peer of the tests.

Sources: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 14.3 (BCa); Davison and Hinkley 1997,
"Bootstrap Methods and their Application", sections 3.8 (clusters) and 5.3.2 (acceleration with strata).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from hscc_edge.errors import InputError

LEVEL = 0.95
RESAMPLES = 10_000
CHUNK = 1 << 22
FEW_ROWS = 1 / 16
ROUNDING = 1e-12

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Cases by patient: `owner` (cases,) is each case's cluster, `strata` (clusters,) each cluster's stratum."""

    owner: NDArray[np.int64]
    strata: NDArray[np.int64]

    @property
    def count(self) -> int:
        """How many patients."""
        return len(self.strata)

    @property
    def independent(self) -> bool:
        """Whether no patient has more than one case."""
        return self.count == len(self.owner)

    def sums(self, terms: NDArray[np.generic]) -> Array:
        """(clusters, k): sums of `terms` (cases, k) over the cases of each cluster."""
        found = np.zeros((self.count, terms.shape[1]))
        for column in range(terms.shape[1]):
            found[:, column] = np.bincount(self.owner, weights=terms[:, column], minlength=self.count)
        return found


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Point estimates with intervals and standard errors, (m,) each; NaN where the data leave one undefined."""

    value: Array
    low: Array
    high: Array
    standard_error: Array


def clusters(patients: Sequence[str], labels: Sequence[str] | None = None) -> Clusters:
    """Group cases by patient; given the cases' labels, patients with the same set of labels make a stratum.

    Strata of a single patient are joined, since one patient cannot vary.

    Raises:
        InputError: if there is no case, or labels and patients differ in number.
    """
    if not len(patients) or (labels is not None and len(labels) != len(patients)):
        count = "no" if labels is None else str(len(labels))
        raise InputError(f"{len(patients)} patients and {count} labels: give one of each for every case, at least one")
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    if labels is None:
        return Clusters(owner, np.zeros(len(names), dtype=np.int64))
    _, code = np.unique(np.asarray(labels), return_inverse=True)
    held = np.zeros((len(names), int(code.max()) + 1), dtype=bool)
    held[owner, code] = True
    return Clusters(owner, _joined(np.unique(held, axis=0, return_inverse=True)[1].reshape(-1)))


def _joined(strata: NDArray[np.int64]) -> NDArray[np.int64]:
    sizes = np.bincount(strata)
    lonely = (sizes == 1)[strata]
    if lonely.sum() == 1:
        return np.where(lonely, int(sizes.argmax()), strata)
    return np.where(lonely, len(sizes), strata)


def bootstrap(
    sums: Array,
    statistic: Statistic,
    *,
    strata: NDArray[np.int64] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: str = "bca",
) -> Bootstrap:
    """Estimates and two-sided intervals of m statistics at once.

    Args:
        sums: (clusters, k), see `Clusters.sums`.
        statistic: totals (rows, k) -> (rows, m); NaN where undefined.
        strata: (clusters,), see `clusters`; each stratum keeps its number of patients.
        method: "bca" or "percentile".

    Where all resamples agree (no case went wrong, say), the interval is NaN: the bootstrap cannot say how wide it is.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(sums.sum(axis=0, keepdims=True))[0]
        draws = resample(sums, statistic, strata=strata, resamples=resamples, seed=seed)
        left_out = jackknife(sums, statistic)
    tail = (1 - level) / 2
    shares = np.tile([[tail], [1 - tail]], len(value))
    if method == "bca":
        shares = bca_shares(draws, value, acceleration(left_out, strata), level)
    low, high = quantiles(draws, shares)
    return Bootstrap(value, low, high, _spread(draws))


def resample(
    sums: Array,
    statistic: Statistic,
    *,
    strata: NDArray[np.int64] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Array:
    """(resamples, m): the statistic on bootstrap samples of the clusters; for arguments see `bootstrap`."""
    known = np.zeros(len(sums), dtype=np.int64) if strata is None else strata
    rows, inverse = np.unique(sums, axis=0, return_inverse=True)
    if len(rows) < FEW_ROWS * len(sums):
        return statistic(_totals_of_few(rows, inverse.reshape(-1), known, resamples, np.random.default_rng(seed)))
    drawn = weights(known, resamples=resamples, seed=seed)
    return statistic(np.concatenate([part @ sums for part in drawn]))


def weights(strata: NDArray[np.int64], *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Array]:
    """How often each cluster was drawn: blocks of (rows, clusters) of about 32 MiB, `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    step = max(CHUNK // len(strata), 1)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        if len(members) == 1:
            yield _counts(len(strata), rows, generator).astype(np.float64)
            continue
        block = np.empty((rows, len(strata)))
        for part in members:
            block[:, part] = _counts(len(part), rows, generator)
        yield block


def _counts(size: int, rows: int, generator: np.random.Generator) -> NDArray[np.int64]:
    picks = generator.integers(0, size, size=(rows, size), dtype=np.int32)
    picks += np.arange(rows, dtype=np.int32)[:, None] * size  # rows * size is at most CHUNK, or one row
    return np.bincount(picks.reshape(-1), minlength=rows * size).reshape(rows, size)


def _totals_of_few(
    rows: Array,
    inverse: NDArray[np.int64],
    strata: NDArray[np.int64],
    resamples: int,
    generator: np.random.Generator,
) -> Array:
    """Clusters with equal sums are exchangeable: one multinomial over the distinct rows draws them all."""
    totals = np.zeros((resamples, rows.shape[1]))
    for stratum in np.unique(strata):
        held = np.bincount(inverse[strata == stratum], minlength=len(rows))
        kinds = np.flatnonzero(held)
        size = int(held.sum())
        totals += generator.multinomial(size, held[kinds] / size, size=resamples) @ rows[kinds]
    return totals


def jackknife(sums: Array, statistic: Statistic) -> Array:
    """(clusters, m): the statistic without each cluster in turn."""
    return statistic(sums.sum(axis=0) - sums)


def acceleration(left_out: Array, strata: NDArray[np.int64] | None = None) -> Array:
    """(m,): BCa's acceleration from the jackknife's values (clusters, m), by strata."""
    known = np.zeros(len(left_out), dtype=np.int64) if strata is None else strata
    square, cube = np.zeros(left_out.shape[1]), np.zeros(left_out.shape[1])
    for stratum in np.unique(known):
        values = left_out[known == stratum]
        pull = (values.mean(axis=0) - values) * (1 - 1 / len(values))
        square, cube = square + (pull**2).sum(axis=0), cube + (pull**3).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(cube / (6 * square**1.5), nan=0.0, posinf=0.0, neginf=0.0)


def bca_shares(draws: Array, value: Array, acceleration: Array, level: float = LEVEL) -> Array:
    """(2, m): the shares of the resamples (rows, m) that bound the interval; ties count half (discrete statistics)."""
    slack = ROUNDING * np.maximum(np.abs(value), 1)
    known = np.maximum(np.isfinite(draws).sum(axis=0), 1)
    below, above = (draws < value - slack).sum(axis=0), (draws > value + slack).sum(axis=0)
    share = (below + (known - below - above) / 2) / known
    centre = ndtri(np.clip(share, 0.5 / known, 1 - 0.5 / known))
    reach = centre + ndtri(np.array([[(1 - level) / 2], [(1 + level) / 2]]))
    return np.asarray(ndtr(centre + reach / np.maximum(1 - acceleration * reach, ROUNDING)))


def quantiles(draws: Array, shares: Array) -> tuple[Array, Array]:
    """Lower and upper bounds (m,) of resamples (rows, m) at shares (2, m); NaN where all finite ones are equal."""
    bounds = np.full(shares.shape, np.nan)
    for column in range(draws.shape[1]):
        kept = draws[np.isfinite(draws[:, column]), column]
        if len(kept) and np.ptp(kept) > ROUNDING * max(abs(float(kept[0])), 1):
            bounds[:, column] = np.quantile(kept, shares[:, column])
    return bounds[0], bounds[1]


def _spread(draws: Array) -> Array:
    kept = np.isfinite(draws)
    count = np.maximum(kept.sum(axis=0), 2)
    mean = np.where(kept, draws, 0).sum(axis=0) / count
    return np.asarray(np.sqrt((np.where(kept, draws - mean, 0) ** 2).sum(axis=0) / (count - 1)))
