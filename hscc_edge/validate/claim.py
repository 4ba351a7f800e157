"""What may be claimed, in sentences that say no more than the intervals allow: the report's first lines."""

from __future__ import annotations

from hscc_edge.validate import noninferiority
from hscc_edge.validate.evidence import Evidence
from hscc_edge.validate.power import POWER
from hscc_edge.validate.wording import points

UNITS = {"image": ("picture", "pictures"), "series": ("series", "series"), "study": ("study", "studies")}
NO_MARGIN = (
    "No margin was declared, so there is no verdict: which loss would be acceptable has to be said before the test set "
    "is looked at."
)
NO_VERDICT = "NO VERDICT"


def answer(evidence: Evidence) -> str:
    """The verdict with its figures; without a margin, that there is none."""
    return NO_MARGIN if evidence.verdict is None else f"{noninferiority.sentence(evidence.verdict)}."


def word(evidence: Evidence) -> str:
    """The verdict in a word or two."""
    return NO_VERDICT if evidence.verdict is None else evidence.verdict.word


def claim(evidence: Evidence) -> str:
    """What was seen, in one sentence."""
    found, cases = evidence.comparison, evidence.cohort["cases"]
    old, new = evidence.reference_figures.accuracy.count, evidence.candidate_figures.accuracy.count
    if found.low > 0:
        first = "The compressed classifier decides more cases rightly than the original"
    elif found.high < 0:
        first = "The compressed classifier decides fewer cases rightly than the original"
    else:
        first = "The two could not be told apart in accuracy"
    return (
        f"{first}: of {counted(evidence, cases)} the compressed classifier decided {new} rightly and the original "
        f"{old}, {_apart(evidence, new - old)}, a difference of {points(found.difference)} points (95 % interval "
        f"{points(found.low)} to {points(found.high)})."
    )


def _apart(evidence: Evidence, more: int) -> str:
    return f"{counted(evidence, abs(more))} {'more' if more > 0 else 'fewer'}" if more else "as many"


def counted(evidence: Evidence, number: int) -> str:
    """So many units of decision, such as "one picture"."""
    single, several = UNITS.get(str(evidence.cohort["unit"]), ("case", "cases"))
    return f"one {single}" if number == 1 else f"{number} {several}"


def ability(evidence: Evidence) -> str:
    """What so many cases could have shown at all."""
    found = evidence.reach
    if found is None:
        return ""
    held, seen = (
        "none" if value is None else f"{100 * value:.1f} points"
        for value in (found.smallest_margin, found.smallest_difference)
    )
    return (
        f"With {100 * POWER:g} % power, {found.cases} cases of {found.patients} patients can show non-inferiority at a "
        f"margin of {held} or more, were both equally good, and a difference of {seen} or more."
    )
