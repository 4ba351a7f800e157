"""Intervals of a paired difference that `validate/paired.py` was chosen from: a name -> (tables) -> lower, upper end.

Tables are made, not measured: patients whose own shares of gains and losses vary so that two cases of one patient have
the declared intra-class correlation (a Dirichlet-multinomial).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from hscc_edge.validate.intervals import linear_variance, wilson
from hscc_edge.validate.paired import Pairs, interval, pairs
from hscc_edge.validate.resampling import Clusters, bootstrap

RESAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class Design:
    """Patients with their cases, and what two classifiers do there; `correlation` is the intra-class one."""

    sizes: tuple[int, ...]
    correlation: float
    gain: float
    loss: float

    @property
    def cases(self) -> int:
        """Of all patients."""
        return sum(self.sizes)

    @property
    def difference(self) -> float:
        """The true one."""
        return self.gain - self.loss

    @property
    def design_effect(self) -> float:
        """The true one: 1 + (m - 1) times the correlation, m the mean case's patient's cases (Kish 1965)."""
        mean_size = sum(size**2 for size in self.sizes) / self.cases
        return 1 + (mean_size - 1) * self.correlation

    def clusters(self) -> Clusters:
        """Who has which case."""
        return Clusters(np.repeat(np.arange(len(self.sizes)), self.sizes), np.zeros(len(self.sizes), dtype=np.int64))


def draw(design: Design, simulations: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(simulations, patients, 2): gains and losses of every patient."""
    shares = np.array([design.gain, design.loss, 1 - design.gain - design.loss])
    sizes = np.array(design.sizes)
    if design.correlation == 0:
        own = np.broadcast_to(shares, (simulations, len(sizes), 3))
    else:
        spread = generator.standard_gamma(
            shares * (1 - design.correlation) / design.correlation, size=(simulations, len(sizes), 3)
        )
        own = spread / np.maximum(spread.sum(axis=2, keepdims=True), np.finfo(float).tiny)
    gain = generator.binomial(sizes, np.clip(own[:, :, 0], 0, 1))
    left = np.clip(own[:, :, 1] / np.maximum(1 - own[:, :, 0], np.finfo(float).tiny), 0, 1)
    return np.stack([gain, generator.binomial(sizes - gain, left)], axis=2)


def table(design: Design, drawn: NDArray[np.int64], cases: Clusters) -> Pairs:
    """One draw, counted by the function under test."""
    place = np.concatenate([np.arange(size) for size in design.sizes])
    gain = place < drawn[cases.owner, 0]
    loss = ~gain & (place < drawn[cases.owner].sum(axis=1))
    return pairs(loss, gain, cases)  # right in the first, right in the second; other cases cancel


def ours(design: Design, drawn: NDArray[np.int64], cases: Clusters, found: Pairs) -> tuple[float, float]:
    """Tango's score over patients."""
    return interval(found)


def independent(design: Design, drawn: NDArray[np.int64], cases: Clusters, found: Pairs) -> tuple[float, float]:
    """Tango's score as if all cases were independent."""
    return interval(Pairs(found.gain, found.loss, found.cases, found.cases))


def newcombe(both: int, first: int, second: int, neither: int, level: float = 0.95) -> tuple[float, float]:
    """Of second minus first: method 10 of Newcombe 1998, Statistics in Medicine 17:2635 (square-and-add of Wilson's).

    Args:
        first, second: cases that only this one decides rightly.
    """
    cases = both + first + second + neither
    one, two = (both + first) / cases, (both + second) / cases
    (low_one, high_one), (low_two, high_two) = (wilson(share * cases, cases, level) for share in (one, two))
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    excess = both * neither - first * second
    corrected = max(excess - cases / 2, 0.0) if excess > 0 else excess
    phi = corrected / product**0.5 if product else 0.0
    below = (two - low_two, high_one - one)
    above = (high_two - two, one - low_one)
    low, high = (max(a * a - 2 * phi * a * b + b * b, 0.0) ** 0.5 for a, b in (below, above))
    return two - one - low, two - one + high


def square_and_add(design: Design, drawn: NDArray[np.int64], cases: Clusters, found: Pairs) -> tuple[float, float]:
    """Newcombe's method 10 as if independent, nine in ten of the concordant cases decided rightly."""
    same = found.cases - found.gain - found.loss
    return newcombe(round(0.9 * same), found.loss, found.gain, same - round(0.9 * same))


def wald(design: Design, drawn: NDArray[np.int64], cases: Clusters, found: Pairs) -> tuple[float, float]:
    """Linearised over patients, Student's t."""
    residuals = drawn[:, 0] - drawn[:, 1] - found.difference * np.array(design.sizes)
    half = float(t.ppf(0.975, found.patients - 1)) * linear_variance(residuals, found.cases) ** 0.5
    return found.difference - half, found.difference + half


def adjusted_wald(design: Design, drawn: NDArray[np.int64], cases: Clusters, found: Pairs) -> tuple[float, float]:
    """Bonett and Price 2012: one gain and one loss more; as if independent."""
    cases_plus = found.cases + 2
    centre, share = (found.gain - found.loss) / cases_plus, (found.gain + found.loss + 2) / cases_plus
    half = float(norm.ppf(0.975)) * ((share - centre**2) / cases_plus) ** 0.5
    return centre - half, centre + half


def _bootstrap(method: str) -> Candidate:
    def candidate(design: Design, drawn: NDArray[np.int64], cases: Clusters, found: Pairs) -> tuple[float, float]:
        sums = np.column_stack([drawn[:, 0] - drawn[:, 1], design.sizes]).astype(np.float64)
        result = bootstrap(sums, lambda total: total[:, :1] / total[:, 1:], resamples=RESAMPLES, method=method)
        low, high = float(result.low[0]), float(result.high[0])
        return (found.difference, found.difference) if np.isnan(low) else (low, high)

    return candidate


Candidate = Callable[[Design, NDArray[np.int64], Clusters, Pairs], tuple[float, float]]
CANDIDATES: dict[str, Candidate] = {
    "Tango over patients": ours,
    "Tango, cases": independent,
    "Newcombe 10, cases": square_and_add,
    "Bonett-Price, cases": adjusted_wald,
    "Wald over patients, t": wald,
    "bootstrap of patients, percentile": _bootstrap("percentile"),
    "bootstrap of patients, BCa": _bootstrap("bca"),
}
