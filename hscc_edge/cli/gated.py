"""What a gate asks for beyond the evidence: figures at operating points, parity and memory, each only if asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hscc_edge.errors import EngineError

if TYPE_CHECKING:
    from hscc_edge.bundle import Bundle
    from hscc_edge.data.cohort import Cohort
    from hscc_edge.validate.collect import Collection
    from hscc_edge.validate.evidence import Evidence
    from hscc_edge.validate.gate import Gating
    from hscc_edge.validate.requirements import Requirements

ELSEWHERE = "weighed from a collection: run hscc-edge validate with BUNDLE, --reference and --cohort there"


def gated(wanted: Requirements, found: Collection, evidence: Evidence, ran: tuple[Bundle, Cohort] | None) -> Gating:
    """Hold a validation against a gate.

    Args:
        ran: the candidate and the part of the cohort that it ran on; None if the collection was made elsewhere.
    """
    from hscc_edge.export.parity import Parity
    from hscc_edge.validate.agreement import parities
    from hscc_edge.validate.gate import Found, hold
    from hscc_edge.validate.metrics import at_thresholds
    from hscc_edge.validate.outcomes import outcomes

    candidate, conditions = found.candidate, found.conditions
    points = at_thresholds(outcomes(candidate.cases, candidate.head.labels), candidate.rule.operating_points)
    parity: dict[str, Parity] = {}
    not_run = dict.fromkeys(("memory", *(f"parity.{name}" for name in wanted.parity)), ELSEWHERE)
    memory = _collected_mib(found)
    if ran is not None:
        parity, reasons = parities(*ran, candidate.precision, tuple(wanted.parity))
        not_run = {f"parity.{name}": reason for name, reason in reasons.items()}
        if wanted.peak_mib is not None:
            memory, not_run["memory"] = _memory(ran[0], found)
    measured = Found(
        comparison=evidence.comparison,
        classes={item.label: item for item in (*evidence.candidate_figures.classes, *points)},
        groups=evidence.groups,
        race=found.race,
        runtime=str(conditions["runtime"]),
        peak_mib=memory,
        parity=parity,
        not_run=not_run,
        invalid=evidence.invalid,
    )
    return hold(wanted, measured)


def _collected_mib(found: Collection) -> float | None:
    """The candidate's memory as its start-up took it where it was timed."""
    return None if found.timing is None else found.timing["start_up"][-1].get("peak_mib")


def _memory(bundle: Bundle, found: Collection) -> tuple[float | None, str]:
    from hscc_edge.validate.memory import peak_mib

    asked = found.conditions
    try:
        return peak_mib(bundle, str(asked["runtime"]), str(asked["precision"]), int(asked["threads"])), ""
    except EngineError as error:
        return None, str(error)
