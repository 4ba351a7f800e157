"""Is the candidate at most a declared margin worse than its reference? Three answers, and what a better one would need.

The lower end of the two-sided 95 % interval of the paired difference, which is a one-sided test at 2.5 %, against a
margin that was declared before the test set was looked at (ICH E9, 3.3.2; FDA 2016, Non-Inferiority Clinical Trials).
Superiority is asked only of what is non-inferior, and needs no correction then (closed testing: CPMP/EWP/482/99).
"""

from __future__ import annotations

from dataclasses import dataclass

from hscc_edge.errors import InputError
from hscc_edge.validate.paired import Pairs, interval
from hscc_edge.validate.power import POWER, cases_needed, observed, power, smallest_margin
from hscc_edge.validate.power import Shares as Shares
from hscc_edge.validate.resampling import LEVEL

NON_INFERIOR, INFERIOR, INCONCLUSIVE = "NON-INFERIOR", "INFERIOR", "INCONCLUSIVE"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer with its figures; all differences are of shares, candidate minus reference.

    Attributes:
        word: NON-INFERIOR if `low` is above `-margin`, INFERIOR if `high` is below it, else INCONCLUSIVE.
        superior: also better: non-inferior, and `low` above 0.
        power: the chance that so many cases show non-inferiority, were both equally good at this discordance.
        cases_needed: for 80 % power if difference and discordance stay as they were seen; None if no number would do.
        smallest_margin: that so many cases show with 80 % power, were both equally good.
    """

    word: str
    margin: float
    level: float
    difference: float
    low: float
    high: float
    cases: int
    patients: int
    superior: bool
    power: float
    cases_needed: int | None
    smallest_margin: float | None


def judge(found: Pairs, margin: float, level: float = LEVEL) -> Verdict:
    """Weigh a paired difference against a margin, both shares: 0.02 is two points.

    Raises:
        InputError: if the margin is not above 0 and below 1.
    """
    check_margin(margin)
    low, high = interval(found, level)
    seen = observed(found)
    equal = Shares(0.0, seen.discordance, seen.design_effect)
    return Verdict(
        word=word_of(low, high, margin),
        margin=margin,
        level=level,
        difference=found.difference,
        low=low,
        high=high,
        cases=found.cases,
        patients=found.patients,
        superior=low > 0,
        power=power(equal, margin, found.cases, level),
        cases_needed=cases_needed(seen, margin, POWER, level),
        smallest_margin=smallest_margin(equal, found.cases, POWER, level),
    )


def word_of(low: float, high: float, margin: float) -> str:
    """The answer that an interval gives."""
    if low > -margin:
        return NON_INFERIOR
    return INFERIOR if high < -margin else INCONCLUSIVE


def check_margin(margin: float) -> None:
    """Refuse a margin that says nothing.

    Raises:
        InputError: if it is not above 0 and below 1.
    """
    if not 0 < margin < 1:
        raise InputError(
            f"the margin is {100 * margin:g} points: expected above 0 and below 100, the largest loss that is "
            "clinically acceptable, such as 2"
        )


def sentence(found: Verdict) -> str:
    """The answer in words, with its figures; and if it is none, what one would need."""
    figures = (
        f"{found.word} at a margin of {100 * found.margin:g} points: difference {100 * found.difference:+.2f} points, "
        f"{100 * found.level:g} % interval {100 * found.low:+.2f} to {100 * found.high:+.2f}, {found.cases} cases of "
        f"{found.patients} patients"
    )
    if found.word == NON_INFERIOR:
        return figures + ("; superior as well" if found.superior else "")
    return figures if found.word == INFERIOR else f"{figures}; {_lack(found)}"


def _lack(found: Verdict) -> str:
    able = "no margin" if found.smallest_margin is None else f"a margin of {100 * found.smallest_margin:.1f} points"
    held = f"so many cases can show {able} (80 % power, if both are equally good)"
    if found.cases_needed is None:
        return f"{held}, and the difference seen is beyond the margin: more cases alone would not help"
    return f"{held}; this margin needs about {found.cases_needed} if the figures stay as they are"
