"""Everything that a validation found, as one object: the report and its JSON are two views of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hscc_edge.bundle import Bundle
from hscc_edge.data.cohort import Cohort
from hscc_edge.validate import timing
from hscc_edge.validate.collect import Collection, Conditions, Progress, collect
from hscc_edge.validate.compare import Comparison, compare
from hscc_edge.validate.gate import Gating
from hscc_edge.validate.intervals import Estimate
from hscc_edge.validate.latency import Race
from hscc_edge.validate.metrics import Figures, figures_of
from hscc_edge.validate.noninferiority import Verdict, judge
from hscc_edge.validate.outcomes import outcomes
from hscc_edge.validate.predict import Case
from hscc_edge.validate.predictions import Predictions
from hscc_edge.validate.probabilities import Probabilities, brier_difference, probabilities_of
from hscc_edge.validate.reach import Reach, reach
from hscc_edge.validate.refusals import Refusals, refusals
from hscc_edge.validate.subgroups import Group, groups
from hscc_edge.validate.uses import Use

SCHEMA = 2
CPU = ("ort", "eager")
CPU_ONLY = ("TensorRT on a Jetson: not run", "a GPU: not used, the times are those of a CPU")


@dataclass(frozen=True, slots=True)
class Evidence:
    """A candidate against its reference on one cohort.

    Attributes:
        verdict: non-inferior or not at the margin that was declared; None if none was.
        groups: every class and subgroup, with words if `group_margin`, a share, was declared for them.
        uses: every look at these splits so far, this one last.
        brier_difference: candidate minus reference.
        reach: what so many cases can show at all.
        gate: held against these figures, if there was one.
        timing: what `bench` measured of both on the device; None where a few calls alone were timed.
    """

    reference: dict[str, Any]
    candidate: dict[str, Any]
    cohort: dict[str, Any]
    conditions: dict[str, Any]
    reference_figures: Figures
    candidate_figures: Figures
    comparison: Comparison
    race: Race
    cases: tuple[dict[str, Any], ...]
    verdict: Verdict | None = None
    groups: tuple[Group, ...] = ()
    group_margin: float | None = None
    uses: tuple[Use, ...] = ()
    not_run: tuple[str, ...] = ()
    reference_probabilities: Probabilities | None = None
    candidate_probabilities: Probabilities | None = None
    brier_difference: Estimate | None = None
    reference_refusals: Refusals | None = None
    candidate_refusals: Refusals | None = None
    reach: Reach | None = None
    gate: Gating | None = None
    timing: Mapping[str, Any] | None = None

    @property
    def cpu_only(self) -> bool:
        """Whether no GPU ran it."""
        return self.conditions["runtime"] in CPU

    @property
    def invalid(self) -> str:
        """Why the times say nothing of the device, such as that it throttled; "" if nothing speaks against them."""
        return timing.invalid(self.timing)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON objects under a versioned schema; "gate" only if there was one."""
        found = {"schema": SCHEMA, "cpu_only": self.cpu_only, "invalid": self.invalid, **asdict(self)}
        del found["gate"]
        if self.gate is not None:
            found["gate"] = self.gate.to_json()
        if not math.isfinite(self.comparison.kl):
            names = ("kl", "kl_se", "logit_mean", "logit_largest")
            found["comparison"] |= dict.fromkeys(names)
        return found


def gather(
    candidate: Bundle, reference: Bundle, cohort: Cohort, conditions: Conditions, progress: Progress | None = None
) -> Evidence:
    """Collect here and weigh at once; raises as `collect` does."""
    return weigh(collect(candidate, reference, cohort, conditions, progress))


def weigh(found: Collection, margin: float | None = None, group_margin: float | None = None) -> Evidence:
    """The figures of a collection, wherever it was made; nothing is run again.

    Args:
        margin: declared beforehand, a share: the candidate may decide so much fewer cases rightly.
        group_margin: likewise, of every subgroup.
    """
    first, second = found.reference, found.candidate
    compared = compare(first.cases, second.cases, first.head)
    old, new = (outcomes(side.cases, side.head.labels) for side in (first, second))
    return Evidence(
        reference=_facts(first),
        candidate=_facts(second),
        cohort=dict(found.cohort),
        conditions=dict(found.conditions),
        reference_figures=figures_of(old),
        candidate_figures=figures_of(new),
        comparison=compared,
        race=found.race,
        cases=tuple(_case_facts(a, b) for a, b in zip(first.cases, second.cases, strict=True)),
        verdict=None if margin is None else judge(compared.pairs, margin),
        groups=groups(first.cases, second.cases, found.columns, group_margin),
        group_margin=group_margin,
        uses=found.uses,
        not_run=(*(CPU_ONLY if found.conditions["runtime"] in CPU else ()), *timing.not_measured(found.timing)),
        reference_probabilities=probabilities_of(old, first.head, first.rule.operating_points),
        candidate_probabilities=probabilities_of(new, second.head, second.rule.operating_points),
        brier_difference=brier_difference(old, new, first.head),
        reference_refusals=refusals(first.cases, first.head, first.rule),
        candidate_refusals=refusals(second.cases, second.head, second.rule),
        reach=reach(compared.pairs, margin),
        timing=found.timing,
    )


def _facts(found: Predictions) -> dict[str, Any]:
    return {key: value for key, value in found.bundle.items() if key not in ("head", "decision", "preprocess")}


def _case_facts(first: Case, second: Case) -> dict[str, Any]:
    return {
        "case": first.key,
        "label": first.label,
        "reference": first.decision.label,
        "candidate": second.decision.label,
        "probabilities": [round(value, 6) for value in second.decision.probabilities],
    }
