"""What a test set can show at all: the margin it can hold, the difference it can find, the cases that margins need."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.optimize import brentq

from hscc_edge.validate.paired import Pairs
from hscc_edge.validate.power import POWER, Shares, cases_needed, observed, power, smallest_margin

MARGINS = (0.01, 0.02, 0.05)


@dataclass(frozen=True, slots=True)
class Need:
    """Cases that a margin needs for 80 % power; None where no number would do.

    Attributes:
        if_equal: were both equally good, and as often of unlike opinion as they were seen to be.
        as_seen: if the difference stays as it was seen too.
    """

    margin: float
    if_equal: int | None
    as_seen: int | None


@dataclass(frozen=True, slots=True)
class Reach:
    """Of so many cases, with 80 % power, at the discordance that was seen; all are shares.

    Attributes:
        smallest_margin: for which they can show non-inferiority, were both equally good.
        smallest_difference: that they can tell from none.
    """

    cases: int
    patients: int
    discordance: float
    smallest_margin: float | None
    smallest_difference: float | None
    needs: tuple[Need, ...]


def reach(found: Pairs, margin: float | None = None) -> Reach:
    """What so many cases can show, and what MARGINS and `margin` need."""
    seen = observed(found)
    equal = Shares(0.0, seen.discordance, seen.design_effect)
    margins = sorted({*MARGINS, *(() if margin is None else (margin,))})
    return Reach(
        cases=found.cases,
        patients=found.patients,
        discordance=found.discordance,
        smallest_margin=smallest_margin(equal, found.cases),
        smallest_difference=smallest_difference(equal, found.cases),
        needs=tuple(Need(each, cases_needed(equal, each), cases_needed(seen, each)) for each in margins),
    )


def smallest_difference(equal: Shares, cases: int, wanted: float = POWER) -> float | None:
    """The difference whose interval excludes 0 with a power of `wanted`; discordance grows where it must."""

    def lacking(difference: float) -> float:
        shares = Shares(difference, max(equal.discordance, difference), equal.design_effect)
        return power(shares, 0.0, cases) - wanted

    return None if lacking(1 - 1e-6) < 0 else float(brentq(lacking, 1e-6, 1 - 1e-6, xtol=1e-7))
