"""What a paired test set can show: the power of the non-inferiority test, the cases it needs, the margin it can hold.

For Tango's test: its variance under the hypothesis is that of the shares most likely there, its spread that of the
shares as they are (Nam 1997, Biometrics 53:1422; Liu and others 2002, Statistics in Medicine 21:231). The design effect
multiplies the cases. docs/noninferiority.md holds these powers against simulated ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import norm

from hscc_edge.validate.paired import Pairs, loss_share
from hscc_edge.validate.resampling import LEVEL

POWER = 0.8
RULE_OF_THREE = 3.0
LARGEST = 10**9


@dataclass(frozen=True, slots=True)
class Shares:
    """What two classifiers do on cases of a kind.

    Attributes:
        difference: of the shares that they decide rightly, second minus first, above -1 and below 1.
        discordance: share of cases that just one of them decides rightly; at least the size of the difference.
        design_effect: from several cases a patient, see `paired.py`.
    """

    difference: float
    discordance: float
    design_effect: float = 1.0


def observed(found: Pairs) -> Shares:
    """The shares that were seen; where no case is discordant, the upper bound of 3 / cases (the rule of three)."""
    return Shares(found.difference, found.discordance or min(RULE_OF_THREE / found.cases, 1.0), found.design_effect)


def power(shares: Shares, margin: float, cases: float, level: float = LEVEL) -> float:
    """The chance that the interval at `level` ends above `-margin`, with so many cases."""
    size = cases / shares.design_effect
    quantile, held, spread = _parts(shares, margin, level)
    reach = size**0.5 * (shares.difference + margin) - quantile * held
    return float(norm.cdf(reach / spread)) if spread else float(reach > 0)


def cases_needed(shares: Shares, margin: float, wanted: float = POWER, level: float = LEVEL) -> int | None:
    """Cases for a power of `wanted`; None where the difference itself is beyond the margin, or a billion do not do."""
    room = shares.difference + margin
    if room <= 0:
        return None
    quantile, held, spread = _parts(shares, margin, level)
    size = ((quantile * held + max(float(norm.ppf(wanted)), 0.0) * spread) / room) ** 2 * shares.design_effect
    return math.ceil(size) if size <= LARGEST else None


def smallest_margin(shares: Shares, cases: int, wanted: float = POWER, level: float = LEVEL) -> float | None:
    """The margin that so many cases can hold with a power of `wanted`; None if not even 1 can be held."""
    low, high = max(-shares.difference, 0.0) + 1e-9, 1 - 1e-9
    if power(shares, high, cases, level) < wanted:
        return None
    if power(shares, low, cases, level) >= wanted:
        return low
    return float(brentq(lambda margin: power(shares, margin, cases, level) - wanted, low, high, xtol=1e-7))


def _parts(shares: Shares, margin: float, level: float) -> tuple[float, float, float]:
    """The normal quantile, and a case's standard deviation under the hypothesis and as it is."""
    gain = (shares.discordance + shares.difference) / 2
    loss = (shares.discordance - shares.difference) / 2
    held = 2 * float(loss_share(gain, loss, 1.0, -margin)) - margin * (1 + margin)
    spread = shares.discordance - shares.difference**2
    return float(norm.ppf((1 + level) / 2)), max(held, 0.0) ** 0.5, max(spread, 0.0) ** 0.5
