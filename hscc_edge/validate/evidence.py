"""Everything that a validation found, as one object: the report and its JSON are two views of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hscc_edge.bundle import Bundle
from hscc_edge.data.cohort import Cohort
from hscc_edge.validate.collect import Collection, Conditions, Progress, collect
from hscc_edge.validate.compare import Comparison, compare
from hscc_edge.validate.latency import Race
from hscc_edge.validate.machine import machine_facts as machine_facts
from hscc_edge.validate.metrics import Figures, figures_of
from hscc_edge.validate.outcomes import outcomes
from hscc_edge.validate.predict import Case
from hscc_edge.validate.predictions import Predictions

SCHEMA = 1
NOT_RUN = ("TensorRT on a Jetson: not run", "power and temperature: not measured")


@dataclass(frozen=True, slots=True)
class Evidence:
    """A candidate against its reference on one cohort."""

    reference: dict[str, Any]
    candidate: dict[str, Any]
    cohort: dict[str, Any]
    conditions: dict[str, Any]
    reference_figures: Figures
    candidate_figures: Figures
    comparison: Comparison
    race: Race
    cases: tuple[dict[str, Any], ...]
    not_run: tuple[str, ...] = NOT_RUN

    def to_json(self) -> dict[str, Any]:
        """Plain JSON objects under a versioned schema."""
        return {"schema": SCHEMA, **asdict(self)}


def gather(
    candidate: Bundle, reference: Bundle, cohort: Cohort, conditions: Conditions, progress: Progress | None = None
) -> Evidence:
    """Collect here and weigh at once; raises as `collect` does."""
    return weigh(collect(candidate, reference, cohort, conditions, progress))


def weigh(found: Collection) -> Evidence:
    """The figures of a collection, wherever it was made; nothing is run again."""
    first, second = found.reference, found.candidate
    return Evidence(
        reference=_facts(first),
        candidate=_facts(second),
        cohort=dict(found.cohort),
        conditions=dict(found.conditions),
        reference_figures=_figures(first),
        candidate_figures=_figures(second),
        comparison=compare(first.cases, second.cases, first.head),
        race=found.race,
        cases=tuple(_case_facts(a, b) for a, b in zip(first.cases, second.cases, strict=True)),
    )


def _facts(found: Predictions) -> dict[str, Any]:
    return {key: value for key, value in found.bundle.items() if key not in ("head", "decision", "preprocess")}


def _figures(found: Predictions) -> Figures:
    return figures_of(outcomes(found.cases, found.head.labels))


def _case_facts(first: Case, second: Case) -> dict[str, Any]:
    return {
        "case": first.key,
        "label": first.label,
        "reference": first.decision.label,
        "candidate": second.decision.label,
        "probabilities": [round(value, 6) for value in second.decision.probabilities],
    }
