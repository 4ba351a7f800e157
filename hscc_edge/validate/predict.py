"""What a bundle decides on a cohort: one decision a case, by the function that the daemon calls too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.case import stream
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import CohortError
from hscc_edge.model.decision import Decision, decide, parse_rule
from hscc_edge.model.head import parse_head
from hscc_edge.runtime import Runtime, infer_batches

Progress = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One case: its pseudonym, its patient's, its label, the decision, and its images' logits (images, n)."""

    key: str
    patient: str
    label: str
    decision: Decision
    logits: NDArray[np.float32] = field(repr=False)


def check_fit(bundle: Bundle, cohort: Cohort) -> None:
    """Refuse a cohort that the bundle was not made for.

    Raises:
        CohortError: if the classes differ.
    """
    if cohort.classes != bundle.spec.labels:
        raise CohortError(
            f"the cohort {cohort.root} has classes {list(cohort.classes)}, the bundle {bundle.root} "
            f"{list(bundle.spec.labels)}: give a cohort with the bundle's classes, in its order"
        )


def predict(
    bundle: Bundle, runtime: Runtime, cohort: Cohort, progress: Progress | None = None, *, batch: int = 1
) -> list[Case]:
    """Decide every case of the cohort, `batch` images of a case in memory at a time.

    Args:
        batch: images that are inferred at once; see `infer_batches` for what more than 1 costs.

    Raises:
        CohortError: if the classes differ, or a case has images of unlike labels.
    """
    check_fit(bundle, cohort)
    preprocess = parse_preprocess(bundle.spec.preprocess)
    rule, head = parse_rule(bundle.spec.decision), parse_head(bundle.spec.head)
    found = []
    for uid, items in cohort.cases(rule.unit).items():
        if len({item.label for item in items}) > 1:
            raise CohortError(
                f"{items[0].file} and others of its {rule.unit} have unlike labels: mend the cohort's table"
            )
        part = replace(cohort, instances=items)
        logits = infer_batches(runtime, (pixels for _, pixels in stream(part, preprocess)), batch)
        decision = decide(rule, head, logits)
        patient = cohort.pseudonym(items[0].patient)
        found.append(Case(cohort.pseudonym(uid), patient, items[0].label, decision, logits))
        if progress is not None:
            progress(len(items), "")
    return found
